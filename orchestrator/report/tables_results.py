"""Tables of the results: peak, robustness, differences, tuning, search, the paper's values.

To add a section to the report, write a function that takes `Findings` and returns a `Table` with `section`
set, and add it to `TABLES` in page.py. If the table has rows or notes, it gets its own heading on the page,
after the training curves or the cost (`part`), and a link at the top. It is written as Markdown and LaTeX.
Its `data` go to summary.json, under its name, and to CSV.
"""

from collections.abc import Sequence

from orchestrator.analysis.contrasts import Contrast, headline
from orchestrator.analysis.findings import Findings, budgets
from orchestrator.analysis.noise import noise_floor_pp
from orchestrator.report.answer import told_apart
from orchestrator.report.document import num_ended, plain
from orchestrator.report.table import Table, Text, note_no_interval, shown
from orchestrator.report.text import DESCRIBES, SPLIT_NAMES, TESTS, error_interval, measure_text, p_text
from orchestrator.stats.measures import MEASURES
from orchestrator.trials.numerals import percent
from orchestrator.trials.search import BEST_EDGE_SHARE, searched
from orchestrator.trials.trial import error_term


def peak_table(found: Findings) -> Table:
    table = Table(
        "peak",
        "Lowest error per cell and arm, in %",
        ("Cell", "Arm", "#Trials ended", "#Share diverged", "#Confirmed, selection", "#Confirmed, final",
         "#Best of the sweep, selection", "#same trial, final", "#Optimism of that best (pp)"),
    )  # fmt: skip
    optimisms = {
        (part.cell, arm): flattery for part in found.evidence for arm, flattery in part.optimism.items()
    }
    for s in found.summaries:
        small = [f"{len(s.errors_pct)} points count"] if len(s.errors_pct) < s.num_points else []
        small += [f"{s.num_incomplete} lack a replicate"] if s.num_incomplete else []
        confirmed, best = s.confirmed, s.best
        if confirmed:
            interval = error_interval(confirmed.val)
            seeds = f"{confirmed.num_seeds} seeds"
            if confirmed.num_diverged:
                seeds += f", {confirmed.num_diverged} diverged"
            val = Text(percent(confirmed.val.value), f"{interval}; {seeds}" if interval else seeds)
            test = shown(confirmed.test, "error")
        else:
            val, test = Text("unconfirmed"), Text("–")
            table.refuses(f"{s.cell}, {s.arm}", s.refused.get("confirmed"), "unconfirmed")
        flattery = optimisms.get((s.cell, s.arm))
        if best is None:
            optimistic = Text("–")
        elif flattery is None:
            optimistic = Text("unknown")
        else:
            optimistic = Text(f"{flattery.modelled_pct:.2f}", f"at most {flattery.at_most_pct:.2f}")
        if "diverged" in s.refused:
            table.note(f"{s.cell}, {s.arm}: {s.refused['diverged']}.")
        table.add(
            s.cell,
            s.arm,
            Text(f"{num_ended(s)} of {s.num_trials}", ", ".join(small)),
            shown(s.diverged, otherwise="refused" if "diverged" in s.refused else "–"),
            val,
            test,
            percent(best.val_error_pct) if best else "–",
            percent(best.test_error_pct) if best else "–",
            optimistic,
        )
    if any(s.best for s in found.summaries) and not all(optimisms.values()):
        table.note(
            "Optimism: how much lower the best error is than the expected error of the same setting. It is "
            "unknown where no setting was run twice, because the noise of a run was not measured."
        )
    return table


def robustness_table(found: Findings) -> Table:
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
        note_no_interval(table, s.measures.values())
        kind = {"confirmed": "confirmed", "sweep_minimum": "unconfirmed"}.get(s.reference_kind or "", "")
        table.add(
            s.cell,
            s.arm,
            f"{len(s.errors_pct)} of {s.num_points}",
            percent(s.median_error_pct) if "median_error_pct" not in s.refused else "refused",
            Text(percent(s.reference_pct), kind) if s.reference_pct is not None else "none trained",
            *(
                shown(s.measures.get(key), key, otherwise="refused" if key in s.refused else "–")
                for key in MEASURES
            ),
        )
    return table


