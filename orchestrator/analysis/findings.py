"""All statistics of a sweep, computed once for the tables, the text and the page of the report."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.basin import Basin, basin, landscapes
from orchestrator.analysis.collapse import ArmMaps, Collapse, arm_maps, outdated
from orchestrator.analysis.contrasts import Contrast, PeakContrast, contrasts_of, looks_of, peak_contrasts
from orchestrator.analysis.exchange import ArmExchange, exchanges
from orchestrator.analysis.gaps import Gap, GapContrast, gaps
from orchestrator.analysis.noise import NoiseSummary, noise, noise_floor_pp
from orchestrator.analysis.pooled import Pooled, pooled
from orchestrator.analysis.power import Detectable, detectable
from orchestrator.analysis.sensitivity import Importances, Transfer, importances, transfers
from orchestrator.analysis.shift import ShiftSummary, shift_summaries
from orchestrator.analysis.summary import Summary, summarise
from orchestrator.analysis.window_audit import Audit, EdgeCheck, audits, edge_check
from orchestrator.cost.actual import Planned
from orchestrator.cost.ledger import Ledger
from orchestrator.stats.best_of import Optimism, TuningCurve, optimism, tuning_curve
from orchestrator.stats.intervals import Estimate
from orchestrator.stats.looks import Looks
from orchestrator.stats.surrogate import Landscape
from orchestrator.trials.declared import Declared
from orchestrator.trials.records import Record, Result, results_of
from orchestrator.trials.trial import Plan, Trial, TrialCost

#: Largest number of cells with importance, transfer regret and window audit, which take a second per cell. In
#: a larger sweep only NUM_DEEP_CELLS get them, those of the primary contrast first. The page names the
#: others.
MAX_DEEP_CELLS = 12
NUM_DEEP_CELLS = 6


@dataclass(frozen=True, eq=False)
class CellDetails:
    """The slow statistics of one cell. The last three are empty if the sweep is too large for them."""

    cell: str
    curves: dict[str, TuningCurve]
    exchanges: list[ArmExchange]
    optimism: dict[str, Optimism | None]
    basins: list[Basin]
    edges: list[EdgeCheck]
    importances: list[Importances]
    transfers: list[Transfer]
    audits: list[Audit]


@dataclass(frozen=True, eq=False)
class Findings:
    """The statistics of a sweep.

    Attributes:
      cost: cost of a trial, computed once per model and length.
      deep: the cells with the statistics that take a second each.
      evidence: the slow statistics by cell, in the order of the sweep; empty until they are computed.
      spent: use of the devices' time; None if there is no journal of its own.
      planned: expected costs from before the first trial; None if the plan was not recorded.
      looks: the numbers of points at which verdicts are taken.
      declared: what was declared before the results, and what was changed after them; None if unknown.
      collapse: the attention maps of trials, if they were looked at and the weights are still the same.
      collapse_because: why they are left out although they were looked at, else empty.
      arm_maps: the same by arm.
      The modules of their types describe the other attributes.
    """

    plan: Plan
    records: Mapping[str, Record]
    results: list[Result]
    summaries: list[Summary]
    contrasts: list[Contrast]
    peaks: list[PeakContrast]
    landscapes: list[Landscape]
    noise: dict[tuple[str, str], NoiseSummary]
    gaps: list[Gap]
    gap_contrasts: list[GapContrast]
    power: list[Detectable]
    cost: Callable[[Trial], TrialCost]
    deep: frozenset[str]
    looks: Looks
    evidence: tuple[CellDetails, ...] = ()
    shifts: tuple[ShiftSummary, ...] = ()
    pooled: tuple[Pooled, ...] = ()
    spent: Ledger | None = None
    planned: Planned | None = None
    declared: Declared | None = None
    collapse: Collapse | None = None
    collapse_because: str = ""
    arm_maps: tuple[ArmMaps, ...] = ()

    def of(self, cell: str) -> list[Summary]:
        """Returns the summaries of the arms of a cell."""
        return [summary for summary in self.summaries if summary.cell == cell]

    def grounds(self, cell: str) -> list[Landscape]:
        """Returns the landscapes of the arms of a cell."""
        return [landscape for landscape in self.landscapes if landscape.cell == cell]

    @property
    def exchanges(self) -> list[ArmExchange]:
        """Every arm against the first one of its cell; empty until the evidence is computed."""
        return [one for part in self.evidence for one in part.exchanges]

    def with_evidence(self, evidence: Iterable[CellDetails]) -> "Findings":
        """Returns the findings with the slow statistics added."""
        return dataclasses.replace(self, evidence=tuple(evidence))


def gather(
    plan: Plan,
    records: Mapping[str, Record],
    spent: Ledger | None = None,
    planned: Planned | None = None,
    declared: Declared | None = None,
    collapse: Collapse | None = None,
) -> Findings:
    """Computes all but the evidence, which several processes may compute cell by cell."""
    if old := outdated(collapse, records) if collapse else []:
        collapse = None
    results = results_of(plan, records)
    summaries = summarise(results)
    compared = contrasts_of(summaries, plan.sweep, declared)
    looks, num_points = looks_of(plan.sweep, declared), plan.sweep.design.num_points(plan.sweep.levels())
    found_gaps, gap_contrasts = gaps(results, summaries, looks, num_points)
    first = [contrast.cell for contrast in compared if contrast.primary]
    cells = list(dict.fromkeys([*first, *plan.sweep.cell_names()]))
    return Findings(
        plan=plan,
        records=records,
        results=results,
        summaries=summaries,
        contrasts=compared,
        peaks=peak_contrasts(summaries),
        landscapes=landscapes(plan, results),
        noise={(summary.cell, summary.arm): summary for summary in noise(results)},
        gaps=found_gaps,
        gap_contrasts=gap_contrasts,
        power=detectable(plan, looks=looks),
        cost=costs_of(plan),
        shifts=tuple(shift_summaries(results, summaries)),
        pooled=tuple(pooled(summaries, looks, num_points)),
        deep=frozenset(cells if len(cells) <= MAX_DEEP_CELLS else cells[:NUM_DEEP_CELLS]),
        spent=spent,
        planned=planned,
        looks=looks,
        declared=declared,
        collapse=collapse,
        collapse_because=_outdated_text(old),
        arm_maps=tuple(arm_maps(collapse)) if collapse else (),
    )


def _outdated_text(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"Left out: {names[0]}{more} has other weights by the journal than those whose maps were looked at. "
        "`vitc-sweep analyse collapse` looks again."
    )


def evidence_of(found: Findings, cell: str) -> CellDetails:
    """Computes the slow statistics of one cell."""
    summaries = {summary.arm: summary for summary in found.of(cell)}
    grounds = found.grounds(cell)
    references = {
        (cell, arm): summary.reference_pct
        for arm, summary in summaries.items()
        if summary.reference_kind == "confirmed" and summary.reference_pct is not None
    }
    deep = cell in found.deep
    return CellDetails(
        cell=cell,
        curves={
            arm: tuning_curve(list(s.errors_pct.values())) for arm, s in summaries.items() if s.errors_pct
        },
        exchanges=exchanges(
            found.results,
            found.of(cell),
            found.cost,
            found.looks,
            found.plan.sweep.design.num_points(found.plan.sweep.levels()),
        ),
        optimism={
            arm: (
                # No optimism for a search, because there is no model of how its sampler chose the points.
                optimism(list(s.errors_pct.values()), _noise_sd(found, cell, arm))
                if found.plan.sweep.search is None
                else None
            )
            for arm, s in summaries.items()
            if s.errors_pct
        },
        basins=[basin(ground, reference_pct=references.get((cell, ground.arm))) for ground in grounds],
        edges=[edge_check(ground) for ground in grounds],
        importances=[importances(ground) for ground in grounds] if deep else [],
        transfers=transfers(grounds) if deep else [],
        audits=audits(grounds, references) if deep else [],
    )


def _noise_sd(found: Findings, cell: str, arm: str) -> float | None:
    """Returns the standard deviation of a point's error, which is a mean over replicates. None if unknown."""
    measured = found.noise.get((cell, arm))
    if measured is None or measured.floor is None:
        return None
    return measured.floor.sd_pp.value / math.sqrt(found.plan.sweep.replicates)


