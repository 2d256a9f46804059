import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.sweep.constraints import MAX_LENGTH, Constraint, ConstraintError


def holds(text: str, **values) -> bool:
    values = {name.replace("__", "."): value for name, value in values.items()}
    return Constraint.parse(text).holds(values.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.lr * optim.weight_decay < 1e-3", True),
        ("optim.lr * optim.weight_decay > 1e-3", False),
        ("0.001 <= optim.lr <= 0.01", True),
        ("0.001 <= optim.lr < 0.005", False),
        ("depth % 3 == 0 and depth / 3 == 2", True),
        ("depth - 2 * 3 != 0 or -depth == -6", True),
        ("not depth < 7", False),
        ("stem == 'conv'", True),
        ("stem in ['patchify', \"conv\"]", True),
        ("stem not in ('patchify', 'conv')", False),
        ("flip == true and clip == null", True),
        ("clip != null", False),
        ("(depth + 1) * 2 > 13", True),
    ],
)
def test_a_constraint_means_what_it_says(text, expected):
    values = {
        "optim.lr": 5e-3,
        "optim.weight_decay": 0.1,
        "depth": 6,
        "stem": "conv",
        "flip": True,
        "clip": None,
    }
    assert Constraint.parse(text).holds(values.__getitem__) is expected


def test_names_are_found_once_each_and_in_order():
    text = "b.c < a and b.c > 1 and stem in ['x'] and flag == true"
    assert Constraint.parse(text).names == ("b.c", "a", "stem", "flag")


_NUMBERS = st.floats(-100, 100).map(lambda number: round(number, 3))


@given(a=_NUMBERS, b=_NUMBERS, c=_NUMBERS)
@example(a=0.0, b=0.0, c=0.0)
def test_comparisons_agree_with_python(a, b, c):
    for text in (
        "a < b < c",
        "a + b * c >= c - b",
        "not a == b or c > 0 and b <= a",
        "-a < b",
        "a * a + 1 > 0",
    ):
        # Python is the other implementation: the language is a part of its expressions.
        assert holds(text, a=a, b=b, c=c) == eval(text, {"a": a, "b": b, "c": c})


def test_precedence_of_and_or_not_is_pythons():
    for a, b, c in itertools.product((0, 1), repeat=3):
        wanted = a == 1 or (b == 1 and c == 0)
        assert holds("a == 1 or b == 1 and not c == 1", a=a, b=b, c=c) is wanted


def test_a_constraint_says_nothing_of_a_setting_that_is_absent_or_null():
    assert holds("momentum < 0.5", other=1)
    assert holds("clip < 0.5", clip=None)
    # `or` stops at what already holds, as it does in Python.
    assert holds("name == 'adamw' or momentum < 0.5", name="adamw")
    assert not holds("name == 'sgd' and lr < 0.5", name="adamw", lr=0.1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no comparison"),
        ("lr <", "is no comparison"),
        ("lr < 1; lr > 0", "is no comparison"),
        ("lr = 1", "is no comparison"),
        ("lr", "compares nothing"),
        ("lr * 2", "compares nothing"),
        ("1 < 2", "names no setting"),
        ("lr ** 2 < 1", "`lr ** 2` is not in the language"),
        ("lr // 2 < 1", "is not in the language"),
        ("abs(lr) < 1", "`abs(lr)` is not in the language"),
        ("__import__('os').system('x') == 0", "is not in the language"),
        ("lr.__class__.__mro__[1] == 1", "is not in the language"),
        ("(lambda: 1)() < lr", "is not in the language"),
        ("[x for x in lr] == 1", "is not in the language"),
        ("(lr := 2) < 3", "is not in the language"),
        ("lr < 1 if lr else 2", "is not in the language"),
        ("f'{lr}' == 'x'", "is not in the language"),
        ("lr is None", "is not in the language"),
        ("name in 'adamw'", "`in` takes a list of values"),
        ("lr in [lr]", "is not in the language"),
        ("lr < 1j", "is not in the language"),
        ("lr == b'x'", "is not in the language"),
        ("lr < \x00", "is no comparison"),
        ("lr < 1" + " and lr < 1" * 100, f"longer than {MAX_LENGTH}"),
        ("(" * 240 + "lr < 1" + ")" * 240, "is no comparison"),
    ],
)
def test_what_is_not_in_the_language_is_refused_and_named(text, words):
    with pytest.raises(ConstraintError) as caught:
        Constraint.parse(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "values", "words"),
    [
        ("name < 3", {"name": "adamw"}, "compares what cannot be compared where name = 'adamw'"),
        ("name * 100000000 == 'x'", {"name": "adamw"}, "compares what cannot be compared"),
        ("flip + 1 > 0", {"flip": True}, "compares what cannot be compared"),
        ("1 / lr < 2", {"lr": 0}, "divides by 0 in `1 / lr < 2`"),
        ("1 % lr < 2", {"lr": 0.0}, "divides by 0"),
    ],
)
def test_what_means_nothing_for_the_values_it_meets_is_an_error(text, values, words):
    with pytest.raises(ConstraintError) as caught:
        holds(text, **values)
    assert words in str(caught.value)


@given(st.text(st.sampled_from("ab.1 <>=+-*/%()[]{}'\"!,:\\\t\n_é\x00"), max_size=60) | st.text(max_size=40))
def test_any_text_is_read_or_refused_and_nothing_else(text):
    try:
        constraint = Constraint.parse(text)
        constraint.holds(dict.fromkeys(constraint.names, 1.5).__getitem__)
    except ConstraintError:
        pass


def test_nan_fulfils_no_comparison():
    assert not holds("lr < 1", lr=math.nan)
    assert not holds("lr >= 1", lr=math.nan)
