"""Text is UTF-8 wherever it is read or written, whatever the locale of the user."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Methods and functions with a place for an encoding: its index among the arguments, and that of the mode.
CALLS = {"read_text": (0, None), "write_text": (1, None), "open": (2, 0), "fdopen": (3, 1)}
#: Other things that are called `open` and take no encoding.
NO_FILES = {"Image", "os", "data", "wanted", "one", "tarfile", "_dispatch", "dispatch", "self", "super"}


def text_calls_without_encoding(tree: ast.AST) -> Iterator[int]:
    """Lines that open, read or write text in the encoding of the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        keys = {keyword.arg for keyword in node.keywords}
        if "encoding" in keys:
            continue
        if any(k.arg in ("text", "universal_newlines") for k in node.keywords):
            yield node.lineno
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name not in CALLS or owner_of(function) in NO_FILES:
            continue
        place, mode_place = CALLS[name]
        if isinstance(function, ast.Name) and name == "open":
            place, mode_place = 3, 1
        if mode_place is not None:
            mode = node.args[mode_place] if len(node.args) > mode_place else ast.Constant("r")
            if isinstance(mode, ast.Constant) and "b" in str(mode.value):
                continue
        if len(node.args) <= place:
            yield node.lineno


def owner_of(function: ast.expr) -> str:
    """The last name before the dot of a call: `data` in `config.data.open`."""
    if not isinstance(function, ast.Attribute):
        return ""
    owner = function.value
    if isinstance(owner, ast.Call):
        owner = owner.func
    return owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")


def test_no_text_is_read_or_written_in_the_encoding_of_the_locale():
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for root in ("trainables", "orchestrator", "benchmarks")
        for path in sorted((ROOT / root).rglob("*.py"))
        for line in text_calls_without_encoding(ast.parse(path.read_text("utf-8")))
    ]
    assert not found


def test_a_call_without_an_encoding_is_found():
    text = "p.read_text()\np.open()\nopen(p, 'w')\np.open('rb')\nrun(c, text=True)\np.write_text(t, 'utf-8')"
    assert list(text_calls_without_encoding(ast.parse(text))) == [1, 2, 3, 5]
