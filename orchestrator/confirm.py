"""Which settings are worth running again with fresh seeds."""

from collections.abc import Iterable

from orchestrator.plan import Confirmation
from orchestrator.results import Result, by_cell_and_arm, by_point


def choose(results: Iterable[Result], top: int, seeds: int) -> Confirmation:
    """The `top` points of lowest selection error per cell and arm, each to be run `seeds` times.

    Replicates of a point are averaged first. The winner of a sweep was lucky as well as good; its own
    error flatters it, and only runs that had no part in the choice can say by how much. Points that
    diverged or have no result are never chosen.
    """
    ranked = (r for r in results if r.trial.is_tried and r.rule is not None and r.rule.ranked)
    groups = by_cell_and_arm(result for result in ranked if result.error_pct is not None)
    return Confirmation(points={key: _best(group, top) for key, group in groups.items()}, seeds=seeds)


def _best(results: Iterable[Result], top: int) -> tuple[int, ...]:
    """The points of the lowest mean error, best first."""
    means = {}
    for point, replicates in by_point(results).items():
        errors = [error for result in replicates if (error := result.error_pct) is not None]
        means[point] = sum(errors) / len(errors)
    # Equal errors are common on small test sets; the earlier point wins, for want of a reason.
    return tuple(sorted(means, key=lambda point: (means[point], point))[:top])
