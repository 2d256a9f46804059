"""The report of a sweep: one HTML file, its figures and tables, and the same numbers as JSON.

Works on a sweep at any stage: what is missing is shown as missing, what is refused with the reason.
"""

import concurrent.futures
import csv
import dataclasses
import importlib.resources
import io
import itertools
import json
import math
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from orchestrator import figures
from orchestrator.basin import (
    Basin,
    Extent,
    Importances,
    Landscape,
    Transfer,
    basin,
    importances,
    landscapes,
    transfers,
    useful_surrogate,
)
from orchestrator.fairness import Audit, EdgeCheck, EdgeFlag, audits, edge_check
from orchestrator.gaps import Gap, GapContrast, gaps
from orchestrator.noise import Component, NoiseSummary, noise, noise_floor_pp
from orchestrator.peak import Optimism, TuningCurve, optimism, tuning_curve
from orchestrator.plan import Plan, Trial, TrialCost, unique_trials
from orchestrator.power import POWER, Detectable, Planted, detectable
from orchestrator.results import RULES, Record, Result, results_of
from orchestrator.space import Choice, Domain, IntRange, LogUniform, Ordinal, Uniform
from orchestrator.stats import (
    CONFIDENCE,
    MEASURES,
    Contrast,
    Estimate,
    Measure,
    MeasureInfo,
    PeakContrast,
    ReferenceKind,
    Summary,
    by_arm,
    contrasts,
    peak_contrasts,
    summarise,
)
from orchestrator.sweep import Cell, Primary, cell_name
from trainables.config import leaves
from trainables.data import SPLITS, Parquet

#: Of summary.json; raised when a key changes its meaning or goes.
FORMAT = 2

#: Importance, transfer regret and the audit of windows cost a second per cell. Of a sweep of more cells than
#: this only NUM_DEEP_CELLS get them, those of the primary contrast first, and the page names the others.
MAX_DEEP_CELLS = 12
NUM_DEEP_CELLS = 6
#: With more figures there are no PDFs beside the SVGs.
MAX_PDFS = 60
#: With fewer figures, processes of their own would cost more than they save.
_MIN_POOLED = 9

Row = dict[str, Any]


# The matrices here are small: threads would cost more than they save, and how many there are would show in
# the last digits, which `verify` compares.
_one_thread = threadpool_limits.wrap(limits=1, user_api="blas")


@_one_thread  # type: ignore[untyped-decorator]
def write_report(plan: Plan, records: Mapping[str, Record], folder: Path, details: Mapping[str, Any]) -> Path:
    """Writes report.html, summary.json, tables/* and figures/* into a folder.

    The same input gives the same bytes. Every file appears whole. Tables are CSV with all digits; those of
    the page are also Markdown and LaTeX (booktabs). Figures are SVG and, up to MAX_PDFS of them, PDF.
    summary.json holds:

      format, name, question: of this file; of the sweep.
      answer: two sentences.
      caveats: what stands under the answer: arms whose best lies at the edge of the window.
      partial: whether trials are still without an outcome.
      states: number of distinct trials per outcome, or `running` or `missing`.
      arms: one object per cell and arm, as `stats.Summary` with its best trial written out; `refused` says
        what is not told and why.
      contrasts: one object per cell, arm and measure, as `stats.Contrast`; `decides` as in `MeasureInfo`.
      peak_contrasts: one object per confirmed cell, arm and split, as `stats.PeakContrast`.
      tuning: one object per cell and arm: num_trials, largest_budget, best_of (as `peak.BestOf`, at powers
        of two up to that budget), and optimism (as `peak.Optimism`), null where chance was not measured.
      basins, importances, transfers: as in `basin`.
      edges, audits: as in `fairness`; an audit's verdicts all, not only those that flip.
      not_worked_out: cells without importances, transfers and audits, as the sweep is large.
      gaps, gap_contrasts: as in `gaps`, with `noise_floor_pp` as in `noise`.
      noise: one object per cell and arm, as `noise.NoiseSummary` with its `floor`.
      power: as `power.Detectable`.
      cost: trial_seconds, epochs, multiply_adds, of all distinct trials and attempts; per_arm: one object
        per cell and arm.
      data: one object per data set: name, fingerprint, sizes, splits, selected_on_final.
      details: as given.

    Args:
      plan, records: the sweep, and what the journal says of its trials.
      folder: made if it does not exist.
      details: printed at the end: versions, hardware, time. Values are shown as text.

    Returns:
      The path of report.html.

    Raises:
      OSError: the folder cannot be written to.
    """
    found = _gather(plan, records)
    drawings = _shared_drawings(found)
    parts = _each_cell(found)
    evidence = [part.evidence for part in parts]
    drawings += [drawing for part in parts for drawing in part.drawings]
    tables = _tables(found, evidence)
    sections = _sections(found, evidence)
    document = _plain(_document(found, evidence, sections) | {"details": details})

    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "tables").mkdir(exist_ok=True)
    for drawing in drawings:
        _write(folder / "figures" / f"{drawing.name}.svg", drawing.svg)
        if drawing.pdf is not None:
            _write(folder / "figures" / f"{drawing.name}.pdf", drawing.pdf)
    for name, rows in _flat_tables(found, evidence, document).items():
        if rows:
            _write(folder / "tables" / f"{name}.csv", _csv(rows))
    for table in tables.values():
        if table.rows:
            _write(folder / "tables" / f"{table.name}.md", to_markdown(table))
            _write(folder / "tables" / f"{table.name}.tex", to_latex(table))
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    _write(folder / "summary.json", text + "\n")
    html = _template().render(sections, drawings=_by_kind(drawings), tables=tables, details=details)
    _write(folder / "report.html", html)
    return folder / "report.html"


@dataclass(frozen=True, eq=False)
class _Found:
    """What the statistics say of a whole sweep; what is per cell and takes long is `_Evidence`."""

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
    deep: frozenset[str]
    pdf: bool

    def of(self, cell: str) -> list[Summary]:
        return [summary for summary in self.summaries if summary.cell == cell]


def _gather(plan: Plan, records: Mapping[str, Record]) -> _Found:
    results = results_of(plan, records)
    summaries = summarise(results)
    compared = contrasts(summaries, plan.sweep.primary)
    found_gaps, gap_contrasts = gaps(results, summaries)
    first = [contrast.cell for contrast in compared if contrast.primary]
    cells = list(dict.fromkeys([*first, *plan.sweep.cell_names()]))
    return _Found(
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
        deep=frozenset(cells if len(cells) <= MAX_DEEP_CELLS else cells[:NUM_DEEP_CELLS]),
        pdf=len(cells) * (5 + len(plan.sweep.vary)) + 3 <= MAX_PDFS,
    )


# ---------------------------------------------------------------------------------------------- per cell


@dataclass(frozen=True, eq=False)
class _Evidence:
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
class _Part:
    evidence: _Evidence
    drawings: list["_Drawing"]


def _each_cell(found: _Found) -> list[_Part]:
    """The cells in the order of the sweep, on as many processes as there are cores where that pays."""
    global _shared
    cells = list(found.plan.sweep.all_cells())
    num_workers = min(os.cpu_count() or 1, len(cells))
    num_figures = len(cells) * (5 + len(found.plan.sweep.vary))
    # A copy of a process in which Ray runs would hold locks that nobody opens.
    if num_workers < 2 or num_figures < _MIN_POOLED or sys.platform != "linux" or _ray_runs():
        return [_part(found, cell) for cell in cells]
    # Copies of this process have all that was found: nothing is sent but numbers of cells.
    _shared = found
    try:
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(num_workers, context) as pool:
            return list(pool.map(_part_of_shared, range(len(cells))))
    finally:
        _shared = None


_shared: _Found | None = None


@_one_thread  # type: ignore[untyped-decorator]
def _part_of_shared(index: int) -> _Part:
    assert _shared is not None
    return _part(_shared, list(_shared.plan.sweep.all_cells())[index])


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _part(found: _Found, cell: Cell) -> _Part:
    evidence = _evidence(found, cell_name(cell))
    return _Part(evidence, _cell_drawings(found, cell, evidence))


def _evidence(found: _Found, cell: str) -> _Evidence:
    summaries = {summary.arm: summary for summary in found.of(cell)}
    grounds = [landscape for landscape in found.landscapes if landscape.cell == cell]
    references = {
        (cell, arm): summary.reference_pct
        for arm, summary in summaries.items()
        if summary.reference_kind == "confirmed" and summary.reference_pct is not None
    }
    deep = cell in found.deep
    return _Evidence(
        cell=cell,
        curves={
            arm: tuning_curve(list(s.errors_pct.values())) for arm, s in summaries.items() if s.errors_pct
        },
        optimism={
            arm: optimism(list(s.errors_pct.values()), _noise_sd(found, cell, arm))
            for arm, s in summaries.items()
            if s.errors_pct
        },
        basins=[basin(ground, reference_pct=references.get((cell, ground.arm))) for ground in grounds],
        edges=[edge_check(ground) for ground in grounds],
        importances=[importances(ground) for ground in grounds] if deep else [],
        transfers=transfers(grounds) if deep else [],
        audits=audits(grounds, references) if deep else [],
    )


