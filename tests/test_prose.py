"""Docstrings open with a verb or a noun, so that they make sense without the name of what they describe."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Words that open a relative clause or a preposition, and leave a reader to guess what is spoken of.
BAD_BEGINNINGS = {
    *(
        "Above",
        "After",
        "Among",
        "As",
        "At",
        "Before",
        "Below",
        "Between",
        "By",
        "For",
        "From",
        "How",
        "If",
        "In",
    ),
    *("Of", "On", "That", "To", "Under", "What", "When", "Where", "Whether", "Which", "Who", "Whose", "Why"),
    *("With", "Without"),
}
FILES = sorted(path for root in ("orchestrator", "trainables") for path in (ROOT / root).rglob("*.py"))


def beginnings(source: str) -> list[tuple[int, str]]:
    """The line of every docstring with its first word."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = (ast.get_docstring(node) or "").split()
            if words:
                found.append((getattr(node, "lineno", 1), words[0].strip(",.:;`")))
    return found


def test_there_is_something_to_read():
    assert len(FILES) > 100
    assert sum(len(beginnings(path.read_text())) for path in FILES) > 1000


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_opens_with_a_clause_that_hangs_in_the_air(path):
    assert not [(line, word) for line, word in beginnings(path.read_text()) if word in BAD_BEGINNINGS]


def test_a_bad_beginning_is_seen():
    assert beginnings('def f():\n    """Of a measure, the value."""') == [(1, "Of")]
