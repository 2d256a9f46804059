"""The journal: what is acknowledged is there, what is torn is left out and said so."""

import itertools
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from orchestrator.store.journal import Tail, Writer, decode, encode, read_journal
from orchestrator.trials.events import AttemptBegan, AttemptEnded, EpochDone, Unknown
from orchestrator.trials.records import fold
from trainables.base import Epoch
from trainables.io.files import replacing, write_atomically


def row(epoch: int, error_pct: float = 12.5) -> Epoch:
    """A row of which only the epoch and the error matter."""
    return Epoch(
        epoch=epoch,
        step=10 * epoch,
        lr=1e-3,
        train_loss=1.0,
        val_loss=1.0,
        val_error_pct=error_pct,
        val_raw_error_pct=error_pct,
        train_seconds=1.0,
        val_seconds=0.1,
        test_error_pct=None,
    )


EVENTS = [
    AttemptBegan(trial="a1", attempt=1, lane="lane", time=100.0),
    EpochDone(trial="a1", attempt=1, row=row(1)),
    AttemptEnded(
        trial="a1", attempt=1, end="finished", detail="", seconds=3.0, time=103.0, final=True, epochs=1
    ),
    AttemptBegan(trial="b2", attempt=1, lane="lane", time=104.0),
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
            # A flipped line end makes one line of two.
            assert len(EVENTS) - 2 <= len(reading.events) < len(EVENTS)
            assert all(event in EVENTS for event in reading.events)
            assert reading.notices


def test_a_trial_that_a_damaged_record_was_part_of_is_run_again_not_misread(tmp_path):
    epochs = [EpochDone(trial="a1", attempt=1, row=row(number)) for number in (1, 2)]
    end = AttemptEnded(
        trial="a1", attempt=1, end="finished", detail="", seconds=3.0, time=103.0, final=True, epochs=2
    )
    events = [AttemptBegan(trial="a1", attempt=1, lane="lane", time=100.0), *epochs, end]
    path = write(tmp_path, events)
    assert fold(read_journal(tmp_path).events)["a1"].outcome == "finished"
    lines = path.read_bytes().splitlines(keepends=True)
    for missing in (1, 2):
        # Without its first or its last epoch the record would tell another error.
        damaged = [*lines[:missing], b"x" + lines[missing][1:], *lines[missing + 1 :]]
        path.write_bytes(b"".join(damaged))
        assert fold(read_journal(tmp_path).events)["a1"].outcome is None


def test_what_a_writer_adds_after_the_next_has_begun_does_not_count(tmp_path):
    zombie = Writer(tmp_path)
    zombie.append(EVENTS[:2])
    heir = Writer(tmp_path)
    heir.append(EVENTS[2:3])
    zombie.append(EVENTS[3:])
    heir.close()
    zombie.close()
    reading = read_journal(tmp_path)
    assert reading.events == EVENTS[:3]
    assert "after a later run had begun" in reading.notices[0]


@pytest.mark.parametrize("fault", ["write", "short", "sync"])
def test_a_write_that_fails_is_made_good_and_nothing_stands_twice(tmp_path, monkeypatch, fault):
    writer = Writer(tmp_path)
    writer.append(EVENTS[:1])
    real_write, real_sync = writer._file.write, os.fsync

    class Failing:
        """A file whose write stops half-way: the disk is full."""

        def __getattr__(self, name):
            return getattr(writer_file, name)

        def write(self, data):
            if fault == "short":
                real_write(bytes(data)[: len(data) // 2])
            raise OSError(28, "No space left on device")

    writer_file = writer._file
    if fault == "sync":

        def fail(descriptor):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", fail)
    else:
        writer._file = Failing()
    for _ in range(2):
        with pytest.raises(OSError):
            writer.append(EVENTS[1:3]) if not writer._torn else writer.retry()
    monkeypatch.setattr(os, "fsync", real_sync)
    writer._file = writer_file
    writer.retry()
    writer.append(EVENTS[3:])
    writer.close()
    reading = read_journal(tmp_path)
    assert reading.events == EVENTS
    assert reading.notices == []


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
        encode(Unknown({"kind": "x", "loss": float("nan")}))


def test_a_line_of_something_else_is_no_event():
    assert decode(b"hello\n") is None
    assert decode(b"") is None
    assert decode(encode(EVENTS[0]).encode()[:-1]) is None
    assert decode(encode(EVENTS[0]).encode()) == EVENTS[0]


def _append_for_ever(folder: Path, acknowledge: Connection) -> None:
    writer = Writer(folder)
    for number in itertools.count(1):
        writer.append([EpochDone(trial="t", attempt=1, row=row(number))])
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
    numbers = [event.row.epoch for event in read_journal(tmp_path).events]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= acknowledged == 100


def test_a_file_written_atomically_is_whole_and_leaves_no_parts(tmp_path):
    write_atomically(tmp_path / "a" / "file.txt", "one")
    write_atomically(tmp_path / "a" / "file.txt", b"two")
    assert (tmp_path / "a" / "file.txt").read_text() == "two"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file.txt"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_write_that_fails_leaves_the_old_file_and_no_parts(tmp_path, durable):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fill() -> None:
        with replacing(path, durable) as file:
            file.write(b"half of what is ne")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_tail_gives_every_event_once_however_the_bytes_come(tmp_path):
    path = write(tmp_path, EVENTS)
    whole = path.read_bytes()
    for size in (1, 7, 50, len(whole)):
        path.write_bytes(b"")
        tail, seen = Tail(tmp_path), []
        for start in range(0, len(whole), size):
            with path.open("ab") as file:
                file.write(whole[start : start + size])
            seen += tail.read()
            assert not tail.anew
        assert seen == EVENTS
        assert tail.notices() == []
        assert tail.read() == []


def test_a_tail_goes_on_in_the_files_of_later_runs(tmp_path):
    write(tmp_path, EVENTS[:2])
    tail = Tail(tmp_path)
    assert tail.read() == EVENTS[:2]
    write(tmp_path, EVENTS[2:3])
    write(tmp_path, EVENTS[3:])
    assert tail.read() == EVENTS[2:]
    assert not tail.anew


def test_a_tail_reads_new_bytes_only(tmp_path, monkeypatch):
    writer = Writer(tmp_path)
    writer.append(EVENTS * 100)
    tail = Tail(tmp_path)
    tail.read()
    decoded = 0

    def count(line: bytes):
        nonlocal decoded
        decoded += 1
        return decode(line)

    monkeypatch.setattr("orchestrator.store.journal.decode", count)
    writer.append(EVENTS)
    assert tail.read() == EVENTS
    assert decoded == len(EVENTS)
    writer.close()


def test_a_tail_begins_anew_where_a_seal_takes_back_what_it_has_read(tmp_path):
    first = write(tmp_path, EVENTS[:2])
    second = write(tmp_path, EVENTS[2:3])
    # Taken for dead, the first writer goes on; a reader that has not seen the second file yet reads that.
    late = second.read_bytes()
    second.unlink()
    with first.open("a") as file:
        file.write(encode(EVENTS[3]))
    tail = Tail(tmp_path)
    assert tail.read() == [*EVENTS[:2], EVENTS[3]]
    second.write_bytes(late)
    assert tail.read() == EVENTS[:3]
    assert tail.anew
    assert tail.notices() == read_journal(tmp_path).notices != []
    assert tail.read() == []
    assert not tail.anew
