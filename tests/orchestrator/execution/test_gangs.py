"""Trials of several sizes on a real Ray: at the same time, with the results that each has alone."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.backends import ray_cluster
from orchestrator.cost.ledger import ledger
from orchestrator.execution.run import Run
from orchestrator.sweep.config import Resources
from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    Event,
    LaneOpened,
    PhaseBegan,
    SessionBegan,
    SessionClosed,
)
from orchestrator.trials.records import fold
from tests.orchestrator.execution.test_lanes import plan_of
from tests.support.by_hand import by_hand, outcomes_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def three_cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray that takes this machine for one of three CPUs."""
    monkeypatch.setattr(ray_cluster, "usable_cpus", lambda: 3)
    ray_cluster.connect(None)
    yield None
    ray_cluster.shutdown()


def test_a_pair_of_workers_and_single_ones_train_at_the_same_time(three_cpus: None, tmp_path: Path) -> None:
    # So long that the single trials do not all end before the pair has started.
    plan = plan_of(
        3,
        {"schedule": {"epochs": 40, "warmup": "10%"}},
        arms={"pair": {"resources.workers": 2}, "single": {"model.stem": "patchify"}},
    )
    sizes = {trial.id: trial.gang.workers for trial in plan.trials}
    assert sorted(sizes.values()) == [1, 1, 1, 2, 2, 2]
    run = Run(tmp_path / "sweep", plan.trials, {}, Resources())
    # Three single trials fit, or one beside a pair.
    assert run.lanes == 3
    began = time.time()
    run.start()
    events: list[Event] = []
    while not run.done:
        events += run.events()
        time.sleep(0.1)
    run.close()
    events += run.events()
    lasted = time.time() - began
    assert run.error is None
    records = fold(events)
    assert {record.outcome for record in records.values()} == {"finished"}
    assert {record.attempts for record in records.values()} == {1}

    # The largest first, and a single one beside it. Never more than there is room for.
    in_flight: set[str] = set()
    mixes = set[tuple[int, ...]]()
    for event in events:
        match event:
            case AttemptBegan():
                in_flight.add(event.trial)
            case AttemptEnded():
                in_flight.remove(event.trial)
        mixes.add(tuple(sorted(sizes[trial] for trial in in_flight)))
    assert (1, 2) in mixes
    assert max(map(sum, mixes)) == 3
    assert [event.devices for event in events if isinstance(event, LaneOpened)][:2] == [2, 1]

    # What ran alone is the same to the bit; that of two workers is their own.
    singles = [trial for trial in plan.trials if sizes[trial.id] == 1]
    outcomes = outcomes_of(records)
    assert {trial.id: outcomes[trial.id] for trial in singles} == by_hand(singles)

    [session] = [event for event in events if isinstance(event, SessionBegan)]
    [phase] = [event for event in events if isinstance(event, PhaseBegan)]
    assert (session.lanes, phase.lanes, phase.devices, phase.device) == ((3,), 3, 3, "core")
    assert isinstance(events[-1], SessionClosed)
    spent = ledger(events)
    assert spent.total == pytest.approx(3 * (events[-1].time - session.began))
    assert spent.total == pytest.approx(3 * lasted, rel=0.05)
    by_size = sum(sizes[trial] * record.busy_seconds for trial, record in records.items())
    assert spent.useful + spent.lost + spent.replayed == pytest.approx(by_size, rel=1e-6)
