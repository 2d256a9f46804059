"""Figures of a sweep: Delta-EDFs, tuning curves, error over the parameters, pairs, training curves, gaps.

Arms differ in colour (the palette of Okabe and Ito, safe for colour-blind readers), in line style and in
marker, so that black-and-white prints stay readable. A cross is always a diverged trial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report import steady_matplotlib  # noqa: F401

# isort: split

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from orchestrator.analysis.contrasts import Contrast
from orchestrator.analysis.gaps import Gap
from orchestrator.analysis.pooled import Pooled
from orchestrator.analysis.summary import Summary, landmarks
from orchestrator.report.plotting import (
    BACKED,
    GREY,
    axis_label,
    clipped,
    colour_of,
    draw_cross,
    draw_empty,
    draw_legend,
    figure_height,
    framed,
    has_diverged,
    line_of,
    marker_of,
    styled,
)
from orchestrator.stats.best_of import TuningCurve
from orchestrator.stats.intervals import Estimate, share_interval
from orchestrator.stats.measures import AREA_LIMIT_PP, MEASURES, Measure, deltas, edf
from orchestrator.sweep.config import ONE_CELL
from orchestrator.trials.records import Result
from trainables.base import WORST_PCT


@styled
def delta_edf(summaries: Sequence[Summary]) -> Figure:
    """Draws the share of points within Delta of the arm's reference, Delta from 0 to 10 pp; a line per arm.

    The band is the pointwise exact 95 % interval over both ends of the interval of a confirmed reference.
    An unconfirmed reference has no band.

    Args:
      summaries: the arms of one cell.
    """
    figure = Figure(figsize=(4.5, figure_height(len(summaries))))
    axes = figure.subplots()
    handles = []
    for index, summary in enumerate(summaries):
        count = len(summary.errors_pct)
        handles.append(
            Line2D([], [], color=colour_of(index), ls=line_of(index), label=f"{summary.arm} (n = {count})")
        )
        if not count:
            continue
        if (reference := summary.reference_interval) is not None:
            # At each end of the reference, because more points are near a higher one.
            ends = (reference.value if end is None else end for end in (reference.low, reference.high))
            at, errors = np.linspace(0, AREA_LIMIT_PP, 401), list(summary.errors_pct.values())
            counts = [np.searchsorted(np.sort(deltas(errors, end)), at, side="right") for end in ends]
            low, high = ([share_interval(int(c), count)[side] for c in counts[side]] for side in (0, 1))
            axes.fill_between(at, low, high, color=colour_of(index), alpha=0.12, lw=0)
        _draw_steps(axes, summary.deltas_pp, color=colour_of(index), ls=line_of(index))
    if not any(summary.errors_pct for summary in summaries):
        draw_empty(axes)
    axes.set(
        xlim=(0, AREA_LIMIT_PP),
        ylim=(0, 1.02),
        xlabel="Delta: error over the arm's reference (pp)",
        ylabel="share of points",
    )
    axes.set_xticks([0, 1, 2, 4, 6, 8, 10])
    framed(figure, handles)
    return figure


def _draw_steps(axes: Axes, above_pp: NDArray[np.float64], **line: Any) -> None:
    """Draws the distribution function of values from 0 to AREA_LIMIT_PP."""
    steps, shares = edf(above_pp)
    # The function is 0 left of its first step and keeps its value beyond the last one drawn.
    inside = steps <= AREA_LIMIT_PP
    x = np.concatenate([[0.0], steps[inside], [AREA_LIMIT_PP]])
    y = np.concatenate([[0.0], shares[inside], [shares[inside][-1] if inside.any() else 0.0]])
    axes.step(x, y, where="post", **line)


@styled
def common_edf(summaries: Sequence[Summary]) -> Figure:
    """Draws the share of points within x of the best error of all arms, x from 0 to 10 pp; a line per arm.

    The mean height of a line is the arm's common area, by which a sweep is decided. A dotted line marks the
    common bar.

    Args:
      summaries: the arms of one cell.
    """
    figure = Figure(figsize=(4.5, figure_height(len(summaries))))
    axes = figure.subplots()
    handles: list[Artist] = []
    for index, summary in enumerate(summaries):
        errors = list(summary.errors_pct.values())
        line = {"color": colour_of(index), "ls": line_of(index)}
        handles.append(Line2D([], [], label=f"{summary.arm} (n = {len(errors)})", **line))
        if errors and summary.common_reference_pct is not None:
            # A setting below a confirmed reference is at it.
            above = np.maximum(deltas(errors, summary.common_reference_pct), 0)
            _draw_steps(axes, above, lw=1.8, **line)
    if not any(summary.errors_pct for summary in summaries):
        draw_empty(axes)
    axes.axvline(MEASURES["within_common_bar"].within_pp or 0, color=GREY, lw=0.9, ls=":")
    axes.set(
        xlim=(0, AREA_LIMIT_PP),
        ylim=(0, 1.02),
        xlabel="points of error above the best of all arms",
        ylabel="share of settings",
    )
    axes.set_xticks([0, 1, 2, 4, 6, 8, 10])
    framed(figure, handles)
    return figure


@styled
def tuning_curves(arms: Mapping[str, TuningCurve]) -> Figure:
    """Draws the median error of the best of k trials over k, with a band that is simultaneous over k.

    Beyond the largest k that the trials support, the curve continues in grey, without a band.

    Args:
      arms: the tuning curves of one cell by arm.
    """
    figure = Figure(figsize=(4.5, figure_height(len(arms))))
    axes = figure.subplots()
    handles: list[Artist] = []
    tops, bottoms, longest = [1.0], [WORST_PCT], 2
    for index, (arm, curve) in enumerate(arms.items()):
        k, count = np.arange(1, curve.num_trials + 1), curve.largest_budget
        longest = max(longest, curve.num_trials)
        axes.plot(
            k[max(count - 1, 0) :], curve.median_pct[max(count - 1, 0) :], color="#8c8c8c", lw=1, ls=":"
        )
        if count:
            axes.fill_between(
                k[:count],
                curve.low_pct[:count],
                curve.high_pct[:count],
                color=colour_of(index),
                alpha=0.12,
                lw=0,
            )
            axes.plot(
                k[:count], curve.median_pct[:count], color=colour_of(index), ls=line_of(index),
                marker=marker_of(index), ms=4, mec="white", mew=0.5, markevery=[count - 1],
            )  # fmt: skip
            tops.append(float(min(curve.high_pct[0], 2 * curve.median_pct[0])))
            bottoms.append(float(curve.low_pct[:count].min()))
        tops.append(float(curve.median_pct[0]))
        bottoms.append(float(curve.median_pct.min()))
        handles.append(
            Line2D(
                [], [], color=colour_of(index), ls=line_of(index), marker=marker_of(index), ms=4,
                label=f"{arm} (to k = {count})" if count else f"{arm} (too few trials)",
            )
        )  # fmt: skip
    if not arms:
        draw_empty(axes)
    top, bottom = max(tops), min(bottoms)
    margin = 0.06 * (top - bottom) or 1.0
    axes.set_xscale("log", base=2)
    axes.set(ylim=(max(bottom - margin, 0), min(top + margin, 102)), xlim=(0.94, longest * 1.06))
    axes.xaxis.set_major_locator(FixedLocator([2**i for i in range(longest.bit_length())]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.set(xlabel="k, trials tried", ylabel="error of the best of k (%)")
    handles.append(Line2D([], [], color="#8c8c8c", lw=1, ls=":", label="not supported"))
    framed(figure, handles)
    return figure


@styled
def paired(summaries: Sequence[Summary]) -> Figure:
    """Draws each point's error in every arm over its error in the first arm, with the line of equality.

    Points that count as 100 % in an arm are crosses at that arm's edge, beyond a thin line.

    Args:
      summaries: the arms of one cell; a point's error is the mean over its replicates.
    """
    base, *others = summaries
    figure = Figure(figsize=(4.5, 4.2 + 0.2 * max(len(others) - 2, 0)))
    axes = figure.subplots()
    pairs = {
        s.arm: [(base.errors_pct[p], s.errors_pct[p]) for p in base.errors_pct if p in s.errors_pct]
        for s in others
    }
    lost = WORST_PCT - 1e-9
    ran = [error for found in pairs.values() for pair in found for error in pair if error < lost]
    high, low = max(ran, default=1.0) or 1.0, min(ran, default=0.0)
    room = 0.06 * (high - low) or 0.5
    start, bar, edge = max(low - room, 0.0), high + room, high + 2 * room
    handles: list[Artist] = [Line2D([], [], color=GREY, lw=0.9, label="equal")]
    any_lost = False
    for index, (arm, found) in enumerate(pairs.items(), start=1):
        good = [pair for pair in found if max(pair) < lost]
        bad = [
            tuple(edge if error >= lost else error for error in pair) for pair in found if max(pair) >= lost
        ]
        axes.plot(
            [x for x, _ in good], [y for _, y in good], ls="none", marker=marker_of(index), ms=6, mew=0.6,
            mec="white", color=colour_of(index), alpha=0.9,
        )  # fmt: skip
        if bad:
            any_lost = True
            draw_cross(axes, [x for x, _ in bad], [y for _, y in bad], colour_of(index))
        handles.append(Line2D([], [], color=colour_of(index), ls="none", marker=marker_of(index), label=arm))
    if not any(pairs.values()):
        draw_empty(axes)
    axes.plot([start, bar], [start, bar], color=GREY, lw=0.9, zorder=1)
    end = bar
    if any_lost:
        end = edge + room
        axes.axhline(bar, color=GREY, lw=0.6)
        axes.axvline(bar, color=GREY, lw=0.6)
        handles.append(
            Line2D([], [], color=GREY, ls="none", marker="x", mew=1.4, label="diverged, beyond the line")
        )
    name = others[0].arm if len(others) == 1 else "the other arm"
    axes.set(xlim=(start, end), ylim=(start, end), aspect="equal", anchor="NW")
    axes.set(xlabel=f"error of {clipped(base.arm, 40)} (%)", ylabel=f"error of {clipped(name, 40)} (%)")
    for which in ("x", "y"):
        axes.locator_params(axis=which, nbins=6)
    framed(figure, handles)
    return figure


@styled
def gap_sizes(gaps: Sequence[Gap]) -> Figure:
    """Draws gaps with their intervals, a row per pair of cells and arm.

    Args:
      gaps: at least one.
    """
    figure = Figure(figsize=(4.5, 1.0 + 0.46 * len(gaps)), layout="constrained")
    axes = figure.subplots()
    arms = list(dict.fromkeys(gap.arm for gap in gaps))
    for y, gap in enumerate(gaps):
        index = arms.index(gap.arm)
        ends = [end for end in (gap.gap_pp.low, gap.gap_pp.high) if end is not None]
        axes.plot(ends, [y] * len(ends), color=colour_of(index), lw=2, solid_capstyle="butt")
        axes.plot([gap.gap_pp.value], [y], ls="none", marker=marker_of(index), ms=6.5, color=colour_of(index))
        axes.annotate(
            clipped(f"{gap.pair.cell} against {gap.pair.base_cell} · {gap.arm}", 58), (0, y),
            xycoords=("axes fraction", "data"), xytext=(0, 6), textcoords="offset points", fontsize=8.5,
            bbox=BACKED,
        ).set_in_layout(False)  # fmt: skip
    axes.axvline(0, color="black", lw=0.9)
    axes.set(ylim=(len(gaps) - 0.6, -0.85), yticks=[], xlabel="gap in error of the best of k (pp)")
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    handles = [
        Line2D([], [], color=colour_of(i), marker=marker_of(i), lw=2, label=a) for i, a in enumerate(arms)
    ]
    draw_legend(figure, handles)
    return figure


@styled
def curves(arms: Mapping[str, Sequence[Result]]) -> Figure:
    """Draws the error on the selection split after every epoch: each arm's best, median and worst trial.

    Args:
      arms: results of one cell by arm.
    """
    panels = ("best", "median", "worst")
    figure = Figure(figsize=(8.4, 3.1))
    grid = figure.subplots(1, len(panels), sharex=True, sharey=True, gridspec_kw={"wspace": 0.07})
    highest, num_epochs, ends = 1.0, 1, False
    found = {arm: landmarks(results) for arm, results in arms.items()}
    for panel, axes in zip(panels, grid, strict=True):
        unseen = []
        for index, arm in enumerate(arms):
            result = found[arm].get(panel)
            if result is None:
                continue
            epochs = sorted(result.record.rows)
            errors = [result.record.rows[epoch].val_error_pct for epoch in epochs]
            num_epochs = max(num_epochs, result.trial.config.schedule.epochs)
            if not epochs:
                unseen.append(f"{arm}: diverged in its first epoch")
                continue
            highest = max(highest, *errors)
            axes.plot(
                epochs,
                errors,
                color=colour_of(index),
                ls=line_of(index),
                marker=marker_of(index),
                ms=4,
                mec="white",
                mew=0.5,
                # Staggered, so that markers of coinciding arms do not overlap.
                markevery=(index % 4, max(len(epochs) // 5, 1)) if len(epochs) > 1 else None,
                lw=1.4,
            )
            if has_diverged(result):
                draw_cross(axes, epochs[-1:], errors[-1:], colour_of(index))
                ends = True
        if unseen:
            axes.text(0.97, 0.04, "\n".join(unseen), transform=axes.transAxes, ha="right", fontsize=8)
        axes.set_title(f"{panel} of each arm", loc="left")
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True, nbins=6)
    if not any(found.values()):
        draw_empty(grid[1])
    grid[0].set(ylabel=axis_label(arms), ylim=(0, 1.05 * highest), xlim=(0, 1.03 * num_epochs))
    handles: list[Artist] = [
        Line2D([], [], color=colour_of(index), ls=line_of(index), marker=marker_of(index), ms=4, label=arm)
        for index, arm in enumerate(arms)
    ]
    if ends:
        handles.append(Line2D([], [], color=GREY, ls="none", marker="x", mew=1.4, label="diverged"))
    framed(figure, handles, titles=0.2)
    return figure


@dataclass(frozen=True, slots=True)
class _DifferenceRow:
    label: str
    primary: bool
    arm: str
    difference: Estimate | None
    settled: bool
    line: str = "-"


@styled
def differences(contrasts: Sequence[Contrast], measure: Measure, pooled: Sequence[Pooled] = ()) -> Figure:
    """Draws the difference of every arm to the reference arm with its interval, a row per cell and arm.

    For a measure that decides, the interval is that of the test that decides. Filled markers are settled,
    hollow ones are not. Right of 0 the arm is better than the reference arm, for every measure. Below the
    cells are the means over them, and dotted the prediction for a new cell.

    Args:
      contrasts: contrasts of any measures. At least one must be of `measure`.
      measure: the measure to draw.
      pooled: the same over cells, of any measures.
    """
    found = [contrast for contrast in contrasts if contrast.measure == measure]
    arms = list(dict.fromkeys(contrast.arm for contrast in found))
    base, several = found[0].base_arm, len(arms) > 1
    rows = [
        _DifferenceRow(
            (one.arm if one.cell == ONE_CELL else f"{one.cell} · {one.arm}") if several else one.cell,
            one.primary,
            one.arm,
            one.within if one.decision == "alike" else one.shift or one.difference,
            one.decision != "open",
        )
        for one in found
    ]
    for over in pooled:
        if over.measure == measure:
            who = f" · {over.arm}" if several else ""
            rows.append(
                _DifferenceRow(
                    f"over these cells{who}", False, over.arm, over.shift or over.over, bool(over.better)
                )
            )
            if over.new_cell is not None and over.new_cell.low is not None:
                rows.append(_DifferenceRow(f"in a new cell{who}", False, over.arm, over.new_cell, False, ":"))
    sign = 1 if MEASURES[measure].higher_is_better else -1
    figure = Figure(figsize=(4.5, 1.15 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    reach = 0.0
    for y, row in enumerate(rows):
        if (difference := row.difference) is None:
            axes.text(0, y, "no pairs yet", ha="center", va="center", color=GREY, fontsize=8)
            continue
        # The reference arm takes the first colour, as everywhere else.
        index = arms.index(row.arm) + 1
        ends = [end * sign for end in (difference.low, difference.high) if end is not None]
        axes.plot(ends, [y] * len(ends), color=colour_of(index), lw=2, ls=row.line, solid_capstyle="butt")
        axes.plot(
            [difference.value * sign],
            [y],
            marker=marker_of(index),
            ms=6.5,
            mec=colour_of(index),
            mfc=colour_of(index) if row.settled else "white",
            mew=1.4,
        )
        reach = max(reach, abs(difference.value), *map(abs, ends))
    reach = 1.12 * reach or 1.0
    axes.axvline(0, color="black", lw=0.9)
    if len(rows) > len(found):
        axes.axhline(len(found) - 0.72, color=GREY, lw=0.6)
    axes.set(xlim=(-reach, reach), ylim=(len(rows) - 0.6, -0.85), yticks=[])
    for y, row in enumerate(rows):
        # Above its interval, because a long name next to it would take width from the intervals.
        axes.annotate(
            clipped(f"{row.label} (primary)" if row.primary else row.label, 58),
            (0, y),
            xycoords=("axes fraction", "data"),
            xytext=(0, 6),
            textcoords="offset points",
            fontsize=8.5,
            bbox=BACKED,
        ).set_in_layout(False)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    # Em spaces, because a browser collapses plain ones.
    other = "the other arm" if several else arms[0]
    turned = "" if sign == 1 else ", sign reversed"
    sides = f"← {clipped(base, 20)} better\u2003\u2003{clipped(other, 20)} better →"
    axes.set_xlabel(f"{sides}\ndifference in {MEASURES[measure].symbol}{turned}")
    handles: list[Artist] = [
        Line2D([], [], color="black", marker="o", mfc=fill, mew=1.4, lw=2, label=label)
        for fill, label in (("black", "settled"), ("white", "not settled"))
    ]
    draw_legend(figure, handles)
    return figure
