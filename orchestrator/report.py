"""The report of a sweep: one HTML file, its figures and tables, and the same numbers as JSON.

Works on a sweep at any stage: what is missing is shown as missing.
"""

import csv
import dataclasses
import importlib.resources
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from orchestrator import figures
from orchestrator.plan import Plan, Trial, TrialCost, unique_trials
from orchestrator.results import RULES, Record, Result, results_of
from orchestrator.space import Choice, Domain, IntRange, LogUniform, Uniform
from orchestrator.stats import MEASURES, Contrast, Estimate, Measure, Summary, by_arm, contrasts, summarise
from orchestrator.sweep import cell_name
from trainables.config import leaves
from trainables.data import SPLITS, Parquet

#: Of summary.json; raised when a key changes its meaning or goes.
FORMAT = 1

Row = dict[str, Any]


def write_report(plan: Plan, records: Mapping[str, Record], folder: Path, details: Mapping[str, Any]) -> Path:
    """Writes report.html, summary.json, tables/*.csv and figures/*.svg into a folder.

    The same input gives the same bytes. Every file appears whole. summary.json holds:

      format, name, question: of this file; of the sweep.
      answer: two sentences.
      partial: whether trials are still without an outcome.
      states: number of distinct trials per outcome, or `running` or `missing`.
      arms: one object per cell and arm, as `stats.Summary` with its best trial written out.
      contrasts: one object per cell, arm and measure, as `stats.Contrast`.
      cost: trial_seconds, epochs, multiply_adds, of all distinct trials and attempts.
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
    results = results_of(plan, records)
    summaries = summarise(results)
    compared = contrasts(summaries, plan.sweep.primary)
    drawings = _draw(plan, results, summaries, compared)
    sections = _sections(plan, records, results, summaries, compared)

    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "tables").mkdir(exist_ok=True)
    for drawing in drawings:
        _write(folder / "figures" / f"{drawing.name}.svg", drawing.svg)
    _write(folder / "tables" / "results.csv", _csv(results_rows(plan, records)))
    _write(folder / "tables" / "summary.csv", _csv([_flat_summary(summary) for summary in summaries]))
    _write(folder / "tables" / "contrasts.csv", _csv([_flat_contrast(contrast) for contrast in compared]))
    document = {
        "format": FORMAT,
        "name": plan.sweep.name,
        "question": plan.sweep.question,
        "answer": list(sections["answer"]),
        "partial": sections["num_open"] > 0,
        "states": sections["states"],
        "arms": [_summary_json(summary) for summary in summaries],
        "contrasts": [dataclasses.asdict(contrast) for contrast in compared],
        "cost": sections["cost"],
        "data": sections["data"],
        "details": details,
    }
    text = json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False)
    _write(folder / "summary.json", text + "\n")
    html = _template().render(sections, drawings=_by_kind(drawings), details=details)
    _write(folder / "report.html", html)
    return folder / "report.html"


def _write(path: Path, text: str) -> None:
    # A reader, or a second report at the same time, never sees half a file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    """A tree of what JSON knows; a number that is not finite becomes null, what is unknown becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _csv(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# ---------------------------------------------------------------------------------------------- tables


def results_rows(plan: Plan, records: Mapping[str, Record]) -> list[Row]:
    """One flat row per trial in the order of the plan, all with the same columns; None where unknown.

    `val_error_pct` is as measured, `error_pct` as it counts (100 if diverged, None if missing), both on the
    selection split; `test_error_pct` is on the final split. `cell.<factor>` is the level, a path of the
    sweep file the value drawn, `config.<path>` the run as it was resolved. `train_flops_g` is the whole
    run's, in 10^9 multiply-adds, `flops_g` one forward pass's of one image; `params_m` is in millions.
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

    Errors are in %, `f2` and `area` (with its interval `area_low` to `area_high`) are shares of 1. `ended`
    counts trials with an outcome, of those `planned`; `diverged` is among them.
    """
    return [_small(summary) for summary in summarise(results_of(plan, records))]


def _small(summary: Summary) -> Row:
    best, area, f2 = summary.best, summary.measures.get("area_under_delta_edf"), summary.measures.get("f2")
    return {
        "cell": summary.cell,
        "arm": summary.arm,
        "planned": summary.num_trials,
        "ended": _num_ended(summary),
        "diverged": summary.states.get("diverged", 0),
        "best_val_error_pct": best.val_error_pct if best else None,
        "best_test_error_pct": best.test_error_pct if best else None,
        "median_error_pct": summary.median_error_pct,
        "f2": f2.value if f2 else None,
        "area": area.value if area else None,
        "area_low": area.low if area else None,
        "area_high": area.high if area else None,
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
    best = summary.best
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
        if field.name not in ("best", "diverged", "measures")
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
            "confirmed": False,
        },
        "diverged": summary.diverged and dataclasses.asdict(summary.diverged),
        "measures": {measure: dataclasses.asdict(estimate) for measure, estimate in summary.measures.items()},
    }


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