def _noise_sd(found: _Found, cell: str, arm: str) -> float | None:
    """Of a point's error, which is a mean over replicates."""
    measured = found.noise.get((cell, arm))
    if measured is None or measured.floor is None:
        return None
    return measured.floor.sd_pp.value / math.sqrt(found.plan.sweep.replicates)


# ---------------------------------------------------------------------------------------------- files


def _write(path: Path, content: str | bytes) -> None:
    # A reader, or a second report at the same time, never sees half a file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    """A tree of what JSON knows; a number that is not finite becomes null, what is unknown becomes text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _csv(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(value: Any) -> Row:
    """A dataclass as one row: what is nested by dotted names, lists as JSON."""
    row: Row = {}
    for key, item in _plain(value).items():
        if isinstance(item, dict):
            row |= {f"{key}.{inner}": _scalar(part) for inner, part in _flat(item).items()}
        else:
            row[key] = _scalar(item)
    return row


def _document(found: _Found, evidence: Sequence[_Evidence], sections: Row) -> Row:
    sweep = found.plan.sweep
    return {
        "format": FORMAT,
        "name": sweep.name,
        "question": sweep.question,
        "answer": list(sections["answer"]),
        "caveats": sections["caveats"],
        "partial": sections["num_open"] > 0,
        "states": sections["states"],
        "arms": [_summary_json(summary) for summary in found.summaries],
        "contrasts": [
            _plain(contrast) | {"decides": MEASURES[contrast.measure].decides} for contrast in found.contrasts
        ],
        "peak_contrasts": found.peaks,
        "tuning": [
            {
                "cell": part.cell,
                "arm": arm,
                "num_trials": curve.num_trials,
                "largest_budget": curve.largest_budget,
                "best_of": [curve.at(k) for k in _budgets([curve]) if k <= curve.largest_budget],
                "optimism": part.optimism[arm],
            }
            for part in evidence
            for arm, curve in part.curves.items()
        ],
        "basins": [item for part in evidence for item in part.basins],
        "importances": [item for part in evidence for item in part.importances],
        "transfers": [item for part in evidence for item in part.transfers],
        "edges": [item for part in evidence for item in part.edges],
        "audits": [item for part in evidence for item in part.audits],
        "not_worked_out": sections["not_worked_out"],
        "gaps": [_plain(gap) | {"noise_floor_pp": _plain(_gap_floor(found, gap))} for gap in found.gaps],
        "gap_contrasts": found.gap_contrasts,
        "noise": [_plain(item) | {"floor": _plain(item.floor)} for item in found.noise.values()],
        "power": found.power,
        "cost": sections["cost"],
        "data": sections["data"],
    }


def _flat_tables(found: _Found, evidence: Sequence[_Evidence], document: Row) -> dict[str, list[Row]]:
    """What goes into tables/*.csv, by name; what needs no more than flattening comes from the document."""
    rows = {
        "results": results_rows(found.plan, found.records),
        "summary": [_flat_summary(summary) for summary in found.summaries],
        "contrasts": [_flat_contrast(contrast) for contrast in found.contrasts],
        "cost": document["cost"]["per_arm"],
    }
    rows |= {key: [_flat(item) for item in document[key]] for key in _FLAT}
    rows["tuning"] = [
        {"cell": part.cell, "arm": arm, **_flat(best)}
        for part in evidence
        for arm, curve in part.curves.items()
        for k in range(1, curve.largest_budget + 1)
        if (best := curve.at(k)) is not None
    ]
    rows["audits"] = [
        {"cell": audit.cell, "base_arm": audit.base_arm, "arm": audit.arm, **_flat(verdict)}
        for part in evidence
        for audit in part.audits
        for verdict in audit.verdicts
    ]
    rows["edges"] = [_flat(flag) for part in evidence for check in part.edges for flag in check.flags]
    rows["importances"] = [
        {"cell": item.cell, "arm": item.arm, **_flat(parameter)}
        for part in evidence
        for item in part.importances
        for parameter in item.parameters
    ]
    return rows


_FLAT = ("peak_contrasts", "basins", "transfers", "gaps", "gap_contrasts", "noise", "power")


# ---------------------------------------------------------------------------------------------- rows


def results_rows(plan: Plan, records: Mapping[str, Record]) -> list[Row]:
    """One flat row per trial in the order of the plan, all with the same columns; None where unknown.

    `val_error_pct` is as measured, `error_pct` as it counts (100 if diverged, None if missing), both on the
    selection split; `test_error_pct` is on the final split. `role` says what the trial is for.
    `cell.<factor>` is the level, a path of the sweep file the value drawn, `config.<path>` the run as it
    was resolved. `train_flops_g` is the whole run's, in 10^9 multiply-adds, `flops_g` one forward pass's of
    one image; `params_m` is in millions.
    """
    costs = _costs(plan)
    paths = list(plan.sweep.vary)
    configs = [
        {path: _scalar(value) for path, value in leaves(trial.config.model_dump(mode="json"))}
        for trial in plan.trials
    ]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    rows = []
    for result, config in zip(results_of(plan, records), configs, strict=True):
        trial, record, cost = result.trial, result.record, costs(result.trial)
        rows.append(
            {
                "trial": trial.id,
                "arm": trial.arm,
                "cell": trial.cell_name,
                **{f"cell.{factor}": level for factor, level in trial.cell},
                "point": trial.point,
                "replicate": trial.replicate,
                "role": trial.role,
                **{path: _scalar(trial.values.get(path)) for path in paths},
                "state": result.state,
                "detail": record.detail,
                "val_error_pct": result.own_error_pct,
                "error_pct": result.error_pct,
                "test_error_pct": result.test_error_pct,
                "epochs": len(record.rows),
                "attempts": record.attempts,
                "busy_seconds": record.busy_seconds,
                "params_m": cost.model.params / 1e6,
                "flops_g": cost.model.flops / 1e9,
                "train_flops_g": cost.train_flops / 1e9,
                **{f"config.{key}": config.get(key) for key in keys},
            }
        )
    return rows


