"""The numbers of a report for machines: summary.json, and flat rows for CSV, the terminal and `export`."""

import csv
import dataclasses
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.analysis.contrasts import Contrast, headline
from orchestrator.analysis.exchange import UNITS, ArmExchange
from orchestrator.analysis.findings import Findings, budgets, costs_of, gap_floor, not_worked_out
from orchestrator.analysis.pooled import Pooled
from orchestrator.analysis.summary import Summary, summarise
from orchestrator.cost.utilization import Utilization, mfu_pct
from orchestrator.report.answer import answer_of, caveats, device_caveats, stage_caveats
from orchestrator.report.changes import change_sentences
from orchestrator.stats.intervals import Estimate
from orchestrator.stats.measures import MEASURES
from orchestrator.trials.outcomes import RULES
from orchestrator.trials.records import Record, by_cell_and_arm, results_of
from orchestrator.trials.trial import Plan, TrialCost, unique_trials
from trainables.base import SPLITS
from trainables.data.parquet import Parquet
from trainables.presets import leaves

#: Format of summary.json. It is raised when a key changes its meaning or is removed.
FORMAT = 3
Row = dict[str, Any]


def document_of(found: Findings) -> Row:
    """Returns the contents of summary.json without `details`. docs/report.md describes the keys."""
    sweep, evidence = found.plan.sweep, found.evidence
    states = Counter(result.state for result in {r.trial.id: r for r in found.results}.values())
    asked = [contrast.cell for contrast in headline(found.contrasts)] or sweep.cell_names()
    return {
        "format": FORMAT,
        "name": sweep.name,
        "question": sweep.question,
        "answer": list(answer_of(found)),
        "caveats": [
            *change_sentences(found.declared),
            *caveats([check for part in evidence for check in part.edges], asked),
            *stage_caveats(found.results),
            *device_caveats(found.results),
        ],
        "partial": any(state not in RULES for state in states),
        "states": dict(states),
        "arms": [_summary_json(summary) for summary in found.summaries],
        "contrasts": [
            plain(contrast) | {"decides": MEASURES[contrast.measure].decides} for contrast in found.contrasts
        ],
        "pooled": [plain(row) | {"disagreeing": list(row.disagreeing)} for row in found.pooled],
        "peak_contrasts": found.peaks,
        "tuning": [
            {
                "cell": part.cell,
                "arm": arm,
                "num_trials": curve.num_trials,
                "largest_budget": curve.largest_budget,
                "best_of": [curve.at(k) for k in budgets([curve]) if k <= curve.largest_budget],
                "optimism": part.optimism[arm],
            }
            for part in evidence
            for arm, curve in part.curves.items()
        ],
        "exchange": [_exchange_json(one) for one in found.exchanges],
        "basins": [item for part in evidence for item in part.basins],
        "importances": [item for part in evidence for item in part.importances],
        "transfers": [item for part in evidence for item in part.transfers],
        "edges": [item for part in evidence for item in part.edges],
        "audits": [item for part in evidence for item in part.audits],
        "not_worked_out": not_worked_out(found),
        "gaps": [plain(gap) | {"noise_floor_pp": plain(gap_floor(found, gap))} for gap in found.gaps],
        "gap_contrasts": found.gap_contrasts,
        "noise": [plain(item) | {"floor": plain(item.floor)} for item in found.noise.values()],
        "power": found.power,
        "cost": total_cost(found) | {"per_arm": cost_per_arm(found)},
        "data": data_rows(found.plan),
    }


def data_rows(plan: Plan) -> list[Row]:
    """Returns a row per data set, with the size and the origin of each split."""
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


def total_cost(found: Findings) -> Row:
    """Returns the cost of all attempts. A trial that several arms share counts once."""
    spent = [
        (record, found.cost(trial))
        for trial in unique_trials(found.plan.trials)
        if (record := found.records.get(trial.id))
    ]
    return {
        "trial_seconds": sum(record.busy_seconds for record, _ in spent),
        "epochs": sum(len(record.rows) for record, _ in spent),
        "multiply_adds": sum(_multiply_adds(record, cost) for record, cost in spent),
    }


def cost_per_arm(found: Findings) -> list[Row]:
    """Returns the cost per cell and arm, over all roles. A trial that arms share counts in each of them."""
    groups = by_cell_and_arm(found.results)
    rows = []
    for s in found.summaries:
        ran = [result for result in groups[s.cell, s.arm] if result.record.attempts or result.record.rows]
        seconds = [result.record.busy_seconds for result in ran]
        work = [_multiply_adds(result.record, found.cost(result.trial)) for result in ran]
        utilization = Utilization()
        for result in ran:
            for row, use in result.record.rows_with_devices:
                utilization.count(row, use, found.cost(result.trial), result.trial.gang)
        best = s.best and found.records.get(s.best.trial.id)
        rows.append(
            {
                "cell": s.cell,
                "arm": s.arm,
                "trials_run": len(ran),
                "trial_seconds": sum(seconds),
                "seconds_per_trial": sum(seconds) / len(ran) if ran else None,
                "multiply_adds_per_trial": sum(work) / len(ran) if ran else None,
                "mfu_pct": utilization.mfu_pct,
                "best_seconds": best.busy_seconds if best else None,
                "best_multiply_adds": (
                    _multiply_adds(best, found.cost(s.best.trial)) if best and s.best else None
                ),
            }
        )
    return rows


