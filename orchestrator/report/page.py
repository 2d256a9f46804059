"""The report of a sweep: one HTML file, its figures and tables, and the same numbers as JSON.

It works on a sweep at any stage: missing values are shown as missing, refused ones with the reason.
"""

import concurrent.futures
import importlib.resources
import itertools
import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.report import steady_matplotlib  # noqa: F401

# isort: split

import jinja2
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from orchestrator.analysis.basin import Basin
from orchestrator.analysis.collapse import Collapse
from orchestrator.analysis.contrasts import headline
from orchestrator.analysis.findings import CellDetails, Findings, evidence_of, gather
from orchestrator.analysis.summary import Summary, by_arm
from orchestrator.cost.actual import Planned
from orchestrator.cost.ledger import Ledger
from orchestrator.report import figures, figures_attention, figures_parameters, plotting
from orchestrator.report.answer import asked_gaps
from orchestrator.report.document import Row, csv_text, document_of, flat_tables, plain
from orchestrator.report.table import Line, Table, to_latex, to_markdown
from orchestrator.report.tables_attention import collapse_table
from orchestrator.report.tables_exchange import exchange_table, exchange_text
from orchestrator.report.tables_pooled import headline_pooled, pooled_sentence, pooled_table
from orchestrator.report.tables_results import (
    contrast_table,
    paper_table,
    peak_contrast_table,
    peak_table,
    robustness_table,
    search_table,
    tuning_table,
    verdict_table,
)
from orchestrator.report.tables_runs import (
    cost_table,
    ended_table,
    ledger_table,
    outcome_table,
    planned_table,
    power_table,
)
from orchestrator.report.tables_shift import corruption_table, shifted_set_table
from orchestrator.report.tables_windows import (
    audit_table,
    basin_table,
    edge_table,
    gap_contrast_table,
    gap_table,
    importance_table,
    noise_table,
    transfer_table,
)
from orchestrator.report.text import DESCRIBES, REFERENCES, describe_lr_scaling, domain_text, where_text
from orchestrator.stats.measures import MEASURES
from orchestrator.stats.power import Planted
from orchestrator.stats.surrogate import Landscape, useful_surrogate
from orchestrator.sweep.config import ONE_CELL, cell_name
from orchestrator.sweep.space import Cell
from orchestrator.trials.declared import Declared
from orchestrator.trials.numerals import duration, listed, percent, short
from orchestrator.trials.outcomes import RULES
from orchestrator.trials.records import Record
from orchestrator.trials.trial import Plan, Trial, TrialCost, error_term
from trainables.io.files import write_atomically
from trainables.io.machine import usable_cpus

#: With more figures, only SVGs are written and no PDFs.
MAX_PDFS = 60
#: With fewer figures, worker processes would cost more than they save.
_MIN_POOLED = 9
# One thread, because the matrices are small, and because the number of threads would change the last digits,
# which `verify` compares.
_one_thread = threadpool_limits.wrap(limits=1, user_api="blas")


