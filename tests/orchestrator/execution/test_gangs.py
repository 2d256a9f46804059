"""Trials of several sizes on a real Ray: at the same time, with the results that each has alone."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.backends import ray_cluster
from orchestrator.cost.ledger import ledger
from orchestrator.execution.run import Run
from orchestrator.sweep.config import Resources
from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    EpochDone,
    Event,
    LaneOpened,
    PhaseBegan,
    SessionBegan,
    SessionClosed,
)
from orchestrator.trials.records import fold
from orchestrator.trials.trial import Plan
from tests.orchestrator.execution.test_lanes import plan_of, train_workers
from tests.support.by_hand import by_hand, outcomes_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def three_cpus() -> Iterator[None]:
    """A Ray that takes this machine for one of three CPUs."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ray_cluster, "usable_cpus", lambda: 3)
        ray_cluster.connect(None)
    yield None
    ray_cluster.shutdown()


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Three trials of two workers and three of one, each long enough for lanes to start beside it."""
    return plan_of(
        3,
        {"schedule": {"epochs": 40, "warmup": "10%"}},
        arms={"pair": {"resources.workers": 2}, "single": {"model.stem": "patchify"}},
    )


def run_to_the_end(run: Run, meddle: Callable[[list[Event]], None] = lambda events: None) -> list[Event]:
    run.start()
    events: list[Event] = []
    while not run.done:
        events += run.events()
        meddle(events)
        time.sleep(0.1)
    run.close()
    events += run.events()
    assert run.error is None
    assert isinstance(events[-1], SessionClosed)
    return events


def mixes_of(events: list[Event], plan: Plan) -> set[tuple[int, ...]]:
    """The sizes of the trials in flight at the same time, at each moment."""
    sizes = {trial.id: trial.gang.workers for trial in plan.trials}
    in_flight: dict[str, int] = {}
    found = set[tuple[int, ...]]()
    for event in events:
        match event:
            case AttemptBegan():
                in_flight[event.trial] = sizes[event.trial]
            case AttemptEnded():
                del in_flight[event.trial]
        found.add(tuple(sorted(in_flight.values())))
    return found


def check_ledger(events: list[Event], plan: Plan) -> None:
    """The headings add up to three cores x the time of the run, and attempts count by their size."""
    [session] = [event for event in events if isinstance(event, SessionBegan)]
    [phase] = [event for event in events if isinstance(event, PhaseBegan)]
    assert (session.lanes, phase.lanes, phase.devices, phase.device) == ((3,), 3, 3, "core")
    spent, records = ledger(events), fold(events)
    assert isinstance(events[-1], SessionClosed)
    assert spent.total == pytest.approx(3 * (events[-1].time - session.began))
    of_attempts = sum(trial.gang.workers * records[trial.id].busy_seconds for trial in plan.trials)
    assert spent.useful + spent.lost + spent.replayed == pytest.approx(of_attempts, rel=1e-6)


@pytest.fixture(scope="module")
def calm(three_cpus: None, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """The events of a run that nothing disturbs."""
    run = Run(tmp_path_factory.mktemp("calm") / "sweep", plan.trials, {}, Resources())
    # Three single trials fit, or one beside a pair.
    assert run.lanes == 3
    return run_to_the_end(run)


def test_a_pair_of_workers_and_single_ones_train_at_the_same_time(calm: list[Event], plan: Plan) -> None:
    records = fold(calm)
    assert [(record.outcome, record.attempts) for record in records.values()] == [("finished", 1)] * 6
    mixes = mixes_of(calm, plan)
    # The largest first, and a single one beside it. Never more than there is room for.
    assert (1, 2) in mixes
    assert max(map(sum, mixes)) == 3
    assert [event.devices for event in calm if isinstance(event, LaneOpened)][:2] == [2, 1]
    check_ledger(calm, plan)
    # What one worker trains is the same to the bit without lanes.
    outcomes = outcomes_of(records)
    singles = [trial for trial in plan.trials if trial.gang.workers == 1]
    assert {trial.id: outcomes[trial.id] for trial in singles} == by_hand(singles)


def test_killed_workers_of_both_sizes_cost_attempts_and_change_no_result(
    calm: list[Event], plan: Plan, tmp_path: Path
) -> None:
    killed: list[psutil.Process] = []

    def kill_once(events: list[Event]) -> None:
        # In the middle of a pair and of a single trial.
        rows = {event.trial for event in events if isinstance(event, EpochDone)}
        if not killed and {trial.gang.workers for trial in plan.trials if trial.id in rows} == {1, 2}:
            killed.extend(train_workers())
            for process in killed:
                process.kill()

    events = run_to_the_end(Run(tmp_path / "sweep", plan.trials, {}, Resources()), kill_once)
    assert len(killed) >= 3
    ends = [event.end for event in events if isinstance(event, AttemptEnded)]
    assert set(ends) == {"finished", "lost"}
    assert outcomes_of(fold(events)) == outcomes_of(fold(calm))
    assert max(map(sum, mixes_of(events, plan))) == 3
    check_ledger(events, plan)
    # Nothing of them stays.
    _, alive = psutil.wait_procs(train_workers(), timeout=60)
    assert not alive