def _in_cell(cell: str) -> str:
    return "" if cell == "all" else f" in {cell}"


_BETTER = {
    True: ("is more forgiving of its settings than", "more forgiving of its settings"),
    False: ("has a lower mean error than", "lower in mean error"),
}


def answer(summaries: Sequence[Summary], compared: Sequence[Contrast]) -> tuple[str, str]:
    """The question answered in two sentences: who is more forgiving, and who has the lowest error.

    The first speaks of the contrast declared beforehand, or of the area under the Delta-EDF in every cell.
    """
    if not any(summary.errors_pct for summary in summaries):
        return "There is no answer yet: no trial has a result.", ""
    asked = [contrast for contrast in compared if contrast.primary]
    headline = asked or [contrast for contrast in compared if contrast.measure == "area_under_delta_edf"]
    cells = {contrast.cell for contrast in headline} or {summary.cell for summary in summaries}
    return _first_sentence(headline), _second_sentence([s for s in summaries if s.cell in cells])


def _first_sentence(headline: Sequence[Contrast]) -> str:
    if not headline:
        return "The sweep has one arm, so nothing is compared."
    info = MEASURES[headline[0].measure]
    verb, adjective = _BETTER[info.higher_is_better]
    if len(headline) == 1:
        return _one_contrast(headline[0], verb, adjective)
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
            said.append(f"whether {arm} or {base} is {adjective} is not settled in any cell")
        elif rest:
            said.append(f"not settled in {_listed(rest, len(mine))}")
        parts.append(", ".join(said))
    text = "; ".join(parts)
    return f"{text} (by {info.means}, 95{_PERCENT} intervals of paired differences)."


def _one_contrast(contrast: Contrast, verb: str, adjective: str) -> str:
    measure, info = contrast.measure, MEASURES[contrast.measure]
    if contrast.difference is None:
        numbers = ""
    else:
        interval = _interval_text(contrast.difference, measure, sign=True)
        numbers = (
            f"{info.means} {_measure_text(contrast.value, measure)} for {contrast.arm} against "
            f"{_measure_text(contrast.base_value, measure)} for {contrast.base_arm}, difference "
            f"{_measure_text(contrast.difference.value, measure, sign=True)}"
            f"{f' (95{_PERCENT} interval {interval})' if interval else ''}, {contrast.num_pairs} pairs"
        )
    if contrast.better:
        loser = contrast.base_arm if contrast.better == contrast.arm else contrast.arm
        return f"{contrast.better} {verb} {loser}{_in_cell(contrast.cell)}: {numbers}."
    return (
        f"Whether {contrast.arm} or {contrast.base_arm} is {adjective}{_in_cell(contrast.cell)} is not "
        f"settled, as {contrast.because}{f': {numbers}' if numbers else ''}."
    )


def _listed(cells: Sequence[str], total: int) -> str:
    if total == 1:
        return cells[0]
    if len(cells) == total:
        return f"all {total} cells"
    return f"{len(cells)} of {total} cells ({', '.join(cells)})"


