"""The clerk without Ray: what it acknowledges is on disk, failing storage is waited for, nothing hangs."""

import asyncio
import os
from pathlib import Path

import pytest

from orchestrator.execution import coordinator
from orchestrator.execution.coordinator import Coordinator
from orchestrator.execution.dispatch import Job
from orchestrator.store.journal import read_journal
from orchestrator.trials.events import AttemptEnded, LaneOpened, Notice, SessionBegan
from orchestrator.trials.gang import Gang, Node
from orchestrator.trials.records import fold
from tests.orchestrator.store.test_journal import row


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(coordinator, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(coordinator, "LAST_WAIT_SECONDS", 0.02)


async def worker(clerk: Coordinator, lane: str, folder: Path, missing: list[int]) -> None:
    """A worker group that does what it is given, and looks whether what it is told is so."""
    last = await clerk.enter(lane, "node")
    while (taken := await clerk.take(lane, last)) is not None:
        last, job = taken
        assert await clerk.beat(lane, last, 0)
        for epoch in (1, 2):
            assert await clerk.row(lane, last, row(epoch)) == "go on"
            missing.append(len(fold(read_journal(folder).events)[job["trial"]].rows) - epoch)
        await clerk.end(lane, last, "finished", "")


async def tune(clerk: Coordinator, lane: str, slots: int) -> None:
    for _ in range(slots):
        await clerk.open_slot(lane)
        while not (event := await clerk.next_event(lane, 0.5)) or not event.get("done"):
            pass
    await clerk.close_lane(lane)


async def sweep(clerk: Coordinator, folder: Path, trials: int) -> list[int]:
    await clerk.note(SessionBegan(time=0.0, began=0.0))
    await clerk.add([Job(f"t{i}", "arm", "{}") for i in range(trials)])
    missing: list[int] = []
    slots = tune(clerk, "x", trials)
    await asyncio.wait_for(asyncio.gather(slots, worker(clerk, "x", folder, missing)), 60)
    return missing


def test_what_a_worker_was_told_is_kept_is_on_disk(tmp_path):
    assert asyncio.run(sweep(Coordinator(str(tmp_path)), tmp_path, 5)) == [0] * 10


def test_storage_that_fails_now_and_then_costs_time_and_nothing_else(tmp_path, monkeypatch):
    clerk = Coordinator(str(tmp_path))
    real, calls = os.fsync, []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) % 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)

    async def both():
        await sweep(clerk, tmp_path, 6)
        return await clerk.drain()

    fresh = asyncio.run(both())
    reading = read_journal(tmp_path)
    assert reading.notices == []
    records = fold(reading.events)
    assert {record.outcome for record in records.values()} == {"finished"}
    assert sum(isinstance(event, AttemptEnded) for event in reading.events) == 6
    assert [event for event in fresh if not isinstance(event, Notice)] == reading.events
    assert "No space left on device; waiting" in next(e for e in fresh if isinstance(e, Notice)).detail


def test_a_log_that_cannot_be_written_does_not_cost_the_trial(tmp_path):
    (tmp_path / "trials").write_text("a file where a folder should be")
    clerk = Coordinator(str(tmp_path))

    async def fail_once():
        await clerk.note(SessionBegan(time=0.0, began=0.0))
        await clerk.add([Job("t", "arm", "{}", retries=0)])
        await clerk.open_slot("x")
        last = await clerk.enter("x", "node")
        number, _ = await clerk.take("x", last)
        await clerk.end("x", number, "failed", "broken", log="Traceback ...")

    asyncio.run(fail_once())
    assert fold(read_journal(tmp_path).events)["t"].detail == "broken"


def test_an_error_that_shows_an_address_is_put_on_record_without_its_password(tmp_path):
    clerk = Coordinator(str(tmp_path))
    error = "OSError: cannot reach s3://me:hunter2@bucket/x?session_token=hunter2 in time"

    async def fail_once():
        await clerk.note(SessionBegan(time=0.0, began=0.0))
        await clerk.add([Job("t", "arm", "{}", retries=0)])
        await clerk.open_slot("x")
        last = await clerk.enter("x", "node")
        number, _ = await clerk.take("x", last)
        await clerk.end("x", number, "failed", error, log=f"Traceback ...\n{error}\n")

    asyncio.run(fail_once())
    assert fold(read_journal(tmp_path).events)["t"].detail == (
        "OSError: cannot reach s3://***@bucket/x?session_token=*** in time"
    )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"000001.jsonl", "attempt-1.log"}
    assert not any(b"hunter2" in path.read_bytes() for path in files)


