"""Optuna: who chooses the next points of a search."""

from collections.abc import Callable, Mapping

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from orchestrator.sweep.space import Choice, Domain
from orchestrator.trials.search import Tried
from trainables.base import WORST_PCT

#: Asked for points that fit, a sampler may miss so many times for each that is wanted.
MAX_MISSES = 50

#: By name; the seed, and how many points there are before the model is used.
SAMPLERS: dict[str, Callable[[int, int], optuna.samplers.BaseSampler]] = {
    # constant_liar: the points of a round should not all be the same one.
    "tpe": lambda seed, startup: optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True
    ),
    "gp": lambda seed, startup: optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=startup, deterministic_objective=False
    ),
}


def propose(
    sampler: str,
    domains: Mapping[str, Domain],
    tried: list[Tried],
    count: int,
    seed: int,
    fits: Callable[[Mapping[str, float]], bool],
) -> list[dict[str, float]]:
    """The next points by one of SAMPLERS: see `search.Propose`.

    The sampler works on quantiles: a log-uniform window is uniform to it, and a list is as many steps.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = {path: _axis(domain) for path, domain in domains.items()}
    study = optuna.create_study(sampler=SAMPLERS[sampler](seed % 2**32, min(len(tried), 10)))
    for one in tried:
        study.add_trial(_ended(axes, one))
    found: list[dict[str, float]] = []
    for _ in range(count * MAX_MISSES):
        trial = study.ask(axes)
        quantiles = {path: _quantile(axes[path], value) for path, value in trial.params.items()}
        if fits(quantiles):
            found.append(quantiles)
            if len(found) == count:
                break
        else:
            # As bad as can be: one that had merely failed would be proposed over and over.
            study.tell(trial, WORST_PCT)
    return found


def _axis(domain: Domain) -> BaseDistribution:
    if (count := domain.num_levels) is None:
        return FloatDistribution(0.0, 1.0)
    return (
        CategoricalDistribution(range(count)) if isinstance(domain, Choice) else IntDistribution(0, count - 1)
    )


def _num_steps(axis: BaseDistribution) -> int | None:
    if isinstance(axis, CategoricalDistribution):
        return len(axis.choices)
    return axis.high + 1 if isinstance(axis, IntDistribution) else None


def _quantile(axis: BaseDistribution, value: float) -> float:
    # The middle of a step: rounding must not lead into the next one.
    return value if (count := _num_steps(axis)) is None else (value + 0.5) / count


def _value(axis: BaseDistribution, quantile: float) -> float:
    return quantile if (count := _num_steps(axis)) is None else min(int(quantile * count), count - 1)


def _ended(axes: Mapping[str, BaseDistribution], one: Tried) -> optuna.trial.FrozenTrial:
    states = {"ended": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    return optuna.trial.create_trial(
        state=states[one.state],
        value=one.error_pct if one.state == "ended" else None,
        params={path: _value(axis, one.quantiles[path]) for path, axis in axes.items()},
        distributions=dict(axes),
        intermediate_values={} if one.error_pct is None else {one.epoch: one.error_pct},
    )
