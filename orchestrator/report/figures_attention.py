"""The figure of attention collapse."""

import math
from collections.abc import Iterable, Sequence

from orchestrator.report import steady_matplotlib  # noqa: F401

# isort: split

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.analysis.collapse import ArmMaps
from orchestrator.report.plotting import (
    BACKED,
    GREY,
    clipped,
    colour_of,
    draw_legend,
    line_of,
    marker_of,
    styled,
)

#: Most heat maps side by side.
_COLUMNS = 4


def by_cell(arms: Iterable[ArmMaps]) -> dict[str, list[ArmMaps]]:
    """Returns what `block_similarity` takes, by cell: maps of all tokens of networks with several blocks."""
    cells: dict[str, list[ArmMaps]] = {}
    for one in arms:
        if one.tokens == "all" and one.similarity:
            cells.setdefault(one.cell, []).append(one)
    return cells


@styled
def block_similarity(arms: Sequence[ArmMaps], threshold: float) -> Figure:
    """Draws the similarity of every two blocks as a heat map per arm, and below that to the block before.

    All heat maps have one scale. Grey lines are what uniform and independent maps have; the threshold is
    dotted.

    Args:
      arms: of one cell and of all tokens; an arm with a map transform has two.
      threshold: of collapse.
    """
    columns = min(len(arms), _COLUMNS)
    rows = math.ceil(len(arms) / columns)
    figure = Figure(figsize=(8.4, 2.3 * rows + 2.9), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.0] * rows + [1.15])
    lowest = min(value for one in arms for row in one.matrix for value in row)
    scale = Normalize(min(0.0, lowest), 1.0)
    colours = ScalarMappable(scale, "viridis")
    panels: list[Axes] = []
    names = [one.arm + (", transformed" if one.maps == "transformed" else "") for one in arms]
    for place, one in enumerate(arms):
        axes = figure.add_subplot(grid[divmod(place, columns)])
        panels.append(axes)
        edges = [block + 0.5 for block in range(one.num_blocks + 1)]
        axes.pcolormesh(edges, edges, one.matrix, norm=scale, cmap=colours.cmap)
        axes.set(aspect="equal", xlabel="block")
        axes.invert_yaxis()
        # On a line of its own, because a heat map is narrow.
        kind = "transformed\n" if one.maps == "transformed" else ""
        axes.set_title(f"{kind}{clipped(one.arm, 18)} (n = {one.num_averaged})", loc="left")
        axes.grid(visible=False)
        if place % columns == 0:
            axes.set_ylabel("block")
        for which in ("x", "y"):
            axes.locator_params(axis=which, integer=True, nbins=6)
    bar = figure.colorbar(colours, ax=panels, label="similarity of maps", aspect=18, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    _draw_curves(figure.add_subplot(grid[rows, :]), arms, threshold)
    handles: list[Artist] = [
        Line2D([], [], color=colour_of(index), ls=line_of(index), marker=marker_of(index), ms=4, label=name)
        for index, name in enumerate(names)
    ]
    draw_legend(figure, handles)
    return figure


def _draw_curves(axes: Axes, arms: Sequence[ArmMaps], threshold: float) -> None:
    longest = max(one.num_blocks for one in arms)
    for index, one in enumerate(arms):
        axes.plot(
            range(2, one.num_blocks + 1),
            one.similarity,
            color=colour_of(index),
            ls=line_of(index),
            marker=marker_of(index),
            ms=4,
            mec="white",
            mew=0.5,
        )
    levels = {one.num_tokens: one.baselines for one in arms}
    for num_tokens, found in levels.items():
        for name, level in found.items():
            axes.axhline(level.similarity, color=GREY, lw=0.9, zorder=1)
            # The uniform level is the same at any number of tokens.
            several = f", {num_tokens} tokens" if len(levels) > 1 and name != "uniform" else ""
            axes.annotate(
                name + several, (1, level.similarity), xycoords=("axes fraction", "data"), xytext=(-2, -1),
                textcoords="offset points", ha="right", va="top", fontsize=8, color=GREY, bbox=BACKED,
                zorder=1.5,
            )  # fmt: skip
    axes.axhline(threshold, color=GREY, lw=0.9, ls=":", zorder=1)
    lowest = min((value for one in arms for value in one.similarity), default=0.0)
    axes.set(xlim=(1.8, max(longest, 2) + 0.2), ylim=(min(0.0, 1.05 * lowest), 1.03))
    axes.set(xlabel="block", ylabel="to the block before")
    axes.locator_params(axis="x", integer=True, nbins=12)