def test_a_trial_that_ends_with_its_worker_group_leaves_no_checkpoint(tmp_path):
    checkpoint = tmp_path / "trials" / "t" / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "000001-000000000.ckpt").touch()

    async def run_out_of_memory():
        clerk = Coordinator(str(tmp_path))
        await clerk.note(SessionBegan(time=0.0, began=0.0))
        await clerk.add([Job("t", "arm", "{}", retries=0)])
        await clerk.open_slot("x")
        last = await clerk.enter("x", "node")
        await clerk.take("x", last)
        await clerk.lose("x", "memory", "Ray killed a worker")

    asyncio.run(run_out_of_memory())
    assert fold(read_journal(tmp_path).events)["t"].outcome == "out_of_memory"
    assert not list(checkpoint.glob("*.ckpt"))


def test_lanes_get_gangs_by_the_machines_that_are_there(tmp_path):
    pair = Gang(2, 1, 0.0)
    there = {"m": Node(2, 0)}
    asked = []

    def nodes() -> dict[str, Node]:
        asked.append(1)
        if not there:
            raise ConnectionError("the head does not answer")
        return dict(there)

    async def told(clerk: Coordinator, lane: str) -> object:
        event = await clerk.next_event(lane, 0.01)
        return None if event is None else event.get("gang", event)

    async def run() -> None:
        clerk = Coordinator(str(tmp_path), nodes=nodes)
        await clerk.note(SessionBegan(time=0.0, began=0.0))
        await clerk.add([Job("a", "arm", "{}", gang=pair), Job("b", "arm", "{}")])
        for lane in ("x", "y"):
            await clerk.open_slot(lane)
        # Two CPUs: the pair, and nothing beside it.
        assert (await told(clerk, "x"), await told(clerk, "y")) == (pair, None)
        last, job = await clerk.take("x", await clerk.enter("x", "m", ["m", "m"]))
        assert job["trial"] == "a"

        # Its machine goes. That is known with the loss, and so is that another one has come.
        there.clear()
        there["n"] = Node(1, 0)
        await clerk.lose("x", "node", "its machine has gone")
        assert await clerk.take("x", last) is None
        await clerk.vacate("x")
        assert {await told(clerk, "x"), await told(clerk, "y")} == {Gang(1, 1, 0.0), None}

        # A cluster that does not answer has the machines of its last answer.
        there.clear()
        await clerk.lose("z", "node", "its machine has gone")
        assert await told(clerk, "x") is await told(clerk, "y") is None

    asyncio.run(run())
    events = read_journal(tmp_path).events
    assert [event.devices for event in events if isinstance(event, LaneOpened)] == [2, 1]
    [ended] = [event for event in events if isinstance(event, AttemptEnded)]
    assert (ended.trial, ended.end, ended.final) == ("a", "preempted", False)
    assert len(asked) >= 3


def test_workers_that_end_without_a_word_cost_their_trial_an_attempt_and_the_lane_starts_others(tmp_path):
    async def run() -> None:
        clerk = Coordinator(str(tmp_path))
        await clerk.note(SessionBegan(time=0.0, began=0.0))
        await clerk.add([Job("a", "arm", "{}")])
        await clerk.open_slot("x")
        assert await clerk.next_event("x", 0.01) == {"gang": Gang(1, 1, 0.0)}
        await clerk.take("x", await clerk.enter("x", "m"))
        await clerk.vacate("x")
        assert await clerk.next_event("x", 0.01) == {"gang": Gang(1, 1, 0.0)}
        _, job = await clerk.take("x", await clerk.enter("x", "m"))
        assert job["attempt"] == 2

    asyncio.run(run())
    ends = [event.end for event in read_journal(tmp_path).events if isinstance(event, AttemptEnded)]
    assert ends == ["lost"]
