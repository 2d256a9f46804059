import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy import stats as scipy_stats
from scipy.stats import qmc

from orchestrator.sweep.design import Design, GridDesign, RandomDesign, SobolDesign, StarDesign

DRAWN = [RandomDesign, SobolDesign]
LEVELS = {"optim.lr": None, "optim.weight_decay": None, "model.depth": 4}

IN_ANOTHER_PROCESS = """
import json, sys
from pydantic import TypeAdapter
from orchestrator.sweep.design import Design
kinds, levels = json.loads(sys.argv[1])
for kind in kinds:
    design = TypeAdapter(Design).validate_python({"kind": kind, "points": 16, "seed": 3})
    print(json.dumps({name: list(values) for name, values in design.quantiles(levels).items()}))
"""


def test_points_are_the_same_in_another_process():
    kinds = [design.model_fields["kind"].default for design in DRAWN]
    here = [design(points=16, seed=3).quantiles(LEVELS) for design in DRAWN]
    for hash_seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", IN_ANOTHER_PROCESS, json.dumps([kinds, LEVELS])],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        there = [json.loads(line) for line in ran.stdout.splitlines()]
        assert [{name: list(values) for name, values in points.items()} for points in here] == there


@pytest.mark.parametrize("design", DRAWN)
@pytest.mark.parametrize(("few", "many"), [(16, 32), (5, 6), (1, 100), (33, 64)])
def test_a_longer_design_begins_with_the_shorter_one(design, few, many):
    short, long = design(points=few).quantiles(LEVELS), design(points=many).quantiles(LEVELS)
    for name in LEVELS:
        assert len(long[name]) == many
        assert np.array_equal(short[name], long[name][:few])


@pytest.mark.parametrize("design", DRAWN)
def test_another_parameter_anywhere_keeps_the_values_of_the_others(design):
    before = design(points=16).quantiles(LEVELS)
    for levels in ({"a.new": None, **LEVELS}, {**LEVELS, "z.new": 3}, dict(reversed(LEVELS.items()))):
        after = design(points=16).quantiles(levels)
        assert list(after) == list(levels)
        for name in LEVELS:
            assert np.array_equal(before[name], after[name])


@pytest.mark.parametrize("design", DRAWN)
def test_points_lie_in_the_unit_cube_and_follow_the_seed(design):
    one, two = design(points=64, seed=1).quantiles(LEVELS), design(points=64, seed=2).quantiles(LEVELS)
    for name in LEVELS:
        assert one[name].min() >= 0
        assert one[name].max() < 1
        assert not np.array_equal(one[name], two[name])
    assert not np.array_equal(one["optim.lr"], one["model.depth"])
    assert design(points=64).num_points(LEVELS) == 64


@pytest.mark.parametrize("seed", range(5))
def test_sobol_points_are_spread_more_evenly_than_random_ones(seed):
    def discrepancy(design):
        return qmc.discrepancy(np.column_stack(list(design(points=64, seed=seed).quantiles(LEVELS).values())))

    assert discrepancy(SobolDesign) < 0.6 * discrepancy(RandomDesign)


def test_each_half_of_a_sobol_coordinate_gets_half_of_the_points():
    # A scrambled Sobol sequence of 2^k points puts one of them into each of 2^k equal intervals.
    for values in SobolDesign(points=32).quantiles(LEVELS).values():
        assert sorted((values * 32).astype(int)) == list(range(32))


def columns(design, *names):
    """(points, parameters) of a design."""
    quantiles = design.quantiles(LEVELS)
    return np.column_stack([quantiles[name] for name in names or LEVELS])


def test_one_scramble_has_the_points_that_sweeps_had_before_there_were_more():
    # As printed at the commit before; ids of trials, and so finished runs, hang on them.
    points = columns(SobolDesign(points=4), "optim.lr", "optim.weight_decay")
    assert points.round(9).tolist() == [
        [0.566143818, 0.907871518],
        [0.264294659, 0.050801132],
        [0.101145556, 0.645450525],
        [0.791544999, 0.251330845],
    ]


@hypothesis_settings(max_examples=8)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 40), st.integers(0, 3))
def test_points_are_dealt_to_blocks_in_turn_and_stay_where_they_are_when_more_come(
    scrambles, few, more, seed
):
    short = SobolDesign(points=few, scrambles=scrambles, seed=seed)
    long = SobolDesign(points=few + more, scrambles=scrambles, seed=seed)
    assert np.array_equal(columns(short), columns(long)[:few])
    sizes = np.bincount([long.block(point) for point in range(few + more)], minlength=scrambles)
    assert sizes.sum() == few + more
    assert np.ptp(sizes) <= 1


def test_the_first_block_is_the_design_of_one_scramble():
    assert np.array_equal(columns(SobolDesign(points=32, scrambles=8))[::8], columns(SobolDesign(points=4)))


def test_another_parameter_keeps_the_values_of_the_others_in_every_block():
    before, after = (
        SobolDesign(points=12, scrambles=6).quantiles(levels)
        for levels in (LEVELS, {"a.new": None, **LEVELS, "z.new": 3})
    )
    for name in LEVELS:
        assert np.array_equal(before[name], after[name])