def _multiply_adds(record: Record, cost: TrialCost) -> int:
    return len(record.rows) * cost.train_flops // cost.epochs


def _exchange_json(one: ArmExchange) -> Row:
    return {
        "cell": one.cell,
        "arm": one.arm,
        "base_arm": one.base_arm,
        "look": one.look,
        "rate": one.rate,
        "reverse": one.reverse,
        "chances": [{"budget": k, **plain(chance)} for k, chance in one.chances.items()],
        "cost_ratios": [{"unit": unit, "value": ratio} for unit, ratio in one.cost_ratios.items()],
        "quotes": [quote for unit in UNITS if (quote := one.quote(unit)) is not None],
    }


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


# ------------------------------------------------------------------------------------------- for tables/*.csv


_FLAT = ("peak_contrasts", "basins", "transfers", "gaps", "gap_contrasts", "noise", "power")


def flat_tables(found: Findings, document: Row) -> dict[str, list[Row]]:
    """Returns the rows of tables/*.csv by name. Some are taken from the document and flattened."""
    rows = {
        "results": results_rows(found.plan, found.records),
        "summary": [_flat_summary(summary) for summary in found.summaries],
        "contrasts": [_flat_contrast(contrast) for contrast in found.contrasts],
        "pooled": [_flat_pooled(row) for row in found.pooled],
        "cost": document["cost"]["per_arm"],
    }
    rows |= {key: [_flat(item) for item in document[key]] for key in _FLAT}
    rows["tuning"] = [
        {"cell": part.cell, "arm": arm, **_flat(best)}
        for part in found.evidence
        for arm, curve in part.curves.items()
        for k in range(1, curve.largest_budget + 1)
        if (best := curve.at(k)) is not None
    ]
    rows["exchange"] = [
        {"cell": one.cell, "arm": arm, "base_arm": base_arm, **_flat(rate)}
        for one in found.exchanges
        for arm, base_arm, way in (
            (one.arm, one.base_arm, one.rate),
            (one.base_arm, one.arm, one.reverse),
        )
        for rate in way.rates
    ]
    rows["audits"] = [
        {"cell": audit.cell, "base_arm": audit.base_arm, "arm": audit.arm, **_flat(verdict)}
        for part in found.evidence
        for audit in part.audits
        for verdict in audit.verdicts
    ]
    rows["edges"] = [_flat(flag) for part in found.evidence for check in part.edges for flag in check.flags]
    rows["importances"] = [
        {"cell": item.cell, "arm": item.arm, **_flat(parameter)}
        for part in found.evidence
        for item in part.importances
        for parameter in item.parameters
    ]
    return rows


def results_rows(plan: Plan, records: Mapping[str, Record]) -> list[Row]:
    """Returns one flat row per trial in the order of the plan, all with the same columns.

    An unknown value is None. `val_error_pct` is the measured error; `error_pct` is the error that counts (100
    if diverged, None if missing). Both are on the selection split; `test_error_pct` is on the final split.
    `extra.<name>` are values that decide nothing. `role` is the purpose of the trial. `cell.<factor>` is the
    level, a path of the sweep file is the value drawn, `config.<path>` is the resolved setting.
    `train_flops_g` covers the whole run, `flops_g` one forward pass of one image, both in 10^9 multiply-adds.
    `params_m` is in millions. `mfu_pct` is the utilization of listed GPUs in training. `device`, `dtype`,
    `driver`, `cuda` and `tf32` are those of the epochs that count, with "; " between them if there are
    several; `deterministic` is true if it was so in all of them.
    """
    costs = costs_of(plan)
    paths = list(plan.sweep.vary)
    configs = [
        {path: _scalar(value) for path, value in leaves(trial.config.model_dump(mode="json"))}
        for trial in plan.trials
    ]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    extras = list(dict.fromkeys(name for record in records.values() for name in _extra(record)))
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
                **{f"extra.{name}": _extra(record).get(name) for name in extras},
                "epochs": len(record.rows),
                "attempts": record.attempts,
                "busy_seconds": record.busy_seconds,
                "mfu_pct": mfu_pct(record.rows_with_devices, cost, trial.gang),
                **_device_columns(record),
                "params_m": cost.model.params / 1e6,
                "flops_g": cost.model.flops / 1e9,
                "train_flops_g": cost.train_flops / 1e9,
                **{f"config.{key}": config.get(key) for key in keys},
            }
        )
    return rows


