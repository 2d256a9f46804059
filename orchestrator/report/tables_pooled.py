"""One verdict over all cells: its table, and its sentence in plain words."""

from collections.abc import Sequence

from orchestrator.analysis.contrasts import headline
from orchestrator.analysis.findings import Findings
from orchestrator.analysis.pooled import Pooled
from orchestrator.report.table import Table, Text, note_no_interval, shown
from orchestrator.report.text import PERCENT, interval_text, measure_text, p_equals, p_text, share_text
from orchestrator.stats.intervals import CONFIDENCE, Estimate
from orchestrator.stats.measures import MEASURES, Measure

#: Units of a difference in words.
_UNITS: dict[Measure, str] = {
    "area_common": " of area",
    "within_common_bar": " of the points",
    "error": " pp of mean error",
}

#: Most cells that a sentence names.
_MAX_NAMED = 3


def pooled_table(found: Findings) -> Table:
    base = next(iter(found.plan.sweep.arms))
    table = Table(
        "pooled",
        f"Every arm against {base} over all cells, which weigh alike",
        ("Arm", "Measure", "#Cells", "#Points", "#Typical difference", "#Mean difference", "#p",
         "#p by Holm", "Verdict",
         "#In a new cell", "#Between cells, sd", "#p, cells alike", "Disagrees"),
    )  # fmt: skip
    for row in found.pooled:
        note_no_interval(table, [row.shift, row.over, row.new_cell])
        cells = row.heterogeneity
        share = cells.i_squared if cells else None
        out = [f"{cell} ({_signed(one.value, row)})" for cell, one in row.disagreeing.items()]
        others = [_signed(one.others, row) for one in row.disagreeing.values()]
        table.add(
            row.arm,
            MEASURES[row.measure].symbol,
            str(len(row.cells)),
            Text(str(row.num_points), f"{row.num_left_out} left out" if row.num_left_out else ""),
            shown(row.shift, row.measure, sign=True),
            shown(row.over, row.measure, sign=True),
            p_text(row.p_value),
            Text(p_text(row.p_adjusted), f"over {row.num_in_family}" if row.num_in_family > 1 else ""),
            Text(f"{row.better} is better", strong=True) if row.better else Text("not settled", row.because),
            shown(row.new_cell, row.measure, sign=True),
            Text(
                share_text(cells.between_sd) if cells else "–",
                "" if share is None else f"{100 * share:.0f}{PERCENT} of their spread",
            ),
            p_text(cells.p_value if cells else None),
            Text(", ".join(out) or "none", f"the others {', '.join(others)}" if out else "")
            if any(one.p_adjusted is not None for one in row.deviations)
            else "–",
        )
    return table


def _signed(value: float, row: Pooled) -> str:
    return measure_text(value, row.measure, sign=True)


def headline_pooled(found: Findings) -> list[Pooled]:
    """Returns the rows of the measure that the answer is about, one per arm; empty below two cells."""
    measures = {contrast.measure for contrast in headline(found.contrasts)}
    return [row for row in found.pooled if row.measure in measures]


def pooled_sentence(rows: Sequence[Pooled]) -> str:
    """Returns the verdict over the cells as one sentence, a clause per arm; empty without rows.

    Args:
      rows: rows of one measure.
    """
    if not rows:
        return ""
    clauses = "; ".join(_clause(row) for row in rows)
    return f"Over the {len(rows[0].cells)} cells {clauses}."


def _clause(row: Pooled) -> str:
    info = MEASURES[row.measure]
    question = "is the more robust" if info.higher_is_better else "has the lower mean error"
    if row.over is None:
        return f"{row.arm} and {row.base_arm} are not compared, as {row.because}"
    # All numbers are told as the advantage of the better arm, or of the compared arm in an open case.
    ahead, behind = (row.arm, row.base_arm) if row.better != row.base_arm else (row.base_arm, row.arm)
    sign = 1 if (ahead == row.arm) == info.higher_is_better else -1
    typical, unit = _turned(row.shift or row.over, sign), _UNITS[row.measure]
    size = f"{share_text(typical.value, sign=True)}{unit}"
    if interval := interval_text(typical, sign=True):
        size += f", 95{PERCENT} interval {interval}"
    if row.better:
        said = [f"{ahead} {question}, typically by {size}, over {behind}"]
    else:
        said = [f"it is open whether {row.arm} or {row.base_arm} {question} ({size}; {row.because})"]
    if row.new_cell and (expected := interval_text(_turned(row.new_cell, sign), sign=True)):
        said.append(f"in a new cell of this kind an advantage of {expected} is to be expected")
    odd = list(row.disagreeing.items())
    for cell, one in odd[:_MAX_NAMED]:
        verb = "disagrees" if one.value * one.others < 0 else "stands out"
        values = [share_text(sign * value, sign=True) for value in (one.value, one.others)]
        said.append(f"{cell} {verb} ({values[0]}, the others {values[1]})")
    if len(odd) > _MAX_NAMED:
        said.append(f"{len(odd) - _MAX_NAMED} more cells stand out")
    p_alike = row.heterogeneity.p_value if row.heterogeneity else None
    if not odd and p_alike is not None and p_alike < 1 - CONFIDENCE:
        said.append(f"the cells differ among themselves ({p_equals(p_alike)})")
    return "; ".join(said)


def _turned(estimate: Estimate, sign: int) -> Estimate:
    """Returns the estimate, or its negative."""
    if sign == 1 or estimate.low is None or estimate.high is None:
        return Estimate(sign * estimate.value, estimate.low, estimate.high, estimate.because)
    return Estimate(-estimate.value, -estimate.high, -estimate.low)