_TWO_INTERVALS = (
    "Typical difference: of the pairs that differ, with the interval of the test that decides, at the level "
    "that looks and family leave it. For shares it is the share of these pairs that favours the arm, minus "
    "the other share. Mean difference: of all pairs; its interval also allows for divergences of one arm "
    "that were not drawn, so it is wide at few points. It decides whether arms are alike."
)


def verdict_table(found: Findings) -> Table:
    """Returns the contrasts that are asked about: a row per arm and cell."""
    title = "The measure that decides, of every arm against {base}, on the points that both have"
    return _contrasts("verdicts", title, headline(found.contrasts), found)


def contrast_table(found: Findings) -> Table:
    """Returns all contrasts."""
    title = "Every arm against {base}, on the points that both have"
    return _contrasts("differences", title, found.contrasts, found)


def _contrasts(name: str, title: str, compared: Sequence[Contrast], found: Findings) -> Table:
    base = next(iter(found.plan.sweep.arms))
    table = Table(
        name,
        title.format(base=base),
        (
            "Cell",
            "Arm",
            "Measure",
            f"#{base}",
            "#Arm",
            "#Typical difference",
            "#Mean difference",
            "#Points",
            "#p",
            "#p by Holm",
            "Verdict",
        ),
    )
    for c in compared:
        info = MEASURES[c.measure]
        lacks = f"{c.num_unpaired} unpaired" if c.num_unpaired else ""
        pairs = Text(str(c.num_pairs if c.look is None else c.look), lacks)
        if c.better:
            verdict = Text(f"{c.better} is better", strong=True)
        elif c.decision == "alike":
            margin = measure_text(c.margin, c.measure, sign=True).lstrip("+")
            verdict = Text("alike", f"within {margin}", strong=True)
        elif info.decides:
            verdict = Text("not settled", c.because)
        else:
            verdict = Text("describes")
            table.note(f"Rows that describe: {DESCRIBES}")
        note_no_interval(table, [c.shift, c.difference])
        if c.shift is not None:
            table.note(_TWO_INTERVALS)
        holm = Text(p_text(c.p_adjusted), f"over {c.num_in_family}" if c.num_in_family > 1 else "")
        table.add(
            c.cell,
            c.arm,
            Text(info.symbol, "primary" if c.primary else ""),
            measure_text(c.base_value, c.measure),
            measure_text(c.value, c.measure),
            shown(c.shift, c.measure, sign=True) if info.decides else "–",
            shown(c.within if c.decision == "alike" else c.difference, c.measure, sign=True),
            pairs,
            Text(p_text(c.p_value), TESTS[c.test]) if info.decides else "–",
            holm if info.decides else "–",
            verdict,
            kind="primary" if c.primary else "" if info.decides else "soft",
        )
    return table


def peak_contrast_table(found: Findings) -> Table:
    base = next(iter(found.plan.sweep.arms))
    table = Table(
        "peak_differences",
        f"Confirmed error of every arm minus that of {base}, in pp",
        ("Cell", "Arm", "Split", "#Difference", "#Noise floor", "#p (Welch)", "#p by Holm", "Verdict"),
    )
    for c in found.peaks:
        sides = [found.noise.get((c.cell, arm)) for arm in (c.arm, c.base_arm)]
        floor = noise_floor_pp(sides[0], sides[1]) if sides[0] and sides[1] else None
        better = told_apart(c)
        verdict = Text(f"{better} is better", strong=True) if better else Text("not settled")
        table.add(
            c.cell,
            c.arm,
            SPLIT_NAMES[c.split],
            shown(c.difference, sign=True),
            shown(floor if c.split == "val" else None),
            p_text(c.p_value),
            p_text(c.p_adjusted),
            verdict,
        )
    return table