def _scalar(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else json.dumps(_plain(value))


def _costs(plan: Plan) -> Callable[[Trial], TrialCost]:
    """Cost by trial, worked out once per model and length: thousands of trials share a few."""
    known: dict[Any, TrialCost] = {}

    def cost(trial: Trial) -> TrialCost:
        config = trial.config
        key = (config.model, config.data, config.schedule.epochs, config.batch_size)
        if key not in known:
            known[key] = plan.cost(trial)
        return known[key]

    return cost


def summary_table(plan: Plan, records: Mapping[str, Record]) -> list[Row]:
    """One small row per cell and arm for the terminal; None where there is nothing yet.

    Errors are in %; `common_area`, with its interval, decides, and `own_area`, from the arm's own reference,
    describes: both are shares of 1. `confirmed_test_error_pct` has its interval, too. `ended` counts trials
    with an outcome, of those `planned`; `diverged` is among them.
    """
    return [_small(summary) for summary in summarise(results_of(plan, records))]


def _small(summary: Summary) -> Row:
    best, confirmed = summary.best, summary.confirmed
    return {
        "cell": summary.cell,
        "arm": summary.arm,
        "planned": summary.num_trials,
        "ended": _num_ended(summary),
        "diverged": summary.states.get("diverged", 0),
        "best_val_error_pct": best.val_error_pct if best else None,
        "best_test_error_pct": best.test_error_pct if best else None,
        **_estimate_columns("confirmed_test_error_pct", confirmed.test if confirmed else None),
        "median_error_pct": summary.median_error_pct,
        **_estimate_columns("common_area", summary.measures.get("area_common")),
        **_estimate_columns("own_area", summary.measures.get("area_under_delta_edf")),
    }


def _num_ended(summary: Summary) -> int:
    return sum(count for state, count in summary.states.items() if state in RULES)


def _estimate_columns(name: str, estimate: Estimate | None) -> Row:
    parts = ("value", "low", "high")
    return {
        name if part == "value" else f"{name}_{part}": getattr(estimate, part) if estimate else None
        for part in parts
    }


def _flat_summary(summary: Summary) -> Row:
    best, confirmed = summary.best, summary.confirmed
    row: Row = {
        "cell": summary.cell,
        "arm": summary.arm,
        "trials": summary.num_trials,
        **{state: summary.states.get(state, 0) for state in (*RULES, "running", "missing")},
        "points": summary.num_points,
        "points_counted": len(summary.errors_pct),
        "points_incomplete": summary.num_incomplete,
        "best_trial": best.trial.id if best else None,
        "best_val_error_pct": best.val_error_pct if best else None,
        "best_test_error_pct": best.test_error_pct if best else None,
        "median_error_pct": summary.median_error_pct,
        "reference_pct": summary.reference_pct,
        "reference_kind": summary.reference_kind,
        "common_reference_pct": summary.common_reference_pct,
        "confirmed_point": confirmed.point if confirmed else None,
        "confirmed_seeds": confirmed.num_seeds if confirmed else None,
        **_estimate_columns("confirmed_val_error_pct", confirmed.val if confirmed else None),
        **_estimate_columns("confirmed_test_error_pct", confirmed.test if confirmed else None),
        **_estimate_columns("diverged_share", summary.diverged),
    }
    for measure in MEASURES:
        row |= _estimate_columns(measure, summary.measures.get(measure))
    return row


def _flat_contrast(contrast: Contrast) -> Row:
    row = {
        field.name: getattr(contrast, field.name)
        for field in dataclasses.fields(contrast)
        if field.name != "difference"
    }
    return row | _estimate_columns("difference", contrast.difference)


def _summary_json(summary: Summary) -> Row:
    best = summary.best
    fields = {
        field.name: getattr(summary, field.name)
        for field in dataclasses.fields(summary)
        if field.name not in ("best", "confirmed", "diverged", "measures")
    }
    return fields | {
        "best": best
        and {
            "trial": best.trial.id,
            "point": best.trial.point,
            "replicate": best.trial.replicate,
            "values": best.trial.values,
            "val_error_pct": best.val_error_pct,
            "test_error_pct": best.test_error_pct,
        },
        "confirmed": summary.confirmed,
        "diverged": summary.diverged,
        "measures": summary.measures,
    }


# ---------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True, slots=True)
class Text:
    """What stands in one place of a table; `small` in small print below it, as intervals are."""

    main: str
    small: str = ""
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One row; the first text is its cell. `kind` is `primary`, `soft` (describes only) or empty."""

    texts: tuple[Text, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table for people: on the page, as Markdown and as LaTeX.

    Attributes:
      name: of its files.
      title: what it holds.
      columns: heads; a number's begins with `#`, and is set to the right.
      rows: as many texts as columns in each.
      notes: what is not in it, and why.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def heads(self) -> list[tuple[str, bool]]:
        """Heads, and whether what is below is numbers."""
        return [(head.lstrip("#"), head.startswith("#")) for head in self.columns]

    def add(self, *texts: str | Text, kind: str = "") -> None:
        """A row; plain text has no small print."""
        assert len(texts) == len(self.columns)
        self.rows.append(Line(tuple(t if isinstance(t, Text) else Text(t) for t in texts), kind))

    def note(self, text: str) -> None:
        """Once, however often it is said."""
        if text not in self.notes:
            self.notes.append(text)


def to_markdown(table: Table) -> str:
    """A table of GitHub's Markdown under its title."""

    def escaped(text: str) -> str:
        for sign in "\\`*_{}[]<>#|~$":
            text = text.replace(sign, f"\\{sign}")
        return text.replace("\n", " ")

    lines = [f"**{escaped(table.title)}**", ""]
    lines.append("| " + " | ".join(escaped(head) for head, _ in table.heads) + " |")
    lines.append("|" + "|".join("---:" if number else "---" for _, number in table.heads) + "|")
    lines += [
        "| " + " | ".join(escaped(_one_line(text)) for text in line.texts) + " |" for line in table.rows
    ]
    if table.notes:
        lines += ["", *(f"- {escaped(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "−": "$-$", "²": "$^2$", "–": "--", "≥": r"$\geq$", "×": r"$\times$",
    "±": r"$\pm$", "\u00a0": "~", "\n": " ", "…": r"\ldots{}",
}  # fmt: skip


def to_latex(table: Table) -> str:
    """A table for LaTeX with the package booktabs; notes are comments."""

    def escaped(text: str) -> str:
        return "".join(_LATEX.get(sign, sign) for sign in text)

    def row(texts: Iterable[str]) -> str:
        return " & ".join(escaped(text) for text in texts) + r" \\"

    columns = "".join("r" if number else "l" for _, number in table.heads)
    lines = [f"% {_one_comment(table.title)}; needs \\usepackage{{booktabs}}"]
    lines += [
        f"\\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        row(head for head, _ in table.heads),
        r"\midrule",
    ]
    before = None
    for line in table.rows:
        if before is not None and line.texts[0].main != before:
            lines.append(r"\addlinespace")
        before = line.texts[0].main
        lines.append(row(_one_line(text) for text in line.texts))
    lines += [r"\bottomrule", r"\end{tabular}", *(f"% {_one_comment(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def _one_comment(text: str) -> str:
    return " ".join(text.split())


def _one_line(text: Text) -> str:
    return f"{text.main} ({text.small})" if text.small else text.main


def _shown(
    estimate: Estimate | None, measure: Measure = "f1", sign: bool = False, otherwise: str = "–"
) -> Text:
    """A number with its interval."""
    if estimate is None:
        return Text(otherwise)
    return Text(_measure_text(estimate.value, measure, sign), _interval_text(estimate, measure, sign))


def _tables(found: _Found, evidence: Sequence[_Evidence]) -> dict[str, Table]:
    made = [
        _peak_table(found, evidence),
        _robustness_table(found),
        _contrast_table(found),
        _peak_contrast_table(found),
        _tuning_table(found, evidence),
        _basin_table(evidence),
        _importance_table(found, evidence),
        _transfer_table(found, evidence),
        _gap_table(found),
        _gap_contrast_table(found),
        _noise_table(found),
        _edge_table(evidence),
        _audit_table(found, evidence),
        _power_table(found),
        _cost_table(found),
    ]
    return {table.name: table for table in made}


def _peak_table(found: _Found, evidence: Sequence[_Evidence]) -> Table:
    table = Table(
        "peak",
        "Lowest error per cell and arm, in %",
        ("Cell", "Arm", "#Trials ended", "#Share diverged", "#Confirmed, selection", "#Confirmed, final",
         "#Best of the sweep, selection", "#same trial, final", "#Optimism of that best (pp)"),
    )  # fmt: skip
    optimisms = {(part.cell, arm): flattery for part in evidence for arm, flattery in part.optimism.items()}
    for s in found.summaries:
        small = [f"{len(s.errors_pct)} points count"] if len(s.errors_pct) < s.num_points else []
        small += [f"{s.num_incomplete} lack a replicate"] if s.num_incomplete else []
        confirmed, best = s.confirmed, s.best
        if confirmed:
            interval = _error_interval(confirmed.val)
            seeds = f"{confirmed.num_seeds} seeds"
            if confirmed.num_diverged:
                seeds += f", {confirmed.num_diverged} diverged"
            val = Text(percent(confirmed.val.value), f"{interval}; {seeds}" if interval else seeds)
            test = _shown(confirmed.test, "error")
        else:
            val, test = Text("unconfirmed"), Text("–")
            if because := s.refused.get("confirmed"):
                table.note(f"{s.cell}, {s.arm}: unconfirmed, as {because}.")
        flattery = optimisms.get((s.cell, s.arm))
        if best is None:
            optimistic = Text("–")
        elif flattery is None:
            optimistic = Text("not known")
        else:
            optimistic = Text(f"{flattery.modelled_pct:.2f}", f"at most {flattery.at_most_pct:.2f}")
        if "diverged" in s.refused:
            table.note(f"{s.cell}, {s.arm}: {s.refused['diverged']}.")
        table.add(
            s.cell,
            s.arm,
            Text(f"{_num_ended(s)} of {s.num_trials}", ", ".join(small)),
            _shown(s.diverged, otherwise="refused" if "diverged" in s.refused else "–"),
            val,
            test,
            percent(best.val_error_pct) if best else "–",
            percent(best.test_error_pct) if best else "–",
            optimistic,
        )
    if any(s.best for s in found.summaries) and not all(optimisms.values()):
        table.note(
            "Optimism is by how much the lowest error flatters its own setting. Where nothing was run twice "
            "the size of chance cannot be known, and so neither can it."
        )
    return table


def _robustness_table(found: _Found) -> Table:
    heads = [f"#{info.symbol}{'' if info.decides else ' (describes)'}" for info in MEASURES.values()]
    table = Table(
        "robustness",
        "How errors are distributed over the settings, per cell and arm",
        ("Cell", "Arm", "#Points", "#Median error (%)", "#Reference of Delta (%)", *heads),
    )
    for s in found.summaries:
        for measure in ("delta_edf", "confirmed_reference"):
            if measure in s.refused:
                what = "refused" if measure == "delta_edf" else "not measured from the confirmed best"
                table.note(f"{s.cell}, {s.arm}: {what}, as {s.refused[measure]}.")
        kind = {"confirmed": "confirmed", "sweep_minimum": "unconfirmed"}.get(s.reference_kind or "", "")
        table.add(
            s.cell,
            s.arm,
            f"{len(s.errors_pct)} of {s.num_points}",
            percent(s.median_error_pct) if "median_error_pct" not in s.refused else "refused",
            Text(percent(s.reference_pct), kind) if s.reference_pct is not None else "none trained",
            *(
                _shown(s.measures.get(key), key, otherwise="refused" if key in s.refused else "–")
                for key in MEASURES
            ),
        )
    return table


def _contrast_table(found: _Found) -> Table:
    base = next(iter(found.plan.sweep.arms))
    table = Table(
        "differences",
        f"Every arm against {base}, on the points that both have",
        (
            "Cell",
            "Arm",
            "Measure",
            f"#{base}",
            "#Arm",
            "#Difference",
            "#Pairs",
            "#p",
            "#p by Holm",
            "Verdict",
        ),
    )
    for c in found.contrasts:
        info = MEASURES[c.measure]
        pairs = Text(str(c.num_pairs), f"{c.num_unpaired} unpaired" if c.num_unpaired else "")
        if c.better:
            verdict = Text(f"{c.better} is better", strong=True)
        elif info.decides:
            verdict = Text("not settled", c.because)
        else:
            verdict = Text("describes")
            table.note(f"Rows that describe: {_DESCRIBES}")
        holm = Text(p_text(c.p_adjusted), f"over {c.num_in_family}" if c.num_in_family > 1 else "")
        table.add(
            c.cell,
            c.arm,
            Text(info.symbol, "primary" if c.primary else ""),
            _measure_text(c.base_value, c.measure),
            _measure_text(c.value, c.measure),
            _shown(c.difference, c.measure, sign=True),
            pairs,
            Text(p_text(c.p_value), _TESTS[c.test]) if info.decides else "–",
            holm if info.decides else "–",
            verdict,
            kind="primary" if c.primary else "" if info.decides else "soft",
        )
    return table


_DESCRIBES = (
    "they are measured from each arm's own reference, and an error in it moves all pairs alike, which no "
    "test over pairs notices: between arms that do not differ they would be called settled in nearly half of "
    "all sweeps. They have a difference and no verdict."
)


def _peak_contrast_table(found: _Found) -> Table:
    base = next(iter(found.plan.sweep.arms))
    table = Table(
        "peak_differences",
        f"Confirmed error of every arm minus that of {base}, in pp",
        ("Cell", "Arm", "Split", "#Difference", "#Noise floor", "#p (Welch)", "#p by Holm", "Verdict"),
    )
    for c in found.peaks:
        sides = [found.noise.get((c.cell, arm)) for arm in (c.arm, c.base_arm)]
        floor = noise_floor_pp(sides[0], sides[1]) if sides[0] and sides[1] else None
        better = _told_apart(c)
        verdict = Text(f"{better} is better", strong=True) if better else Text("not told apart")
        table.add(
            c.cell,
            c.arm,
            _SPLITS[c.split],
            _shown(c.difference, sign=True),
            _shown(floor if c.split == "val" else None),
            p_text(c.p_value),
            p_text(c.p_adjusted),
            verdict,
        )
    return table


def _budgets(curves: Iterable[TuningCurve]) -> list[int]:
    """Powers of two up to the largest number of trials."""
    most = max((curve.num_trials for curve in curves), default=0)
    return [2**i for i in range(most.bit_length())]


def _tuning_table(found: _Found, evidence: Sequence[_Evidence]) -> Table:
    budgets = _budgets(curve for part in evidence for curve in part.curves.values())
    supported = max((curve.largest_budget for part in evidence for curve in part.curves.values()), default=0)
    # One budget that is refused everywhere says it; more would say it again.
    budgets = [k for i, k in enumerate(budgets) if i == 0 or budgets[i - 1] <= supported]
    table = Table(
        "tuning",
        "Median error of the best of k trials (%), with bands that hold at every k at once",
        ("Cell", "Arm", "#Trials", "#Largest k supported", *(f"#k = {k}" for k in budgets)),
    )
    for part in evidence:
        for arm, curve in part.curves.items():
            told = []
            for k in budgets:
                best = curve.at(k)
                if best is None:
                    told.append(Text("refused" if k <= curve.num_trials else "–"))
                else:
                    band = f"{percent(best.low_pct)} to {percent(best.high_pct)}"
                    told.append(Text(percent(best.median_pct), band))
            table.add(part.cell, arm, str(curve.num_trials), str(curve.largest_budget), *told)
    if any(t.main == "refused" for line in table.rows for t in line.texts):
        table.note(
            "Refused beyond the largest k: a setting too rare to have been drawn could be the median best "
            "there, and could have any error."
        )
    for s in found.summaries:
        if "delta_edf" in s.refused:
            table.note(f"{s.cell}, {s.arm}: refused, as {s.refused['delta_edf']}.")
    return table


def _extent_text(extent: Extent | None, squared: bool = False) -> Text:
    if extent is None:
        return Text("–")
    more = "≥ " if extent.touches else ""
    unit = extent.unit.replace("octaves x octaves", "octaves²").replace(" x ", " × ")
    ends = _interval_text(extent.size)
    of = f"of {extent.window:.3g} {unit}"
    digits = f"{extent.size.value:.1f}" if squared else f"{extent.size.value:.2f}"
    return Text(f"{more}{digits}", f"{ends}; {of}" if ends else of)


def _basin_table(evidence: Sequence[_Evidence]) -> Table:
    names = list(
        dict.fromkeys(width.names[0] for part in evidence for b in part.basins for width in b.widths)
    )
    table = Table(
        "basins",
        "The basin around each arm's optimum: where a smooth surface through the errors is within 2 pp of "
        "the reference",
        ("Cell", "Arm", "#Optimum", "#Error there (%)", *(f"#Width in {name}" for name in names),
         "#Area, lr × weight decay", "#lr sensitivity (pp)", "#R2 left out"),
    )  # fmt: skip
    for part in evidence:
        for b in part.basins:
            fit = "–" if b.quality is None else f"{b.quality.r2:.2f}".replace("-", "−")
            if b.because:
                table.note(f"{b.cell}, {b.arm}: no basin, as {b.because}.")
                table.add(b.cell, b.arm, "refused", *["–"] * (len(names) + 3), fit, kind="soft")
                continue
            widths = {width.names[0]: width for width in b.widths}
            values = [
                figures.short(v) if isinstance(v, int | float) and not isinstance(v, bool) else str(v)
                for v in b.optimum.values()
            ]
            table.add(
                b.cell,
                b.arm,
                ", ".join(values),
                percent(b.optimum_pct),
                *(_extent_text(widths.get(name)) for name in names),
                _extent_text(b.area, squared=True),
                _shown(b.lr_sensitivity_pp),
                fit,
            )
            if any(e.touches for e in (*b.widths, *([b.area] if b.area else []))):
                table.note("≥: the basin reaches an edge of the window and may go on there.")
    return table


def _importance_table(found: _Found, evidence: Sequence[_Evidence]) -> Table:
    table = Table(
        "importance",
        "Share of the variance of min(Delta, 10 pp) over the window",
        ("Cell", "Arm", "Parameter", "#alone", "#with others", "#R2 left out"),
    )
    for part in evidence:
        for item in part.importances:
            if item.because:
                table.note(f"{item.cell}, {item.arm}: refused, as {item.because}.")
            for one in item.parameters:
                fit = "–" if item.quality is None else f"{item.quality.r2:.2f}"
                table.add(item.cell, item.arm, one.name, f"{one.main:.2f}", f"{one.total:.2f}", fit)
    _note_left_out(found, table)
    return table


def _note_left_out(found: _Found, table: Table) -> None:
    if left := _not_worked_out(found):
        table.note(
            f"Worked out in {len(found.deep)} cells of {len(found.deep) + len(left)}, as the sweep is large; "
            f"not in: {', '.join(left)}."
        )


def _not_worked_out(found: _Found) -> list[str]:
    return [cell for cell in found.plan.sweep.cell_names() if cell not in found.deep]


def _transfer_table(found: _Found, evidence: Sequence[_Evidence]) -> Table:
    table = Table(
        "transfer",
        "What it costs an arm to run at another arm's best setting, in pp",
        ("Cell", "Arm", "at the best of", "#Regret, as observed", "#Regret, smooth", "#Pairs"),
    )
    for part in evidence:
        for t in part.transfers:
            if t.because:
                table.note(f"{t.cell}, {t.arm} at the best of {t.donor}: refused, as {t.because}.")
                continue
            table.add(t.cell, t.arm, t.donor, _shown(t.regret_pp), _shown(t.smooth_pp), str(t.num_pairs))
            if t.smooth_pp is None:
                table.note(
                    "No smooth regret where an arm's surface up to chance predicts no better than its mean."
                )
    _note_left_out(found, table)
    return table


def _gap_floor(found: _Found, gap: Gap) -> Estimate | None:
    sides = [found.noise.get((cell, gap.arm)) for cell in (gap.pair.cell, gap.pair.base_cell)]
    return noise_floor_pp(sides[0], sides[1]) if sides[0] and sides[1] else None


def _gap_table(found: _Found) -> Table:
    table = Table(
        "gaps",
        "Gaps between cells within an arm, at equal best of k",
        ("Cell", "against", "Arm", "Gap", "#k", "#Points", "#Error (%)", "#Error against (%)", "#Gap (pp)",
         "#Noise floor (pp)"),
    )  # fmt: skip
    for gap in found.gaps:
        floor = _gap_floor(found, gap)
        table.add(
            gap.pair.cell,
            gap.pair.base_cell,
            gap.arm,
            f"{gap.pair.kind.replace('_', ' ')}: {gap.pair.level} against {gap.pair.base_level}",
            str(gap.budget),
            str(gap.num_points),
            percent(gap.error_pct),
            percent(gap.base_error_pct),
            _shown(gap.gap_pp, sign=True),
            _shown(floor, otherwise="not measured"),
        )
    return table


def _gap_contrast_table(found: _Found) -> Table:
    table = Table(
        "gap_differences",
        "Gap of every arm minus that of the first, in pp",
        ("Cell", "against", "Arm", "minus that of", "#k", "#Points", "#Difference", "Smaller gap"),
    )
    for c in found.gap_contrasts:
        verdict = Text(c.better, strong=True) if c.better else Text("not settled")
        table.add(
            c.pair.cell,
            c.pair.base_cell,
            c.arm,
            c.base_arm,
            str(c.budget),
            str(c.num_points),
            _shown(c.difference_pp, sign=True),
            verdict,
        )
    return table


_STREAMS = ("init", "order", "augment")


def _noise_table(found: _Found) -> Table:
    table = Table(
        "noise",
        "Standard deviation of one run that each source of chance causes, in pp",
        ("Cell", "Arm", *(f"#{stream}" for stream in _STREAMS), "#All at once", "#Floor of one run",
         "#of a difference of two"),
    )  # fmt: skip

    def part(one: Component | None) -> Text:
        if one is None:
            return Text("not measured")
        between = _interval_text(one.sd_pp)
        groups = f"{one.num_groups} setting{'s' if one.num_groups > 1 else ''}"
        return Text(f"{one.sd_pp.value:.2f}", f"{between}; {groups}" if between else groups)

    for one in found.noise.values():
        streams = [part(one.streams.get(stream)) for stream in ("init", "order", "augment")]
        table.add(one.cell, one.arm, *streams, part(one.total), part(one.floor), _shown(noise_floor_pp(one)))
        if one.num_diverged_groups:
            table.note(
                f"{one.cell}, {one.arm}: {one.num_diverged_groups} settings left out, as a run of them "
                "diverged while another did not."
            )
    return table


def _edge_table(evidence: Sequence[_Evidence]) -> Table:
    table = Table(
        "edges",
        "Arms whose best lies at an edge of the window while the error still falls there",
        ("Cell", "Arm", "Parameter", "Edge", "By", "#Value", "#Falls by (pp)", "#Refits that agree",
         "What would settle it"),
    )  # fmt: skip
    for check in (check for part in evidence for check in part.edges):
        if check.because:
            table.note(f"{check.cell}, {check.arm}: not judged, as {check.because}.")
        for flag in check.flags:
            strip = flag.extension
            ends = f"{figures.short(strip.low)} to {figures.short(strip.high)}"
            table.add(
                flag.cell,
                flag.arm,
                flag.parameter,
                flag.side,
                " and ".join(flag.signs),
                figures.short(flag.value),
                f"{flag.fall_pp:.2f}",
                f"{flag.support:.0%}",
                f"{strip.num_points} points from {ends}",
            )
    return table


def _audit_table(found: _Found, evidence: Sequence[_Evidence]) -> Table:
    """Verdicts that flip first, then the rest, cell by cell."""
    table = Table(
        "audit",
        "How differences move under other windows over the same points",
        ("Cell", "Arm", "Measure", "Window", "#Difference", "#Effective points", "As drawn", "Here"),
    )
    pairs = [(a, verdict) for part in evidence for a in part.audits for verdict in a.verdicts]
    own = {(a.cell, a.arm, v.measure): v for a, v in reversed(pairs) if v.view == a.verdicts[0].view}

    def said(better: str | None) -> str:
        return f"{better} is better" if better else "open"

    for a, verdict in sorted(pairs, key=lambda pair: not pair[1].flip):
        covered = "" if verdict.covered == 1 else f"{verdict.covered:.0%} of that window has points"
        here = said(verdict.better) if verdict.difference is not None else "refused"
        before = own[a.cell, a.arm, verdict.measure]
        table.add(
            a.cell,
            a.arm,
            MEASURES[verdict.measure].symbol,
            Text(verdict.view, covered),
            _shown(verdict.difference, verdict.measure, sign=True),
            f"{verdict.effective_points:.1f}",
            said(before.better),
            Text(here, verdict.flip or ("" if verdict.difference else verdict.because), bool(verdict.flip)),
        )
    for item in (item for part in evidence for item in part.audits):
        if item.because:
            table.note(f"{item.cell}, {item.arm}: no audit, as {item.because}.")
    _note_left_out(found, table)
    return table


def _power_table(found: _Found) -> Table:
    table = Table(
        "power",
        f"The smallest difference that is found with {POWER:.0%} power, by the planned points",
        ("Cells", "Measure", "#Points", "#Reference arm, planted", "#By closed form", "#By simulation"),
    )
    groups: dict[tuple[Measure, int], list[Detectable]] = {}
    for one in found.power:
        groups.setdefault((one.measure, one.num_points), []).append(one)
    all_cells = set(found.plan.sweep.cell_names())
    for (measure, num_points), same in groups.items():
        if not MEASURES[measure].decides:
            continue
        cells = {one.cell for one in same}
        told = [
            "none" if size is None else f"{size:.2f}" for size in (same[0].closed_form, same[0].simulated)
        ]
        table.add(
            "all" if cells == all_cells else ", ".join(sorted(cells)),
            MEASURES[measure].symbol,
            str(num_points),
            f"{same[0].base_value:.2f}",
            *told,
        )
    return table


def _cost_table(found: _Found) -> Table:
    table = Table(
        "cost",
        "What a result costs: of trials that ran, all attempts included",
        ("Cell", "Arm", "#Trials run", "#Time", "#Time per trial", "#Multiply-adds per trial",
         "#Time of the best", "#Multiply-adds of the best"),
    )  # fmt: skip
    for row in _cost_per_arm(found):
        best = row["best_seconds"] is not None
        table.add(
            row["cell"],
            row["arm"],
            str(row["trials_run"]),
            _duration(row["trial_seconds"]),
            "–" if row["seconds_per_trial"] is None else _duration(row["seconds_per_trial"]),
            "–" if not row["trials_run"] else figures.short(row["multiply_adds_per_trial"]),
            _duration(row["best_seconds"]) if best else "–",
            figures.short(row["best_multiply_adds"]) if best else "–",
        )
    return table


def _cost_per_arm(found: _Found) -> list[Row]:
    """Of every cell and arm, all roles; a trial that arms share counts in each of them."""
    costs = _costs(found.plan)
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in found.results:
        groups.setdefault((result.trial.cell_name, result.trial.arm), []).append(result)
    rows = []
    for s in found.summaries:
        ran = [result for result in groups[s.cell, s.arm] if result.record.attempts or result.record.rows]
        seconds = [result.record.busy_seconds for result in ran]
        work = [_multiply_adds(result.record, costs(result.trial)) for result in ran]
        best = s.best and found.records.get(s.best.trial.id)
        rows.append(
            {
                "cell": s.cell,
                "arm": s.arm,
                "trials_run": len(ran),
                "trial_seconds": sum(seconds),
                "seconds_per_trial": sum(seconds) / len(ran) if ran else None,
                "multiply_adds_per_trial": sum(work) / len(ran) if ran else None,
                "best_seconds": best.busy_seconds if best else None,
                "best_multiply_adds": _multiply_adds(best, costs(s.best.trial)) if best and s.best else None,
            }
        )
    return rows


def _multiply_adds(record: Record, cost: TrialCost) -> int:
    return len(record.rows) * cost.train_flops // cost.epochs


# ---------------------------------------------------------------------------------------------- words


#: The sign after a space at which no line may break.
_PERCENT = "\u00a0%"


def percent(value: float | None) -> str:
    """An error in %, two digits after the point below 10 and one above."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def _share_text(value: float | None, sign: bool = False) -> str:
    if value is None:
        return "–"
    # Adding 0 to the rounded number makes -0 a 0.
    value = round(value, 2) + 0.0
    return f"{value:{'+' if sign and value else ''}.2f}".replace("-", "−")


def _measure_text(value: float | None, measure: Measure, sign: bool = False) -> str:
    """A measure: a share of 1, or a mean error in %."""
    return percent(value) if measure == "error" and not sign else _share_text(value, sign)


def _interval_text(estimate: Estimate | None, measure: Measure = "f1", sign: bool = False) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    low, high = (_measure_text(end, measure, sign) for end in (estimate.low, estimate.high))
    return f"{low} to {high}"


def _error_interval(estimate: Estimate) -> str:
    return _interval_text(estimate, "error")


def p_text(value: float | None) -> str:
    """A p-value: three digits after the point, and no more is claimed."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _p_equals(value: float) -> str:
    text = p_text(value)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


_TESTS = {"wilcoxon": "Wilcoxon", "mcnemar": "McNemar"}

REFERENCES: dict[ReferenceKind | None, str] = {
    "confirmed": "the arm's confirmed best",
    "sweep_minimum": "the lowest error of the arm's sweep, unconfirmed",
    None: "nothing: no point trained",
}


def _in_cell(cell: str) -> str:
    return "" if cell == "all" else f" in {cell}"


def _verb(info: MeasureInfo) -> tuple[str, str]:
    """What the better arm does, before the other's name; and what is asked where it is not settled."""
    if not info.higher_is_better:
        return "has a lower mean error than", "has the lower mean error"
    if info.common:
        return "does well over more of the settings than", "does well over more of the settings"
    return "is more forgiving of its settings than", "is more forgiving of its settings"


def answer(
    summaries: Sequence[Summary], compared: Sequence[Contrast], peaks: Sequence[PeakContrast] = ()
) -> tuple[str, str]:
    """The question answered in two sentences: who does well over more settings, and whose best is best.

    The first speaks of the contrast declared beforehand, or of the default one in every cell.
    """
    if not any(summary.errors_pct for summary in summaries):
        reasons = sorted({s.refused["delta_edf"] for s in summaries if "delta_edf" in s.refused})
        if reasons:
            return f"There is no answer: {'; '.join(reasons)}.", ""
        return "There is no answer yet: no trial has a result.", ""
    headline = _headline(compared)
    cells = {contrast.cell for contrast in headline} or {summary.cell for summary in summaries}
    mine = [summary for summary in summaries if summary.cell in cells]
    return _first_sentence(headline, compared), _second_sentence(mine, peaks)


def _headline(compared: Sequence[Contrast]) -> list[Contrast]:
    asked = [contrast for contrast in compared if contrast.primary]
    return asked or [contrast for contrast in compared if contrast.measure == Primary().measure]


def _first_sentence(headline: Sequence[Contrast], compared: Sequence[Contrast]) -> str:
    if not headline:
        return "The sweep has one arm, so nothing is compared."
    info = MEASURES[headline[0].measure]
    verb, asked = _verb(info)
    if len(headline) == 1:
        return _one_contrast(headline[0], verb, asked, _described(headline[0], compared))
    parts = []
    for arm in dict.fromkeys(contrast.arm for contrast in headline):
        mine = [contrast for contrast in headline if contrast.arm == arm]
        base = mine[0].base_arm
        wins, losses, rest = (
            [contrast.cell for contrast in mine if contrast.better == better] for better in (arm, base, None)
        )
        said = [
            f"{winner} {verb} {loser} in {_listed(cells, len(mine))}"
            for winner, loser, cells in ((arm, base, wins), (base, arm, losses))
            if cells
        ]
        if rest and not said:
            said.append(f"whether {arm} or {base} {asked} is not settled in any cell")
        elif rest:
            said.append(f"not settled in {_listed(rest, len(mine))}")
        parts.append(", ".join(said))
    text = "; ".join(parts)
    tests = " and ".join(sorted({_TESTS[contrast.test] for contrast in headline}))
    return (
        f"{text} (by {info.means}; {tests}, Holm-adjusted, and 95{_PERCENT} intervals of paired differences)."
    )


def _described(contrast: Contrast, compared: Sequence[Contrast]) -> str:
    """The area from each arm's own reference: what the decision does not rest on."""
    for other in compared:
        info = MEASURES[other.measure]
        alike = (other.cell, other.arm) == (contrast.cell, contrast.arm)
        if alike and not info.decides and info.within_pp is None and other.value is not None:
            return (
                f"; measured each from its own best, the areas are {_share_text(other.value)} and "
                f"{_share_text(other.base_value)} (a description, not a test)"
            )
    return ""


def _one_contrast(contrast: Contrast, verb: str, asked: str, described: str) -> str:
    measure, info = contrast.measure, MEASURES[contrast.measure]
    if contrast.difference is None:
        numbers = ""
    else:
        interval = _interval_text(contrast.difference, measure, sign=True)
        p_value = contrast.p_value if contrast.p_adjusted is None else contrast.p_adjusted
        adjusted = f" after Holm over {contrast.num_in_family}" if contrast.num_in_family > 1 else ""
        tested = "" if p_value is None else f", {_TESTS[contrast.test]} {_p_equals(p_value)}{adjusted}"
        numbers = (
            f"{info.means} {_measure_text(contrast.value, measure)} for {contrast.arm} against "
            f"{_measure_text(contrast.base_value, measure)} for {contrast.base_arm}, difference "
            f"{_measure_text(contrast.difference.value, measure, sign=True)}"
            f"{f' (95{_PERCENT} interval {interval})' if interval else ''}{tested}, "
            f"{contrast.num_pairs} pairs{described}"
        )
    if contrast.better:
        loser = contrast.base_arm if contrast.better == contrast.arm else contrast.arm
        return f"{contrast.better} {verb} {loser}{_in_cell(contrast.cell)}: {numbers}."
    return (
        f"Whether {contrast.arm} or {contrast.base_arm} {asked}{_in_cell(contrast.cell)} is not "
        f"settled, as {contrast.because}{f': {numbers}' if numbers else ''}."
    )


def _listed(cells: Sequence[str], total: int) -> str:
    if total == 1:
        return cells[0]
    if len(cells) == total:
        return f"all {total} cells"
    if len(cells) > 6:
        return f"{len(cells)} of {total} cells"
    return f"{len(cells)} of {total} cells ({', '.join(cells)})"


def _second_sentence(summaries: Sequence[Summary], peaks: Sequence[PeakContrast]) -> str:
    by_cell: dict[str, list[Summary]] = {}
    for summary in summaries:
        if summary.best is not None or summary.confirmed is not None:
            by_cell.setdefault(summary.cell, []).append(summary)
    if not by_cell:
        return "No trial that may rank has ended, so there is no lowest error."
    confirmed = [cell for cell, found in by_cell.items() if all(s.confirmed for s in found)]
    if len(by_cell) == 1:
        ((cell, found),) = by_cell.items()
        return _confirmed_peak(found, peaks) if confirmed else _unconfirmed_peak(cell, found)
    open_cells = {cell: found for cell, found in by_cell.items() if cell not in confirmed}
    said = []
    if confirmed:
        said.append(_confirmed_cells(confirmed, peaks))
    if open_cells:
        said.append(_unconfirmed_cells(open_cells, bool(confirmed)))
    return "; ".join(said) + "."


def _confirmed_peak(found: Sequence[Summary], peaks: Sequence[PeakContrast]) -> str:
    pairs = [(summary, confirmed) for summary in found if (confirmed := summary.confirmed) is not None]
    pairs.sort(key=lambda pair: pair[1].val.value)
    texts = []
    for summary, confirmed in pairs:
        interval = _error_interval(confirmed.val)
        parts = [f"{interval}" if interval else "", f"{confirmed.num_seeds} fresh seeds"]
        if confirmed.test is not None:
            test = _error_interval(confirmed.test)
            on_final = f"{percent(confirmed.test.value)}{_PERCENT} on the final split"
            parts.append(on_final + (f", {test}" if test else ""))
        inside = "; ".join(part for part in parts if part)
        texts.append(f"{summary.arm} {percent(confirmed.val.value)}{_PERCENT} ({inside})")
    cell = found[0].cell
    mine = [peak for peak in peaks if peak.cell == cell]
    # The final split where it was measured: no choice was made on it.
    split = "test" if any(peak.split == "test" for peak in mine) else "val"
    compared = [_peak_contrast(peak) for peak in mine if peak.split == split]
    tail = f"; on the {_SPLITS[split]} split {', '.join(compared)}" if compared else ""
    return f"Lowest error on the selection split{_in_cell(cell)}, confirmed: {', '.join(texts)}{tail}."


_SPLITS = {"val": "selection", "test": "final"}


def _told_apart(peak: PeakContrast) -> str | None:
    """The arm of the lower confirmed error; None if that is not settled."""
    p_value = peak.p_value if peak.p_adjusted is None else peak.p_adjusted
    if p_value is None or p_value >= 1 - CONFIDENCE:
        return None
    return peak.arm if peak.difference.value < 0 else peak.base_arm


def _peak_contrast(peak: PeakContrast) -> str:
    interval = _interval_text(peak.difference, sign=True)
    p_value = peak.p_value if peak.p_adjusted is None else peak.p_adjusted
    parts = [
        f"95{_PERCENT} interval {interval}" if interval else "",
        "" if p_value is None else _p_equals(p_value),
    ]
    inside = ", ".join(part for part in parts if part)
    number = f"{_share_text(peak.difference.value, sign=True)} pp{f' ({inside})' if inside else ''}"
    verdict = "" if _told_apart(peak) else ", not told apart"
    return f"{peak.arm} is {number} from {peak.base_arm}{verdict}"


def _confirmed_cells(cells: Sequence[str], peaks: Sequence[PeakContrast]) -> str:
    counts: Counter[str] = Counter()
    for cell in cells:
        mine = [peak for peak in peaks if peak.cell == cell]
        split = "test" if any(peak.split == "test" for peak in mine) else "val"
        for peak in mine:
            if peak.split == split:
                counts[_told_apart(peak) or "neither (not told apart)"] += 1
    texts = ", ".join(f"{arm} in {count}" for arm, count in counts.most_common())
    if not texts:
        return f"In {len(cells)} cells the lowest error is confirmed"
    return f"Of {len(cells)} confirmed cells, the confirmed error is lower with {texts}"


def _unconfirmed_peak(cell: str, summaries: Sequence[Summary]) -> str:
    found = sorted(
        ((summary, best) for summary in summaries if (best := summary.best) is not None),
        key=lambda pair: pair[1].val_error_pct,
    )
    if not found:
        return "No trial that may rank has ended, so there is no lowest error."
    texts = []
    for summary, best in found:
        test = best.test_error_pct
        after = "" if test is None else f" ({percent(test)}{_PERCENT} on the final split)"
        texts.append(f"{summary.arm} {percent(best.val_error_pct)}{_PERCENT}{after}")
    why = [f"{s.arm}: {s.refused['confirmed']}" for s in summaries if "confirmed" in s.refused]
    reasons = f" ({'; '.join(why)})" if why else ""
    return (
        f"Lowest error on the selection split{_in_cell(cell)}: {', '.join(texts)}; each is "
        f"one run, the best of its arm, unconfirmed{reasons}."
    )


def _unconfirmed_cells(by_cell: Mapping[str, Sequence[Summary]], others: bool) -> str:
    counts: Counter[str] = Counter()
    for summaries in by_cell.values():
        found = {s.arm: s.best.val_error_pct for s in summaries if s.best is not None}
        if found:
            lowest = min(found.values())
            counts["/".join(arm for arm, error in found.items() if error == lowest)] += 1
    which = f"the {len(by_cell)} cells not confirmed" if others else f"{len(by_cell)} cells"
    if len(counts) == 1:
        (arms,) = counts
        start = "in" if others else "In all"
        return (
            f"{start} {which} the lowest error on the selection split is seen with {arms}; each "
            "is one run, unconfirmed"
        )
    texts = [f"{arms} in {count}" for arms, count in counts.most_common()]
    return (
        f"{'of' if others else 'Of'} {which}, the lowest error on the selection split is seen with "
        f"{', '.join(texts)}; each is one run, unconfirmed"
    )


#: More caveats than this are counted, not told.
_MAX_CAVEATS = 6


def caveats(found: Sequence[EdgeCheck], cells: Sequence[str]) -> list[str]:
    """What stands under the answer: arms of these cells whose best lies at the edge of the window."""
    flags = [flag for check in found for flag in check.flags]
    mine = [flag for flag in flags if flag.cell in cells]
    texts = [_edge_text(flag) for flag in mine[:_MAX_CAVEATS]]
    if rest := len(flags) - len(texts):
        texts.append(f"{rest} more such finding{'s' if rest > 1 else ''} under Fairness of the windows.")
    return texts


def _edge_text(flag: EdgeFlag) -> str:
    strip = flag.extension
    return (
        f"The best of {flag.arm}{_in_cell(flag.cell)} lies at the {flag.side} end of {flag.parameter} "
        f"({figures.short(flag.value)}), and its error still falls there: the window may have cut it off. "
        f"{strip.num_points} more points from {figures.short(strip.low)} to {figures.short(strip.high)} "
        "would settle it."
    )


def _domain_text(domain: Domain) -> str:
    match domain:
        case LogUniform(log_uniform=(low, high)):
            return f"{figures.short(low)} to {figures.short(high)}, log-uniform ({high / low:.3g}×)"
        case Uniform(uniform=(low, high)):
            return f"{figures.short(low)} to {figures.short(high)}, uniform"
        case IntRange(int_range=(low, high)):
            return f"{low} to {high}, whole numbers"
        case Choice():
            return "one of " + ", ".join(map(str, domain.choice))
        case Ordinal():
            return "one of " + ", ".join(map(str, domain.ordinal)) + ", in this order"


# ---------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True, slots=True)
class _Drawing:
    kind: str
    name: str
    title: str
    svg: str
    pdf: bytes | None

    @property
    def markup(self) -> Markup:
        """For the page. Nothing in it is unescaped: matplotlib escapes the text it writes."""
        return Markup(self.svg)


_KINDS = ("differences", "edf", "tuning", "paired", "parameter", "plane", "curves", "gaps")


def _drawing(kind: str, names: Iterable[str], title: str, figure: Figure, pdf: bool) -> _Drawing:
    # A tilde: it occurs in no name of a cell.
    name = "~".join((kind, *names)).replace("/", "~")
    return _Drawing(kind, name, title, figures.to_svg(figure), figures.to_pdf(figure) if pdf else None)


def _shared_drawings(found: _Found) -> list[_Drawing]:
    """Figures of all cells together."""
    drawings = []
    shown = [contrast.measure for contrast in _headline(found.contrasts)]
    # Beside what decides, the area that each arm has from its own reference, as a description.
    shown += [measure for measure, info in MEASURES.items() if not info.decides and info.within_pp is None]
    for measure in dict.fromkeys(shown) if found.contrasts else []:
        figure = figures.differences(found.contrasts, measure)
        title = MEASURES[measure].means + (
            "" if MEASURES[measure].decides else " (describes, does not decide)"
        )
        drawings.append(_drawing("differences", [measure], title, figure, found.pdf))
    for kind in dict.fromkeys(gap.pair.kind for gap in found.gaps):
        mine = [gap for gap in found.gaps if gap.pair.kind == kind]
        drawings.append(_drawing("gaps", [kind], _GAPS[kind], figures.gap_sizes(mine), found.pdf))
    return drawings


_GAPS = {"training_length": "training-length gap", "optimizer": "optimizer gap, SGD against AdamW"}


def _cell_drawings(found: _Found, cell: Cell, evidence: _Evidence) -> list[_Drawing]:
    plan, name = found.plan, cell_name(cell)
    mine, arms = found.of(name), by_arm(found.results, name)
    windows = {arm: plan.sweep.domains(arm, cell) for arm in arms}
    paths = [path for path in plan.sweep.vary if any(path in window for window in windows.values())]
    domains = {
        path: {arm: window[path] for arm, window in windows.items() if path in window} for path in paths
    }
    drawings: list[_Drawing] = []

    def add(kind: str, names: Iterable[str], title: str, figure: Figure) -> None:
        drawings.append(_drawing(kind, names, title, figure, found.pdf))

    add("edf", [name], name, figures.delta_edf(mine))
    add("tuning", [name], name, figures.tuning_curves(evidence.curves))
    if len(mine) > 1:
        add("paired", [name], name, figures.paired(mine))
    for path in paths:
        add(
            "parameter",
            [name, path],
            f"{name}: {path}",
            figures.error_over_parameter(arms, path, domains[path]),
        )
    if len(paths) >= 2 and set(domains[paths[0]]) & set(domains[paths[1]]):
        pair = (paths[0], paths[1])
        surfaces = {
            ground.arm: surface
            for ground, found_basin in zip(_grounds(found, name), evidence.basins, strict=True)
            if (surface := _surface(ground, found_basin, pair)) is not None
        }
        figure = figures.error_over_plane(arms, pair, (domains[pair[0]], domains[pair[1]]), surfaces)
        add("plane", [name], name, figure)
    add("curves", [name], name, figures.curves(arms))
    return drawings


def _grounds(found: _Found, cell: str) -> list[Landscape]:
    return [landscape for landscape in found.landscapes if landscape.cell == cell]


def _surface(ground: Landscape, around: Basin, paths: tuple[str, str]) -> figures.Surface | None:
    """The surrogate in a plane through its optimum; None where it is of no use or a parameter is a choice."""
    x, y = (ground.axis(path) for path in paths)
    if x is None or y is None or around.reference_pct is None:
        return None
    surrogate, _ = useful_surrogate(ground)
    if surrogate is None:
        return None
    place_BD, _ = surrogate.optima()
    plane = surrogate.over(x, y, place_BD)[0]
    quantiles = np.linspace(0, 1, len(plane))
    return figures.Surface(
        x=[float(ground.axes[x].at(float(u))) for u in quantiles],
        y=[float(ground.axes[y].at(float(u))) for u in quantiles],
        errors_pct=plane,
        basin_pct=around.reference_pct + around.within_pp,
        optimum=(
            float(ground.axes[x].at(float(place_BD[0, x]))),
            float(ground.axes[y].at(float(place_BD[0, y]))),
        ),
    )


def _by_kind(drawings: Iterable[_Drawing]) -> dict[str, list[_Drawing]]:
    kinds: dict[str, list[_Drawing]] = {kind: [] for kind in _KINDS}
    for drawing in drawings:
        kinds[drawing.kind].append(drawing)
    return kinds


# ---------------------------------------------------------------------------------------------- the page


def _sections(found: _Found, evidence: Sequence[_Evidence]) -> Row:
    """All the template prints, but for figures, tables and details."""
    plan, compared = found.plan, found.contrasts
    distinct = {result.trial.id: result for result in found.results}
    states = Counter(result.state for result in distinct.values())
    num_open = sum(count for state, count in states.items() if state not in RULES)
    headline = _headline(compared)
    return {
        "sweep": plan.sweep,
        "answer": answer(found.summaries, compared, found.peaks),
        "caveats": caveats(
            [check for part in evidence for check in part.edges],
            [contrast.cell for contrast in headline] or plan.sweep.cell_names(),
        ),
        "num_trials": len(distinct),
        "num_open": num_open,
        "states": dict(states),
        "summaries": found.summaries,
        "contrasts": compared,
        "over_blocks": any(contrast.interval_over == "blocks" for contrast in compared),
        "num_decide": sum(MEASURES[contrast.measure].decides for contrast in compared),
        "flips": sum(len(audit.flips) for part in evidence for audit in part.audits),
        "not_worked_out": _not_worked_out(found),
        "references": REFERENCES,
        "reference_kinds": sorted({s.reference_kind for s in found.summaries if s.reference_kind}),
        "planted": Planted(),
        "describes": _DESCRIBES,
        "pdf": found.pdf,
        "rules": [{"name": name, "rule": rule, "count": states.get(name, 0)} for name, rule in RULES.items()],
        "troubled": [
            result for result in distinct.values() if result.state in RULES and result.state != "finished"
        ],
        "open": [result for result in distinct.values() if result.state not in RULES],
        "data": _data(plan),
        "rates": _rates(plan),
        "windows": _windows(plan),
        "models": _models(plan),
        "cost": _cost(plan, found.records) | {"per_arm": _cost_per_arm(found)},
        "design": plan.sweep.design,
        "num_points": max((summary.num_points for summary in found.summaries), default=0),
    }


def _data(plan: Plan) -> list[Row]:
    """Every data set with what each of its splits is for."""
    cells: dict[Any, dict[str, None]] = {}
    for trial in plan.trials:
        cells.setdefault(trial.config.data, {})[trial.cell_name] = None
    return [
        {
            "name": plan.infos[data].name,
            "cells": list(names),
            "num_classes": plan.infos[data].num_classes,
            "fingerprint": plan.infos[data].fingerprint,
            "skipped": plan.infos[data].skipped,
            "sizes": {split: plan.infos[data].sizes[split] for split in SPLITS},
            "splits": {split: plan.infos[data].splits[split] for split in SPLITS},
            "selected_on_final": isinstance(data, Parquet) and data.selection == "final",
        }
        for data, names in cells.items()
    ]


def _grouped(texts: Iterable[tuple[str, str, str]]) -> list[Row]:
    """Texts with the cells and arms they hold for."""
    groups: dict[str, dict[str, list[str]]] = {}
    for text, cell, arm in texts:
        arms = groups.setdefault(text, {}).setdefault(cell, [])
        if arm not in arms:
            arms.append(arm)
    return [{"text": text, "cells": cells} for text, cells in groups.items()]


def _rates(plan: Plan) -> list[Row]:
    """What batch size a learning rate of this report is quoted for, and what the optimizer got."""

    def text(trial: Trial) -> str:
        optim, batch = trial.config.optim, trial.config.batch_size
        if optim.lr_batch_size is None:
            return f"lr is what the optimizer gets at its peak, at a batch of {batch}"
        factor = optim.peak_lr(batch) / optim.lr
        rule = "in proportion" if optim.lr_scaling == "linear" else "with the square root"
        return (
            f"lr is quoted for a batch of {optim.lr_batch_size}; at the batch of {batch} used here the "
            f"optimizer gets {factor:.4g} times it at its peak (scaled {rule})"
        )

    return _grouped((text(trial), trial.cell_name, trial.arm) for trial in plan.trials)


def _windows(plan: Plan) -> list[Row]:
    """Where each parameter is drawn, and what constraints take away."""
    rows = []
    for path in plan.sweep.vary:
        groups = _grouped(
            (_domain_text(domain), cell_name(cell), arm)
            for cell in plan.sweep.all_cells()
            for arm in plan.sweep.arms
            if (domain := plan.sweep.domains(arm, cell).get(path)) is not None
        )
        beside = "".join(
            f"; only where {needed} is {value}" for needed, value in plan.sweep.vary[path].when.items()
        )
        if head := plan.sweep.vary[path].zip:
            beside += f"; together with {head}"
        rows += [{"path": path, **group | {"text": group["text"] + beside}} for group in groups]
    for rule in plan.sweep.where:
        groups = _grouped(
            (f"{rule} (removes {removal.removed} of {removal.drawn} points)", removal.cell_name, removal.arm)
            for removal in plan.removals
            if removal.constraint == rule
        )
        rows += [{"path": "constraint", **group} for group in groups]
    return rows


def _models(plan: Plan) -> list[Row]:
    """What each arm costs: parameters, forward multiply-adds, length; cells that agree in one row."""
    costs = _costs(plan)
    seen: dict[tuple[str, str], list[TrialCost]] = {}
    for trial in plan.trials:
        seen.setdefault((trial.arm, trial.cell_name), []).append(costs(trial))

    def span(values: Iterable[float]) -> str:
        low, high = min(found := list(values)), max(found)
        return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"

    groups: dict[tuple[str, ...], list[str]] = {}
    for (arm, cell), found in seen.items():
        key = (
            arm,
            span(cost.model.params / 1e6 for cost in found),
            span(cost.model.flops / 1e9 for cost in found),
            span(cost.epochs for cost in found),
            span(cost.steps for cost in found),
        )
        groups.setdefault(key, []).append(cell)
    columns = ("arm", "params_m", "flops_g", "epochs", "steps")
    return [{**dict(zip(columns, key, strict=True)), "cells": cells} for key, cells in groups.items()]


def _cost(plan: Plan, records: Mapping[str, Record]) -> Row:
    """Of all attempts; arms that coincide share their trials, which count once."""
    costs = _costs(plan)
    spent = [
        (record, costs(trial)) for trial in unique_trials(plan.trials) if (record := records.get(trial.id))
    ]
    return {
        "trial_seconds": sum(record.busy_seconds for record, _ in spent),
        "epochs": sum(len(record.rows) for record, _ in spent),
        "multiply_adds": sum(_multiply_adds(record, cost) for record, cost in spent),
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _where(cells: Mapping[str, Sequence[str]], arms: Sequence[str]) -> str:
    """`adamw, sgd` or, where not all arms are meant, `adamw (vit_p)`."""
    parts = [
        cell if len(found) == len(arms) else f"{cell} ({', '.join(found)})" for cell, found in cells.items()
    ]
    return ", ".join(parts)


def _by_cell(lines: Sequence[Line]) -> list[list[Line]]:
    """Neighbours of one cell together."""
    return [list(group) for _, group in itertools.groupby(lines, lambda line: line.texts[0].main)]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "share": _share_text,
        "measure": _measure_text,
        "interval": _interval_text,
        "duration": _duration,
        "where": _where,
        "groups": _by_cell,
        "short": figures.short,
    }
    source = importlib.resources.files("orchestrator").joinpath("report.html.j2").read_text("utf-8")
    return environment.from_string(source)
