"""All that the statistics say of a sweep, gathered once: what the tables, the words and the page tell."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.basin import Basin, basin, landscapes
from orchestrator.analysis.contrasts import Contrast, PeakContrast, contrasts, peak_contrasts
from orchestrator.analysis.gaps import Gap, GapContrast, gaps
from orchestrator.analysis.noise import NoiseSummary, noise, noise_floor_pp
from orchestrator.analysis.power import Detectable, detectable
from orchestrator.analysis.sensitivity import Importances, Transfer, importances, transfers
from orchestrator.analysis.shift import ShiftSummary, shift_summaries
from orchestrator.analysis.summary import Summary, summarise
from orchestrator.analysis.window_audit import Audit, EdgeCheck, audits, edge_check
from orchestrator.cost.actual import Planned
from orchestrator.cost.ledger import Ledger
from orchestrator.stats.best_of import Optimism, TuningCurve, optimism, tuning_curve
from orchestrator.stats.intervals import Estimate
from orchestrator.stats.surrogate import Landscape
from orchestrator.trials.records import Record, Result, results_of
from orchestrator.trials.trial import Plan, Trial, TrialCost

#: Importance, transfer regret and the audit of windows cost a second per cell. Of a sweep of more cells than
#: this only NUM_DEEP_CELLS get them, those of the primary contrast first, and the page names the others.
MAX_DEEP_CELLS = 12
NUM_DEEP_CELLS = 6


@dataclass(frozen=True, eq=False)
class CellDetails:
    """What takes long, of one cell; the last three are empty where the sweep is too large for them."""

    cell: str
    curves: dict[str, TuningCurve]
    optimism: dict[str, Optimism | None]
    basins: list[Basin]
    edges: list[EdgeCheck]
    importances: list[Importances]
    transfers: list[Transfer]
    audits: list[Audit]


@dataclass(frozen=True, eq=False)
class Findings:
    """What the statistics say of a sweep.

    Attributes:
      cost: of a trial, worked out once per model and length.
      deep: the cells that get what takes a second each.
      evidence: what takes long, by cell in the order of the sweep; empty until it has been worked out.
      spent: where the time of the devices went; None where there is no journal of its own.
      planned: what was expected before the first trial; None where nobody said.
      The others are as the module of their type has them.
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
    evidence: tuple[CellDetails, ...] = ()
    shifts: tuple[ShiftSummary, ...] = ()
    spent: Ledger | None = None
    planned: Planned | None = None

    def of(self, cell: str) -> list[Summary]:
        """The arms of a cell."""
        return [summary for summary in self.summaries if summary.cell == cell]

    def grounds(self, cell: str) -> list[Landscape]:
        """The arms of a cell, as far as they have a landscape."""
        return [landscape for landscape in self.landscapes if landscape.cell == cell]

    def with_evidence(self, evidence: Iterable[CellDetails]) -> "Findings":
        """The same, with what takes long."""
        return dataclasses.replace(self, evidence=tuple(evidence))


def gather(
    plan: Plan,
    records: Mapping[str, Record],
    spent: Ledger | None = None,
    planned: Planned | None = None,
) -> Findings:
    """All but the evidence, which may be worked out cell by cell in several processes."""
    results = results_of(plan, records)
    summaries = summarise(results)
    compared = contrasts(summaries, plan.sweep.primary)
    found_gaps, gap_contrasts = gaps(results, summaries)
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
        power=detectable(plan),
        cost=costs_of(plan),
        shifts=tuple(shift_summaries(results, summaries)),
        deep=frozenset(cells if len(cells) <= MAX_DEEP_CELLS else cells[:NUM_DEEP_CELLS]),
        spent=spent,
        planned=planned,
    )


def evidence_of(found: Findings, cell: str) -> CellDetails:
    """What takes long, of one cell."""
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
        optimism={
            arm: (
                # The best of a search is not that of its draws, and how a sampler chose is not modelled.
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
    """Of a point's error, which is a mean over replicates."""
    measured = found.noise.get((cell, arm))
    if measured is None or measured.floor is None:
        return None
    return measured.floor.sd_pp.value / math.sqrt(found.plan.sweep.replicates)


def not_worked_out(found: Findings) -> list[str]:
    """Cells without importances, transfers and audits, as the sweep is large."""
    return [cell for cell in found.plan.sweep.cell_names() if cell not in found.deep]


def gap_floor(found: Findings, gap: Gap) -> Estimate | None:
    """The standard deviation of a difference between one run of each cell; None where it was not measured."""
    sides = [found.noise.get((cell, gap.arm)) for cell in (gap.pair.cell, gap.pair.base_cell)]
    return noise_floor_pp(sides[0], sides[1]) if sides[0] and sides[1] else None


def budgets(curves: Iterable[TuningCurve]) -> list[int]:
    """Powers of two up to the largest number of trials."""
    most = max((curve.num_trials for curve in curves), default=0)
    return [2**i for i in range(most.bit_length())]


def costs_of(plan: Plan) -> Callable[[Trial], TrialCost]:
    """Cost by trial, worked out once per model and length: thousands of trials share a few."""
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
