"""Tables of the runs themselves: outcomes, cost, ledger, power."""

from collections import Counter

from orchestrator.analysis.findings import Findings
from orchestrator.analysis.power import Detectable
from orchestrator.analysis.until import needed_points
from orchestrator.cost.actual import Planned, planned_actual
from orchestrator.cost.ledger import MEANINGS
from orchestrator.cost.speed import Basis, Span
from orchestrator.report.document import Row, cost_per_arm
from orchestrator.report.table import Table, Text
from orchestrator.stats.measures import MEASURES, Measure
from orchestrator.stats.power import POWER
from orchestrator.trials.numerals import duration, short
from orchestrator.trials.outcomes import RULES
from orchestrator.trials.rounds import look_lines

_AGAIN = {
    "never": "never",
    "retries": "up to the number of retries",
    "losses": "unless lost five times without progress",
    "always": "always",
    "next run": "by the next run",
}


def ended_table(found: Findings) -> Table:
    """Returns the outcomes that there were."""
    table = Table("ended", "Trials by outcome", ("Outcome", "#Trials", "Means"))
    for line in outcome_table(found).rows:
        if line.kind != "soft":
            table.add(*line.texts[:3])
    return table


def outcome_table(found: Findings) -> Table:
    table = Table(
        "outcomes",
        "Trials by outcome, and the meaning of each outcome",
        ("Outcome", "#Trials", "Means", "Run again", "May be best", "In the EDF"),
    )
    states = Counter(result.state for result in {r.trial.id: r for r in found.results}.values())
    for name, rule in RULES.items():
        counts = "no, counted as missing"
        if rule.in_edf:
            counts = "with its error" if rule.error_pct is None else f"as {rule.error_pct:g} % error"
        table.add(
            name.replace("_", " "),
            str(states[name]),
            rule.means,
            _AGAIN[rule.again],
            "yes" if rule.ranked else "no",
            counts,
            kind="" if states[name] else "soft",
        )
    for state, means in (
        ("running", "has started and has not ended"),
        ("missing", "has not run, or not to its end"),
    ):
        kind = "" if states[state] else "soft"
        table.add(
            state, str(states[state]), means, "by the next run", "no", "no, counted as missing", kind=kind
        )
    return table


def power_table(found: Findings) -> Table:
    table = Table(
        "power",
        f"The smallest difference that the planned points detect with {POWER:.0%} power",
        ("Cells", "Measure", "#Points", "#Reference arm, assumed", "#By closed form", "#By simulation"),
    )
    groups: dict[tuple[Measure, int], list[Detectable]] = {}
    needed = needed_points(found.plan.sweep, found.summaries, found.looks)
    if needed is not None:
        table.note(f"{needed.text[0].upper()}{needed.text[1:]}.")
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


def cost_table(found: Findings) -> Table:
    rows = cost_per_arm(found)
    # On a CPU nobody knows the peak.
    has_mfu = any(row["mfu_pct"] is not None for row in rows)
    table = Table(
        "cost",
        "Cost of the trials that ran, all attempts included",
        ("Cell", "Arm", "#Trials run", "#Time", "#Time per trial", "#Multiply-adds per trial",
         "#Time of the best", "#Multiply-adds of the best", *["#MFU (%)"] * has_mfu),
    )  # fmt: skip
    if has_mfu:
        table.note(
            "MFU (model FLOPs utilization): multiply-adds that training needs, three forward passes a step, "
            "over those that its GPUs could have made in the same seconds by their data sheet."
        )
    for row in rows:
        best = row["best_seconds"] is not None
        table.add(
            row["cell"],
            row["arm"],
            str(row["trials_run"]),
            duration(row["trial_seconds"]),
            "–" if row["seconds_per_trial"] is None else duration(row["seconds_per_trial"]),
            "–" if not row["trials_run"] else short(row["multiply_adds_per_trial"]),
            duration(row["best_seconds"]) if best else "–",
            short(row["best_multiply_adds"]) if best else "–",
            *["–" if row["mfu_pct"] is None else short(row["mfu_pct"])] * has_mfu,
        )
    return table


def ledger_table(found: Findings) -> Table:
    device = found.spent.device if found.spent else "core"
    table = Table(
        "ledger",
        f"{device}-seconds of all runs of this sweep by use",
        ("Spent on", f"#{device}-seconds", "#Share (%)", "Meaning"),
        section="Where the time went",
        part="runs",
        intro="All seconds of all devices that the runs held, from the start of each command to its end.",
    )
    if found.spent is None:
        return table
    for name, seconds in found.spent.rows().items():
        share = 100 * seconds / found.spent.total
        table.add(name.replace("_", "-"), f"{seconds:.0f}", f"{share:.1f}", MEANINGS[name])
        table.data.append({"spent_on": name, "device": device, "seconds": seconds, "share_pct": share})
    if len(found.spent.trials_on) > 1:
        parts = [f"{seconds:.0f} on {name or 'unknown'}" for name, seconds in found.spent.trials_on.items()]
        table.note(f"{device}-seconds of trials by device: {', '.join(parts)}.")
    for line in look_lines(found.spent.looks):
        table.note(f"{line[0].upper()}{line[1:]}.")
    return table


