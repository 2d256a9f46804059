"""Statistics of attention collapse against closed forms, loops and scipy."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from orchestrator.analysis.collapse import (
    SPREADS,
    BlockSimilarity,
    Collapse,
    TrialMaps,
    arm_maps,
    baselines,
    block_similarity,
    onset,
    onset_estimate,
    outdated,
)
from orchestrator.report.tables_attention import collapse_rows, terminal_rows
from orchestrator.trials.records import Record


def found(similarity: list[float], maps: Any = "softmax", num_tokens: int = 5) -> BlockSimilarity:
    """One head whose blocks are so similar to the one before."""
    blocks = len(similarity) + 1
    matrix = np.eye(blocks)[None]
    for block, value in enumerate(similarity):
        matrix[0, block, block + 1] = matrix[0, block + 1, block] = value
    entropy = None if maps == "transformed" else np.full((1, blocks), 0.5)
    return block_similarity(maps, "all", num_tokens, matrix, np.zeros((1, blocks - 1)), entropy)


def trial(number: int, *similarities: BlockSimilarity, **changes: Any) -> TrialMaps:
    fields: dict[str, Any] = {
        "trial": f"t{number}", "name": f"a/all/{number}", "cell": "all", "arm": "a", "point": number,
        "replicate": 0, "role": "sweep", "weights": "abc", "num_images": 9, "num_heads": 1,
        "num_blocks": len(similarities[0].matrix), "found": similarities,
    }  # fmt: skip
    return TrialMaps(**fields | changes)


def test_means_over_heads_are_of_the_values_by_head():
    matrix = np.array([[[1.0, 0.2], [0.2, 1.0]], [[1.0, 0.6], [0.6, 1.0]]])
    one = block_similarity(
        "softmax", "all", 5, matrix, np.array([[0.0], [0.5]]), np.array([[1.0, 0], [0, 0]])
    )
    assert one.matrix == ((1.0, 0.4), (0.4, 1.0))
    assert (one.similarity, one.share_similar, one.entropy) == ((0.4,), (0.25,), (0.5, 0.0))
    assert one.similarity_by_head == ((0.2,), (0.6,))
    assert one.share_similar_by_head == ((0.0,), (0.5,))


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [
        ([0.5, 0.95, 0.5, 0.9, 0.92], 5),
        ([0.9, 0.9], 2),
        ([0.95, 0.89], None),
        ([0.1, 0.2, 0.9], 4),
        ([], None),
    ],
)
def test_the_onset_is_the_first_block_from_which_on_all_are_alike(similarity, expected):
    assert onset(similarity, 0.9) == expected


@pytest.mark.parametrize("onsets", [[5, 6, 9], [3, 4, 4, 8, 12]])
def test_the_mean_onset_has_students_interval(onsets):
    estimate = onset_estimate(onsets, 99)
    expected = stats.t.interval(0.95, len(onsets) - 1, np.mean(onsets), stats.sem(onsets))
    assert estimate is not None
    assert estimate.value == pytest.approx(np.mean(onsets))
    assert (estimate.low, estimate.high) == pytest.approx((max(expected[0], 2), expected[1]))
    # There is no block beyond the last.
    assert onset_estimate(onsets, 12).high == pytest.approx(min(expected[1], 12))


def test_two_onsets_have_no_mean_and_equal_ones_no_interval():
    assert onset_estimate([4, 5], 12) is None
    estimate = onset_estimate([4, 4, 4], 12)
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.because) == (4, None, "all values are alike")


def test_independent_maps_approach_the_closed_form_of_many_tokens():
    levels = {tokens: baselines(tokens, 0.9) for tokens in (16, 128, 1024)}
    for name, sd in SPREADS.items():
        gaps = [level[name].similarity - math.exp(-(sd**2)) for level in levels.values()]
        # From above, as a column of few tokens has few large entries.
        assert gaps[0] > gaps[1] > gaps[2] > 0
        assert gaps[2] < {"flat": 0.01, "peaky": 0.04}[name]
        # Rows of exp(sd z) over many tokens have entropy log T - sd^2 / 2.
        entropy = 1 - sd**2 / 2 / math.log(1024)
        assert levels[1024][name].entropy == pytest.approx(entropy, abs=0.01)


def test_independent_maps_of_few_tokens_are_those_of_a_plain_simulation():
    rng = np.random.default_rng(99)
    similarities, above = [], []
    for _ in range(4000):
        a, b = (np.exp(rng.normal(0, 1.5, (5, 5))) for _ in range(2))
        a, b = a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)
        for token in range(5):
            x, y = a[:, token], b[:, token]
            similarities.append(x @ y / np.sqrt(x @ x) / np.sqrt(y @ y))
            above.append(similarities[-1] > 0.8)
    level = baselines(5, 0.8)["peaky"]
    # 20,000 columns on either side, five standard errors of a spread below 0.3.
    assert level.similarity == pytest.approx(np.mean(similarities), abs=0.015)
    assert level.share_similar == pytest.approx(np.mean(above), abs=0.025)


def test_the_uniform_level_is_1_and_one_token_is_uniform():
    for level in [baselines(9, 0.9)["uniform"], *baselines(1, 0.9).values()]:
        assert (level.similarity, level.share_similar, level.entropy) == (1.0, 1.0, 1.0)


def test_arms_are_means_over_the_trials_of_most_frequent_shape():
    collapse = Collapse(
        threshold=0.9,
        trials=(
            trial(0, found([0.5, 0.95])),
            trial(1, found([0.7, 0.91])),
            trial(2, found([0.95])),
            trial(3, found([0.2, 0.3]), found([0.4, 0.5], "transformed"), arm="b"),
            trial(4, found([0.93, 0.94])),
        ),
    )
    a, b, transformed = arm_maps(collapse)
    assert (a.arm, a.num_trials, a.num_averaged, a.num_blocks) == ("a", 4, 3, 3)
    assert a.similarity == pytest.approx(((0.5 + 0.7 + 0.93) / 3, (0.95 + 0.91 + 0.94) / 3))
    assert a.matrix[1][2] == a.matrix[2][1] == pytest.approx(a.similarity[1])
    assert a.onsets == (3, 3, 2, 2)
    assert a.onset is not None
    assert a.onset.value == 2.5
    assert (b.arm, b.onsets, b.onset, b.mean_similarity) == ("b", (), None, pytest.approx(0.25))
    assert (transformed.maps, transformed.mean_similarity, transformed.mean_entropy) == (
        "transformed",
        pytest.approx(0.45),
        None,
    )
    rows = collapse_rows(collapse)
    assert len(rows) == 3 + 3 + 2 + 3 + 3
    assert (rows[9]["similarity"], rows[9]["transformed_similarity"]) == (0.2, 0.4)
    shown = terminal_rows([a, b, transformed], 0.9)
    assert [row["arm"] for row in shown] == ["a", "b", "b transformed", "uniform", "flat", "peaky"]
    assert shown[1]["onset block"] == "none"


def test_weights_that_are_no_longer_those_of_the_journal_are_named():
    collapse = Collapse(threshold=0.9, trials=tuple(trial(n, found([0.5])) for n in range(3)))
    records = {"t0": Record(weights="abc"), "t1": Record(weights="other")}
    assert outdated(collapse, records) == ["a/all/1", "a/all/2"]
