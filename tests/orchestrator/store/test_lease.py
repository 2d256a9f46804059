"""One run at a time in a folder: on this machine, between machines, whoever died and however."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from orchestrator.store import lease as store_lease
from orchestrator.store.journal import FolderError
from orchestrator.store.lease import STALE_SECONDS, check_free, held, holder, kill_holder, request_stop


def _hold(folder: Path, ready: "multiprocessing.Queue[bool]") -> None:
    with held(folder):
        (folder / "something").touch()
        ready.put(True)
        signal.pause()


def test_a_second_run_on_a_folder_is_refused_and_told_who_is_there(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Queue()
    process = context.Process(target=_hold, args=(tmp_path / "sweep", ready))
    process.start()
    ready.get(timeout=20)
    for take in (held(tmp_path / "sweep").__enter__, lambda: check_free(tmp_path / "sweep")):
        with pytest.raises(FolderError, match=f"in use by process {process.pid} on "):
            take()
    # Killed without a chance to tidy up, it does not stand in the way of the next.
    process.kill()
    process.join()
    with held(tmp_path / "sweep"):
        pass


def test_a_run_that_came_to_nothing_leaves_no_folder(tmp_path):
    with held(tmp_path / "sweep"):
        assert (tmp_path / "sweep").is_dir()
    assert not (tmp_path / "sweep").exists()


def _as_if_on(folder: Path, host: str, age_seconds: float) -> None:
    content = {"number": 7, "process": 1, "host": host, "since": "today"}
    folder.mkdir()
    (folder / "lease.json").write_text(json.dumps(content))
    then = time.time() - age_seconds
    os.utime(folder / "lease.json", (then, then))


def test_a_run_on_another_machine_holds_the_folder_as_long_as_it_gives_signs_of_life(tmp_path):
    folder = tmp_path / "sweep"
    _as_if_on(folder, "elsewhere", 10)
    told = r"process 1 on elsewhere, since today, last heard of 1\d s ago"
    with pytest.raises(FolderError, match=told), held(folder):
        pass
    assert holder(folder) == 7
    os.utime(folder / "lease.json", (0, time.time() - STALE_SECONDS - 1))
    assert holder(folder) is None
    with held(folder) as lease:
        assert lease.number == 8
        assert holder(folder) == 8


def test_a_holder_that_was_taken_for_dead_notices(tmp_path, monkeypatch):
    monkeypatch.setattr(store_lease, "BEAT_SECONDS", 0.05)
    with held(tmp_path / "sweep") as lease:
        touched = (tmp_path / "sweep" / "lease.json").stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while (tmp_path / "sweep" / "lease.json").stat().st_mtime_ns == touched:
            assert time.monotonic() < deadline
        heir = {"number": lease.number + 1, "process": 1, "host": "elsewhere", "since": "now"}
        (tmp_path / "sweep" / "lease.json").write_text(json.dumps(heir))
        while not lease.lost:
            assert time.monotonic() < deadline
    # What is the heir's stays.
    assert json.loads((tmp_path / "sweep" / "lease.json").read_text()) == heir


def test_a_lease_file_that_is_damaged_or_cut_anywhere_stands_in_nobodys_way(tmp_path):
    folder = tmp_path / "sweep"
    _as_if_on(folder, socket.gethostname(), 0)
    whole = (folder / "lease.json").read_bytes()
    for cut in range(len(whole)):
        (folder / "lease.json").write_bytes(whole[:cut])
        with held(folder) as lease:
            assert lease.number >= 1
            (folder / "something").touch()


def test_a_wish_to_stop_reaches_the_run_it_was_meant_for_and_no_other(tmp_path):
    folder = tmp_path / "sweep"
    with pytest.raises(FolderError, match="no run is at work"):
        request_stop(folder, "now")
    with held(folder) as lease:
        assert lease.stop_wanted() is None
        assert request_stop(folder, "drain") == lease.number
        assert lease.stop_wanted() == "drain"
        (folder / "something").touch()
    assert holder(folder) is None
    with held(folder) as lease:
        assert lease.stop_wanted() is None
        (folder / "stop.json").write_text(json.dumps({"number": lease.number - 1, "mode": "now"}))
        assert lease.stop_wanted() is None


def test_a_run_is_killed_on_this_machine_only(tmp_path):
    folder = tmp_path / "sweep"
    context = multiprocessing.get_context("fork")
    ready = context.Queue()
    process = context.Process(target=_hold, args=(folder, ready))
    process.start()
    ready.get(timeout=20)
    kill_holder(folder)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    assert holder(folder) is None
    _as_if_on(tmp_path / "other", "elsewhere", 1)
    with pytest.raises(FolderError, match="kill it there"):
        kill_holder(tmp_path / "other")
