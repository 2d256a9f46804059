"""Optuna samplers, which choose the next points of a search."""

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

#: Most proposals per wanted point, because a sampler may propose points that do not fit.
MAX_MISSES = 50

#: Samplers by name. Arguments: the seed, and the number of points before the model is used.
SAMPLERS: dict[str, Callable[[int, int], optuna.samplers.BaseSampler]] = {
    # constant_liar keeps the points of a round apart.
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
    """Returns the next points, chosen by one of SAMPLERS. See `search.Propose`.

    The sampler works on quantiles. A log-uniform window is uniform in them, and a list has equal steps.
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
            # The worst error, because a point marked as failed would be proposed again and again.
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
    # The middle of a step, so that rounding does not lead into the next step.
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