@_one_thread  # type: ignore[untyped-decorator]
def write_report(
    plan: Plan,
    records: Mapping[str, Record],
    folder: Path,
    details: Mapping[str, Any],
    spent: Ledger | None = None,
    planned: Planned | None = None,
    declared: Declared | None = None,
    collapse: Collapse | None = None,
) -> Path:
    """Writes report.html, summary.json, tables/* and figures/* into a folder.

    The same input gives the same bytes. Every file is replaced whole. Tables are CSV with all digits; those
    of the page are also Markdown and LaTeX (booktabs). Figures are SVG and, up to MAX_PDFS of them, PDF.
    docs/report.md describes the keys of summary.json.

    Args:
      plan, records: the sweep, and the records of its trials from the journal.
      folder: the folder to write to, created if it does not exist.
      details: versions, hardware and time, printed as text at the end.
      spent: the use of the devices' time.
      planned: the estimate made before the first trial.
      declared: what was declared before the results, and what was changed after them.
      collapse: the attention maps of trials, if they were looked at.

    Returns:
      The path of report.html.

    Raises:
      OSError: the folder cannot be written to.
    """
    found = gather(plan, records, spent, planned, declared, collapse)
    drawings = _shared_drawings(found)
    parts = _each_cell(found)
    drawings += [drawing for part in parts for drawing in part.drawings]
    found = found.with_evidence(part.evidence for part in parts)
    tables = tables_of(found)
    own = [table for table in tables.values() if table.section and (table.rows or table.notes)]
    document = plain(
        document_of(found) | {table.name: table.data for table in own if table.data} | {"details": details}
    )
    flat = flat_tables(found, document) | {table.name: table.data for table in own}

    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "tables").mkdir(exist_ok=True)
    for drawing in drawings:
        _write(folder / "figures" / f"{drawing.name}.svg", drawing.svg)
        if drawing.pdf is not None:
            _write(folder / "figures" / f"{drawing.name}.pdf", drawing.pdf)
    for name, rows in flat.items():
        if rows:
            _write(folder / "tables" / f"{name}.csv", csv_text(rows))
    for table in tables.values():
        if table.rows:
            _write(folder / "tables" / f"{table.name}.md", to_markdown(table))
            _write(folder / "tables" / f"{table.name}.tex", to_latex(table))
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    _write(folder / "summary.json", text + "\n")
    by_kind = _by_kind(drawings)
    top = _top(found, by_kind["common"])
    by_kind["common"] = [drawing for drawing in by_kind["common"] if drawing not in top]
    asked = {f"gaps~{contrast.pair.kind}" for contrast in asked_gaps(found)}
    top_gaps = [drawing for drawing in by_kind["gaps"] if drawing.name in asked]
    by_kind["gaps"] = [drawing for drawing in by_kind["gaps"] if drawing not in top_gaps]
    html = _template().render(
        _page(found, document),
        drawings=by_kind,
        top=top,
        top_gaps=top_gaps,
        num_more=len(by_kind["common"]),
        tables=tables,
        own=own,
        left_out=_left_out(tables),
        details=details,
    )
    _write(folder / "report.html", html)
    return folder / "report.html"


def _write(path: Path, content: str | bytes) -> None:
    # Not durable, because a report can be written again, and an fsync for each of its files is slow.
    write_atomically(path, content, durable=False)


# --------------------------------------------------------------------------------------------------- per cell


@dataclass(frozen=True, eq=False)
class _Part:
    evidence: CellDetails
    drawings: list["_Drawing"]


def _each_cell(found: Findings) -> list[_Part]:
    """Evaluates and draws the cells in the order of the sweep, on all cores if there are enough figures."""
    cells = list(found.plan.sweep.all_cells())
    num_workers = min(usable_cpus(), len(cells))
    # No fork while Ray runs in this process, because the child would inherit locks that stay closed.
    if num_workers < 2 or _num_figures(found) < _MIN_POOLED or sys.platform != "linux" or _ray_runs():
        return [_part(found, cell) for cell in cells]
    # A forked process shares the findings without pickling, and is sent only the indices of cells.
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(
        num_workers, context, initializer=_FOUND.set, initargs=(found,)
    ) as pool:
        return list(pool.map(_part_by_index, range(len(cells))))


#: The findings that a process of the pool works on. Unset in all other processes.
_FOUND: ContextVar[Findings] = ContextVar("found")


@_one_thread  # type: ignore[untyped-decorator]
def _part_by_index(index: int) -> _Part:
    found = _FOUND.get()
    return _part(found, list(found.plan.sweep.all_cells())[index])


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _part(found: Findings, cell: Cell) -> _Part:
    evidence = evidence_of(found, cell_name(cell))
    return _Part(evidence, _cell_drawings(found, cell, evidence))


# ---------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True, slots=True)
class _Drawing:
    kind: str
    name: str
    title: str
    svg: str
    pdf: bytes | None

    @property
    def markup(self) -> Markup:
        """The SVG for the page. It needs no escaping, because matplotlib escapes the text it writes."""
        return Markup(self.svg)


#: Most figures at the top of the page.
MAX_TOP = 4

_KINDS = (
    "common",
    "differences",
    "edf",
    "tuning",
    "paired",
    "parameter",
    "plane",
    "curves",
    "gaps",
    "collapse",
)


def _num_figures(found: Findings) -> int:
    """Returns an upper bound of the number of figures. The results decide which are drawn."""
    sweep = found.plan.sweep
    return len(sweep.all_cells()) * (6 + len(sweep.vary) + (found.collapse is not None)) + 3


