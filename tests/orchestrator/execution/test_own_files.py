"""Machines that do not see the sweep's folder: logs arrive, states are their own, and nothing stays."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.execution.coordinator import Coordinator
from orchestrator.execution.dispatch import Job
from orchestrator.store.own_files import OwnFiles, key_of, stack_path
from orchestrator.store.weights import WeightStore
from orchestrator.trials.events import AttemptEnded, SessionBegan, SessionClosed
from tests.trainables.training.test_checkpoint import LANE, FakeClerk, StopAt, lanes_without_ray
from trainables.base import Preempted
from trainables.config import TrainConfig
from trainables.context import Context
from trainables.training.checkpoint import Store

REASON = "keep: best needs a place that all machines reach"


@pytest.fixture
def hidden(tmp_path: Path) -> Path:
    """The path of a folder that this machine can neither see nor make."""
    (tmp_path / "home").write_text("a file")
    return tmp_path / "home" / "runs" / "small"


class Machines:
    """Machines by node, each with its own disk."""

    def __init__(self, disks: dict[str, OwnFiles]) -> None:
        self.disks = disks

    async def take_stacks(self, node: str, trial_id: str, attempt: int) -> dict[int, str]:
        return self.disks[node].take_stacks(trial_id, attempt)

    async def clear(self, node: str, trial_ids: list[str]) -> None:
        self.disks[node].clear(trial_ids)


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines({node: OwnFiles("small-1", tmp_path / node) for node in "ab"})


def leave(disk: OwnFiles, trial: str) -> None:
    Store(WeightStore(disk.folder).checkpoint(trial)).write({"epoch": 1, "step": 0})


def test_a_worker_without_a_common_place_goes_on_from_its_own_disk_and_leaves_nothing_there(
    hidden, run_tree, monkeypatch
):
    monkeypatch.setattr("trainables.training.loop.LOOK_STEPS", 1)
    worker = lanes_without_ray(monkeypatch)
    config = TrainConfig.model_validate(run_tree())
    job: dict[str, Any] = {"trial": "abc", "config": config.model_dump_json(), "attempt": 1, "epochs": 2}
    clerk = FakeClerk()
    settings = LANE | {"clerk": clerk, "folder": str(hidden), "mark": "0" * 32, "must_reach": ""}
    own = OwnFiles("small-1")
    clerk.end = SimpleNamespace(remote=lambda *rest: clerk._end(*rest) or False)
    with pytest.raises(Preempted):
        worker._run_job(job, 1, settings, Context(), StopAt(13))
    assert own.trials() == ["abc"]
    clerk.end = SimpleNamespace(remote=lambda *rest: clerk._end(*rest) or True)
    worker._run_job(job | {"attempt": 2}, 2, settings, Context())
    # It went on where the first attempt stopped.
    assert 13 in clerk.steps
    assert [end[0] for end in clerk.ends] == ["preempted", "finished"]
    assert own.trials() == []


def test_a_worker_that_must_reach_the_place_of_states_says_so_before_it_trains(hidden, run_tree, monkeypatch):
    worker, clerk = lanes_without_ray(monkeypatch), FakeClerk()
    config = TrainConfig.model_validate(run_tree())
    job = {"trial": "abc", "config": config.model_dump_json(), "attempt": 1, "epochs": 0}
    settings = LANE | {"clerk": clerk, "folder": str(hidden), "mark": "0" * 32, "must_reach": REASON}
    worker._run_job(job, 1, settings, Context())
    assert [end[:2] for end in clerk.ends] == [("failed", f"OSError: resources.checkpoints: {REASON}")]
    assert clerk.steps == []


def test_a_machine_that_reaches_the_place_reads_the_mark_of_this_run_and_of_no_other(tmp_path):
    states = WeightStore(tmp_path)
    assert not states.has_mark("a" * 32)
    states.set_mark("a" * 32)
    assert states.has_mark("a" * 32)
    assert not states.has_mark("a" * 16 + "b" * 16)
    states.delete_mark("a" * 32)
    assert not states.has_mark("a" * 32)
    # A copy of the folder on another machine is another place.
    assert not WeightStore(tmp_path / "copy").has_mark("a" * 32)


async def attempt(clerk: Coordinator, lane: str, node: str) -> int:
    await clerk.open_slot(lane)
    last = await clerk.enter(lane, node)
    taken = await clerk.take(lane, last, node)
    assert taken is not None
    return taken[0]


def test_what_a_trial_left_on_a_machine_goes_when_it_ends_on_another(tmp_path, machines):
    async def run() -> None:
        clerk = Coordinator(str(tmp_path), machines=machines)
        await clerk.note(SessionBegan(time=0.0, began=0.0))
        await clerk.add([Job("t", "arm", "{}")])
        await attempt(clerk, "x", "a")
        leave(machines.disks["a"], "t")
        await clerk.lose("x", "node", "its machine has gone")
        number = await attempt(clerk, "y", "b")
        assert machines.disks["a"].trials() == ["t"]
        assert await clerk.end("y", number, "finished", "")
        await clerk.note(SessionClosed(time=1.0))

    asyncio.run(run())
    assert machines.disks["a"].trials() == []


def test_a_machine_is_told_which_of_its_leftovers_have_ended_in_earlier_runs(tmp_path, machines):
    async def run() -> list[str]:
        clerk = Coordinator(str(tmp_path), machines=machines, ended=["old"])
        await clerk.note(SessionBegan(time=0.0, began=0.0))
        await clerk.add([Job("open", "arm", "{}")])
        leave(machines.disks["a"], "open")
        ended = await clerk.leftovers("a", ["old", "open"])
        # The other one ends elsewhere, which its machine then hears of.
        await clerk.end("y", await attempt(clerk, "y", "b"), "diverged", "")
        await clerk.note(SessionClosed(time=1.0))
        return ended

    assert asyncio.run(run()) == ["old"]
    assert machines.disks["a"].trials() == []


def test_the_stack_of_any_rank_is_fetched_from_its_machine_once_however_often_the_loss_is_told(
    tmp_path, machines
):
    now = [0.0]

    async def run() -> list[Any]:
        clerk = Coordinator(str(tmp_path), clock=lambda: now[0], hang_seconds=60, machines=machines)
        await clerk.note(SessionBegan(time=0.0, began=0.0))
        await clerk.add([Job("t", "arm", "{}", retries=0)])
        number = await attempt(clerk, "x", "a")
        await clerk.take("x", number - 1, "b")
        machines.disks["b"].make("t")
        stack_path(machines.disks["b"].folder, "t", 1, 1).write_text("Thread 0x1: stuck at s3://me:pw@bucket")
        now[0] = 60.0
        await asyncio.gather(*(clerk.lose("x", "process", "a worker process died") for _ in range(2)))
        await clerk.note(SessionClosed(time=1.0))
        return [event for event in await clerk.drain() if isinstance(event, AttemptEnded)]

    [end] = asyncio.run(run())
    assert (end.end, end.detail) == (
        "failed",
        "it made no step for a long time; see trials/t/attempt-1.rank-1.stack",
    )
    assert stack_path(tmp_path, "t", 1, 1).read_text() == "Thread 0x1: stuck at s3://***@bucket"
    assert machines.disks["b"].trials() == []


def test_lines_of_workers_are_written_by_the_coordinator_without_secrets(tmp_path):
    async def run() -> None:
        clerk = Coordinator(str(tmp_path))
        await clerk.log("t", 1, 0, "a warning of s3://me:pw@bucket\n")
        await clerk.log("t", 1, 0, "another\n")

    asyncio.run(run())
    log = tmp_path / "trials" / "t" / "attempt-1.rank-0.log"
    assert log.read_text() == "a warning of s3://***@bucket\nanother\n"


def test_sweeps_of_one_name_in_several_folders_have_files_of_their_own(tmp_path):
    assert key_of(tmp_path / "a" / "small") != key_of(tmp_path / "b" / "small")
    assert key_of(tmp_path / "a" / "small") == key_of(tmp_path / "b" / ".." / "a" / "small")
