"""The exchange rate of a sweep's arms: of the first points, at the declared looks and their levels."""

import pytest

from orchestrator.analysis.exchange import exchanges
from orchestrator.analysis.findings import costs_of
from orchestrator.analysis.summary import summarise
from orchestrator.stats.exchange import exchange_rate
from orchestrator.stats.looks import Looks
from orchestrator.trials.records import results_of
from tests.orchestrator.analysis.test_contrasts import ended, make

LOOKS = Looks.of(16, 64)


def error_pct(trial):
    """The second arm is 9 pp better, more than the settings differ."""
    return 10 + 0.1 * ((7 * trial.point) % 64) + 9 * (trial.arm == "a")


def found(num_ended, looks=LOOKS):
    plan = make(points=64, arms=("a", "b"))
    records = {t.id: ended(error_pct(t)) for t in plan.trials if t.point < num_ended}
    results = results_of(plan, records)
    return plan, exchanges(results, summarise(results), costs_of(plan), looks, 64)


def test_nothing_is_told_before_the_first_look():
    assert found(15)[1] == []


@pytest.mark.parametrize(("num_ended", "look"), [(16, 16), (31, 16), (32, 32), (64, 64)])
def test_the_rate_is_of_the_points_of_the_latest_look_at_its_level(num_ended, look):
    plan, (one,) = found(num_ended)
    of = {arm: [error_pct(t) for t in plan.trials if t.arm == arm and t.point < look] for arm in ("a", "b")}
    level = dict(zip(LOOKS.points, LOOKS.levels(0.05), strict=True))[look]
    assert (one.look, one.rate) == (look, exchange_rate(of["b"], of["a"], 1 - level))
    assert one.reverse == exchange_rate(of["a"], of["b"], 1 - level)
    # A single look has the whole level, so its bound is sharper.
    if look == 64:
        (alone,) = found(64, Looks.once(64))[1]
        assert alone.rate.at_least > one.rate.at_least > 1
