"""The law of shapes, fitted to the finished trials of each arm. See `orchestrator.stats.shape_law`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from orchestrator.stats.shape_law import (
    Profile,
    Runs,
    ShapeLaw,
    extrapolation_error,
    fit,
    shared_exponents_test,
    with_reference,
)
from orchestrator.trials.records import Result
from orchestrator.trials.trial import Trial, TrialCost

#: Dimensions of a ViT's shape, and where they are in its configuration.
DIMENSIONS = {"width": "width", "depth": "num_blocks", "mlp": "hidden"}

#: Fewest sizes of a dimension, and fewest lengths of training, that a law is fitted to.
MIN_SIZES, MIN_LENGTHS = 4, 3

#: MLPs are of one ratio to the width if it differs by no more, as a share: hidden widths are whole numbers.
_SAME_RATIO = 0.05

#: The largest mean relative error of predictions at the largest compute with which a law is believed.
MOST_MISS = 0.1


@dataclass(frozen=True, slots=True)
class Growth:
    """One dimension of an arm's best shape.

    Attributes:
      exponent: the power of compute by which it grows.
      best: its best size at the reference compute.
    """

    exponent: Profile
    best: Profile

    @property
    def is_told(self) -> bool:
        """Returns whether the runs determine both."""
        return self.exponent.is_told and self.best.is_told


@dataclass(frozen=True, slots=True)
class ArmShape:
    """The law of one arm.

    Attributes:
      arm: its name.
      runs: number of pairs of shape and length with a result.
      because: the reason if there is no law, else empty.
      growth: by dimension that varies.
      compute_exponent: the power by which error falls with compute.
      residual_pct, miss_pct: relative error of the fit, and of predictions at the largest compute by a fit to
        all other runs; the latter is None with too few of these.
    """

    arm: str
    runs: int
    because: str = ""
    growth: dict[str, Growth] = field(default_factory=dict)
    compute_exponent: float | None = None
    residual_pct: float | None = None
    miss_pct: float | None = None

    @property
    def is_believed(self) -> bool:
        """Returns whether the law predicts longer runs, as far as that could be tested."""
        return not self.because and (self.miss_pct is None or self.miss_pct <= 100 * MOST_MISS)


@dataclass(frozen=True, slots=True)
class Shapes:
    """The laws of all arms.

    Attributes:
      reference: compute for which best shapes are asked, in 10^9 multiply-adds of forward passes.
      largest: the largest compute of a run.
      arms: in the order of the file.
      p_shared: p-value of the hypothesis that all arms with a law grow by the same exponents; None with
        fewer than two.
    """

    reference: float
    largest: float
    arms: tuple[ArmShape, ...]
    p_shared: float | None


def shapes(
    results: Iterable[Result],
    cost: Callable[[Trial], TrialCost],
    num_train: Callable[[Trial], int],
    ahead: float,
) -> Shapes:
    """Returns the law of each arm.

    Trials of one shape and length of training count once, with the lowest error over their other settings,
    each a mean over replicates. Diverged trials are left out, because the law is of runs that learn.

    Args:
      results: the trials of a sweep.
      cost: returns the cost of a trial.
      num_train: returns the training images of a trial.
      ahead: for how many times the largest compute the best shape is asked.
    """
    groups: dict[str, dict[tuple[float, ...], dict[object, list[float]]]] = {}
    compute: dict[tuple[str, tuple[float, ...]], float] = {}
    unfit: dict[str, str] = {}
    for result in results:
        trial = result.trial
        model = trial.config.model
        arm = groups.setdefault(trial.arm, {})
        if model.family != "vit":
            unfit[trial.arm] = f"family {model.family} has no width, depth and MLP: only vit has"
        elif (error_pct := result.finished_pct) is not None:
            sizes = [float(getattr(model, name)) for name in DIMENSIONS.values()]
            key = (*sizes, float(trial.config.schedule.epochs))
            settings = (trial.cell_name, trial.point)
            arm.setdefault(key, {}).setdefault(settings, []).append(error_pct)
            images = trial.config.schedule.epochs * num_train(trial)
            compute[trial.arm, key] = cost(trial).model.flops_g * images
    largest = max(compute.values(), default=0.0)
    reference = ahead * largest
    runs: dict[str, Runs | str] = {
        arm: unfit.get(arm)
        or _runs({key: (compute[arm, key], _lowest(found)) for key, found in by_key.items()})
        for arm, by_key in groups.items()
    }
    laws = {arm: _law(found, largest) for arm, found in runs.items() if isinstance(found, Runs)}
    arms = tuple(
        ArmShape(arm, len(groups[arm]), found)
        if isinstance(found, str)
        else _arm(arm, len(groups[arm]), laws[arm], reference)
        for arm, found in runs.items()
    )
    comparable = len(laws) > 1 and len({law.runs.dimensions for law in laws.values()}) == 1
    p_shared = shared_exponents_test(list(laws.values())) if comparable else None
    return Shapes(reference, largest, arms, p_shared)


def _lowest(found: dict[object, list[float]]) -> float:
    return min(fmean(errors) for errors in found.values())


def _runs(found: dict[tuple[float, ...], tuple[float, float]]) -> Runs | str:
    """Returns the runs of an arm over the dimensions that vary, or the reason why they give no law."""
    table = np.array(list(found))
    if not len(table):
        return "no trial has finished"
    counts = {name: len(set(table[:, place])) for place, name in enumerate(DIMENSIONS)}
    varying = tuple(name for name, count in counts.items() if count >= MIN_SIZES)
    ratios = table[:, 2] / table[:, 0]
    if {"width", "mlp"} <= set(varying) and np.ptp(ratios) <= _SAME_RATIO * ratios.mean():
        # The MLP follows the width, so that they are one dimension.
        varying = tuple(name for name in varying if name != "mlp")
        counts["mlp"] = 1
    if not varying:
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        return f"a law needs {MIN_SIZES} sizes of a dimension or more; there are {told}"
    if few := [name for name, count in counts.items() if 1 < count < MIN_SIZES]:
        return f"{few[0]} has {counts[few[0]]} sizes: {MIN_SIZES} are needed, or one"
    if (lengths := len(set(table[:, -1]))) < MIN_LENGTHS:
        return f"a law needs {MIN_LENGTHS} lengths of training or more (schedule.epochs); there are {lengths}"
    places = [place for place, name in enumerate(DIMENSIONS) if name in varying]
    values = np.array(list(found.values()))
    if (values[:, 1] <= 0).any():
        return "a run without any error has no place in a law of relative errors"
    runs = Runs(varying, table[:, places], values[:, 0], values[:, 1])
    if len(table) <= runs.num_parameters:
        return f"{len(table)} pairs of shape and length are too few for {runs.num_parameters} parameters"
    return runs


def _law(runs: Runs, largest: float) -> ShapeLaw:
    # In a unit within the data.
    law = fit(runs, largest)
    assert law is not None
    return law


def _arm(arm: str, count: int, law: ShapeLaw, reference: float) -> ArmShape:
    there = with_reference(law, reference)
    miss = extrapolation_error(law)
    return ArmShape(
        arm,
        count,
        growth={name: _growth(law, there, name) for name in law.runs.dimensions},
        compute_exponent=law.compute_exponent,
        residual_pct=100 * law.residual,
        miss_pct=None if miss is None else 100 * miss,
    )


def _growth(law: ShapeLaw, there: ShapeLaw, name: str) -> Growth:
    return Growth(law.exponent(name), there.best_size(name))
