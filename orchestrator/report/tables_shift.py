"""Tables of errors under corruption and on shifted sets."""

from orchestrator.analysis.findings import Findings
from orchestrator.analysis.shift import FINAL, ShiftSummary
from orchestrator.report.document import Row, estimate_columns
from orchestrator.report.table import Table, Text, shown
from orchestrator.stats.corruption import kinds_in
from orchestrator.trials.numerals import short
from orchestrator.trials.trial import Trial
from trainables.base import CLEAN, CORRUPTION, SHIFTED


def _shift_setting(one: ShiftSummary) -> Text:
    values = ", ".join(
        short(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
        for value in one.values.values()
    )
    return Text(
        "confirmed" if one.kind == "confirmed" else "best of the sweep", f"point {one.point}: {values}"
    )


def _shift_runs(one: ShiftSummary) -> Text:
    return Text(str(one.num_runs), f"{one.num_diverged} diverged" if one.num_diverged else "")


def _shift_row(one: ShiftSummary) -> Row:
    return {
        "cell": one.cell,
        "arm": one.arm,
        "kind": one.kind,
        "point": one.point,
        "num_runs": one.num_runs,
        "num_diverged": one.num_diverged,
    }


_CHOSEN = (
    "The setting is the one with the lowest error on the selection split, which is neither corrupted nor "
    "shifted. Best of the sweep is one run, without an interval. Confirmed means fresh seeds, each at the "
    "point that the other seeds rank first. Differences have 95 % intervals by Welch where both arms are "
    "confirmed, and no verdict."
)


def corruption_table(found: Findings) -> Table:
    base = next(iter(found.plan.sweep.arms))
    table = Table(
        "corruption",
        "Error under corruption at each arm's chosen setting",
        ("Cell", "Arm", "Setting", "#Runs", "#Clean (%)", "#Corrupted (%)", "#Added (pp)",
         f"#mCE, {base} = 100", "#Relative mCE", f"#Corrupted, minus {base} (pp)",
         f"#Added, minus {base} (pp)"),
        section="Robustness to corruption",
        intro="Robustness to corrupted images, not to hyperparameters. " + _CHOSEN,
    )  # fmt: skip
    for one in found.shifts:
        kinds = kinds_in({name: error.value for name, error in one.errors_pct.items()})
        if not kinds:
            continue
        table.refuses(f"{one.cell}, {one.arm}, {one.kind}", one.refused, "no mCE or relative mCE")
        table.add(
            one.cell,
            one.arm,
            _shift_setting(one),
            _shift_runs(one),
            shown(one.errors_pct.get(CLEAN), "error"),
            shown(one.corrupted_pct, "error"),
            shown(one.added_pp),
            "–" if one.mce_pct is None else f"{one.mce_pct:.1f}",
            "–" if one.relative_mce_pct is None else f"{one.relative_mce_pct:.1f}",
            shown(one.differences_pp.get("corrupted"), sign=True),
            shown(one.differences_pp.get("added"), sign=True),
            kind="" if one.kind == "confirmed" else "soft",
        )
        row = _shift_row(one) | estimate_columns("clean_error_pct", one.errors_pct.get(CLEAN))
        row |= estimate_columns("corrupted_error_pct", one.corrupted_pct)
        row |= estimate_columns("added_pp", one.added_pp)
        row |= {"mce_pct": one.mce_pct, "relative_mce_pct": one.relative_mce_pct}
        row |= estimate_columns("corrupted_difference_pp", one.differences_pp.get("corrupted"))
        row |= estimate_columns("added_difference_pp", one.differences_pp.get("added"))
        row |= {f"{kind}_error_pct": one.errors_pct[CORRUPTION + kind].value for kind in kinds}
        table.data.append(row)
    if table.rows:
        for text in dict.fromkeys(_corruptions_text(trial) for trial in found.plan.trials):
            if text:
                table.note(text)
        table.note(
            "Added is corrupted minus clean. mCE is the mean over kinds of the error as a percentage of the "
            f"first arm's ({base}); relative mCE is the same for the added error. Neither has an interval."
        )
        if any(one.num_diverged for one in found.shifts):
            table.note("A diverged run counts as 100 % error on every image, so its added error is unknown.")
    return table


def _corruptions_text(trial: Trial) -> str:
    evaluate = trial.config.evaluate
    if evaluate is None or evaluate.corruptions is None:
        return ""
    asked = evaluate.corruptions
    images = f"{asked.images} images" if asked.images else "all images"
    severities = ", ".join(map(str, asked.severities))
    return (
        f"Corrupted: the mean error over {len(asked.kinds)} kinds of corruption at severities {severities}, "
        f"on {images} of the final split."
    )


def shifted_set_table(found: Findings) -> Table:
    base = next(iter(found.plan.sweep.arms))
    table = Table(
        "shifted_sets",
        "Error on other images of the same classes at each arm's chosen setting",
        (
            "Cell",
            "Arm",
            "Setting",
            "#Runs",
            "Set",
            "#Final split (%)",
            "#Set (%)",
            f"#Set, minus {base} (pp)",
        ),
        section="On shifted sets",
        intro=_CHOSEN,
    )
    for one in found.shifts:
        for name in one.sets:
            table.add(
                one.cell,
                one.arm,
                _shift_setting(one),
                _shift_runs(one),
                name,
                shown(one.errors_pct.get(FINAL), "error"),
                shown(one.errors_pct[SHIFTED + name], "error"),
                shown(one.differences_pp.get(name), sign=True),
                kind="" if one.kind == "confirmed" else "soft",
            )
            row = _shift_row(one) | {"set": name}
            row |= estimate_columns("final_error_pct", one.errors_pct.get(FINAL))
            row |= estimate_columns("error_pct", one.errors_pct[SHIFTED + name])
            table.data.append(row | estimate_columns("difference_pp", one.differences_pp.get(name)))
    return table
