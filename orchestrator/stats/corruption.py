"""Corruption error, its mean, and both relative to a reference."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainables.base import CLEAN, CORRUPTION


@dataclass(frozen=True, slots=True)
class CorruptionError:
    """Errors of one network under corruption, in percent.

    Attributes:
      clean_pct: on the images uncorrupted.
      mean_pct: mean over the kinds of corruption that were tried.
      excess_pct: `mean_pct` less `clean_pct`: what corruption costs.
    """

    clean_pct: float
    mean_pct: float

    @property
    def excess_pct(self) -> float:
        return self.mean_pct - self.clean_pct


def kinds_in(errors_pct: Mapping[str, float]) -> list[str]:
    """Returns the corruptions among the named errors of a row."""
    return [name.removeprefix(CORRUPTION) for name in errors_pct if name.startswith(CORRUPTION)]


def corruption_error(errors_pct: Mapping[str, float]) -> CorruptionError | None:
    """The errors under corruption in a row's `extra` in two numbers; None where nothing was corrupted."""
    if not (kinds := kinds_in(errors_pct)):
        return None
    return CorruptionError(
        errors_pct[CLEAN], sum(errors_pct[CORRUPTION + kind] for kind in kinds) / len(kinds)
    )


def mean_corruption_error(errors_pct: Mapping[str, float], reference_pct: Mapping[str, float]) -> float:
    """mCE: the mean over kinds of the error as a percentage of the reference's error.

    Args:
      errors_pct, reference_pct: `extra` of the two last rows. An error of a kind is a mean
        over severities there, which has the same ratio as the sum over them here and in the paper.

    Raises:
      ValueError: the two were not tried on the same corruptions, on none, or the reference has no error
        under one of them.
    """
    kinds = _common(errors_pct, reference_pct)
    if perfect := [kind for kind in kinds if reference_pct[CORRUPTION + kind] == 0]:
        raise ValueError(f"the reference has no error under {perfect}: nothing to measure by")
    ratios = [errors_pct[CORRUPTION + kind] / reference_pct[CORRUPTION + kind] for kind in kinds]
    return 100 * sum(ratios) / len(ratios)


def relative_corruption_error(errors_pct: Mapping[str, float], reference_pct: Mapping[str, float]) -> float:
    """Relative mCE: the mean over kinds of what corruption adds, as a percentage of what it adds there.

    It asks how gracefully a network gets worse, whatever its clean error.

    Raises:
      ValueError: as `mean_corruption_error`; or corruption adds nothing to the reference's error.
    """
    kinds = _common(errors_pct, reference_pct)
    added = {kind: reference_pct[CORRUPTION + kind] - reference_pct[CLEAN] for kind in kinds}
    if unharmed := [kind for kind in kinds if added[kind] <= 0]:
        raise ValueError(f"the reference gets no worse under {unharmed}: nothing to measure by")
    ratios = [(errors_pct[CORRUPTION + kind] - errors_pct[CLEAN]) / added[kind] for kind in kinds]
    return 100 * sum(ratios) / len(ratios)


def _common(errors_pct: Mapping[str, float], reference_pct: Mapping[str, float]) -> list[str]:
    kinds = kinds_in(errors_pct)
    if not kinds or set(kinds) != set(kinds_in(reference_pct)):
        raise ValueError(
            f"both need errors under the same corruptions, got {kinds} and {kinds_in(reference_pct)}"
        )
    return kinds
