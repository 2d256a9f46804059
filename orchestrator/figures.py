"""Figures of a sweep: Delta-EDFs, tuning curves, error over the parameters, pairs, training curves, gaps.

Arms are told apart by colour (Okabe and Ito's, which the colour-blind can tell apart), by line and by
marker, so that a print in black and white can be read too. A cross always is a diverged trial.
"""

import functools
import hashlib
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from orchestrator.analysis.contrasts import Contrast
from orchestrator.analysis.gaps import Gap
from orchestrator.analysis.summary import Summary, landmarks
from orchestrator.stats.best_of import TuningCurve
from orchestrator.stats.intervals import share_interval
from orchestrator.stats.measures import AREA_LIMIT_PP, MEASURES, Measure, deltas, edf
from orchestrator.sweep.space import Domain, Listed, LogUniform
from orchestrator.trials.numerals import short
from orchestrator.trials.records import Result
from orchestrator.trials.trial import error_label
from trainables.base import WORST_PCT

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A7A00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "h")
_LINES: tuple[Any, ...] = (
    "solid",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (8, 2)),
    (0, (3, 1.2, 1.2, 1.2, 1.2, 1.2)),
    (0, (2.5, 1)),
    (0, (1, 2.5)),
)
_GREY = "#6b6b6b"
#: Behind a label on lines.
_BACKED: dict[str, Any] = {"fc": "white", "ec": "none", "pad": 0.5}

# Any: the keys of matplotlib's type are one long Literal.
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.borderaxespad": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.linewidth": 0.7,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    # Text stays text: small files, searchable, in the font of the page around.
    "svg.fonttype": "none",
    # A dollar sign in a value is a dollar sign.
    "text.parse_math": False,
}

P = ParamSpec("P")

ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            figure = draw(*args, **kwargs)
            # Laid out once: each file would do it twice, at a third of the time of a report.
            if (engine := figure.get_layout_engine()) is not None:
                engine.execute(figure)
                figure.set_layout_engine("none")
        return figure

    return wrapper


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _marker(index: int) -> str:
    # From the ninth arm on colours repeat, so markers and lines move on by one.
    return _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)]


