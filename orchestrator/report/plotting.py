"""Style, legends and scales of all figures, and their output as SVG and PDF."""

import contextlib
import functools
import hashlib
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, ParamSpec
from xml.etree import ElementTree

from orchestrator.report import steady_matplotlib  # noqa: F401

# isort: split

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from orchestrator.sweep.space import Domain, Listed, LogUniform
from orchestrator.trials.numerals import short
from orchestrator.trials.records import Result
from orchestrator.trials.trial import error_label

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
GREY = "#6b6b6b"
#: White background of a label that is drawn over lines.
BACKED: dict[str, Any] = {"fc": "white", "ec": "none", "pad": 0.5}

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
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    # Text stays text, so that files are small and searchable and use the font of the page.
    "svg.fonttype": "none",
    # A dollar sign in a value must not start a formula.
    "text.parse_math": False,
}

#: matplotlib's own settings, all but those that name what the user draws with.
_DEFAULTS = {
    key: value
    for key, value in matplotlib.rcParamsDefault.items()
    if not key.startswith(("backend", "interactive", "toolbar"))
}


@contextlib.contextmanager
def _own_style(more: dict[Any, Any] | None = None) -> Iterator[None]:
    """Draws with our settings alone, whatever a matplotlibrc, a style or a notebook has set."""
    with matplotlib.rc_context():
        # These are valid, and to validate 300 of them takes longer than a figure.
        dict.update(matplotlib.rcParams, _DEFAULTS)
        matplotlib.rcParams.update(_STYLE | (more or {}))
        yield


P = ParamSpec("P")

ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _own_style():
            figure = draw(*args, **kwargs)
            # Laid out once here, because each output file would repeat it: a third of the time of a report.
            if (engine := figure.get_layout_engine()) is not None:
                engine.execute(figure)
                figure.set_layout_engine("none")
        return figure

    return wrapper


def colour_of(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def marker_of(index: int) -> str:
    # Colours repeat from the ninth arm on, so markers and lines shift by one.
    return _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)]


