"""Tables in terminals of several widths: no word is broken, and the most important columns stay."""

import io
import itertools
import re

import pytest
from rich.console import Console

from orchestrator.cost.ledger import Ledger
from orchestrator.monitor.fitted_table import FittedTable
from orchestrator.monitor.terminal import answer_table, ledger_table

WIDTHS = [40, 60, 80, 100, 120, 160]


def drawn(table: object, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def words(texts: object) -> set[str]:
    return {word for text in texts for word in str(text).split()}


def answer(confirmed: bool, cells: str = "adamw sgd") -> list[dict[str, object]]:
    """The rows of the answer of a sweep with two cells and two arms."""
    return [
        {
            "cell": cell,
            "arm": arm,
            "ended": 8,
            "planned": 8,
            "diverged": index,
            "best_val_error_pct": 0.33,
            "best_test_error_pct": 2.34,
            "confirmed_test_error_pct": 50.9 if confirmed and index % 2 else None,
            "confirmed_test_error_pct_low": 50.4 if confirmed and index % 2 else None,
            "confirmed_test_error_pct_high": 51.5 if confirmed and index % 2 else None,
            "median_error_pct": 43.3,
            "common_area": 0.82,
            "common_area_low": 0.54,
            "common_area_high": 0.96,
            "own_area": 0.77,
        }
        for index, (cell, arm) in enumerate(itertools.product(cells.split(), ("vit_p", "vit_c")))
    ]


@pytest.mark.parametrize("confirmed", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_answer_breaks_no_word_and_has_a_line_per_arm(width, confirmed):
    lines = drawn(answer_table(answer(confirmed)), width)
    known = words(
        [
            "cell arm trials diverged peak % final confirmed 95 % interval robustness",
            "adamw sgd vit_p vit_c 8/8 0 1 2 3 0.33 2.34 0.82 0.54 to 0.96",
            "50.9 50.4 51.5 –",
        ]
    )
    assert words(lines) <= known | {"arm:", "cell:", "robustness:", "interval:", "%:"}
    if width >= 60:
        assert sum("vit_" in line for line in lines) == 4
        assert all("0.82" in line and "0.54 to 0.96" in line for line in lines if "vit_" in line)


def test_the_answer_of_a_sweep_fits_an_ordinary_terminal_with_a_line_of_names():
    assert drawn(answer_table(answer(False)), 80)[0] == (
        "cell   arm    trials  diverged  peak %  final %  robustness  95 % interval"
    )


def test_names_of_columns_are_on_one_line_where_there_is_room_and_then_on_several():
    row = {"arm": "vit_p", "error of the best": "0.33", "error of the median": "43.3"}
    assert drawn(FittedTable([row]), 80)[0] == "arm    error of the best  error of the median"
    narrow = drawn(FittedTable([row]), 24)
    assert len(narrow) > 2
    assert narrow[-1].split() == ["vit_p", "0.33", "43.3"]


def test_the_least_important_columns_go_first():
    def heads(width: int) -> str:
        return " ".join(drawn(answer_table(answer(True)), width)[:-4])

    assert "trials" in heads(120)
    assert "trials" not in heads(80)
    assert "diverged" not in heads(60)
    assert "robustness" in heads(60)


def test_a_sweep_without_cells_has_no_column_of_them():
    assert drawn(answer_table(answer(False, cells="all")), 120)[0].startswith("arm    trials")


def test_numbers_are_aligned_right_also_where_one_is_missing():
    lines = drawn(FittedTable([{"error %": "12.5", "arm": "a"}, {"error %": "–", "arm": "b"}]), 80)
    assert lines == ["error %  arm", "   12.5  a", "      –  b"]


def test_long_text_is_wrapped_between_words():
    lines = drawn(ledger_table(Ledger(useful=8.0, queued=2.0)), 60)
    assert not re.search(r"\w…", " ".join(lines))
    text = " ".join(" ".join(lines).split())
    assert "training and evaluation" in text
    assert {"useful", "queued", "steps", "repeated", "crash,", "checkpoint"} <= words(lines)


def test_what_fits_in_no_table_becomes_a_list():
    row = {"the first": "a" * 12, "the second": "b" * 12, "the third": "c" * 12}
    assert drawn(FittedTable([row, row]), 25) == [
        f"the first: {'a' * 12}",
        f"the second: {'b' * 12}",
        f"the third: {'c' * 12}",
        "",
        f"the first: {'a' * 12}",
        f"the second: {'b' * 12}",
        f"the third: {'c' * 12}",
    ]


def test_no_rows_are_no_table():
    assert "".join(drawn(FittedTable([]), 80)) == ""
