"""The journal: what is acknowledged is there, what is torn is left out and said so."""

import itertools
import multiprocessing
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from orchestrator.journal import FolderError, Writer, decode, encode, locked, read_journal, write_atomically
from orchestrator.results import attempt_event, end_event, epoch_event

EVENTS = [
    attempt_event("a1", 1, "lane", 100.0),
    epoch_event("a1", 1, {"epoch": 1, "val_top1_error_pct": 12.5}),
    end_event("a1", 1, "finished", "", 3.0, 103.0, final=True),
    attempt_event("b2", 1, "lane", 104.0),
]


def write(folder: Path, events: list) -> Path:
    writer = Writer(folder)
    writer.append(events)
    writer.close()
    return writer.path


def test_what_was_written_is_read_back_in_order_over_several_runs(tmp_path):
    first, second = write(tmp_path, EVENTS[:2]), write(tmp_path, EVENTS[2:])
    assert (first.name, second.name) == ("000001.jsonl", "000002.jsonl")
    reading = read_journal(tmp_path)
    assert reading.events == EVENTS
    assert reading.notices == []


def test_a_file_cut_at_any_byte_opens_to_the_last_whole_record(tmp_path):
    path = write(tmp_path, EVENTS)
    whole = path.read_bytes()
    ends = [0]
    for event in EVENTS:
        ends.append(ends[-1] + len(encode(event).encode()))
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        reading = read_journal(tmp_path)
        survivors = sum(end <= cut for end in ends[1:])
        assert reading.events == EVENTS[:survivors]
        assert bool(reading.notices) == (cut not in ends)


def test_a_flipped_byte_never_changes_what_is_read_only_how_much(tmp_path):
    path = write(tmp_path, EVENTS)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for flip in (0x01, 0x80):
            damaged = bytearray(whole)
            damaged[at] ^= flip
            path.write_bytes(damaged)
            reading = read_journal(tmp_path)
            assert reading.events == EVENTS[: len(reading.events)]
            assert len(reading.events) < len(EVENTS)
            assert reading.notices


def test_a_new_run_after_a_torn_tail_loses_nothing_of_its_own(tmp_path):
    path = write(tmp_path, EVENTS[:2])
    path.write_bytes(path.read_bytes()[:-3])
    write(tmp_path, EVENTS[2:])
    reading = read_journal(tmp_path)
    assert reading.events == [EVENTS[0], *EVENTS[2:]]
    assert len(reading.notices) == 1
    assert "000001.jsonl" in reading.notices[0]


def test_numbers_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError):
        encode({"kind": "epoch", "loss": float("nan")})


def test_a_line_of_something_else_is_no_event():
    assert decode(b"hello\n") is None
    assert decode(b"") is None
    assert decode(encode({"kind": "x"}).encode()[:-1]) is None
    assert decode(encode({"kind": "x"}).encode()) == {"kind": "x"}


def _append_for_ever(folder: Path, acknowledge: Connection) -> None:
    writer = Writer(folder)
    for number in itertools.count(1):
        writer.append([{"kind": "epoch", "trial": "t", "attempt": 1, "number": number}])
        acknowledge.send(number)


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_append_for_ever, args=(tmp_path, send))
    process.start()
    for _ in range(100):
        acknowledged = receive.recv()
    process.kill()
    process.join()
    numbers = [event["number"] for event in read_journal(tmp_path).events]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= acknowledged == 100


def _hold(folder: Path, ready: "multiprocessing.Queue[bool]") -> None:
    with locked(folder):
        (folder / "something").touch()
        ready.put(True)
        signal.pause()


def test_a_second_run_on_a_folder_is_refused_and_told_who_is_there(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Queue()
    process = context.Process(target=_hold, args=(tmp_path / "sweep", ready))
    process.start()
    ready.get(timeout=20)
    with pytest.raises(FolderError, match=f"in use by process {process.pid} on "), locked(tmp_path / "sweep"):
        pass
    # Killed without a chance to tidy up, it does not stand in the way of the next.
    process.kill()
    process.join()
    with locked(tmp_path / "sweep"):
        pass


def test_a_run_that_came_to_nothing_leaves_no_folder(tmp_path):
    with locked(tmp_path / "sweep"):
        assert (tmp_path / "sweep").is_dir()
    assert not (tmp_path / "sweep").exists()


def test_a_file_written_atomically_is_whole_and_leaves_no_parts(tmp_path):
    write_atomically(tmp_path / "a" / "file.txt", "one")
    write_atomically(tmp_path / "a" / "file.txt", b"two")
    assert (tmp_path / "a" / "file.txt").read_text() == "two"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file.txt"]