def _line(index: int) -> Any:
    return _LINES[(index + index // len(_COLOURS)) % len(_LINES)]


def _legend(figure: Figure, handles: Sequence[Artist]) -> int:
    """Above the axes, in as many columns as fit the figure; returns the number of rows."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    # A character of 8.5 points is about 0.075 inches wide, the handle and its gaps 0.65 inches.
    columns = min(max(int(figure.get_figwidth() / (0.65 + 0.075 * longest)), 1), len(handles))
    place: Literal["upper left", "outside upper left"] = "upper left"
    if figure.get_layout_engine() is not None:
        place = "outside upper left"
    figure.legend(handles=list(handles), loc=place, ncols=columns, handlelength=2.4)
    return math.ceil(len(handles) / columns)


def _framed(figure: Figure, handles: Sequence[Artist], right: float = 0.12, titles: float = 0.0) -> None:
    """Legend and margins of axes with numbers along them, in inches.

    Such axes need the same margins everywhere. Measuring their texts instead takes a third of a large report.
    """
    rows = _legend(figure, handles) if handles else 0
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=0.62 / width,
        right=1 - right / width,
        bottom=0.46 / height,
        top=1 - (0.14 + 0.185 * rows + titles) / height,
    )


def _clipped(name: str, most: int) -> str:
    """A name that fits: its beginning and its end, which tell names apart."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def _height(num_arms: int) -> float:
    """Of a figure in inches: its legend, and rows of diverged trials, grow with the arms."""
    return 3.3 + 0.2 * max(num_arms - 3, 0)


def _empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no results yet", transform=axes.transAxes, ha="center", va="center", color=_GREY)


@_styled
def delta_edf(summaries: Sequence[Summary]) -> Figure:
    """Share of points within Delta of the arm's reference, Delta from 0 to 10 pp; one line per arm.

    The band is the pointwise exact 95 % interval, at both ends of what a confirmed reference may be; without
    a confirmed reference there is none.

    Args:
      summaries: the arms of one cell.
    """
    figure = Figure(figsize=(4.5, _height(len(summaries))))
    axes = figure.subplots()
    handles = []
    for index, summary in enumerate(summaries):
        count = len(summary.errors_pct)
        handles.append(
            Line2D([], [], color=_colour(index), ls=_line(index), label=f"{summary.arm} (n = {count})")
        )
        if not count:
            continue
        steps, shares = edf(summary.deltas_pp)
        # The function is 0 left of its first step and keeps its value beyond the last one drawn.
        inside = steps <= AREA_LIMIT_PP
        x = np.concatenate([[0.0], steps[inside], [AREA_LIMIT_PP]])
        y = np.concatenate([[0.0], shares[inside], [shares[inside][-1] if inside.any() else 0.0]])
        if (reference := summary.reference_interval) is not None:
            # At each end of the reference: a higher one has more points near it.
            ends = (reference.value if end is None else end for end in (reference.low, reference.high))
            at, errors = np.linspace(0, AREA_LIMIT_PP, 401), list(summary.errors_pct.values())
            counts = [np.searchsorted(np.sort(deltas(errors, end)), at, side="right") for end in ends]
            low, high = ([share_interval(int(c), count)[side] for c in counts[side]] for side in (0, 1))
            axes.fill_between(at, low, high, color=_colour(index), alpha=0.12, lw=0)
        axes.step(x, y, where="post", color=_colour(index), ls=_line(index))
    if not any(summary.errors_pct for summary in summaries):
        _empty(axes)
    axes.set(
        xlim=(0, AREA_LIMIT_PP),
        ylim=(0, 1.02),
        xlabel="Delta: error over the arm's reference (pp)",
        ylabel="share of points",
    )
    axes.set_xticks([0, 1, 2, 4, 6, 8, 10])
    _framed(figure, handles)
    return figure


class _Scale:
    """One axis of a varied parameter: logarithmic, linear, or one place per value."""

    def __init__(self, domains: Sequence[Domain]) -> None:
        self.values: list[str] = []
        self.log = False
        self.low = self.high = 0.0
        if any(isinstance(domain, Listed) for domain in domains):
            # Also the values of a number that another arm draws from an interval would need a place of
            # their own; `place` adds them.
            listed = (value for domain in domains if isinstance(domain, Listed) for value in domain.values)
            self.values = list(dict.fromkeys(str(value) for value in listed))
        else:
            ends = [float(end) for domain in domains for end in domain.extremes()]
            self.low, self.high = min(ends), max(ends)
            self.log = self.low > 0 and any(isinstance(domain, LogUniform) for domain in domains)

    def place(self, value: Any) -> float:
        """Where a value stands on the axis."""
        if not self.values:
            return float(value)
        if str(value) not in self.values:
            self.values.append(str(value))
        return float(self.values.index(str(value)))

    def shift(self, index: int, count: int) -> float:
        """What keeps `count` arms apart that stand at the same place; nothing on an axis of numbers."""
        return 0.6 * ((index + 0.5) / count - 0.5) if self.values else 0.0

    def apply(self, axes: Axes, which: str, label: str, max_ticks: int) -> None:
        """Scale, limits, ticks and label of the `x` or `y` axis."""
        axis = axes.xaxis if which == "x" else axes.yaxis
        set_limits = axes.set_xlim if which == "x" else axes.set_ylim
        axis.set_label_text(label)
        if self.values:
            set_limits(-0.5, len(self.values) - 0.5)
            axis.set_major_locator(FixedLocator(list(range(len(self.values)))))
            axis.set_major_formatter(FuncFormatter(lambda place, _: self.values[int(place)]))
        elif self.log:
            (axes.set_xscale if which == "x" else axes.set_yscale)("log")
            margin = max(self.high / self.low, 1.5) ** 0.05
            set_limits(self.low / margin, self.high * margin)
            axis.set_major_locator(FixedLocator(_log_ticks(self.low / margin, self.high * margin, max_ticks)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        else:
            margin = 0.04 * (self.high - self.low) or 0.5
            set_limits(self.low - margin, self.high + margin)
            axes.locator_params(axis="x" if which == "x" else "y", nbins=max_ticks)
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _log_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    """At most `max_ticks` round numbers between two ends, evenly spread; at least the two ends' best."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices: list[list[float]] = [
        [factor * 10.0**decade for decade in decades for factor in factors]
        for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,))
    ]
    choices += [choices[-1][::step] for step in range(2, len(decades) + 1)]
    fitting = [[tick for tick in ticks if low <= tick <= high] for ticks in choices]
    return next((ticks for ticks in fitting if len(ticks) <= max_ticks), [])


def _diverged(result: Result) -> bool:
    return result.state == "diverged"


def _errors(results: Sequence[Result]) -> list[float]:
    """Of the trials that count in the EDF and did not diverge."""
    return [error for result in results if (error := result.error_pct) is not None and not _diverged(result)]


def _error_label(arms: Mapping[str, Sequence[Result]]) -> str:
    return error_label(result.trial for results in arms.values() for result in results)


def _top(errors_pct: Sequence[float], num_rows: int) -> tuple[float, float]:
    """Upper end of an error axis, and the height of one row for crosses above the highest error."""
    highest = max(errors_pct, default=1.0) or 1.0
    row = 0.08 * highest if num_rows else 0.0
    return 1.05 * highest + (num_rows + 0.6) * row, row


def _cross(axes: Axes, x: Sequence[float], y: float | Sequence[float], colour: str) -> None:
    axes.plot(
        x,
        y if isinstance(y, Sequence) else [y] * len(x),
        ls="none",
        marker="x",
        ms=5.5,
        mew=1.4,
        color=colour,
        clip_on=False,
    )


@_styled
def error_over_parameter(
    arms: Mapping[str, Sequence[Result]], path: str, domains: Mapping[str, Domain]
) -> Figure:
    """Error of every trial against one varied parameter; diverged ones as crosses at the top, a row per arm.

    A thin vertical line marks the best trial of each arm.

    Args:
      arms: results of one cell by arm.
      path: the parameter.
      domains: of the parameter, by arm; arms in which it does not vary are absent.
    """
    figure = Figure(figsize=(4.5, _height(len(arms))))
    axes = figure.subplots()
    scale = _Scale(list(domains.values()))
    counted = {
        arm: [r for r in results if r.error_pct is not None and path in r.trial.values]
        for arm, results in arms.items()
        if arm in domains
    }
    lost = [arm for arm, results in counted.items() if any(map(_diverged, results))]
    top, row = _top([error for results in counted.values() for error in _errors(results)], len(lost))
    handles: list[Artist] = []
    for index, arm in enumerate(arms):
        if arm not in counted:
            continue
        colour = _colour(index)
        shift = scale.shift(index, len(arms))

        def where(result: Result, shift: float = shift) -> float:
            return scale.place(result.trial.values[path]) + shift

        good = [result for result in counted[arm] if not _diverged(result)]
        x = [where(result) for result in good]
        axes.plot(
            x,
            _errors(good),
            ls="none",
            marker=_marker(index),
            ms=6,
            mew=0.6,
            mec="white",
            color=colour,
            alpha=0.9,
        )
        if good:
            best = landmarks(good)["best"]
            axes.axvline(
                where(best),
                color=colour,
                ls=_line(index),
                lw=0.9,
                alpha=0.7,
                zorder=1,
            )
        if arm in lost:
            crosses = [result for result in counted[arm] if _diverged(result)]
            y = top - (lost.index(arm) + 0.6) * row
            _cross(axes, [where(result) for result in crosses], y, colour)
            # The cross has no shape of its own per arm: the row has the arm's.
            axes.plot(
                [1.025],
                [y],
                transform=axes.get_yaxis_transform(),
                ls="none",
                marker=_marker(index),
                ms=4.5,
                color=colour,
                clip_on=False,
            )
        handles.append(
            Line2D([], [], color=colour, ls=_line(index), lw=0.9, marker=_marker(index), label=arm)
        )
    if lost:
        handles.append(Line2D([], [], color=_GREY, ls="none", marker="x", mew=1.4, label="diverged"))
        axes.axhline(top - (len(lost) + 0.35) * row, color=_GREY, lw=0.6)
    if not any(counted.values()):
        _empty(axes)
    axes.set(ylim=(0, top), ylabel=_error_label(arms))
    scale.apply(axes, "x", path, 7)
    _framed(figure, handles, right=0.24)
    return figure


@dataclass(frozen=True, eq=False)
class Surface:
    """A smooth surface of an arm's error over two parameters, through its optimum.

    Attributes:
      x, y: values of the parameters.
      errors_pct: predicted, by x and y; capped some points above the lowest.
      basin_pct: the error at which the basin ends.
      optimum: where the prediction is lowest.
    """

    x: Sequence[float]
    y: Sequence[float]
    errors_pct: NDArray[np.float64]
    basin_pct: float
    optimum: tuple[float, float]


@_styled
def error_over_plane(
    arms: Mapping[str, Sequence[Result]],
    paths: tuple[str, str],
    domains: tuple[Mapping[str, Domain], Mapping[str, Domain]],
    surfaces: Mapping[str, Surface] | None = None,
) -> Figure:
    """Error of every trial as a colour over two varied parameters; one panel per arm, one colour scale.

    Where there is a surface it is drawn below the trials, with the basin's edge as a line and its optimum
    as a star.

    Args:
      arms: results of one cell by arm.
      paths: the parameters along x and y.
      domains: of each parameter, by arm.
      surfaces: by arm; arms without one show their trials alone.
    """
    surfaces = surfaces or {}
    names = [arm for arm in arms if arm in domains[0] and arm in domains[1]]
    columns = min(len(names), 4)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(0.9 + 2.55 * columns, 0.55 + 2.55 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    across, up = (_Scale([domain[arm] for arm in names]) for domain in domains)
    ran = [error for arm in names for error in _errors(arms[arm])]
    # By the root of the error: linear, one arm that trains badly would leave the others one shade.
    colours = ScalarMappable(PowerNorm(0.5, min(ran, default=0.0), max(ran, default=WORST_PCT)), "cividis")
    any_diverged = False
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_axis_off()
            continue
        results = [
            result
            for result in arms[names[place]]
            if result.error_pct is not None and set(paths) <= set(result.trial.values)
        ]
        good = [result for result in results if not _diverged(result)]
        lost = [result for result in results if _diverged(result)]

        def where(results: Sequence[Result]) -> tuple[list[float], list[float]]:
            return (
                [across.place(result.trial.values[paths[0]]) for result in results],
                [up.place(result.trial.values[paths[1]]) for result in results],
            )

        if (surface := surfaces.get(names[place])) is not None:
            _draw_surface(axes, surface, colours)
        # Empty artists must not be added: outside the clip, the layout would make room for them at (0, 0).
        if good:
            x, y = where(good)
            axes.scatter(
                x,
                y,
                c=_errors(good),
                norm=colours.norm,
                cmap=colours.cmap,
                s=44,
                edgecolors="#333333",
                linewidths=0.6,
                clip_on=False,
            )
            x, y = where([landmarks(good)["best"]])
            axes.plot(x, y, ls="none", marker="o", ms=12, mfc="none", mec="black", mew=1.2, clip_on=False)
        if lost:
            any_diverged = True
            x, y = where(lost)
            _cross(axes, x, y, "black")
        if not results:
            _empty(axes)
        axes.set_title(_clipped(names[place], 28), loc="left", fontweight="bold")
    for place, axes in enumerate(grid.flat[: len(names)]):
        lowest = place + columns >= len(names)
        across.apply(axes, "x", paths[0] if lowest else "", 4)
        # Also above an empty place of the last row, where a shared axis would leave them out.
        axes.tick_params(labelbottom=lowest)
        up.apply(axes, "y", paths[1] if place % columns == 0 else "", 6)
    if ran:
        bar = figure.colorbar(colours, ax=grid, label=_error_label(arms), aspect=28, fraction=0.05, pad=0.02)
        bar.outline.set_visible(False)
    handles: list[Artist] = [
        Line2D(
            [], [], ls="none", marker="o", ms=10, mfc="none", mec="black", mew=1.2, label="best of the arm"
        )
    ]
    if any_diverged:
        handles.append(Line2D([], [], ls="none", marker="x", mew=1.4, color="black", label="diverged"))
    if surfaces:
        handles.append(Line2D([], [], color="black", lw=1.2, label="edge of the basin"))
        handles.append(
            Line2D([], [], ls="none", marker="*", ms=10, mfc="white", mec="black", label="surface's optimum")
        )
    _legend(figure, handles)
    return figure


def _draw_surface(axes: Axes, surface: Surface, colours: ScalarMappable) -> None:
    low, high = float(surface.errors_pct.min()), float(surface.errors_pct.max())
    if high - low < 1e-9:
        return
    # Every other sample, where there are many: a contour between them is straight for two points of print.
    every = max(len(surface.x) // 32, 1)
    x, y, errors_YX = surface.x[::every], surface.y[::every], surface.errors_pct[::every, ::every].T
    # Finer near the optimum, where it matters.
    levels = low + (high - low) * np.linspace(0, 1, 9) ** 1.5
    levels[-1] += 1e-9
    axes.contourf(x, y, errors_YX, levels, norm=colours.norm, cmap=colours.cmap, alpha=0.75)
    if low < surface.basin_pct < high:
        axes.contour(x, y, errors_YX, [surface.basin_pct], colors="black", linewidths=1.2)
    best_x, best_y = surface.optimum
    axes.plot(
        [best_x], [best_y], ls="none", marker="*", ms=11, mfc="white", mec="black", mew=1, clip_on=False
    )


@_styled
def tuning_curves(arms: Mapping[str, TuningCurve]) -> Figure:
    """The median error of the best of k trials over k, with the band that holds at every k at once.

    Beyond the largest k that the trials support the curve goes on in grey, without a band.

    Args:
      arms: of one cell.
    """
    figure = Figure(figsize=(4.5, _height(len(arms))))
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
                color=_colour(index),
                alpha=0.12,
                lw=0,
            )
            axes.plot(
                k[:count], curve.median_pct[:count], color=_colour(index), ls=_line(index),
                marker=_marker(index), ms=4, mec="white", mew=0.5, markevery=[count - 1],
            )  # fmt: skip
            tops.append(float(min(curve.high_pct[0], 2 * curve.median_pct[0])))
            bottoms.append(float(curve.low_pct[:count].min()))
        tops.append(float(curve.median_pct[0]))
        bottoms.append(float(curve.median_pct.min()))
        handles.append(
            Line2D(
                [], [], color=_colour(index), ls=_line(index), marker=_marker(index), ms=4,
                label=f"{arm} (to k = {count})" if count else f"{arm} (too few trials)",
            )
        )  # fmt: skip
    if not arms:
        _empty(axes)
    top, bottom = max(tops), min(bottoms)
    margin = 0.06 * (top - bottom) or 1.0
    axes.set_xscale("log", base=2)
    axes.set(ylim=(max(bottom - margin, 0), min(top + margin, 102)), xlim=(0.94, longest * 1.06))
    axes.xaxis.set_major_locator(FixedLocator([2**i for i in range(longest.bit_length())]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.set(xlabel="k, trials tried", ylabel="error of the best of k (%)")
    handles.append(Line2D([], [], color="#8c8c8c", lw=1, ls=":", label="not supported"))
    _framed(figure, handles)
    return figure


@_styled
def paired(summaries: Sequence[Summary]) -> Figure:
    """The error of every point in each arm over its error in the first arm, with the line of equality.

    Points that count as 100 % in an arm stand as crosses at that arm's edge, beyond a thin line.

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
    handles: list[Artist] = [Line2D([], [], color=_GREY, lw=0.9, label="equal")]
    any_lost = False
    for index, (arm, found) in enumerate(pairs.items(), start=1):
        good = [pair for pair in found if max(pair) < lost]
        bad = [
            tuple(edge if error >= lost else error for error in pair) for pair in found if max(pair) >= lost
        ]
        axes.plot(
            [x for x, _ in good], [y for _, y in good], ls="none", marker=_marker(index), ms=6, mew=0.6,
            mec="white", color=_colour(index), alpha=0.9,
        )  # fmt: skip
        if bad:
            any_lost = True
            _cross(axes, [x for x, _ in bad], [y for _, y in bad], _colour(index))
        handles.append(Line2D([], [], color=_colour(index), ls="none", marker=_marker(index), label=arm))
    if not any(pairs.values()):
        _empty(axes)
    axes.plot([start, bar], [start, bar], color=_GREY, lw=0.9, zorder=1)
    end = bar
    if any_lost:
        end = edge + room
        axes.axhline(bar, color=_GREY, lw=0.6)
        axes.axvline(bar, color=_GREY, lw=0.6)
        handles.append(
            Line2D([], [], color=_GREY, ls="none", marker="x", mew=1.4, label="diverged, beyond the line")
        )
    name = others[0].arm if len(others) == 1 else "the other arm"
    axes.set(xlim=(start, end), ylim=(start, end), aspect="equal", anchor="NW")
    axes.set(xlabel=f"error of {_clipped(base.arm, 40)} (%)", ylabel=f"error of {_clipped(name, 40)} (%)")
    for which in ("x", "y"):
        axes.locator_params(axis=which, nbins=6)
    _framed(figure, handles)
    return figure


@_styled
def gap_sizes(gaps: Sequence[Gap]) -> Figure:
    """Gaps with their intervals: a row per pair of cells and arm.

    Args:
      gaps: at least one.
    """
    figure = Figure(figsize=(4.5, 1.0 + 0.46 * len(gaps)), layout="constrained")
    axes = figure.subplots()
    arms = list(dict.fromkeys(gap.arm for gap in gaps))
    for y, gap in enumerate(gaps):
        index = arms.index(gap.arm)
        ends = [end for end in (gap.gap_pp.low, gap.gap_pp.high) if end is not None]
        axes.plot(ends, [y] * len(ends), color=_colour(index), lw=2, solid_capstyle="butt")
        axes.plot([gap.gap_pp.value], [y], ls="none", marker=_marker(index), ms=6.5, color=_colour(index))
        axes.annotate(
            _clipped(f"{gap.pair.cell} against {gap.pair.base_cell} · {gap.arm}", 58), (0, y),
            xycoords=("axes fraction", "data"), xytext=(0, 6), textcoords="offset points", fontsize=8.5,
            bbox=_BACKED,
        ).set_in_layout(False)  # fmt: skip
    axes.axvline(0, color="black", lw=0.9)
    axes.set(ylim=(len(gaps) - 0.6, -0.85), yticks=[], xlabel="gap in error of the best of k (pp)")
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    handles = [Line2D([], [], color=_colour(i), marker=_marker(i), lw=2, label=a) for i, a in enumerate(arms)]
    _legend(figure, handles)
    return figure


@_styled
def curves(arms: Mapping[str, Sequence[Result]]) -> Figure:
    """Error on the selection split after every epoch: each arm's best, median and worst trial.

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
                color=_colour(index),
                ls=_line(index),
                marker=_marker(index),
                ms=4,
                mec="white",
                mew=0.5,
                # Staggered, so that the markers of arms that coincide stay apart.
                markevery=(index % 4, max(len(epochs) // 5, 1)) if len(epochs) > 1 else None,
                lw=1.4,
            )
            if _diverged(result):
                _cross(axes, epochs[-1:], errors[-1:], _colour(index))
                ends = True
        if unseen:
            axes.text(0.97, 0.04, "\n".join(unseen), transform=axes.transAxes, ha="right", fontsize=8)
        axes.set_title(f"{panel} of each arm", loc="left")
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True, nbins=6)
    if not any(found.values()):
        _empty(grid[1])
    grid[0].set(ylabel=_error_label(arms), ylim=(0, 1.05 * highest), xlim=(0, 1.03 * num_epochs))
    handles: list[Artist] = [
        Line2D([], [], color=_colour(index), ls=_line(index), marker=_marker(index), ms=4, label=arm)
        for index, arm in enumerate(arms)
    ]
    if ends:
        handles.append(Line2D([], [], color=_GREY, ls="none", marker="x", mew=1.4, label="diverged"))
    _framed(figure, handles, titles=0.2)
    return figure


@_styled
def differences(contrasts: Sequence[Contrast], measure: Measure) -> Figure:
    """The difference of every arm to the reference arm with its interval, one row per cell and arm.

    Filled markers are settled, hollow ones are not. To the right of 0 the arm is better than the
    reference arm, whatever the measure.

    Args:
      contrasts: of any measures; those of `measure` are drawn. At least one must be of it.
    """
    rows = [contrast for contrast in contrasts if contrast.measure == measure]
    sign = 1 if MEASURES[measure].higher_is_better else -1
    figure = Figure(figsize=(4.5, 1.15 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    arms = list(dict.fromkeys(contrast.arm for contrast in rows))
    reach = 0.0
    for y, contrast in enumerate(rows):
        if (difference := contrast.difference) is None:
            axes.text(0, y, "no pairs yet", ha="center", va="center", color=_GREY, fontsize=8)
            continue
        # The reference arm takes the first colour, as everywhere else.
        index = arms.index(contrast.arm) + 1
        ends = [end * sign for end in (difference.low, difference.high) if end is not None]
        axes.plot(ends, [y] * len(ends), color=_colour(index), lw=2, solid_capstyle="butt")
        axes.plot(
            [difference.value * sign],
            [y],
            marker=_marker(index),
            ms=6.5,
            mec=_colour(index),
            mfc=_colour(index) if contrast.better else "white",
            mew=1.4,
        )
        reach = max(reach, abs(difference.value), *map(abs, ends))
    reach = 1.12 * reach or 1.0
    base = rows[0].base_arm
    axes.axvline(0, color="black", lw=0.9)
    axes.set(xlim=(-reach, reach), ylim=(len(rows) - 0.6, -0.85), yticks=[])
    several = len(arms) > 1
    for y, row in enumerate(rows):
        label = f"{row.cell} · {row.arm}" if several else row.cell
        # Above its interval, not beside it: long names leave the intervals their width.
        axes.annotate(
            _clipped(f"{label} (primary)" if row.primary else label, 58),
            (0, y),
            xycoords=("axes fraction", "data"),
            xytext=(0, 6),
            textcoords="offset points",
            fontsize=8.5,
            bbox=_BACKED,
        ).set_in_layout(False)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    # Em spaces: a browser would run plain ones together.
    other = "the other arm" if several else arms[0]
    turned = "" if sign == 1 else ", sign turned"
    sides = f"← {_clipped(base, 20)} better\u2003\u2003{_clipped(other, 20)} better →"
    axes.set_xlabel(f"{sides}\ndifference in {MEASURES[measure].symbol}{turned}")
    handles: list[Artist] = [
        Line2D([], [], color="black", marker="o", mfc=fill, mew=1.4, lw=2, label=label)
        for fill, label in (("black", "settled"), ("white", "not settled"))
    ]
    _legend(figure, handles)
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as one <svg> element: the same bytes for the same figure, nothing loaded from elsewhere."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "vitc-sweep"}):
        # Not `savefig`: it draws twice, the first time into nothing.
        figure.set_facecolor("none")
        for axes in figure.axes:
            axes.set_facecolor("none")
        FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)  # type: ignore[no-untyped-call]
    return _compact(buffer.getvalue())


_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_GROUP, _USE, _STYLE_TAG = (f"{{{_SVG}}}{tag}" for tag in ("g", "use", "style"))
_FILL = re.compile(r"fill: (#\w+);? ?")
_STEP = re.compile(r"([MLz])([^MLz]*)")
_NUMBER = re.compile(r"-?\d+\.\d+")


def _compact(text: str) -> str:
    """The same picture in a quarter of the bytes, without the XML head, which may not stand inside HTML.

    Coordinates are rounded to a tenth of a point (0.04 mm), lines go by steps, groups that say nothing are
    left out, and so are running numbers, which would repeat from figure to figure on one page. Looks that
    occur more than once become classes, named by a digest of what they say, as shapes are by matplotlib:
    figures of one page share a name only where it means the same.
    """
    root = ElementTree.fromstring(text)
    # Instead of matplotlib's rule for `*`, which would hold for all of the page around.
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt"}
    for parent in root.findall(f".//{_STYLE_TAG}/.."):
        parent.remove(parent.find(_STYLE_TAG))  # type: ignore[arg-type]
    for element in root.iter():
        element.text, element.tail = (element.text or "").strip() or None, None
        _shorten(element)
    _flatten(root)
    counts = Counter(look for element in root.iter() if (look := element.get("style")) is not None)
    names = {look: f"s{hashlib.sha256(look.encode()).hexdigest()[:7]}" for look, n in counts.items() if n > 1}
    for element in root.iter():
        if (name := names.get(element.get("style", ""))) is not None:
            del element.attrib["style"]
            element.set("class", name)
    sheet = ElementTree.Element(_STYLE_TAG)
    sheet.text = "".join(f".{name}{{{look}}}" for look, name in names.items())
    root.insert(0, sheet)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True).replace(" />", "/>")


def _shorten(element: ElementTree.Element) -> None:
    if (path := element.get("d")) is not None:
        element.set("d", _steps(path))
    for key in ("x", "y"):
        if (value := element.get(key)) is not None:
            element.set(key, _tenths(float(value)))
    turn = element.get("transform")
    if turn is not None:
        if turn.startswith("rotate(-0 "):
            del element.attrib["transform"]
        else:
            element.set("transform", _NUMBER.sub(lambda number: _tenths(float(number[0])), turn))
    look = element.get("style")
    if look is not None:
        if element.tag == _USE and (fill := _FILL.search(look)):
            # What differs from mark to mark where colour is a value; the rest is one class.
            element.set("fill", fill[1])
            look = look.replace(fill[0], "")
        element.set("style", look.replace(": ", ":").replace("; ", ";"))


def _tenths(value: float) -> str:
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def _steps(path: str) -> str:
    """Lines as steps from corner to corner, without adding up errors of rounding; curves as they are."""
    if "C" in path or "Q" in path:
        return _NUMBER.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), path)
    parts, x, y = [], 0, 0
    for letter, rest in _STEP.findall(path):
        if letter == "z":
            parts.append("z")
            continue
        # In tenths of a point.
        to_x, to_y = (round(10 * float(number)) for number in rest.split())
        if letter == "M":
            parts.append(f"M{_tenths(to_x / 10)} {_tenths(to_y / 10)}")
        elif to_x == x or to_y == y:
            parts += [f"h{_tenths((to_x - x) / 10)}"] * (to_x != x) + [f"v{_tenths((to_y - y) / 10)}"] * (
                to_y != y
            )
        else:
            parts.append(f"l{_tenths((to_x - x) / 10)} {_tenths((to_y - y) / 10)}")
        x, y = to_x, to_y
    return "".join(parts).replace(" -", "-")


def _flatten(element: ElementTree.Element) -> None:
    """Leaves out groups that say nothing, and says once per group what its marks have in common."""
    children: list[ElementTree.Element] = []
    for child in element:
        _flatten(child)
        if child.tag == _GROUP:
            child.attrib.pop("id", None)
        children.extend(child if child.tag == _GROUP and not child.attrib else [child])
    element[:] = []
    for (is_mark, look), run in itertools.groupby(children, lambda e: (e.tag == _USE, e.get("style"))):
        marks = list(run)
        if not is_mark or len(marks) < 3:
            element.extend(marks)
            continue
        group = ElementTree.SubElement(element, _GROUP)
        fills = {mark.get("fill") for mark in marks}
        for key, value in (("style", look), ("fill", fills.pop() if len(fills) == 1 else None)):
            if value is not None:
                group.set(key, value)
                for mark in marks:
                    del mark.attrib[key]
        group.extend(marks)


def to_pdf(figure: Figure) -> bytes:
    """The figure as a PDF of one page: the same bytes for the same figure, letters as letters."""
    buffer = io.BytesIO()
    metadata = {"CreationDate": None, "Creator": None, "Producer": None}
    with matplotlib.rc_context(_STYLE | {"pdf.fonttype": 42}):
        FigureCanvasPdf(figure).print_pdf(buffer, metadata=metadata)  # type: ignore[no-untyped-call]
    return buffer.getvalue()
