"""Figures of the error over the parameters that vary."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.report import steady_matplotlib  # noqa: F401

# isort: split

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from orchestrator.analysis.summary import landmarks
from orchestrator.report.plotting import (
    GREY,
    Scale,
    axis_label,
    clipped,
    colour_of,
    draw_cross,
    draw_empty,
    draw_legend,
    error_axis_top,
    errors_of,
    figure_height,
    framed,
    has_diverged,
    line_of,
    marker_of,
    styled,
)
from orchestrator.sweep.space import Domain
from orchestrator.trials.records import Result
from trainables.base import WORST_PCT


def _bottom(arms: Mapping[str, Sequence[Result]]) -> float:
    """Returns the lower end of the axis of errors: 0, unless all errors lie in the upper half above it."""
    errors = [error for results in arms.values() for error in errors_of(results) if error < WORST_PCT]
    if not errors or 2 * min(errors) < max(errors):
        return 0.0
    return max(0.0, min(errors) - 0.15 * (max(errors) - min(errors)))


@styled
def error_over_parameter(
    arms: Mapping[str, Sequence[Result]], path: str, domains: Mapping[str, Domain]
) -> Figure:
    """Draws the error of every trial over one varied parameter.

    Diverged trials are crosses at the top, a row per arm. A thin vertical line marks each arm's best trial.

    Args:
      arms: results of one cell by arm.
      path: the parameter.
      domains: the parameter's domain by arm. Arms in which it does not vary are absent.
    """
    figure = Figure(figsize=(4.5, figure_height(len(arms))))
    axes = figure.subplots()
    scale = Scale(list(domains.values()))
    counted = {
        arm: [r for r in results if r.error_pct is not None and path in r.trial.values]
        for arm, results in arms.items()
        if arm in domains
    }
    lost = [arm for arm, results in counted.items() if any(map(has_diverged, results))]
    top, row = error_axis_top(
        [error for results in counted.values() for error in errors_of(results)], len(lost)
    )
    handles: list[Artist] = []
    for index, arm in enumerate(arms):
        if arm not in counted:
            continue
        colour = colour_of(index)
        shift = scale.shift(index, len(arms))

        def where(result: Result, shift: float = shift) -> float:
            return scale.place(result.trial.values[path]) + shift

        good = [result for result in counted[arm] if not has_diverged(result)]
        x = [where(result) for result in good]
        axes.plot(
            x,
            errors_of(good),
            ls="none",
            marker=marker_of(index),
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
                ls=line_of(index),
                lw=0.9,
                alpha=0.7,
                zorder=1,
            )
        if arm in lost:
            crosses = [result for result in counted[arm] if has_diverged(result)]
            y = top - (lost.index(arm) + 0.6) * row
            draw_cross(axes, [where(result) for result in crosses], y, colour)
            # The arm's marker labels the row, because crosses look the same in every arm.
            axes.plot(
                [1.025],
                [y],
                transform=axes.get_yaxis_transform(),
                ls="none",
                marker=marker_of(index),
                ms=4.5,
                color=colour,
                clip_on=False,
            )
        handles.append(
            Line2D([], [], color=colour, ls=line_of(index), lw=0.9, marker=marker_of(index), label=arm)
        )
    if lost:
        handles.append(Line2D([], [], color=GREY, ls="none", marker="x", mew=1.4, label="diverged"))
        axes.axhline(top - (len(lost) + 0.35) * row, color=GREY, lw=0.6)
    if not any(counted.values()):
        draw_empty(axes)
    axes.set(ylim=(_bottom(counted), top), ylabel=axis_label(arms))
    scale.apply(axes, "x", path, 7)
    framed(figure, handles, right=0.24)
    return figure


@dataclass(frozen=True, eq=False)
class Surface:
    """A fitted surface of an arm's error over two parameters, through its optimum.

    Attributes:
      x, y: values of the parameters.
      errors_pct: predicted error by x and y, capped some points above the lowest.
      basin_pct: the error at which the basin ends.
      optimum: the place of the lowest prediction.
    """

    x: Sequence[float]
    y: Sequence[float]
    errors_pct: NDArray[np.float64]
    basin_pct: float
    optimum: tuple[float, float]


@styled
def error_over_plane(
    arms: Mapping[str, Sequence[Result]],
    paths: tuple[str, str],
    domains: tuple[Mapping[str, Domain], Mapping[str, Domain]],
    surfaces: Mapping[str, Surface] | None = None,
) -> Figure:
    """Draws the error of every trial as a colour over two parameters; a panel per arm, one colour scale.

    A surface is drawn below the trials, with the edge of the basin as a line and its optimum as a star.

    Args:
      arms: results of one cell by arm.
      paths: the parameters along x and y.
      domains: the domain of each parameter by arm.
      surfaces: fitted surfaces by arm. Arms without a surface show only their trials.
    """
    surfaces = surfaces or {}
    names = [arm for arm in arms if arm in domains[0] and arm in domains[1]]
    columns = min(len(names), 4)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(0.9 + 2.55 * columns, 0.55 + 2.55 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    across, up = (Scale([domain[arm] for arm in names]) for domain in domains)
    if across.values or up.values:
        # Between listed values there is nothing to draw a surface over.
        surfaces = {}
    ran = [error for arm in names for error in errors_of(arms[arm])]
    # On the square root of the error: on a linear scale one bad arm would leave the others a single shade.
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
        good = [result for result in results if not has_diverged(result)]
        lost = [result for result in results if has_diverged(result)]

        def where(results: Sequence[Result]) -> tuple[list[float], list[float]]:
            return (
                [across.place(result.trial.values[paths[0]]) for result in results],
                [up.place(result.trial.values[paths[1]]) for result in results],
            )

        if (surface := surfaces.get(names[place])) is not None:
            _draw_surface(axes, surface, colours)
        # Empty artists are not added, because the layout would make room for them at (0, 0).
        if good:
            x, y = where(good)
            axes.scatter(
                x,
                y,
                c=errors_of(good),
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
            draw_cross(axes, x, y, "black")
        if not results:
            draw_empty(axes)
        axes.set_title(clipped(names[place], 28), loc="left", fontweight="bold")
    for place, axes in enumerate(grid.flat[: len(names)]):
        lowest = place + columns >= len(names)
        across.apply(axes, "x", paths[0] if lowest else "", 4)
        # Also above an empty place in the last row, where a shared axis would omit the labels.
        axes.tick_params(labelbottom=lowest)
        up.apply(axes, "y", paths[1] if place % columns == 0 else "", 6)
    if ran:
        bar = figure.colorbar(colours, ax=grid, label=axis_label(arms), aspect=28, fraction=0.05, pad=0.02)
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
    draw_legend(figure, handles)
    return figure


def _draw_surface(axes: Axes, surface: Surface, colours: ScalarMappable) -> None:
    low, high = float(surface.errors_pct.min()), float(surface.errors_pct.max())
    if high - low < 1e-9:
        return
    # At most 32 samples along an axis: a contour between them is straight over two points of print.
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
