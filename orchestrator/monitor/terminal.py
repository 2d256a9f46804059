"""Tables for a terminal (rich)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.text import Text

from orchestrator.cost.estimate import CostEstimate
from orchestrator.cost.ledger import MEANINGS, Ledger
from orchestrator.cost.speed import Span
from orchestrator.monitor.fitted_table import FittedTable
from orchestrator.sweep.config import ONE_CELL
from orchestrator.trials.numerals import duration, percent
from orchestrator.trials.records import Result
from orchestrator.trials.trial import Plan


def large(number: float) -> str:
    """Formats a large number with three digits and a unit: M, G, T or P."""
    for power, letter in ((15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {letter}"
    return f"{number:.0f}"


def removal_rows(plan: Plan) -> list[dict[str, Any]]:
    """Returns a row per cell and constraint: the share of points it removes by arm, and the points left."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for removal in plan.removals:
        row = rows.setdefault(
            (removal.cell_name, removal.constraint),
            {"constraint": removal.constraint, "cell": removal.cell_name},
        )
        row[removal.arm] = f"{removal.removed / removal.drawn:.0%}"
    for cell, row in ((key[0], row) for key, row in rows.items()):
        left = {trial.point for trial in plan.trials if trial.cell_name == cell}
        drawn = plan.removals[0].drawn
        row["points left in the cell"] = f"{len(left)} of {drawn}"
    return list(rows.values())


def ledger_table(spent: Ledger) -> FittedTable:
    """Returns a table of the use of the devices' time."""
    total = spent.total or 1.0
    return rows_table(
        [
            {
                "": name.replace("_", "-"),
                f"{spent.device}-seconds": f"{seconds:,.0f}",
                "share %": f"{100 * seconds / total:.1f}",
                "spent on": MEANINGS.get(name, ""),
            }
            for name, seconds in [*spent.rows().items(), ("in all", spent.total)]
        ]
    )


def failure_lines(failures: Sequence[Result], most: int = 5) -> Text:
    """Lists failed trials by cause, each cause once."""
    causes: dict[str, list[Result]] = {}
    for result in failures:
        causes.setdefault(f"{result.state}: {result.record.detail}", []).append(result)
    text = Text()
    for cause, members in list(causes.items())[:most]:
        first = members[0].trial
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        text.append(f"\n{first.label}{more}", style="red")
        text.append(f"  {cause}")
    if len(causes) > most:
        text.append(f"\n… and {len(causes) - most} other causes")
    return text


def answer_table(rows: Sequence[Mapping[str, Any]]) -> FittedTable:
    """Returns a table of peak error and robustness per cell and arm, from the rows of `summary_table`.

    Its names are short, so that it fits a terminal of 80 columns. The rest is in the report.
    """

    def interval(row: Mapping[str, Any], name: str, digits: int) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        return "–" if low is None else f"{low:.{digits}f} to {high:.{digits}f}"

    shown, has_cells = [], any(row["cell"] != ONE_CELL for row in rows)
    for row in rows:
        columns = {
            **({"cell": row["cell"]} if has_cells else {}),
            "arm": row["arm"],
            "trials": f"{row['ended']}/{row['planned']}",
            "diverged": row["diverged"],
            "peak %": percent(row["best_val_error_pct"]),
            "final %": percent(row["best_test_error_pct"]),
        }
        if any(other["confirmed_test_error_pct"] is not None for other in rows):
            columns["confirmed %"] = percent(row["confirmed_test_error_pct"])
            columns["confirmed 95 %"] = interval(row, "confirmed_test_error_pct", 1)
        columns["robustness"] = "–" if row["common_area"] is None else f"{row['common_area']:.2f}"
        columns["95 % interval"] = interval(row, "common_area", 2)
        shown.append(columns)
    return rows_table(shown, _LEAST_IMPORTANT)


#: Columns of the answer that a narrow terminal does without: the report has them all.
_LEAST_IMPORTANT = ("trials", "diverged", "final %", "confirmed 95 %", "peak %")


def rows_table(rows: Sequence[Mapping[str, Any]], leave_out: Sequence[str] = ()) -> FittedTable:
    """Returns a table of plain rows. Columns in `leave_out` go first where the terminal is narrow."""
    return FittedTable(rows, leave_out)


def span(estimate: Span | None, digits: int = 2) -> str:
    """Formats an estimate with its range, as `1.2 (0.9-1.5)`."""
    if estimate is None:
        return "?"
    low, central, high = (
        f"{value:,.0f}" if value >= 10**digits else f"{value:.{digits}g}"
        for value in (estimate.low, estimate.central, estimate.high)
    )
    return f"{central} ({low}-{high})"


#: The source of a speed, for people: a word for the table, and what it means.
_BASES = {
    "measured": ("epochs", "epochs of earlier runs of this kind here"),
    "preflight": ("preflight", "steps that the preflight has timed"),
    "scaled": ("scaled", "runs of another kind here, by their operations"),
    "table": ("data sheet", "the device's published peak"),
    "probe": ("CPU timing", "products of matrices, timed on this CPU"),
}


def cost_table(cost: CostEstimate) -> FittedTable:
    """Returns a table of the cost of each distinct shape."""
    unit = "GPU-h" if cost.unit == "GPU-hours" else "core-h"
    rows = []
    has_cells = any(cell != ONE_CELL for shape in cost.shapes for cell, _ in shape.arms)
    for shape in cost.shapes:
        (cell, arm), *more = shape.arms
        name = f"{cell} {arm}" if has_cells else arm
        rows.append(
            {
                "cell arm" if has_cells else "arm": name + (f" +{len(more)}" if more else ""),
                "batch": shape.shape.name,
                "trials": shape.trials,
                "params M": f"{shape.params_m:.3g}",
                "flops G": f"{shape.flops_g:.3g}",
                "GiB": f"{shape.footprint.peak / 2**30:.2g}",
                "s/epoch": span(shape.seconds),
                unit: span(shape.hours),
                "from": _BASES[shape.basis][0] if shape.basis else "unknown",
            }
        )
    return rows_table(rows, ("flops G", "params M", "batch", "from"))


def cost_text(cost: CostEstimate, warnings: Iterable[str]) -> Text:
    """Returns the total cost, and warnings to read before the start."""
    text = Text()
    if cost.hours is None:
        text.append(
            f"\nspeed unknown on {cost.machine.device}: no earlier sweep ran on it"
            + ("" if cost.machine.has_gpus else "; --measure times this CPU")
        )
    else:
        text.append(f"\n{span(cost.hours)} {cost.unit}", style="bold")
        text.append(f" on {cost.machine.device}")
        if cost.wall_hours is not None:
            low, high = duration(3600 * cost.wall_hours.low), duration(3600 * cost.wall_hours.high)
            text.append(f"; {duration(3600 * cost.wall_hours.central)} ({low} to {high}) from start to end")
    text.append(f"; {cost.lanes_text}; checkpoints {cost.checkpoint_gib:.2g} GiB")
    if cost.kept_gib:
        text.append(f", weights kept {cost.kept_gib:.2g} GiB")
    if cost.price is not None:
        text.append(f"; price {span(cost.price)} {cost.currency}".rstrip())
    if meant := dict.fromkeys(_BASES[shape.basis] for shape in cost.shapes if shape.basis):
        text.append("\nspeeds from " + "; ".join(f"{word}: {means}" for word, means in meant), style="dim")
    for warning in warnings:
        text.append(f"\nwarning: {warning}", style="yellow")
    return text
