import numpy as np
import pytest

from orchestrator.shift import corruption_error, mean_corruption_error, relative_corruption_error
from trainables.corruptions import KINDS

OURS = {"clean": 20.0, "fog": 30.0, "snow": 50.0, "imagenet_v2": 35.0}
THEIRS = {"clean": 40.0, "fog": 60.0, "snow": 80.0, "imagenet_v2": 55.0}


def test_corruption_error_by_hand():
    found = corruption_error(OURS)
    assert (found.clean_pct, found.mean_pct, found.excess_pct) == (20, 40, 20)
    assert corruption_error({"imagenet_v2": 35.0}) is None
    # 30 of 60 and 50 of 80: 50 % and 62.5 %.
    assert mean_corruption_error(OURS, THEIRS) == pytest.approx(56.25)
    # 10 more where they have 20 more, 30 more where they have 40 more.
    assert relative_corruption_error(OURS, THEIRS) == pytest.approx((50 + 75) / 2)


def test_it_is_the_papers_formula_over_severities():
    # Section 4.2: CE_c = sum_s E_s,c^f / sum_s E_s,c^AlexNet; relative CE with clean errors taken off.
    rng = np.random.default_rng(0)
    ours, theirs = rng.uniform(20, 60, (15, 5)), rng.uniform(50, 90, (15, 5))
    rows = [
        {"clean": clean} | dict(zip(KINDS, errors.mean(1).tolist(), strict=True))
        for clean, errors in ((10.0, ours), (40.0, theirs))
    ]
    expected = 100 * np.mean(ours.sum(1) / theirs.sum(1))
    assert mean_corruption_error(*rows) == pytest.approx(expected)
    expected = 100 * np.mean((ours - 10).sum(1) / (theirs - 40).sum(1))
    assert relative_corruption_error(*rows) == pytest.approx(expected)


def test_a_network_beside_itself_is_at_a_hundred():
    assert mean_corruption_error(OURS, OURS) == pytest.approx(100)
    assert relative_corruption_error(OURS, OURS) == pytest.approx(100)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fog": 0.0}, r"no error under \['fog'\]"),
        ({"frost": 70.0}, "the same corruptions"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        mean_corruption_error(OURS, THEIRS | changes)
    with pytest.raises(ValueError, match="the same corruptions"):
        mean_corruption_error({"clean": 1.0}, {"clean": 1.0})
    with pytest.raises(ValueError, match=r"no worse under \['snow'\]"):
        relative_corruption_error(OURS, THEIRS | {"snow": 40.0})
