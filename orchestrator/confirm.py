"""Which settings are worth running again with fresh seeds."""

from collections.abc import Iterable

from orchestrator.plan import Confirmation
from orchestrator.results import Result


def choose(results: Iterable[Result], top: int, seeds: int) -> Confirmation:
    """The `top` points of lowest selection error per cell and arm, each to be run `seeds` times.

    Replicates of a point are averaged first. The winner of a sweep was lucky as well as good; its own
    error flatters it, and only runs that had no part in the choice can say by how much. Points that
    diverged or have no result are never chosen.
    """
    errors: dict[tuple[str, str], dict[int, list[float]]] = {}
    for result in results:
        if result.trial.is_tried and result.rule is not None and result.rule.ranked:
            if result.error_pct is None:
                continue
            points = errors.setdefault((result.trial.cell_name, result.trial.arm), {})
            points.setdefault(result.trial.point, []).append(result.error_pct)
    return Confirmation(
        points={
            # Equal errors are common on small test sets; the earlier point wins, for want of a reason.
            key: tuple(sorted(points, key=lambda p: (sum(points[p]) / len(points[p]), p))[:top])
            for key, points in errors.items()
        },
        seeds=seeds,
    )