def tuning_table(found: Findings) -> Table:
    curves = [curve for part in found.evidence for curve in part.curves.values()]
    supported = max((curve.largest_budget for curve in curves), default=0)
    # One budget that is refused everywhere is enough; further ones would repeat it.
    ks = [k for k in budgets(curves) if k // 2 <= supported]
    table = Table(
        "tuning",
        "Median error of the best of k trials (%), with bands that hold at every k at once",
        ("Cell", "Arm", "#Trials", "#Largest k supported", *(f"#k = {k}" for k in ks)),
    )
    for part in found.evidence:
        for arm, curve in part.curves.items():
            told = []
            for k in ks:
                best = curve.at(k)
                if best is None:
                    told.append(Text("refused" if k <= curve.num_trials else "–"))
                else:
                    band = f"{percent(best.low_pct)} to {percent(best.high_pct)}"
                    told.append(Text(percent(best.median_pct), band))
            table.add(part.cell, arm, str(curve.num_trials), str(curve.largest_budget), *told)
    if any(t.main == "refused" for line in table.rows for t in line.texts):
        table.note(
            "Refused beyond the largest supported k: there the median best could be a setting too rare to "
            "have been drawn, with any error."
        )
    for s in found.summaries:
        if "delta_edf" in s.refused:
            table.note(f"{s.cell}, {s.arm}: refused, as {s.refused['delta_edf']}.")
    return table


def search_table(found: Findings) -> Table:
    table = Table(
        "search",
        "Settings tried by the search, per cell and arm; errors on the selection split, in %",
        ("Cell", "Arm", "#Points", "#Ended early", "#Diverged", "#Epochs trained", "#Best of round 1",
         "#Best", "#At point", "At an edge"),
        section="Search",
        intro="Every arm had the same number of points in every cell. The lowest of many errors is biased "
        "low; `vitc-sweep confirm` runs its setting again with fresh seeds.",
    )  # fmt: skip
    for one in searched(found.plan, found.results):
        table.add(
            one.cell,
            one.arm,
            str(one.num_points),
            str(one.num_stopped),
            str(one.num_diverged),
            str(one.num_epochs),
            percent(one.first_round_pct),
            percent(one.best_pct),
            "–" if one.best_point is None else str(one.best_point),
            ", ".join(one.edges) or "no",
        )
        table.data.append(plain(one))
        if one.edges:
            table.note(
                f"{one.cell}, {one.arm}: the best is in the outer {BEST_EDGE_SHARE:.0%} of the window of "
                f"{', '.join(one.edges)}; a better setting may be outside the window."
            )
    return table


def paper_table(found: Findings) -> Table:
    table = Table(
        "paper",
        f"Lowest {error_term(found.plan.trials)} per cell and arm next to the paper's, in %",
        (
            "Cell",
            "Arm",
            "#Paper",
            "Source",
            "#Here, confirmed",
            "#Here, best of the sweep",
            "#Here - paper (pp)",
        ),
        section="Compared with the paper",
        intro="The paper's errors as given in the sweep file. Errors of this sweep are on the final split.",
    )
    summaries = {(s.cell, s.arm): s for s in found.summaries}
    for values in found.plan.sweep.paper.values if found.plan.sweep.paper else ():
        for cell, by_arm in values.top1_error_pct.items():
            for arm, error_pct in by_arm.items():
                s = summaries.get((cell, arm))
                confirmed = s.confirmed.test if s and s.confirmed else None
                best_pct = s.best.test_error_pct if s and s.best else None
                here_pct = confirmed.value if confirmed else best_pct
                if here_pct is None:
                    continue
                table.add(
                    cell,
                    arm,
                    f"{error_pct:g}",
                    values.source,
                    shown(confirmed, "error"),
                    percent(best_pct),
                    f"{here_pct - error_pct:+.1f}",
                )
                table.data.append(
                    {
                        "cell": cell,
                        "arm": arm,
                        "source": values.source,
                        "paper_error_pct": error_pct,
                        "confirmed_error_pct": confirmed.value if confirmed else None,
                        "best_error_pct": best_pct,
                    }
                )
    return table