def _second_sentence(summaries: Sequence[Summary]) -> str:
    bests = [(summary, best) for summary in summaries if (best := summary.best) is not None]
    if not bests:
        return "No trial that may rank has ended, so there is no lowest error."
    by_cell: dict[str, list[tuple[Summary, float, float | None]]] = {}
    for summary, best in bests:
        by_cell.setdefault(summary.cell, []).append((summary, best.val_error_pct, best.test_error_pct))
    if len(by_cell) == 1:
        found = sorted(next(iter(by_cell.values())), key=lambda entry: entry[1])
        texts = [
            f"{summary.arm} {percent(val)}{_PERCENT}"
            + ("" if test is None else f" ({percent(test)}{_PERCENT} on the final split)")
            for summary, val, test in found
        ]
        return (
            f"Lowest error on the selection split{_in_cell(found[0][0].cell)}: {', '.join(texts)}; each is "
            "one run, the best of its arm, unconfirmed."
        )
    counts: Counter[str] = Counter()
    for found in by_cell.values():
        lowest = min(val for _, val, _ in found)
        counts["/".join(summary.arm for summary, val, _ in found if val == lowest)] += 1
    if len(counts) == 1:
        (arms,) = counts
        return (
            f"In all {len(by_cell)} cells the lowest error on the selection split is seen with {arms}; each "
            "is one run, unconfirmed."
        )
    texts = [f"{arms} in {count}" for arms, count in counts.most_common()]
    return (
        f"Of {len(by_cell)} cells, the lowest error on the selection split is seen with {', '.join(texts)}; "
        "each is one run, unconfirmed."
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


# ---------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True, slots=True)
class _Drawing:
    kind: str
    name: str
    title: str
    svg: str

    @property
    def markup(self) -> Markup:
        """For the page. Nothing in it is unescaped: matplotlib escapes the text it writes."""
        return Markup(self.svg)


def _draw(
    plan: Plan, results: Sequence[Result], summaries: Sequence[Summary], compared: Sequence[Contrast]
) -> list[_Drawing]:
    drawings: list[_Drawing] = []

    def add(kind: str, names: Iterable[str], title: str, figure: Figure) -> None:
        # A tilde: it occurs in no name of a cell.
        name = "~".join((kind, *names)).replace("/", "~")
        drawings.append(_Drawing(kind, name, title, figures.to_svg(figure)))

    for measure in dict.fromkeys(
        [*(contrast.measure for contrast in compared if contrast.primary), "area_under_delta_edf"]
    ):
        if compared:
            add("differences", [measure], MEASURES[measure].means, figures.differences(compared, measure))
    for cell in plan.sweep.all_cells():
        mine = [summary for summary in summaries if summary.cell == cell_name(cell)]
        name = cell_name(cell)
        arms = by_arm(results, name)
        windows = {arm: plan.sweep.domains(arm, cell) for arm in arms}
        paths = [path for path in plan.sweep.vary if any(path in window for window in windows.values())]
        domains = {
            path: {arm: window[path] for arm, window in windows.items() if path in window} for path in paths
        }
        add("edf", [name], name, figures.delta_edf(mine))
        for path in paths:
            figure = figures.error_over_parameter(arms, path, domains[path])
            add("parameter", [name, path], f"{name}: {path}", figure)
        if len(paths) >= 2 and set(domains[paths[0]]) & set(domains[paths[1]]):
            pair = (paths[0], paths[1])
            figure = figures.error_over_plane(arms, pair, (domains[pair[0]], domains[pair[1]]))
            add("plane", [name], name, figure)
        add("curves", [name], name, figures.curves(arms))
    return drawings


def _by_kind(drawings: Iterable[_Drawing]) -> dict[str, list[_Drawing]]:
    kinds: dict[str, list[_Drawing]] = {
        kind: [] for kind in ("differences", "edf", "parameter", "plane", "curves")
    }
    for drawing in drawings:
        kinds[drawing.kind].append(drawing)
    return kinds


# ---------------------------------------------------------------------------------------------- the page


def _sections(
    plan: Plan,
    records: Mapping[str, Record],
    results: Sequence[Result],
    summaries: Sequence[Summary],
    compared: Sequence[Contrast],
) -> Row:
    """All the template prints, but for figures and details."""
    distinct = {result.trial.id: result for result in results}
    states = Counter(result.state for result in distinct.values())
    num_open = sum(count for state, count in states.items() if state not in RULES)
    return {
        "sweep": plan.sweep,
        "answer": answer(summaries, compared),
        "num_trials": len(distinct),
        "num_open": num_open,
        "states": dict(states),
        "summaries": summaries,
        "contrasts": compared,
        "measures": MEASURES,
        "rules": [{"name": name, "rule": rule, "count": states.get(name, 0)} for name, rule in RULES.items()],
        "troubled": [
            result for result in distinct.values() if result.state in RULES and result.state != "finished"
        ],
        "open": [result for result in distinct.values() if result.state not in RULES],
        "data": _data(plan),
        "rates": _rates(plan),
        "windows": _windows(plan),
        "models": _models(plan),
        "cost": _cost(plan, records),
        "design": plan.sweep.design,
        "num_points": max((summary.num_points for summary in summaries), default=0),
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
    """Where each parameter is drawn."""
    rows = []
    for path in plan.sweep.vary:
        groups = _grouped(
            (_domain_text(domain), cell_name(cell), arm)
            for cell in plan.sweep.all_cells()
            for arm in plan.sweep.arms
            if (domain := plan.sweep.domains(arm, cell).get(path)) is not None
        )
        rows += [{"path": path, **group} for group in groups]
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
        "multiply_adds": sum(len(record.rows) * cost.train_flops // cost.epochs for record, cost in spent),
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
        "short": figures.short,
    }
    source = importlib.resources.files("orchestrator").joinpath("report.html.j2").read_text("utf-8")
    return environment.from_string(source)
