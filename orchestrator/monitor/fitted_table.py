"""Tables that fit the width of the terminal, without words broken in the middle."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

#: Columns between two cells.
_GAP = 2


class FittedTable:
    """Rows under their names, with numbers aligned right.

    In a narrow terminal names are written on several lines, then columns are left out in a given order, then
    text is wrapped between words. If all that does not help, each row is written as a list of names and
    values. No word is broken unless it alone is wider than the terminal.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], leave_out: Sequence[str] = ()) -> None:
        """
        Args:
          rows: values by the name of their column, the same names in each.
          leave_out: columns that may be left out, the least important first.
        """
        self._cells = [{name: _shown(value) for name, value in row.items()} for row in rows]
        self._leave_out = leave_out
        self._is_number = {
            name: all(row[name][:1].isdigit() or row[name].startswith(("-", "–")) for row in self._cells)
            for name in (rows[0] if rows else ())
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Renders the table for the width that there is."""
        width, names = options.max_width, list(self._is_number)
        if self._width({name: name for name in names}) <= width:
            yield self._table({name: name for name in names})
            return
        heads = {name: self._broken(name) for name in names}
        for name in self._leave_out:
            if self._width(heads) <= width:
                break
            heads.pop(name, None)
        if self._width(heads) <= width:
            yield self._table(heads)
        elif self._width(heads, wrapped=True) <= width:
            yield self._table(heads, wrapped=True)
        else:
            yield from self._lists(list(heads))

    def _broken(self, name: str) -> str:
        """Returns the name of a column on as many lines as keep it from being wider than its cells."""
        cells = max((len(row[name]) for row in self._cells), default=0)
        room = max(cells, *(len(word) for word in name.split() or [""]))
        lines = [""]
        for word in name.split():
            longer = f"{lines[-1]} {word}".strip()
            lines = [*lines[:-1], longer] if len(longer) <= room else [*lines, word]
        return "\n".join(lines)

    def _width(self, heads: Mapping[str, str], wrapped: bool = False) -> int:
        """Returns the least width of a table with these heads; `wrapped` lets text wrap between words."""
        widths = []
        for name, head in heads.items():
            texts = head.split("\n") + [row[name] for row in self._cells]
            if wrapped and not self._is_number[name]:
                texts = [word for text in texts for word in text.split()]
            widths.append(max((len(text) for text in texts), default=0))
        return sum(widths) + _GAP * (len(widths) - 1)

    def _table(self, heads: Mapping[str, str], wrapped: bool = False) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name, head in heads.items():
            is_number = self._is_number[name]
            table.add_column(
                head,
                justify="right" if is_number else "left",
                vertical="top",
                no_wrap=is_number or not wrapped,
                overflow="ellipsis",
                min_width=self._width({name: head}, wrapped=True),
            )
        for row in self._cells:
            table.add_row(*(Text(row[name]) for name in heads))
        return table

    def _lists(self, names: Sequence[str]) -> RenderResult:
        for index, row in enumerate(self._cells):
            if index:
                yield Text()
            for name in names:
                yield Text.assemble((f"{name}: ", "dim"), row[name])


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)
