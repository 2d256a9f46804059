"""Whatever stands in a sweep file, reading it ends soon, with a sweep or with a message."""

# ruff: noqa: PT017 - either end is right, so what is raised cannot be demanded
# ruff: noqa: SIM905 - fragments are read more easily in one string

import copy
import json
import resource
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.sweep.checks import PATHS
from orchestrator.sweep.constraints import ConstraintError
from orchestrator.sweep.document import Override, SweepError
from orchestrator.sweep.load import load_sweep
from orchestrator.trials.plan import data_configs, make_plan
from trainables.io.yaml import YamlError, parse_document

LR_WD = Path(__file__).parents[3] / "search_spaces" / "lr_wd.yaml"
FUZZ = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
#: Far more than any small file needs, even on a busy machine: it is a hang or a blow-up that is looked for.
MOST_SECONDS, MOST_MIB = 20, 300

_FRAGMENTS = st.sampled_from(
    "a|base|: |:\n  |- |\n|\t|{|}|[|]|, |&a |*a|<<: *a|!!int |!x |'|\"|>\n|#|%YAML 1.1\n|---\n|...\n|? |1e-4|"
    "1_0|0x|.inf|.nan|~|null|true|\x00|\ufeff|\u2028|é|\\|9999999999|design: {kind: sobol}\n".split("|")
)


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


@settings(max_examples=400)
@given(st.lists(_FRAGMENTS, max_size=25).map("".join) | st.text(max_size=60))
def test_any_text_is_plain_data_or_a_yaml_error(text):
    try:
        document = parse_document(text, "f")
    except YamlError as error:
        assert str(error).startswith("f")
        return
    assert is_plain(document.value)
    json.dumps(document.value, ensure_ascii=False).encode()


#: PyYAML's writer leaves these three unquoted in keys, where its own reader takes them for the ends of lines.
_WRITTEN = st.characters(exclude_characters="\x85\u2028\u2029")


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(_WRITTEN, max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(_WRITTEN, max_size=5), inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
def test_what_another_program_writes_as_yaml_is_read_as_it_was(value):
    # PyYAML's writer quotes what would be read as something else.
    assert parse_document(yaml.safe_dump(value, allow_unicode=True), "f").value == value


#: DEL is a control character that JSON leaves as it is, and YAML refuses.
_JSON_TEXT = st.text(st.characters(exclude_characters="\x7f", exclude_categories=["Cs"]), max_size=8)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _JSON_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_JSON_TEXT, inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
def test_json_is_read_as_a_reader_of_json_does(value):
    text = json.dumps(value, indent=1)
    assert parse_document(text, "f").value == json.loads(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"question": "half \\ud83d"}', "f:1:14"),
        ('{\n "\\ude00": 1}', "f:2:2"),
        ("a: 1\nb: 0x" + "f" * 4000, "f:2:4"),
        ("a: " + "9" * 4400, "f:1:4"),
        ("a: 1\nb: x\x85y", "f:2:5"),
        ("a: \0", "f:1:4"),
        ('{"a":' * 2000 + "1" + "}" * 2000, "f"),
    ],
)
def test_what_is_no_text_or_number_is_refused_with_its_place(text, place):
    with pytest.raises(YamlError) as error:
        parse_document(text, "f")
    assert error.value.place == place
    str(error.value).encode()


def _places(tree: object, path: tuple = ()) -> list[tuple]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, item in items for place in _places(item, (*path, key)))]


_TREE = yaml.safe_load(LR_WD.read_text())
_KEYS = st.sampled_from(
    [
        *PATHS,
        *"base arms cells vary where design noise resources extends kind points levels everywhere".split(),
        *"by_name when zip choice uniform name x . a..b seeds".split(),
    ]
)
_WORDS = (
    "sobol|grid|latin|random|sgd|adamw|conv|optim.lr|vit_c_1gf|50%|optim.lr < 1|flops_g > 0|lr_wd.yaml|"
    "fuzz.yaml||digits".split("|")
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 5)
    | st.integers()
    | st.floats()
    | st.sampled_from([*_WORDS, 10**30, "x" * 300]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn) -> dict:
    """The sweep that ships with one to four places changed, added to, or taken away."""
    tree = copy.deepcopy(_TREE)
    for _ in range(draw(st.integers(1, 4))):
        *parents, last = draw(st.sampled_from(_places(tree)[1:] or [("base",)]))
        branch = tree
        for key in parents:
            branch = branch[key]
        change = draw(st.sampled_from(["replace", "add", "drop"]))
        if change == "drop":
            branch.pop(last, None) if isinstance(branch, dict) else branch.pop()
        elif change == "add" and isinstance(branch, dict):
            branch[draw(_KEYS)] = draw(_VALUES)
        else:
            branch[last] = draw(_VALUES)
    return tree


def read(path: Path, *overrides: Override) -> None:
    """Loads and plans a file of few trials; faults are all it may raise."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        sweep = load_sweep(path, overrides)
        if sweep.design.num_points(sweep.levels()) * len(sweep.all_cells()) * len(sweep.arms) <= 64:
            infos = {data: data.info() for data in data_configs(sweep) if data.name == "digits"}
            if all(data in infos for data in data_configs(sweep)):
                make_plan(sweep, infos)
    except (SweepError, ConstraintError, ValueError) as error:
        assert str(error)
        if isinstance(error, SweepError):
            assert str(error).startswith(str(path))
            assert len(str(error).splitlines()) >= 2
            assert all(fault.rule for fault in error.faults)
    assert time.monotonic() - began < MOST_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MIB * 1024


@FUZZ
@given(mutated())
def test_a_mutated_sweep_ends_in_a_plan_or_in_faults(tmp_path, tree):
    path = tmp_path / "fuzz.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    (tmp_path / "lr_wd.yaml").write_text(LR_WD.read_text())
    read(path)


@FUZZ
@given(
    st.tuples(_KEYS | st.sampled_from([".".join(map(str, place)) for place in _places(_TREE)[1:]]), _VALUES)
)
def test_any_setting_on_top_ends_in_a_plan_or_in_faults(change):
    try:
        override = Override.parse(f"{change[0]}={yaml.safe_dump(change[1], default_flow_style=True)}")
    except SweepError as error:
        assert str(error).startswith("--set")
        return
    read(LR_WD, override)


@pytest.mark.parametrize(
    "change",
    [
        {"cells": {f"f{i}": {f"l{i}_{j}": {} for j in range(2)} for i in range(60)}},
        {"design": {"kind": "sobol", "points": 10**12}},
        {"design": {"kind": "grid", "levels": 10**9}},
        {"replicates": 10**15},
        {"noise": {"points": 10**9, "seeds": 10**9}},
        {"vary": {f"p{i}": {"uniform": [0, 1]} for i in range(3000)}},
        {"vary": {"optim.lr": {"choice": list(range(1, 20_000))}}},
        {"vary": {"optim.lr": {"uniform": [-1.7e308, 1.7e308]}}},
        {"vary": {"optim.lr": {"log_uniform": [1e-308, 1e308]}}},
        {"vary": {"batch_size": {"int_range": [1, 10**4000]}}},
        {"where": ["optim.lr < 1" + "0" * 490]},
        {"extends": "/dev/zero"},
        {"extends": ["/"]},
        {"extends": "lr\x00.yaml"},
        {"extends": "x" * 5000},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_asks_for_too_much_is_refused_soon(change, tmp_path):
    path = tmp_path / "much.yaml"
    path.write_text(yaml.safe_dump(_TREE | change, sort_keys=False))
    with pytest.raises(SweepError):
        load_sweep(path)
    read(path)
