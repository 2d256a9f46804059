"""Mean corruption error of a network, absolute and relative to a reference."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainables.base import CLEAN, CORRUPTION


@dataclass(frozen=True, slots=True)
class CorruptionError:
    """Errors of one network under corruption, in percent.

    Attributes:
      clean_pct: error on the uncorrupted images.
      mean_pct: mean error over the kinds of corruption that were measured.
      excess_pct: `mean_pct` minus `clean_pct`, the error that corruption adds.
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
    """Returns the clean and the mean corrupted error from a row's `extra`. None if it has no corruption."""
    if not (kinds := kinds_in(errors_pct)):
        return None
    return CorruptionError(
        errors_pct[CLEAN], sum(errors_pct[CORRUPTION + kind] for kind in kinds) / len(kinds)
    )


def mean_corruption_error(errors_pct: Mapping[str, float], reference_pct: Mapping[str, float]) -> float:
    """Returns the mCE: the mean over kinds of the error as a percentage of the reference's error.

    Args:
      errors_pct, reference_pct: `extra` of the two last rows. The error of a kind is a mean over severities.
        The paper has the sum over them, which gives the same ratio.

    Raises:
      ValueError: the corruptions differ, there are none, or the reference's error under one of them is 0.
    """
    kinds = _common(errors_pct, reference_pct)
    if perfect := [kind for kind in kinds if reference_pct[CORRUPTION + kind] == 0]:
        raise ValueError(f"the reference has no error under {perfect}: nothing to measure by")
    ratios = [errors_pct[CORRUPTION + kind] / reference_pct[CORRUPTION + kind] for kind in kinds]
    return 100 * sum(ratios) / len(ratios)


def relative_corruption_error(errors_pct: Mapping[str, float], reference_pct: Mapping[str, float]) -> float:
    """Returns the relative mCE: the mean over kinds of the added error, as a percentage of the reference's.

    It measures how fast a network degrades, independent of its clean error.

    Raises:
      ValueError: as `mean_corruption_error`, or corruption adds nothing to the reference's error.
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