def _device_columns(record: Record) -> Row:
    uses = record.computed_on

    def told(name: str) -> str | None:
        return "; ".join(dict.fromkeys(getattr(use, name) for use in uses)) if uses else None

    return {
        "device": told("name"),
        **{name: told(name) for name in ("dtype", "driver", "cuda", "tf32")},
        "deterministic": all(use.deterministic for use in uses) if uses else None,
    }


def device_rows(records: Iterable[Record]) -> list[Row]:
    """Returns a row for each way in which epochs were computed: the device, and how many trials used it."""
    counts = Counter(use for record in records for use in record.computed_on)
    return [plain(use) | {"trials": count} for use, count in counts.items()]


def _extra(record: Record) -> Mapping[str, float]:
    return (record.last and record.last.extra) or {}


def summary_table(plan: Plan, records: Mapping[str, Record]) -> list[Row]:
    """Returns one small row per cell and arm for the terminal; None where there is no value yet.

    Errors are in %. `common_area` decides; `own_area`, from the arm's own reference, only describes. Both are
    shares of 1. These two and `confirmed_test_error_pct` have intervals. `ended` counts trials with an
    outcome, out of `planned`; it includes `diverged`.
    """
    return [_small(summary) for summary in summarise(results_of(plan, records))]


def _small(summary: Summary) -> Row:
    best, confirmed = summary.best, summary.confirmed
    return {
        "cell": summary.cell,
        "arm": summary.arm,
        "planned": summary.num_trials,
        "ended": num_ended(summary),
        "diverged": summary.states.get("diverged", 0),
        "best_val_error_pct": best.val_error_pct if best else None,
        "best_test_error_pct": best.test_error_pct if best else None,
        **estimate_columns("confirmed_test_error_pct", confirmed.test if confirmed else None),
        "median_error_pct": summary.median_error_pct,
        **estimate_columns("common_area", summary.measures.get("area_common")),
        **estimate_columns("own_area", summary.measures.get("area_under_delta_edf")),
    }


def num_ended(summary: Summary) -> int:
    """Returns the number of trials with an outcome."""
    return sum(count for state, count in summary.states.items() if state in RULES)


def estimate_columns(name: str, estimate: Estimate | None) -> Row:
    """Returns an estimate as three columns: its value and the ends of its interval."""
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
        **estimate_columns("confirmed_val_error_pct", confirmed.val if confirmed else None),
        **estimate_columns("confirmed_test_error_pct", confirmed.test if confirmed else None),
        **estimate_columns("diverged_share", summary.diverged),
    }
    for measure in MEASURES:
        row |= estimate_columns(measure, summary.measures.get(measure))
    return row


#: Attributes of a contrast that are estimates.
_ESTIMATES = ("difference", "shift", "within")


def _flat_contrast(contrast: Contrast) -> Row:
    row = {
        field.name: getattr(contrast, field.name)
        for field in dataclasses.fields(contrast)
        if field.name not in _ESTIMATES
    }
    for name in _ESTIMATES:
        row |= estimate_columns(name, getattr(contrast, name))
    return row


def _flat_pooled(row: Pooled) -> Row:
    cells = row.heterogeneity
    return {
        "measure": row.measure,
        "base_arm": row.base_arm,
        "arm": row.arm,
        "num_cells": len(row.cells),
        "num_points": row.num_points,
        "num_left_out": row.num_left_out,
        "look": row.look,
        **estimate_columns("shift", row.shift),
        **estimate_columns("over", row.over),
        "interval_over": row.interval_over,
        **estimate_columns("new_cell", row.new_cell),
        "better": row.better,
        "because": row.because,
        "p_value": row.p_value,
        "p_adjusted": row.p_adjusted,
        "num_in_family": row.num_in_family,
        "between_sd": cells and cells.between_sd,
        "i_squared": cells and cells.i_squared,
        "p_alike": cells and cells.p_value,
        "disagreeing": "; ".join(row.disagreeing),
    }


# ----------------------------------------------------------------------------------------------- plain values


def csv_text(rows: Sequence[Row]) -> str:
    """Returns rows as CSV, with a column for every key of any row."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plain(value: Any) -> Any:
    """Converts a tree to JSON types. A number that is not finite becomes null, any other type text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _flat(value: Any) -> Row:
    """Returns a dataclass as one row: nested values under dotted names, lists as JSON."""
    row: Row = {}
    for key, item in plain(value).items():
        if isinstance(item, dict):
            row |= {f"{key}.{inner}": _scalar(part) for inner, part in _flat(item).items()}
        else:
            row[key] = _scalar(item)
    return row


def _scalar(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else json.dumps(plain(value))
