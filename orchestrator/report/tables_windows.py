"""Tables of the windows: basins, importance, transfer, gaps, noise, edges, window audit."""

from orchestrator.analysis.basin import Extent
from orchestrator.analysis.findings import Findings, gap_floor
from orchestrator.analysis.gaps import DETECT_PP
from orchestrator.analysis.noise import Component, Stream, noise_floor_pp
from orchestrator.report.table import Table, Text, note_left_out, note_no_interval, shown
from orchestrator.report.text import interval_text
from orchestrator.stats.measures import MEASURES
from orchestrator.stats.power import POWER
from orchestrator.trials.numerals import listed, percent, short


def _extent_text(extent: Extent | None, squared: bool = False) -> Text:
    if extent is None:
        return Text("–")
    more = "≥ " if extent.touches else ""
    unit = extent.unit.replace("octaves x octaves", "octaves²").replace(" x ", " × ")
    ends = interval_text(extent.size) or ("no interval" if extent.size.because else "")
    of = f"of {extent.window:.3g} {unit}"
    digits = f"{extent.size.value:.1f}" if squared else f"{extent.size.value:.2f}"
    return Text(f"{more}{digits}", f"{ends}; {of}" if ends else of)


def basin_table(found: Findings) -> Table:
    names = list(
        dict.fromkeys(width.names[0] for part in found.evidence for b in part.basins for width in b.widths)
    )
    table = Table(
        "basins",
        "The basin around each arm's optimum: where a smooth surface through the errors is within 2 pp of "
        "the reference",
        ("Cell", "Arm", "#Optimum", "#Error there (%)", *(f"#Width in {name}" for name in names),
         "#Area, lr × weight decay", "#lr sensitivity (pp)", "#Leave-one-out R2"),
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
                shown(b.lr_sensitivity_pp),
                fit,
            )
            extents = [e.size for e in (*b.widths, *([b.area] if b.area else []))]
            note_no_interval(table, [*extents, b.lr_sensitivity_pp])
            if any(e.touches for e in (*b.widths, *([b.area] if b.area else []))):
                table.note("≥: the basin reaches an edge of the window and may extend beyond it.")
    return table


def importance_table(found: Findings) -> Table:
    table = Table(
        "importance",
        "Share of the variance of min(Delta, 10 pp) over the window",
        ("Cell", "Arm", "Parameter", "#alone", "#with others", "#Leave-one-out R2"),
    )
    for item in (item for part in found.evidence for item in part.importances):
        if table.refuses(f"{item.cell}, {item.arm}", item.because):
            continue
        fit = "–" if item.quality is None else f"{item.quality.r2:.2f}"
        for one in item.parameters:
            table.add(item.cell, item.arm, one.name, f"{one.main:.2f}", f"{one.total:.2f}", fit)
    note_left_out(found, table)
    return table


def transfer_table(found: Findings) -> Table:
    table = Table(
        "transfer",
        "Added error of an arm at another arm's best setting, in pp",
        ("Cell", "Arm", "at the best of", "#Regret, as observed", "#Regret, smooth", "#Pairs"),
    )
    for t in (t for part in found.evidence for t in part.transfers):
        if table.refuses(f"{t.cell}, {t.arm} at the best of {t.donor}", t.because):
            continue
        note_no_interval(table, [t.regret_pp, t.smooth_pp])
        table.add(t.cell, t.arm, t.donor, shown(t.regret_pp), shown(t.smooth_pp), str(t.num_pairs))
        if t.smooth_pp is None:
            table.note(
                "No smooth regret where the fitted surface does not predict reliably better than the mean."
            )
    note_left_out(found, table)
    return table


def gap_table(found: Findings) -> Table:
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
            shown(gap.gap_pp, sign=True),
            shown(floor, otherwise="not measured"),
        )
    return table


def gap_contrast_table(found: Findings) -> Table:
    table = Table(
        "gap_differences",
        "Gap of every arm minus that of the first, in pp",
        ("Cell", "against", "Arm", "minus that of", "#k", "#Points", "#Difference", "Smaller gap",
         f"#Points that find {DETECT_PP:g} pp"),
    )  # fmt: skip
    if found.gap_contrasts:
        table.note(
            f"Verdicts are taken at {listed(found.looks.points)} points, and their intervals have the level "
            f"of the look. The last column has the points that find a difference of {DETECT_PP:g} pp "
            f"in {POWER:.0%} of sweeps, by the spread of the points so far."
        )
    for c in found.gap_contrasts:
        verdict = Text(c.better, strong=True) if c.better else Text("not settled")
        if c.look is None:
            verdict = Text("not settled", f"the first look is at {c.next_look} points")
        elif c.better is None and c.next_look is not None:
            verdict = Text("not settled", f"the next look is at {c.next_look} points")
        table.add(
            c.pair.cell,
            c.pair.base_cell,
            c.arm,
            c.base_arm,
            str(c.budget),
            str(c.num_points),
            shown(c.difference_pp, sign=True),
            verdict,
            "–" if c.points_needed is None else str(c.points_needed),
        )
    return table


_STREAMS: tuple[Stream, ...] = ("init", "order", "augment")


def noise_table(found: Findings) -> Table:
    table = Table(
        "noise",
        "Standard deviation of one run by source of noise, in pp",
        ("Cell", "Arm", *(f"#{stream}" for stream in _STREAMS), "#All at once", "#Floor of one run",
         "#Floor of a difference"),
    )  # fmt: skip

    def part(one: Component | None) -> Text:
        if one is None:
            return Text("not measured")
        between = interval_text(one.sd_pp)
        groups = f"{one.num_groups} setting{'s' if one.num_groups > 1 else ''}"
        return Text(f"{one.sd_pp.value:.2f}", f"{between}; {groups}" if between else groups)

    for one in found.noise.values():
        streams = [part(one.streams.get(stream)) for stream in _STREAMS]
        table.add(one.cell, one.arm, *streams, part(one.total), part(one.floor), shown(noise_floor_pp(one)))
        if one.num_diverged_groups:
            table.note(
                f"{one.cell}, {one.arm}: {one.num_diverged_groups} settings left out, because only some of "
                "their runs diverged."
            )
    return table


def edge_table(found: Findings) -> Table:
    table = Table(
        "edges",
        "Arms whose optimum is, or may be, at an edge of the window",
        ("Cell", "Arm", "Parameter", "Edge", "By", "#Value", "#Falls by (pp)", "#Refits that agree",
         "Points that would settle it"),
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


def audit_table(found: Findings) -> Table:
    """Returns the window audit: verdicts that would change first, then the others cell by cell."""
    table = Table(
        "audit",
        "Differences under other windows over the same points",
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
            shown(verdict.difference, verdict.measure, sign=True),
            f"{verdict.effective_points:.1f}",
            said(before.better),
            Text(here, verdict.flip or ("" if verdict.difference else verdict.because), bool(verdict.flip)),
        )
    for item in (item for part in found.evidence for item in part.audits):
        table.refuses(f"{item.cell}, {item.arm}", item.because, "no audit")
    note_left_out(found, table)
    return table