def _drawing(found: Findings, kind: str, names: Iterable[str], title: str, figure: Figure) -> _Drawing:
    # A tilde, because no name of a cell contains one.
    name = "~".join((kind, *names)).replace("/", "~")
    pdf = plotting.to_pdf(figure) if _num_figures(found) <= MAX_PDFS else None
    return _Drawing(kind, name, title, plotting.to_svg(figure), pdf)


def _shared_drawings(found: Findings) -> list[_Drawing]:
    """Draws the figures of all cells together."""
    drawings = []
    shown = [contrast.measure for contrast in headline(found.contrasts)]
    # Next to the measure that decides, the area from each arm's own reference as a description.
    shown += [measure for measure, info in MEASURES.items() if not info.decides and info.within_pp is None]
    for measure in dict.fromkeys(shown) if found.contrasts else []:
        figure = figures.differences(found.contrasts, measure, found.pooled)
        info = MEASURES[measure]
        title = info.means + ("" if info.decides else " (describes, does not decide)")
        drawings.append(_drawing(found, "differences", [measure], title, figure))
    for kind in dict.fromkeys(gap.pair.kind for gap in found.gaps):
        mine = [gap for gap in found.gaps if gap.pair.kind == kind]
        drawings.append(_drawing(found, "gaps", [kind], _GAPS[kind], figures.gap_sizes(mine)))
    for cell, arms in figures_attention.by_cell(found.arm_maps).items():
        title = cell if found.plan.sweep.cells else found.plan.sweep.name
        threshold = found.collapse.threshold if found.collapse else 0.0
        figure = figures_attention.block_similarity(arms, threshold)
        drawings.append(_drawing(found, "collapse", [cell], title, figure))
    return drawings


_GAPS = {"training_length": "training-length gap", "optimizer": "optimizer gap, SGD against AdamW"}


def _cell_drawings(found: Findings, cell: Cell, evidence: CellDetails) -> list[_Drawing]:
    plan, name = found.plan, cell_name(cell)
    mine, arms = found.of(name), by_arm(found.results, name)
    windows = {arm: plan.sweep.domains(arm, cell) for arm in arms}
    paths = [path for path in plan.sweep.vary if any(path in window for window in windows.values())]
    domains = {
        path: {arm: window[path] for arm, window in windows.items() if path in window} for path in paths
    }
    drawings: list[_Drawing] = []

    def add(kind: str, names: Iterable[str], title: str, figure: Figure) -> None:
        drawings.append(_drawing(found, kind, names, title, figure))

    # The only cell has no name of its own.
    title = name if plan.sweep.cells else plan.sweep.name
    add("common", [name], _within_bar(mine, name), figures.common_edf(mine))
    add("edf", [name], title, figures.delta_edf(mine))
    add("tuning", [name], title, figures.tuning_curves(evidence.curves))
    if len(mine) > 1:
        add("paired", [name], title, figures.paired(mine))
    for path in paths:
        add(
            "parameter",
            [name, path],
            f"{name}: {path}" if plan.sweep.cells else path,
            figures_parameters.error_over_parameter(arms, path, domains[path]),
        )
    if len(paths) >= 2 and set(domains[paths[0]]) & set(domains[paths[1]]):
        pair = (paths[0], paths[1])
        surfaces = {
            ground.arm: surface
            for ground, found_basin in zip(found.grounds(name), evidence.basins, strict=True)
            if (surface := _surface(ground, found_basin, pair)) is not None
        }
        figure = figures_parameters.error_over_plane(
            arms, pair, (domains[pair[0]], domains[pair[1]]), surfaces
        )
        add("plane", [name], title, figure)
    add("curves", [name], title, figures.curves(arms))
    return drawings


def _top(found: Findings, drawings: Sequence[_Drawing]) -> list[_Drawing]:
    """Returns the figures of the deciding measure for the cells of the answer, for the top of the page."""
    cells = {contrast.cell for contrast in headline(found.contrasts)}
    names = found.plan.sweep.cell_names()
    return [drawing for name, drawing in zip(names, drawings, strict=True) if name in cells][:MAX_TOP]