def not_worked_out(found: Findings) -> list[str]:
    """Returns the cells without importances, transfers and audits, because the sweep is large."""
    return [cell for cell in found.plan.sweep.cell_names() if cell not in found.deep]


def gap_floor(found: Findings, gap: Gap) -> Estimate | None:
    """Returns the standard deviation of the difference of two runs, one per cell. None if not measured."""
    sides = [found.noise.get((cell, gap.arm)) for cell in (gap.pair.cell, gap.pair.base_cell)]
    return noise_floor_pp(sides[0], sides[1]) if sides[0] and sides[1] else None


def budgets(curves: Iterable[TuningCurve]) -> list[int]:
    """Returns the powers of two up to the largest number of trials."""
    most = max((curve.num_trials for curve in curves), default=0)
    return [2**i for i in range(most.bit_length())]


def costs_of(plan: Plan) -> Callable[[Trial], TrialCost]:
    """Returns a cached cost function. Thousands of trials share a few costs, one per model and length."""
    by_kind: dict[Any, TrialCost] = {}
    known: dict[str, TrialCost] = {}

    def cost(trial: Trial) -> TrialCost:
        if (found := known.get(trial.id)) is not None:
            return found
        config = trial.config
        key = (config.model, config.data, config.schedule.epochs, config.batch_size)
        if key not in by_kind:
            by_kind[key] = plan.cost(trial)
        known[trial.id] = by_kind[key]
        return by_kind[key]

    return cost