@pytest.mark.parametrize("seed", range(3))
def test_every_block_is_a_net_of_its_own(seed):
    # 2^k points of the first two coordinates: each of the 2^k boxes of every shape 2^-a by 2^(a-k) has one.
    points = columns(SobolDesign(points=64, scrambles=8, seed=seed), "optim.lr", "optim.weight_decay")

    def boxes(these, a, k):
        cells = np.floor(these * [2**a, 2 ** (k - a)]).astype(int)
        return len({tuple(cell) for cell in cells})

    for block in range(8):
        assert [boxes(points[block::8], a, 3) for a in range(4)] == [8] * 4
    # All of them together are none: they do not know of each other.
    assert min(boxes(points, a, 6) for a in range(7)) < 64


def test_blocks_are_independent_of_each_other():
    # Blocks of one point: 32 independent uniform values in each of 80 coordinates.
    quantiles = SobolDesign(points=32, scrambles=32).quantiles({f"p.{i}": None for i in range(80)})
    values = np.array(list(quantiles.values()))
    assert scipy_stats.kstest(values.ravel(), "uniform").pvalue > 1e-3
    # Of 32 cells 32 independent draws hit 32 (1 - (31 / 32)^32) = 20.4, with sd 1.8; a sequence hits all.
    hit = [len(set((row * 32).astype(int))) for row in values]
    assert np.mean(hit) == pytest.approx(32 * (1 - (31 / 32) ** 32), abs=5 * 1.8 / 80**0.5)
    # Correlations of neighbouring blocks over coordinates: standard error 1 / sqrt(80), 31 of them.
    neighbours = [np.corrcoef(values[:, b], values[:, b + 1])[0, 1] for b in range(31)]
    assert np.mean(np.square(neighbours)) == pytest.approx(1 / 80, rel=5 * (2 / 31) ** 0.5)


def test_random_draws_are_uniform_and_independent():
    quantiles = RandomDesign(points=4000).quantiles(LEVELS)
    for values in quantiles.values():
        # The mean of n uniforms has standard error 1 / sqrt(12 n): 0.0046; five of them.
        assert abs(values.mean() - 0.5) < 0.023
    # A correlation of independent draws has standard error 1 / sqrt(n): 0.016; five of them.
    assert abs(np.corrcoef(quantiles["optim.lr"], quantiles["optim.weight_decay"])[0, 1]) < 0.08


def test_a_sobol_design_can_vary_many_parameters_each_on_its_own_coordinate():
    # 80 of 510 coordinates by their names: some two surely meet, and the later one moves.
    quantiles = SobolDesign(points=8).quantiles({f"p.{i}": None for i in range(80)})
    assert len({tuple(values) for values in quantiles.values()}) == 80


def test_a_grid_is_every_combination_once():
    design = GridDesign(levels=3)
    levels = {"a": 2, "b": None, "c": 1}
    quantiles = design.quantiles(levels)
    rows = list(zip(*quantiles.values(), strict=True))
    assert sorted(rows) == sorted(itertools.product([0.25, 0.75], [0, 0.5, 1], [0.5]))
    assert design.num_points(levels) == len(rows) == 6


def test_a_star_is_a_centre_and_one_parameter_at_a_time_at_every_length():
    levels = {"width": 4, "epochs": 2, "depth": 3}
    design = StarDesign(cross=("epochs",))
    quantiles = design.quantiles(levels)
    rows = {
        tuple(int(quantile * levels[name]) for name, quantile in zip(levels, row, strict=True))
        for row in zip(*(quantiles[name] for name in levels), strict=True)
    }
    everywhere = itertools.product(range(4), range(2), range(3))
    # At most one of width and depth is off the last value.
    assert rows == {(w, e, d) for w, e, d in everywhere if (w != 3) + (d != 2) <= 1}
    assert design.num_points(levels) == len(rows) == (1 + 3 + 2) * 2
    first = StarDesign(centre="first").quantiles({"width": 4, "depth": 3})
    assert (first["width"][0], first["depth"][0]) == (0.125, pytest.approx(1 / 6))
    assert StarDesign().num_points({}) == 1


def test_the_papers_star_has_its_19_shapes():
    levels = {"width": 7, "depth": 7, "mlp": 7, "epochs": 3}
    assert StarDesign(cross=("epochs",)).num_points(levels) == 19 * 3


def test_a_grid_of_one_level_takes_the_middle_and_of_nothing_has_one_point():
    assert GridDesign(levels=1).quantiles({"a": None})["a"].tolist() == [0.5]
    assert GridDesign().num_points({}) == 1
    assert GridDesign().quantiles({}) == {}


@pytest.mark.parametrize(
    "design",
    [{"kind": "random", "points": 0}, {"kind": "sobol"},
     {"kind": "sobol", "points": 8, "scrambles": 0}, {"kind": "random", "points": 8, "scrambles": 2},
     {"kind": "grid", "points": 3}, {"kind": "halton"}],
)  # fmt: skip
def test_a_bad_design_is_refused(design):
    with pytest.raises(ValidationError):
        TypeAdapter(Design).validate_python(design)