def line_of(index: int) -> Any:
    return _LINES[(index + index // len(_COLOURS)) % len(_LINES)]


def draw_legend(figure: Figure, handles: Sequence[Artist]) -> int:
    """Draws a legend above the axes, in as many columns as fit the figure. Returns its number of rows."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    # A character of 8.5 points is about 0.075 inches wide, the handle and its gaps 0.65 inches.
    columns = min(max(int(figure.get_figwidth() / (0.65 + 0.075 * longest)), 1), len(handles))
    place: Literal["upper left", "outside upper left"] = "upper left"
    if figure.get_layout_engine() is not None:
        place = "outside upper left"
    figure.legend(handles=list(handles), loc=place, ncols=columns, handlelength=2.4)
    return math.ceil(len(handles) / columns)


def framed(figure: Figure, handles: Sequence[Artist], right: float = 0.12, titles: float = 0.0) -> None:
    """Draws the legend and sets fixed margins, in inches, for axes with numeric tick labels.

    Such axes need the same margins in every figure. Measuring their texts takes a third of a large report.
    """
    rows = draw_legend(figure, handles) if handles else 0
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=0.62 / width,
        right=1 - right / width,
        bottom=0.46 / height,
        top=1 - (0.14 + 0.185 * rows + titles) / height,
    )


def clipped(name: str, most: int) -> str:
    """Shortens a name to `most` characters: its beginning and its end, which differ between names."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def figure_height(num_arms: int) -> float:
    """Returns a figure's height in inches. Its legend and the rows of diverged trials grow with the arms."""
    return 3.3 + 0.2 * max(num_arms - 3, 0)


def draw_empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no results yet", transform=axes.transAxes, ha="center", va="center", color=GREY)


class Scale:
    """The axis of a varied parameter: logarithmic, linear, or categorical with one place per value."""

    def __init__(self, domains: Sequence[Domain]) -> None:
        self.values: list[str] = []
        self.log = False
        self.low = self.high = 0.0
        if any(isinstance(domain, Listed) for domain in domains):
            # If another arm draws the parameter from an interval, `place` adds places for its values.
            listed = (value for domain in domains if isinstance(domain, Listed) for value in domain.values)
            self.values = list(dict.fromkeys(str(value) for value in listed))
        else:
            ends = [float(end) for domain in domains for end in domain.extremes()]
            self.low, self.high = min(ends), max(ends)
            self.log = self.low > 0 and any(isinstance(domain, LogUniform) for domain in domains)

    def place(self, value: Any) -> float:
        """Returns the position of a value on the axis. Adds a place if the value has none."""
        if not self.values:
            return float(value)
        if str(value) not in self.values:
            self.values.append(str(value))
        return float(self.values.index(str(value)))

    def shift(self, index: int, count: int) -> float:
        """Returns the offset that separates `count` arms on a categorical axis, else 0."""
        return 0.6 * ((index + 0.5) / count - 0.5) if self.values else 0.0

    def apply(self, axes: Axes, which: str, label: str, max_ticks: int) -> None:
        """Sets scale, limits, ticks and label of the `x` or `y` axis."""
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
    """Returns at most `max_ticks` evenly spread round numbers between two ends; empty if none fits."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices: list[list[float]] = [
        [factor * 10.0**decade for decade in decades for factor in factors]
        for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,))
    ]
    choices += [choices[-1][::step] for step in range(2, len(decades) + 1)]
    fitting = [[tick for tick in ticks if low <= tick <= high] for ticks in choices]
    return next((ticks for ticks in fitting if len(ticks) <= max_ticks), [])


def has_diverged(result: Result) -> bool:
    return result.state == "diverged"


def errors_of(results: Sequence[Result]) -> list[float]:
    """Returns the errors of trials that count in the EDF and did not diverge."""
    return [
        error for result in results if (error := result.error_pct) is not None and not has_diverged(result)
    ]


def axis_label(arms: Mapping[str, Sequence[Result]]) -> str:
    return error_label(result.trial for results in arms.values() for result in results)


def error_axis_top(errors_pct: Sequence[float], num_rows: int) -> tuple[float, float]:
    """Returns the upper end of an error axis, and the height of a row of crosses above the highest error."""
    highest = max(errors_pct, default=1.0) or 1.0
    row = 0.08 * highest if num_rows else 0.0
    return 1.05 * highest + (num_rows + 0.6) * row, row


def draw_cross(axes: Axes, x: Sequence[float], y: float | Sequence[float], colour: str) -> None:
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


def to_svg(figure: Figure) -> str:
    """Returns the figure as one <svg> element that loads nothing. Equal figures give equal bytes."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with _own_style({"svg.hashsalt": "vitc-sweep"}):
        # Not `savefig`, because it draws twice.
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
    """Returns the same picture in a quarter of the bytes, without the XML head, which HTML does not allow.

    Coordinates are rounded to a tenth of a point (0.04 mm), and lines become relative steps. Empty groups and
    ids are left out, because ids would repeat from figure to figure on one page. Styles that occur more than
    once become classes named by a digest of their content, so equal names mean equal styles on a page.
    """
    root = ElementTree.fromstring(text)
    # Instead of matplotlib's rule for `*`, which would apply to the whole page.
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
            # The fill differs from mark to mark where colour is a value; the rest is one class.
            element.set("fill", fill[1])
            look = look.replace(fill[0], "")
        element.set("style", look.replace(": ", ":").replace("; ", ";"))


def _tenths(value: float) -> str:
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def _steps(path: str) -> str:
    """Returns a path of lines as relative steps, without accumulated rounding. Curves keep their form."""
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
    """Removes groups without attributes, and moves attributes that marks share to a common group."""
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
    """Returns the figure as a PDF of one page with text as text. Equal figures give equal bytes."""
    buffer = io.BytesIO()
    metadata = {"CreationDate": None, "Creator": None, "Producer": None}
    with _own_style({"pdf.fonttype": 42}):
        FigureCanvasPdf(figure).print_pdf(buffer, metadata=metadata)  # type: ignore[no-untyped-call]
    return buffer.getvalue()
