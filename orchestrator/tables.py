"""The numbers of a report for people: tables for the page, for Markdown and for LaTeX.

To add a section to the report, write a function of a `Found` that returns a `Table` with `section` set, and
put it in `TABLES`. Where it has rows or notes it then has its own heading on the page, after the cost, and a
link at the head of it, and is written as Markdown and LaTeX; its `data` go to summary.json, under its name,
and to CSV.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from orchestrator.analysis.basin import Extent
from orchestrator.analysis.findings import Findings, budgets, gap_floor, not_worked_out
from orchestrator.analysis.noise import Component, Stream, noise_floor_pp
from orchestrator.analysis.power import POWER, Detectable
from orchestrator.analysis.shift import FINAL, ShiftSummary
from orchestrator.cost.actual import Planned, planned_actual
from orchestrator.cost.speed import Basis, Span
from orchestrator.rows import Row, cost_per_arm, estimate_columns, num_ended, plain
from orchestrator.stats.corruption import kinds_in
from orchestrator.stats.intervals import Estimate
from orchestrator.stats.measures import MEASURES, Measure
from orchestrator.trials.numerals import duration, percent, short
from orchestrator.trials.outcomes import RULES
from orchestrator.trials.search import BEST_EDGE_SHARE, searched
from orchestrator.trials.trial import Trial, error_term
from orchestrator.words import (
    DESCRIBES,
    SPLIT_NAMES,
    TESTS,
    error_interval,
    interval_text,
    measure_text,
    p_text,
    told_apart,
)
from trainables.base import CLEAN, CORRUPTION, SHIFTED


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
      section: heading of the section it makes; empty for a table that has its place on the page already.
      intro: a sentence or two under that heading.
      data: the same numbers with all their digits, for summary.json and CSV; only of tables with a section.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    section: str = ""
    intro: str = ""
    data: list[Row] = field(default_factory=list)

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

    def refuses(self, who: str, because: str | None, what: str = "refused") -> bool:
        """Whether there is a reason against a row; if so it is noted."""
        if because:
            self.note(f"{who}: {what}, as {because}.")
        return bool(because)


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


# ----------------------------------------------------------------------------------------- what a sweep found


def _shown(
    estimate: Estimate | None, measure: Measure = "f1", sign: bool = False, otherwise: str = "–"
) -> Text:
    """A number with its interval."""
    if estimate is None:
        return Text(otherwise)
    ends = interval_text(estimate, measure, sign) or ("no interval" if estimate.because else "")
    return Text(measure_text(estimate.value, measure, sign), ends)


def _note_no_interval(table: Table, estimates: Iterable[Estimate | None]) -> None:
    for estimate in estimates:
        if estimate is not None and estimate.because:
            table.note(f"No interval where it says so: {estimate.because}.")


def _peak_table(found: Findings) -> Table:
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
            test = _shown(confirmed.test, "error")
        else:
            val, test = Text("unconfirmed"), Text("–")
            table.refuses(f"{s.cell}, {s.arm}", s.refused.get("confirmed"), "unconfirmed")
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
            Text(f"{num_ended(s)} of {s.num_trials}", ", ".join(small)),
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


def _robustness_table(found: Findings) -> Table:
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
        _note_no_interval(table, s.measures.values())
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


_HOLDS_ZERO = (
    "A settled row whose interval holds 0: the test says that the arms differ, on the pairs there are; the "
    "interval of the mean also allows for divergences of one arm that no pair happened to show."
)


def _contrast_table(found: Findings) -> Table:
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
            table.note(f"Rows that describe: {DESCRIBES}")
        _note_no_interval(table, [c.difference])
        if c.better and c.difference and (c.difference.low or 0) <= 0 <= (c.difference.high or 0):
            table.note(_HOLDS_ZERO)
        holm = Text(p_text(c.p_adjusted), f"over {c.num_in_family}" if c.num_in_family > 1 else "")
        table.add(
            c.cell,
            c.arm,
            Text(info.symbol, "primary" if c.primary else ""),
            measure_text(c.base_value, c.measure),
            measure_text(c.value, c.measure),
            _shown(c.difference, c.measure, sign=True),
            pairs,
            Text(p_text(c.p_value), TESTS[c.test]) if info.decides else "–",
            holm if info.decides else "–",
            verdict,
            kind="primary" if c.primary else "" if info.decides else "soft",
        )
    return table


def _peak_contrast_table(found: Findings) -> Table:
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
        verdict = Text(f"{better} is better", strong=True) if better else Text("not told apart")
        table.add(
            c.cell,
            c.arm,
            SPLIT_NAMES[c.split],
            _shown(c.difference, sign=True),
            _shown(floor if c.split == "val" else None),
            p_text(c.p_value),
            p_text(c.p_adjusted),
            verdict,
        )
    return table


def _tuning_table(found: Findings) -> Table:
    curves = [curve for part in found.evidence for curve in part.curves.values()]
    supported = max((curve.largest_budget for curve in curves), default=0)
    # One budget that is refused everywhere says it; more would say it again.
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
    ends = interval_text(extent.size) or ("no interval" if extent.size.because else "")
    of = f"of {extent.window:.3g} {unit}"
    digits = f"{extent.size.value:.1f}" if squared else f"{extent.size.value:.2f}"
    return Text(f"{more}{digits}", f"{ends}; {of}" if ends else of)


def _basin_table(found: Findings) -> Table:
    names = list(
        dict.fromkeys(width.names[0] for part in found.evidence for b in part.basins for width in b.widths)
    )
    table = Table(
        "basins",
        "The basin around each arm's optimum: where a smooth surface through the errors is within 2 pp of "
        "the reference",
        ("Cell", "Arm", "#Optimum", "#Error there (%)", *(f"#Width in {name}" for name in names),
         "#Area, lr × weight decay", "#lr sensitivity (pp)", "#R2 left out"),
    )  # fmt: skip
    for part in found.evidence:
        for b in part.basins:
            fit = "–" if b.quality is None else f"{b.quality.r2:.2f}".replace("-", "−")
            if table.refuses(f"{b.cell}, {b.arm}", b.because, "no basin"):
                table.add(b.cell, b.arm, "refused", *["–"] * (len(names) + 3), fit, kind="soft")
                continue
            widths = {width.names[0]: width for width in b.widths}
            values = [
                short(v) if isinstance(v, int | float) and not isinstance(v, bool) else str(v)
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
            extents = [e.size for e in (*b.widths, *([b.area] if b.area else []))]
            _note_no_interval(table, [*extents, b.lr_sensitivity_pp])
            if any(e.touches for e in (*b.widths, *([b.area] if b.area else []))):
                table.note("≥: the basin reaches an edge of the window and may go on there.")
    return table


def _note_left_out(found: Findings, table: Table) -> None:
    if left := not_worked_out(found):
        table.note(
            f"Worked out in {len(found.deep)} cells of {len(found.deep) + len(left)}, as the sweep is large; "
            f"not in: {', '.join(left)}."
        )


def _importance_table(found: Findings) -> Table:
    table = Table(
        "importance",
        "Share of the variance of min(Delta, 10 pp) over the window",
        ("Cell", "Arm", "Parameter", "#alone", "#with others", "#R2 left out"),
    )
    for item in (item for part in found.evidence for item in part.importances):
        if table.refuses(f"{item.cell}, {item.arm}", item.because):
            continue
        fit = "–" if item.quality is None else f"{item.quality.r2:.2f}"
        for one in item.parameters:
            table.add(item.cell, item.arm, one.name, f"{one.main:.2f}", f"{one.total:.2f}", fit)
    _note_left_out(found, table)
    return table


def _transfer_table(found: Findings) -> Table:
    table = Table(
        "transfer",
        "What it costs an arm to run at another arm's best setting, in pp",
        ("Cell", "Arm", "at the best of", "#Regret, as observed", "#Regret, smooth", "#Pairs"),
    )
    for t in (t for part in found.evidence for t in part.transfers):
        if table.refuses(f"{t.cell}, {t.arm} at the best of {t.donor}", t.because):
            continue
        _note_no_interval(table, [t.regret_pp, t.smooth_pp])
        table.add(t.cell, t.arm, t.donor, _shown(t.regret_pp), _shown(t.smooth_pp), str(t.num_pairs))
        if t.smooth_pp is None:
            table.note(
                "No smooth regret where an arm's surface up to chance predicts no better than its mean."
            )
    _note_left_out(found, table)
    return table


def _gap_table(found: Findings) -> Table:
    table = Table(
        "gaps",
        "Gaps between cells within an arm, at equal best of k",
        ("Cell", "against", "Arm", "Gap", "#k", "#Points", "#Error (%)", "#Error against (%)", "#Gap (pp)",
         "#Noise floor (pp)"),
    )  # fmt: skip
    for gap in found.gaps:
        floor = gap_floor(found, gap)
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


def _gap_contrast_table(found: Findings) -> Table:
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


_STREAMS: tuple[Stream, ...] = ("init", "order", "augment")


def _noise_table(found: Findings) -> Table:
    table = Table(
        "noise",
        "Standard deviation of one run that each source of chance causes, in pp",
        ("Cell", "Arm", *(f"#{stream}" for stream in _STREAMS), "#All at once", "#Floor of one run",
         "#of a difference of two"),
    )  # fmt: skip

    def part(one: Component | None) -> Text:
        if one is None:
            return Text("not measured")
        between = interval_text(one.sd_pp)
        groups = f"{one.num_groups} setting{'s' if one.num_groups > 1 else ''}"
        return Text(f"{one.sd_pp.value:.2f}", f"{between}; {groups}" if between else groups)

    for one in found.noise.values():
        streams = [part(one.streams.get(stream)) for stream in _STREAMS]
        table.add(one.cell, one.arm, *streams, part(one.total), part(one.floor), _shown(noise_floor_pp(one)))
        if one.num_diverged_groups:
            table.note(
                f"{one.cell}, {one.arm}: {one.num_diverged_groups} settings left out, as a run of them "
                "diverged while another did not."
            )
    return table


def _search_table(found: Findings) -> Table:
    table = Table(
        "search",
        "What the search tried and found, per cell and arm; errors on the selection split, in %",
        ("Cell", "Arm", "#Points", "#Ended early", "#Diverged", "#Epochs trained", "#Best of round 1",
         "#Best", "#Found as point", "At an edge"),
        section="Search",
        intro="Every arm had as many points in every cell. The lowest error of so many is lower than its "
        "setting deserves; `vitc-sweep confirm` runs it again with fresh seeds.",
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
                f"{one.cell}, {one.arm}: the best lies in the outer {BEST_EDGE_SHARE:.0%} of the window of "
                f"{', '.join(one.edges)}; a better one may lie beyond."
            )
    return table


def _edge_table(found: Findings) -> Table:
    table = Table(
        "edges",
        "Arms whose best lies at an edge of the window, or may well do so",
        ("Cell", "Arm", "Parameter", "Edge", "By", "#Value", "#Falls by (pp)", "#Refits that agree",
         "What would settle it"),
    )  # fmt: skip
    for check in (check for part in found.evidence for check in part.edges):
        table.refuses(f"{check.cell}, {check.arm}", check.because, "not judged")
        for flag in check.flags:
            strip = flag.extension
            ends = f"{short(strip.low)} to {short(strip.high)}"
            table.add(
                flag.cell,
                flag.arm,
                flag.parameter,
                flag.side,
                " and ".join(flag.signs),
                short(flag.value),
                f"{flag.fall_pp:.2f}",
                f"{flag.support:.0%}",
                f"{strip.num_points} points from {ends}",
            )
    return table


def _audit_table(found: Findings) -> Table:
    """Verdicts that flip first, then the rest, cell by cell."""
    table = Table(
        "audit",
        "How differences move under other windows over the same points",
        ("Cell", "Arm", "Measure", "Window", "#Difference", "#Effective points", "As drawn", "Here"),
    )
    pairs = [(a, verdict) for part in found.evidence for a in part.audits for verdict in a.verdicts]
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
    for item in (item for part in found.evidence for item in part.audits):
        table.refuses(f"{item.cell}, {item.arm}", item.because, "no audit")
    _note_left_out(found, table)
    return table


_AGAIN = {
    "never": "never",
    "retries": "up to the number of retries",
    "losses": "unless lost five times without getting on",
    "always": "always",
    "next run": "by the next run",
}


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
    "The setting is that of lowest error on the selection split, where nothing is corrupted or shifted. Best "
    "of the sweep is one run, without an interval; confirmed are fresh seeds, each at the point that the "
    "others put first. Differences have 95 % intervals by Welch where both are confirmed, and no verdict."
)


def _corruption_table(found: Findings) -> Table:
    base = next(iter(found.plan.sweep.arms))
    table = Table(
        "corruption",
        "Error under corruption at each arm's chosen setting",
        ("Cell", "Arm", "Setting", "#Runs", "#Clean (%)", "#Corrupted (%)", "#Added (pp)",
         f"#mCE, {base} = 100", "#Relative mCE", f"#Corrupted, minus {base} (pp)",
         f"#Added, minus {base} (pp)"),
        section="Robustness to corruption",
        intro="Robust in the other sense: not to the settings, but to what happens to images. " + _CHOSEN,
    )  # fmt: skip
    for one in found.shifts:
        kinds = kinds_in({name: error.value for name, error in one.errors_pct.items()})
        if not kinds:
            continue
        table.refuses(f"{one.cell}, {one.arm}, {one.kind}", one.refused, "mCE or relative mCE not told")
        table.add(
            one.cell,
            one.arm,
            _shift_setting(one),
            _shift_runs(one),
            _shown(one.errors_pct.get(CLEAN), "error"),
            _shown(one.corrupted_pct, "error"),
            _shown(one.added_pp),
            "–" if one.mce_pct is None else f"{one.mce_pct:.1f}",
            "–" if one.relative_mce_pct is None else f"{one.relative_mce_pct:.1f}",
            _shown(one.differences_pp.get("corrupted"), sign=True),
            _shown(one.differences_pp.get("added"), sign=True),
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
            f"first arm's ({base}), relative mCE the same of what corruption adds; neither has an interval."
        )
        if any(one.num_diverged for one in found.shifts):
            table.note(
                "A run that diverged counts as 100 % on every image, and adds nothing that can be told."
            )
    return table


def _corruptions_text(trial: Trial) -> str:
    evaluate = trial.config.evaluate
    if evaluate is None or evaluate.corruptions is None:
        return ""
    asked = evaluate.corruptions
    images = f"{asked.images} images" if asked.images else "all images"
    severities = ", ".join(map(str, asked.severities))
    return (
        f"Corrupted: the mean over {len(asked.kinds)} kinds of corruption, of each over severities "
        f"{severities}, of {images} of the final split."
    )


def _shifted_set_table(found: Findings) -> Table:
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
                _shown(one.errors_pct.get(FINAL), "error"),
                _shown(one.errors_pct[SHIFTED + name], "error"),
                _shown(one.differences_pp.get(name), sign=True),
                kind="" if one.kind == "confirmed" else "soft",
            )
            row = _shift_row(one) | {"set": name}
            row |= estimate_columns("final_error_pct", one.errors_pct.get(FINAL))
            row |= estimate_columns("error_pct", one.errors_pct[SHIFTED + name])
            table.data.append(row | estimate_columns("difference_pp", one.differences_pp.get(name)))
    return table


def _outcome_table(found: Findings) -> Table:
    table = Table(
        "outcomes",
        "Trials by outcome, and what an outcome means for them",
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
        ("running", "has begun and not ended"),
        ("missing", "has not been run, or not to an end"),
    ):
        kind = "" if states[state] else "soft"
        table.add(
            state, str(states[state]), means, "by the next run", "no", "no, counted as missing", kind=kind
        )
    return table


def _power_table(found: Findings) -> Table:
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


def _cost_table(found: Findings) -> Table:
    table = Table(
        "cost",
        "What a result costs: of trials that ran, all attempts included",
        ("Cell", "Arm", "#Trials run", "#Time", "#Time per trial", "#Multiply-adds per trial",
         "#Time of the best", "#Multiply-adds of the best"),
    )  # fmt: skip
    for row in cost_per_arm(found):
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
        )
    return table


def _ledger_table(found: Findings) -> Table:
    device = found.spent.device if found.spent else "core"
    table = Table(
        "ledger",
        f"{device}-seconds of all runs of this sweep, by what they were spent on",
        ("Spent on", f"#{device}-seconds", "#Share (%)", "Which is"),
        section="Where the time went",
        intro="Every second of every device that a run held, from the command to its end.",
    )
    if found.spent is None:
        return table
    for name, seconds in found.spent.rows().items():
        share = 100 * seconds / found.spent.total
        table.add(name.replace("_", "-"), f"{seconds:.0f}", f"{share:.1f}", _SPENT_ON[name])
        table.data.append({"spent_on": name, "device": device, "seconds": seconds, "share_pct": share})
    return table


_SPENT_ON = {
    "useful": "training and evaluation that the results rest on",
    "replayed": "steps done again after a crash, since the last checkpoint",
    "lost": "work without a result: failed trials, and the last moments before a crash",
    "queued": "lanes that waited for a trial, or for others to finish",
    "start_up": "starting Ray and workers, and starting them again",
    "preflight": "checks before the first trial",
}


def _planned_table(found: Findings) -> Table:
    before = found.planned
    unit = before.unit if before else "core-hours"
    table = Table(
        "planned",
        "Planned before the first trial, and as it came",
        ("Cell and arm", "Batch", "#Trials run", "#s/epoch, planned", "#measured", "#Ratio",
         f"#{unit}, planned", "#spent", "#Ratio", "#GiB, planned", "#peak", "Planned from"),
        section="Planned and actual",
        intro="A row is a shape: model, batch, workers, precision, optimizer. Planned hours are "
        "those of the epochs that have run, hours spent those of all attempts; small print is the range that "
        "was expected. A ratio above 1 is more than planned. Memory is measured on GPUs only.",
    )  # fmt: skip
    if before is None or not (rows := planned_actual(found.plan, before, found.records)):
        return table
    for row in rows:
        (cell, arm), *more = row.arms or (("all", "that were planned"),)
        table.add(
            f"{cell} {arm}" + (f" and {len(more)} more" if more else ""),
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
    if any(row.arms and row.basis is None and row.planned_peak_gib is None for row in rows):
        table.note("Without a plan: shapes that came with a later run.")
    return table


def _note_wall_clock(found: Findings, before: Planned, table: Table) -> None:
    """From start to end; compared only where what was planned is what has run, and all of it."""
    distinct = {result.trial.id: result for result in found.results}
    told = f"Made {before.made} for {before.trials} trials on {before.device}"
    table.note(f"{told}; checkpoints were to take up to {before.checkpoint_gib:.2g} GiB at a time.")
    if before.wall_hours is None or found.spent is None:
        return
    low, central, high = (
        duration(3600 * hours)
        for hours in (before.wall_hours.low, before.wall_hours.central, before.wall_hours.high)
    )
    text = f"From start to end: planned {central} ({low} to {high}), {duration(found.spent.wall)} so far"
    if len(distinct) != before.trials:
        text += f", in which the sweep has grown to {len(distinct)} trials"
    elif all(result.state in RULES for result in distinct.values()):
        ratio = found.spent.wall / (3600 * before.wall_hours.central)
        text = text.removesuffix(" so far") + f" as it came: {ratio:.2f} times"
    table.note(f"{text}. Time between two runs, and that of checks before them, is not in it.")


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
    "measured": "rows of the same shape",
    "preflight": "a step of the preflight",
    "scaled": "other shapes",
    "table": "data sheet",
    "probe": "probe",
    None: "nothing",
}


def _paper_table(found: Findings) -> Table:
    table = Table(
        "paper",
        f"Lowest {error_term(found.plan.trials)} per cell and arm beside the paper's, in %",
        (
            "Cell",
            "Arm",
            "#Paper",
            "Source",
            "#Here, confirmed",
            "#Here, best of the sweep",
            "#Here - paper (pp)",
        ),
        section="Beside the paper",
        intro="What the file says a paper found in these cells and arms. Errors here are on the final split.",
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
                    _shown(confirmed, "error"),
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


#: In the order of the page, as far as their place is not in the template.
TABLES: tuple[Callable[[Findings], Table], ...] = (
    _peak_table,
    _robustness_table,
    _contrast_table,
    _peak_contrast_table,
    _search_table,
    _tuning_table,
    _basin_table,
    _importance_table,
    _transfer_table,
    _gap_table,
    _gap_contrast_table,
    _noise_table,
    _edge_table,
    _audit_table,
    _outcome_table,
    _power_table,
    _cost_table,
    _ledger_table,
    _planned_table,
    _corruption_table,
    _shifted_set_table,
    _paper_table,
)


def tables_of(found: Findings) -> dict[str, Table]:
    """All tables by name."""
    return {table.name: table for table in (make(found) for make in TABLES)}