def planned_table(found: Findings) -> Table:
    before = found.planned
    unit = before.unit if before else "core-hours"
    table = Table(
        "planned",
        "Planned before the first trial, and measured",
        ("Cell and arm", "Batch", "#Trials run", "#s/epoch, planned", "#measured", "#Ratio",
         f"#{unit}, planned", "#spent", "#Ratio", "#GiB, planned", "#peak", "Planned from"),
        section="Planned and actual",
        part="runs",
        intro="A row is a shape: model, batch size, workers, precision, optimizer. Planned hours cover the "
        "epochs that have run; hours spent cover all attempts. Small print is the expected range. A ratio "
        "above 1 is more than planned. Memory is measured on GPUs only.",
    )  # fmt: skip
    if before is None or not (rows := planned_actual(found.plan, before, found.records)):
        return table
    for row in rows:
        (cell, arm), *more = row.arms or (("all", "that were planned"),)
        table.add(
            Text(f"{cell} {arm}" + (f" and {len(more)} more" if more else ""), row.device),
            row.shape or "–",
            f"{row.trials_run} of {row.trials}",
            _span_text(row.planned_seconds),
            "–" if row.seconds is None else short(row.seconds),
            _ratio_text(row.seconds, row.planned_seconds),
            _span_text(row.planned_hours),
            short(row.hours),
            _ratio_text(row.hours, row.planned_hours),
            "–" if row.planned_peak_gib is None else short(row.planned_peak_gib),
            "–" if row.peak_gib is None else short(row.peak_gib),
            _PLANNED_FROM[row.basis] if row.arms else "–",
        )
        table.data.append(
            {
                "cells_and_arms": "; ".join(f"{cell} {arm}" for cell, arm in row.arms),
                "shape": row.shape,
                "device": row.device or before.device,
                "trials_run": row.trials_run,
                "trials": row.trials,
                **_span_columns("planned_seconds_per_epoch", row.planned_seconds),
                "seconds_per_epoch": row.seconds,
                **_span_columns("planned_hours", row.planned_hours),
                "hours": row.hours,
                "planned_peak_gib": row.planned_peak_gib,
                "peak_gib": row.peak_gib,
                "planned_from": row.basis,
            }
        )
    _note_wall_clock(found, before, table)
    if other := list(dict.fromkeys(row.device for row in rows if row.device)):
        table.note(
            f"Nothing was planned for {', '.join(other)}: speeds of one device are not those of another."
        )
    if any(
        row.arms and not row.device and row.basis is None and row.planned_peak_gib is None for row in rows
    ):
        table.note("Shapes without a plan were added by a later run.")
    return table


def _note_wall_clock(found: Findings, before: Planned, table: Table) -> None:
    """Notes the wall clock. It is compared with the plan only if exactly the planned trials have ended."""
    distinct = {result.trial.id: result for result in found.results}
    told = f"Plan of {before.made} for {before.trials} trials on {before.device}"
    table.note(f"{told}; it expected up to {before.checkpoint_gib:.2g} GiB of checkpoints at a time.")
    if before.wall_hours is None or found.spent is None:
        return
    low, central, high = (
        duration(3600 * hours)
        for hours in (before.wall_hours.low, before.wall_hours.central, before.wall_hours.high)
    )
    text = f"From start to end: planned {central} ({low} to {high}), {duration(found.spent.wall)} so far"
    if len(distinct) != before.trials:
        text += f"; the sweep has grown to {len(distinct)} trials"
    elif all(result.state in RULES for result in distinct.values()):
        ratio = found.spent.wall / (3600 * before.wall_hours.central)
        text = text.removesuffix(" so far") + f" measured: {ratio:.2f} times"
    table.note(f"{text}. This excludes the time between runs, and the checks before them.")


def _span_text(planned: Span | None) -> Text:
    if planned is None:
        return Text("–")
    return Text(short(planned.central), f"{short(planned.low)} to {short(planned.high)}")


def _span_columns(name: str, planned: Span | None) -> Row:
    return {
        name: planned.central if planned else None,
        f"{name}_low": planned.low if planned else None,
        f"{name}_high": planned.high if planned else None,
    }


def _ratio_text(actual: float | None, planned: Span | None) -> Text:
    if actual is None or planned is None or planned.central == 0:
        return Text("–")
    inside = planned.low <= actual <= planned.high
    return Text(f"{actual / planned.central:.2f}", "" if inside else "out of range")


_PLANNED_FROM: dict[Basis | None, str] = {
    "measured": "epochs of the same shape",
    "preflight": "a step of the preflight",
    "scaled": "epochs of other shapes",
    "table": "the device's data sheet",
    "probe": "a timing of the CPU",
    None: "nothing",
}
