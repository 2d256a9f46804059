"""A table of the report, and its forms: text, Markdown, LaTeX."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.analysis.findings import Findings, not_worked_out
from orchestrator.report.document import Row
from orchestrator.report.text import interval_text, measure_text
from orchestrator.stats.intervals import Estimate
from orchestrator.stats.measures import Measure
from orchestrator.sweep.config import ONE_CELL


@dataclass(frozen=True, slots=True)
class Text:
    """The content of one cell of a table. `small` is set in small print below it, as intervals are."""

    main: str
    small: str = ""
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One row. Its first text is the sweep's cell, if there are several.

    `kind` is `primary`, `soft` (only describes) or empty.
    """

    texts: tuple[Text, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table for people: on the page, as Markdown and as LaTeX.

    Attributes:
      name: name of its files.
      title: description of its contents.
      columns: column heads. A leading `#` marks a column of numbers, which is aligned right.
      rows: rows with as many texts as columns.
      notes: remarks below the table: what is missing, and why.
      section: heading of its own section; empty for a table with a fixed place on the page.
      intro: a sentence or two under that heading.
      part: whether that section is among the results or among the runs and their cost.
      data: the same numbers with all their digits, for summary.json and CSV; only of tables with a section.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    section: str = ""
    intro: str = ""
    part: Literal["results", "runs"] = "results"
    data: list[Row] = field(default_factory=list)
    #: By what is refused and why: the place of the note, and for whom it is.
    _refusals: dict[tuple[str, str], tuple[int, list[str]]] = field(default_factory=dict, repr=False)

    @property
    def heads(self) -> list[tuple[str, bool]]:
        """Column heads, each with whether its column holds numbers."""
        return [(head.lstrip("#"), head.startswith("#")) for head in self.columns]

    def add(self, *texts: str | Text, kind: str = "") -> None:
        """Adds a row. A plain string has no small print."""
        assert len(texts) == len(self.columns)
        self.rows.append(Line(tuple(t if isinstance(t, Text) else Text(t) for t in texts), kind))

    def note(self, text: str) -> None:
        """Adds a note unless the table has it already."""
        if text not in self.notes:
            self.notes.append(text)

    def refuses(self, who: str, because: str | None, what: str = "refused") -> bool:
        """Returns whether there is a reason against a row, and notes it if so, once for all such rows."""
        if because:
            # The only cell has no name of its own.
            who = who.removeprefix(f"{ONE_CELL}, ")
            place, rows = self._refusals.setdefault((what, because), (len(self.notes), []))
            if who not in rows:
                rows.append(who)
            more = f" and {len(rows) - _MAX_NAMED} more" if len(rows) > _MAX_NAMED else ""
            self.notes[place : place + 1] = [f"{'; '.join(rows[:_MAX_NAMED])}{more}: {what}, as {because}."]
        return bool(because)

    def without_cells(self) -> "Table":
        """Returns the table of a sweep with a single cell: without the column that names it."""
        if self.columns[0] != "Cell":
            return self
        rows = [Line(line.texts[1:], line.kind) for line in self.rows]
        return dataclasses.replace(self, columns=self.columns[1:], rows=rows)


#: Most rows that a note names.
_MAX_NAMED = 4


def to_markdown(table: Table) -> str:
    """Returns a table as GitHub Markdown under its title."""

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
    """Returns a table for LaTeX with the package booktabs. Notes become comments."""

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


def shown(
    estimate: Estimate | None, measure: Measure = "f1", sign: bool = False, otherwise: str = "–"
) -> Text:
    """Formats an estimate with its interval."""
    if estimate is None:
        return Text(otherwise)
    ends = interval_text(estimate, measure, sign) or ("no interval" if estimate.because else "")
    return Text(measure_text(estimate.value, measure, sign), ends)


def note_no_interval(table: Table, estimates: Iterable[Estimate | None]) -> None:
    for estimate in estimates:
        if estimate is not None and estimate.because:
            table.note(f"No interval where the table says so: {estimate.because}.")


def note_left_out(found: Findings, table: Table) -> None:
    if left := not_worked_out(found):
        table.note(
            f"Computed for {len(found.deep)} of {len(found.deep) + len(left)} cells, because the sweep is "
            f"large; not for: {', '.join(left)}."
        )