def _within_bar(summaries: Sequence[Summary], cell: str) -> str:
    """Returns the caption: how many settings of each arm come within the common bar."""
    bar = MEASURES["within_common_bar"].within_pp
    counted = [
        f"{s.arm} at {s.measures['within_common_bar'].value * len(s.errors_pct):.0f} of {len(s.errors_pct)}"
        for s in summaries
        if s.errors_pct
    ]
    where = "" if cell == ONE_CELL else f"{cell}: "
    return f"{where}within {bar:g} points of the best error: {', '.join(counted)}" if counted else cell


def _surface(ground: Landscape, around: Basin, paths: tuple[str, str]) -> figures_parameters.Surface | None:
    """Returns the surrogate in a plane through its optimum. None if unreliable or if an axis is a choice."""
    x, y = (ground.axis(path) for path in paths)
    if x is None or y is None or around.reference_pct is None:
        return None
    surrogate, _ = useful_surrogate(ground)
    if surrogate is None:
        return None
    place_BD, _ = surrogate.optima()
    plane = surrogate.over(x, y, place_BD)[0]
    quantiles = np.linspace(0, 1, len(plane))
    return figures_parameters.Surface(
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


# --------------------------------------------------------------------------------------------------- the page


def _page(found: Findings, document: Row) -> Row:
    """Returns the template's variables without figures, tables and details."""
    plan = found.plan
    distinct = {result.trial.id: result for result in found.results}.values()
    told = ("answer", "caveats", "states", "data", "cost")
    return {key: document[key] for key in told} | {
        "sweep": plan.sweep,
        "error_term": error_term(plan.trials),
        "num_trials": len(distinct),
        "summaries": found.summaries,
        "contrasts": found.contrasts,
        "over_blocks": any(contrast.interval_over == "blocks" for contrast in found.contrasts),
        "looks": listed(found.looks.points),
        "num_decide": sum(MEASURES[contrast.measure].decides for contrast in found.contrasts),
        "flips": sum(len(audit.flips) for part in found.evidence for audit in part.audits),
        "references": REFERENCES,
        "bars": _bars(found),
        "reference_kinds": sorted({s.reference_kind for s in found.summaries if s.reference_kind}),
        "planted": Planted(),
        "describes": DESCRIBES,
        "over_cells": pooled_sentence(headline_pooled(found)),
        "exchange": exchange_text(found),
        "pdf": _num_figures(found) <= MAX_PDFS,
        "troubled": [r for r in distinct if r.state in RULES and r.state != "finished"],
        "open": [r for r in distinct if r.state not in RULES],
        "rates": _rates(plan),
        "windows": _windows(plan),
        "models": _models(found),
        "design": plan.sweep.design,
        "num_points": max((summary.num_points for summary in found.summaries), default=0),
    }


#: Statistics that need many points. Where no arm has enough, the page has a line instead of a section.
_DEMANDING = {"basins": "Basins", "importance": "Importance", "transfer": "Transfer regret"}


def _left_out(tables: Mapping[str, Table]) -> dict[str, str]:
    """Returns a line for every demanding table without a value: its title and the reasons, each once."""
    lines = {}
    for name, title in _DEMANDING.items():
        table = tables[name]
        if table.notes and all(line.kind == "soft" for line in table.rows):
            reasons = dict.fromkeys(note.partition(", as ")[2] or note for note in table.notes)
            lines[name] = f"{title}: not given. Reason: {' '.join(reasons)}"
    return lines


def _bars(found: Findings) -> list[str]:
    """Returns the common reference of each cell, from which the deciding measures are taken."""
    bars = {s.cell: s.common_reference_pct for s in found.summaries}
    confirmed = {s.cell for s in found.summaries if s.reference_kind == "confirmed"}
    return [
        (f"{cell}: " if found.plan.sweep.cells else "")
        + f"{percent(bar)}\u00a0%, {'confirmed' if cell in confirmed else 'unconfirmed'}"
        for cell, bar in bars.items()
        if bar is not None
    ]


def _grouped(texts: Iterable[tuple[str, str, str]]) -> list[Row]:
    """Groups texts with the cells and arms that they apply to."""
    groups: dict[str, dict[str, list[str]]] = {}
    for text, cell, arm in texts:
        arms = groups.setdefault(text, {}).setdefault(cell, [])
        if arm not in arms:
            arms.append(arm)
    return [{"text": text, "cells": cells} for text, cells in groups.items()]


def _rates(plan: Plan) -> list[Row]:
    """Describes the batch sizes that learning rates are quoted for, and the rates used."""

    def staged(trial: Trial) -> str:
        text = describe_lr_scaling(trial.config)
        return f"first stage: {text}" if trial.role == "first_stage" else text

    return _grouped((staged(trial), trial.cell_name, trial.arm) for trial in plan.trials)


def _windows(plan: Plan) -> list[Row]:
    """Lists the window of each parameter, and the points that constraints remove."""
    rows = []
    for path in plan.sweep.vary:
        groups = _grouped(
            (domain_text(domain), cell_name(cell), arm)
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


def _models(found: Findings) -> list[Row]:
    """Lists each arm's parameters, forward multiply-adds and length. Cells that agree share a row."""
    seen: dict[tuple[str, str, str], list[TrialCost]] = {}
    for trial in found.plan.trials:
        key = trial.arm, trial.arm_and_stage, trial.cell_name
        seen.setdefault(key, []).append(found.cost(trial))

    def span(values: Iterable[float]) -> str:
        low, high = min(found := list(values)), max(found)
        return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"

    groups: dict[tuple[str, ...], list[str]] = {}
    for (arm, name, cell), costs in seen.items():
        row = (
            arm,
            name,
            span(cost.model.params / 1e6 for cost in costs),
            span(cost.model.flops / 1e9 for cost in costs),
            span(cost.epochs for cost in costs),
            span(cost.steps for cost in costs),
        )
        groups.setdefault(row, []).append(cell)
    columns = ("arm", "name", "params_m", "flops_g", "epochs", "steps")
    return [{**dict(zip(columns, key, strict=True)), "cells": cells} for key, cells in groups.items()]


def _by_cell(lines: Sequence[Line]) -> list[list[Line]]:
    """Groups neighbouring rows of one cell, or of whatever the first column has."""
    return [list(group) for _, group in itertools.groupby(lines, lambda line: line.texts[0].main)]


def _broken(text: str) -> Markup:
    """Escapes a text and lets its long names break after a slash, a dot or an underscore."""
    return Markup(" ").join(
        Markup("<wbr>").join(part for part in _BREAKS.split(word) if part)
        if len(word) > _LONG_WORD
        else escape(word)
        for word in text.split(" ")
    )


def _plainly(value: Any) -> str:
    """Returns a tree of JSON types in words: `torch 2.14.1, timm 1.0.31`. What is empty is left out."""
    if isinstance(value, Mapping):
        told = {key.replace("_", " "): _plainly(inner) for key, inner in value.items()}
        return ", ".join(f"{key} {text}" for key, text in told.items() if text)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(text for text in map(_plainly, value) if text)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


_LONG_WORD = 14
_BREAKS = re.compile(r"(?<=[/_.])")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "duration": duration,
        "where": where_text,
        "groups": _by_cell,
        "broken": _broken,
        "short": short,
        "plainly": _plainly,
    }
    source = importlib.resources.files(__package__).joinpath("page.html.j2").read_text("utf-8")
    return environment.from_string(source)


#: All tables. Those with a section of their own appear on the page in this order.
TABLES: tuple[Callable[[Findings], Table], ...] = (
    peak_table,
    robustness_table,
    verdict_table,
    contrast_table,
    pooled_table,
    peak_contrast_table,
    search_table,
    tuning_table,
    exchange_table,
    basin_table,
    importance_table,
    transfer_table,
    gap_table,
    gap_contrast_table,
    noise_table,
    edge_table,
    audit_table,
    ended_table,
    outcome_table,
    power_table,
    cost_table,
    ledger_table,
    planned_table,
    corruption_table,
    shifted_set_table,
    collapse_table,
    paper_table,
)


def tables_of(found: Findings) -> dict[str, Table]:
    """Returns all tables by name. A sweep with a single cell has no column for it."""
    tables = [make(found) for make in TABLES]
    if not found.plan.sweep.cells:
        tables = [table.without_cells() for table in tables]
    return {table.name: table for table in tables}
