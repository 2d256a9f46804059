"""Copies of a folder in an object store: whole at every moment, of this sweep only, only changes."""

import hashlib
import itertools
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from orchestrator.analysis.collapse import Collapse
from orchestrator.cli import main
from orchestrator.evidence.seal import MANIFEST, write_sealed_report
from orchestrator.evidence.verify import verify
from orchestrator.store import bucket
from orchestrator.store.bucket import StoreFault, sync_down, sync_up
from orchestrator.store.folder import COLLAPSE, open_folder, save_question
from orchestrator.store.journal import FolderError, Writer, read_journal
from orchestrator.store.lease import Onlooker, held
from orchestrator.store.weights import KeptWeights, WeightStore
from orchestrator.trials.events import AttemptBegan, AttemptEnded
from orchestrator.trials.trial import Plan
from tests.orchestrator.analysis.test_collapse import found as block_maps
from tests.orchestrator.analysis.test_collapse import trial as trial_maps
from tests.support.s3 import KEYS, S3, s3_server
from tests.support.sweeps import plan_from, sweep_tree

ROOT = Path(__file__).parents[3]
SMALL = ROOT / "tests" / "fixtures" / "folder_v0" / "small"


# ---------------------------------------------------------------------------------- a store that can fail


class Store:
    """An object store in a folder. After `left` more calls, the network is gone.

    An object is seen once it is closed, as in S3.
    """

    type_name = "mock"

    def __init__(self, root: Path, left: float = float("inf")) -> None:
        self._files = pyarrow.fs.SubTreeFileSystem(str(root), pyarrow.fs.LocalFileSystem())
        self.left = left
        self.calls: list[str] = []

    def _call(self, what: str) -> None:
        self.calls.append(what)
        self.left -= 1
        if self.left < 0:
            raise OSError("the network is gone")

    def get_file_info(self, selector: Any) -> Any:
        self._call("list")
        return self._files.get_file_info(selector)

    def open_input_stream(self, path: str) -> Any:
        self._call(f"read {path}")
        return self._files.open_input_stream(path)

    def open_output_stream(self, path: str) -> Any:
        self._call(f"write {path}")
        self._files.create_dir(path.rpartition("/")[0], recursive=True)
        return self._files.open_output_stream(path)

    def delete_file(self, path: str) -> None:
        self._call(f"delete {path}")
        self._files.delete_file(path)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch):
    """Makes every address lead to one store."""

    def connect(store: Store) -> Store:
        monkeypatch.setattr(bucket, "open_filesystem", lambda address: (store, "copy"))
        return store

    return connect


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("moto")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        with s3_server(tmp_path_factory.mktemp("s3") / "log") as server:
            yield server


# ---------------------------------------------------------------------------------- a folder that grows


def plan(points: int) -> Plan:
    return plan_from(sweep_tree(design={"kind": "sobol", "points": points}))


def append(folder: Path, plan: Plan, trials: slice) -> None:
    """Runs some trials, as a run of their own does."""
    writer = Writer(folder)
    for trial in plan.trials[trials]:
        began = AttemptBegan(trial=trial.id, attempt=1, lane="lane", time=1.0)
        end = AttemptEnded(
            trial=trial.id, attempt=1, end="failed", detail="x", seconds=1.0, time=2.0, final=True
        )
        writer.append([began, end])
        log = folder / "trials" / trial.id / "attempt-1.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"traceback of {trial.id}\n")
    writer.close()


def keep(folder: Path, trial_id: str) -> None:
    kept = KeptWeights(trial_id, "one/p", 5.0)
    WeightStore(folder).keep(kept, lambda file: file.write(trial_id.encode()))


def first_state(folder: Path) -> None:
    """Four of eight trials have ended, one with weights; others have left what is not copied."""
    few = plan(4)
    folder.mkdir()
    save_question(folder, few, declare=False)
    keep(folder, few.trials[0].id)
    append(folder, few, slice(0, 4))
    write_report(folder, "first", "old table")
    (folder / "output.log").write_text("text\n")
    for name in ("lock", "lease.json", "results.csv", ".x.part", "trials/x/checkpoint/1.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def second_state(folder: Path) -> None:
    """The sweep has grown to 16 trials. Another file has sealed the first; better weights replaced others."""
    more = plan(8)
    save_question(folder, more, declare=False)
    keep(folder, more.trials[10].id)
    append(folder, more, slice(4, 12))
    WeightStore(folder).delete_kept(plan(4).trials[0].id)
    write_report(folder, "second", "new table")
    (folder / "report" / "old table").unlink()
    (folder / "output.log").rename(folder / "output.1.log")
    (folder / "output.log").write_text("more text\n")


def write_report(folder: Path, text: str, extra: str) -> None:
    """Writes two files in place of a report, and seals them with the journal."""
    (folder / "report").mkdir(exist_ok=True)
    for name in ("report.html", extra):
        (folder / "report" / name).write_text(text)
    names = ["report/report.html", f"report/{extra}", *(f"journal/{p.name}" for p in journal(folder))]
    contents = {name: (folder / name).read_bytes() for name in names}
    files = {name: {"bytes": len(data), "sha256": digest(data)} for name, data in contents.items()}
    (folder / MANIFEST).write_text(json.dumps({"files": files}))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def journal(folder: Path) -> list[Path]:
    return sorted((folder / "journal").glob("*"))


def copied_files(folder: Path) -> dict[str, bytes]:
    """The files that belong to a copy."""
    left_out = ("lock", "lease.json", "results.csv", ".part", "/checkpoint/")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(part in path.as_posix() for part in left_out)
    }


def check_whole(copy: Path, at_least: set[str]) -> None:
    """Checks that a copy can be opened and continued: it has these trials' ends, and what they promise."""
    opened = open_folder(copy)
    ended = {trial for trial, record in opened.records.items() if record.settled}
    assert at_least <= ended
    assert opened.notices == []
    # What `run` does first, with the question as it is there.
    save_question(copy, opened.plan, declare=False)
    assert ended <= {trial.id for trial in opened.plan.trials}
    kept = {weights.trial for weights in WeightStore(copy).kept()}
    # Best of a group: the first trial that ended with weights until the eleventh has.
    assert kept & {plan(8).trials[10].id if plan(8).trials[10].id in ended else plan(4).trials[0].id}
    if (copy / MANIFEST).exists():
        for name, sealed in json.loads((copy / MANIFEST).read_text())["files"].items():
            assert digest((copy / name).read_bytes()[: sealed["bytes"]]) == sealed["sha256"]
        names = {f"report/{path.name}" for path in (copy / "report").glob("*")}
        assert names - {MANIFEST} <= json.loads((copy / MANIFEST).read_text())["files"].keys()
    else:
        assert not (copy / "report").exists()


# ---------------------------------------------------------------------------------- copies that break off


def test_a_first_copy_is_no_sweep_until_it_is_whole_wherever_it_breaks_off(tmp_path, connect):
    first_state(source := tmp_path / "small")
    for number in itertools.count():
        store = connect(Store(tmp_path / f"store{number}", number))
        (tmp_path / f"store{number}").mkdir()
        try:
            sync_up(source, "s3://b/x")
            break
        except StoreFault:
            pass
        wrote_question = "write copy/sweep.yaml" in store.calls[:number]
        store.left = float("inf")
        if wrote_question:
            sync_down("s3://b/x", down := tmp_path / f"down{number}")
            assert copied_files(down) == copied_files(source)
        else:
            with pytest.raises(FolderError, match=r"no copy of a sweep|unfinished first copy of a sweep"):
                sync_down("s3://b/x", tmp_path / "down")
            assert not [*tmp_path.glob("down"), *tmp_path.glob(".*")]
        # The same command goes on.
        sync_up(source, "s3://b/x")
        sync_down("s3://b/x", down := tmp_path / f"whole{number}")
        assert copied_files(down) == copied_files(source)
    assert number > 15


def test_a_later_copy_loses_nothing_wherever_it_breaks_off(tmp_path, connect):
    first_state(source := tmp_path / "small")
    before = {trial.id for trial in plan(4).trials[:4]}
    connect(Store(tmp_path / "first"))
    (tmp_path / "first").mkdir()
    sync_up(source, "s3://b/x")
    second_state(source)
    for number in itertools.count():
        shutil.copytree(tmp_path / "first", place := tmp_path / f"store{number}", copy_function=shutil.copy2)
        store = connect(Store(place, number))
        is_whole = True
        try:
            sync_up(source, "s3://b/x")
        except StoreFault:
            is_whole = False
        calls = store.left >= 0
        store.left = float("inf")
        sync_down("s3://b/x", down := tmp_path / f"down{number}")
        check_whole(down, before)
        if is_whole:
            break
        assert not calls
        sync_up(source, "s3://b/x")
        sync_down("s3://b/x", down := tmp_path / f"whole{number}")
        assert copied_files(down) == copied_files(source)
    assert number > 15


def test_a_copy_that_is_brought_back_while_it_changes_is_whole(tmp_path, connect):
    """Another machine copies a later state after each call of the one that reads."""
    first_state(source := tmp_path / "small")
    store = connect(Store(tmp_path / "first"))
    (tmp_path / "first").mkdir()
    sync_up(source, "s3://b/x")
    second_state(source)
    for number in itertools.count(1):
        shutil.copytree(tmp_path / "first", place := tmp_path / f"store{number}", copy_function=shutil.copy2)
        store = connect(Store(place))
        plain, changed = store._call, False

        def call(what: str, store: Store = store, plain: Any = plain, number: int = number) -> None:
            nonlocal changed
            plain(what)
            if len(store.calls) == number:
                changed = True
                sync_up(source, "s3://b/x")

        store._call = call  # type: ignore[method-assign]
        sync_down("s3://b/x", down := tmp_path / f"down{number}")
        check_whole(down, {trial.id for trial in plan(4).trials[:4]})
        if not changed:
            break
    assert number > 10


def test_what_changed_before_the_end_is_told_apart_by_its_exit_code(tmp_path, connect, capsys, monkeypatch):
    first_state(source := tmp_path / "small")
    for left, code in ((0, 2), (4, 1)):
        (place := tmp_path / f"store{left}").mkdir()
        connect(Store(place, left))
        monkeypatch.setattr("sys.argv", ["vitc-sweep", "sync-up", str(source), "s3://b/x"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == code
        assert capsys.readouterr().err == "s3://b/x: the network is gone\n"


# ---------------------------------------------------------------------------------- the journal


def test_of_a_line_that_is_being_written_nothing_is_copied(tmp_path, connect):
    first_state(source := tmp_path / "small")
    (tmp_path / "store").mkdir()
    connect(Store(tmp_path / "store"))
    [path] = journal(source)
    whole = path.read_bytes()
    path.write_bytes(whole + b"0123abcd {half of")
    sync_up(source, "s3://b/x")
    assert (tmp_path / "store" / "copy" / "journal" / path.name).read_bytes() == whole


def test_what_a_run_taken_for_dead_writes_after_a_seal_is_not_copied(tmp_path, connect):
    first_state(source := tmp_path / "small")
    (tmp_path / "store").mkdir()
    connect(Store(tmp_path / "store"))
    [path] = journal(source)
    torn = path.read_bytes() + b"0123abcd {torn by a crash"
    path.write_bytes(torn)
    append(source, plan(4), slice(4, 5))
    with path.open("ab") as file:
        file.write(b"\nlate\n")
    sync_up(source, "s3://b/x")
    # To the sealed size, the torn line included: a report seals that, too.
    assert (tmp_path / "store" / "copy" / "journal" / path.name).read_bytes() == torn


def test_a_file_that_lost_lines_in_a_power_cut_replaces_its_copy_once_it_is_sealed(tmp_path, connect):
    first_state(source := tmp_path / "small")
    (tmp_path / "store").mkdir()
    connect(Store(tmp_path / "store"))
    sync_up(source, "s3://b/x")
    [path] = journal(source)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(FolderError, match=f"has {len(lines[-1])} bytes of journal/000001.jsonl that"):
        sync_up(source, "s3://b/x")
    append(source, plan(4), slice(4, 5))
    sync_up(source, "s3://b/x")
    sync_down("s3://b/x", tmp_path / "down")
    assert read_journal(tmp_path / "down") == read_journal(source)


def test_a_report_that_is_being_written_is_left_for_the_next_copy(tmp_path, connect):
    first_state(source := tmp_path / "small")
    (tmp_path / "store").mkdir()
    connect(Store(tmp_path / "store"))
    assert sync_up(source, "s3://b/x").has_report
    before = copied_files(tmp_path / "store" / "copy")
    (source / "report" / "report.html").write_text("half")
    assert not sync_up(source, "s3://b/x").has_report
    after = copied_files(tmp_path / "store" / "copy")
    assert {n: d for n, d in after.items() if n != "sync.json"} == {
        n: d for n, d in before.items() if n != "sync.json"
    }


def test_weights_that_are_replaced_under_way_begin_the_copy_again(tmp_path, connect):
    first_state(source := tmp_path / "small")
    (tmp_path / "store").mkdir()
    store = connect(Store(tmp_path / "store"))
    plain = store._call

    def call(what: str) -> None:
        plain(what)
        if what == "write copy/record.json" and store.calls.count(what) == 1:
            second_state(source)

    store._call = call  # type: ignore[method-assign]
    sync_up(source, "s3://b/x")
    sync_down("s3://b/x", down := tmp_path / "down")
    check_whole(down, {trial.id for trial in plan(8).trials[:12]})


# ---------------------------------------------------------------------------------- an S3 program


def versions(s3: S3, prefix: str) -> dict[str, int]:
    """How often each object was written, as the bucket has counted."""
    counts: dict[str, int] = {}
    for page in s3.client.get_paginator("list_object_versions").paginate(Bucket="bucket", Prefix=prefix):
        for version in page.get("Versions", []):
            name = version["Key"].removeprefix(f"{prefix}/")
            counts[name] = counts.get(name, 0) + 1
    return counts


def test_a_second_copy_sends_only_what_has_changed(tmp_path, s3):
    s3.client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    first_state(source := tmp_path / "small")
    address = s3.address("changes/small")
    first = sync_up(source, address)
    sent = copied_files(source)
    assert (first.files, first.size) == (len(sent), sum(map(len, sent.values())))
    assert versions(s3, "changes/small") == dict.fromkeys([*sent, "sync.json"], 1)
    again = sync_up(source, address)
    assert (again.files, again.size, again.unchanged) == (0, 0, len(sent))
    assert versions(s3, "changes/small") == dict.fromkeys([*sent, "sync.json"], 1)
    (source / "output.log").write_text("TEXT\n")
    append(source, plan(4), slice(4, 5))
    sync_up(source, address)
    new = {"journal/000002.jsonl", f"trials/{plan(4).trials[4].id}/attempt-1.log"}
    assert versions(s3, "changes/small") == dict.fromkeys([*sent, *new], 1) | {
        "output.log": 2,
        "sync.json": 2,
    }


def test_an_object_that_somebody_changed_is_sent_again(tmp_path, s3):
    first_state(source := tmp_path / "small")
    sync_up(source, address := s3.address("touched"))
    time.sleep(1.1)  # S3 has times in seconds
    s3.client.put_object(Bucket="bucket", Key="touched/output.log", Body=b"TEXT\n")
    assert sync_up(source, address).files == 1
    assert s3.client.get_object(Bucket="bucket", Key="touched/output.log")["Body"].read() == b"text\n"


def test_a_running_folder_is_copied_while_a_run_writes_to_it(tmp_path, s3):
    """What is in the journal when a copy begins is in the copy; the run keeps its lease."""
    few = plan(64)
    (source := tmp_path / "small").mkdir()
    save_question(source, few, declare=False)
    done = threading.Event()

    def run() -> None:
        writer = Writer(source)
        for attempt in itertools.count(1):
            for trial in few.trials:
                if done.is_set():
                    writer.close()
                    return
                writer.append([AttemptBegan(trial=trial.id, attempt=attempt, lane="a", time=1.0)])
                time.sleep(0.002)

    with held(source) as lease:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            for number in range(5):
                before = read_journal(source).events
                sync_up(source, s3.address("live"))
                sync_down(s3.address("live"), down := tmp_path / f"down{number}")
                copied = open_folder(down)
                assert copied.notices == []
                assert len(copied.events) >= len(before)
                assert read_journal(source).events[: len(copied.events)] == copied.events
                assert not {"lock", "lease.json", "sync.json"} & {path.name for path in down.iterdir()}
        finally:
            done.set()
            thread.join()
        assert len(before) > 50
        assert not lease.lost
        assert json.loads((source / "lease.json").read_text())["number"] == lease.number


def test_a_copy_writes_nothing_to_the_folder(tmp_path, s3):
    first_state(source := tmp_path / "small")

    def looks() -> dict[str, Any]:
        # Of folders, too: a file that came and went leaves its time there.
        stats = {path: path.stat() for path in (source, *source.rglob("*"))}
        return {str(path): (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for path, stat in stats.items()}

    before = looks()
    sync_up(source, s3.address("quiet"))
    Onlooker(source).at_work()
    assert looks() == before


def test_results_that_were_brought_back_verify_with_the_same_fingerprint(tmp_path, s3, no_pdfs):
    source = shutil.copytree(SMALL, tmp_path / "small")
    (source / COLLAPSE).parent.mkdir(parents=True)
    analysis = Collapse(threshold=0.9, trials=(trial_maps(0, block_maps([0.5])),))
    (source / COLLAPSE).write_text(analysis.model_dump_json())
    write_sealed_report(source)
    sync_up(source, s3.address("deep/er/small"))
    copied = sync_down(s3.address("deep/er/small"), down := tmp_path / "a" / "down")
    assert copied.has_report
    theirs, ours = verify(down), verify(source)
    assert theirs.ok
    assert (down / COLLAPSE).is_file()
    assert (theirs.fingerprint, theirs.counts) == (ours.fingerprint, ours.counts)
    assert copied_files(down) == copied_files(source)
    assert down.stat().st_mode == source.stat().st_mode
    # Written again there, it is the same, byte by byte.
    (down / MANIFEST).unlink()
    write_sealed_report(down)
    assert copied_files(down) == copied_files(source)


# ---------------------------------------------------------------------------------- what is refused


def refusal(capsys: Any, monkeypatch: Any, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["vitc-sweep", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    return line


def test_refusals(tmp_path, s3, capsys, monkeypatch):
    def refused(*arguments: str) -> str:
        return refusal(capsys, monkeypatch, *arguments)

    first_state(source := tmp_path / "small")
    (tmp_path / "empty").mkdir()
    folder, address = str(source), s3.address("refused")
    shown = address
    disk = "is on a disk, not in an object store; copy it with `cp -r` or `rsync -a`"
    assert refused("sync-up", folder, str(tmp_path / "x")) == f"{tmp_path / 'x'}: {disk}"
    assert refused("sync-up", folder, f"file://{tmp_path}/x") == f"file://{tmp_path}/x: {disk}"
    assert (
        refused("sync-up", str(tmp_path / "empty"), address)
        == f"{tmp_path / 'empty'}: holds no results (there is no sweep.yaml or no record.json in it)"
    )
    assert "carries a password" in refused("sync-up", folder, "s3://me:hunter2@bucket/x")
    assert "NO_SUCH_BUCKET" in refused("sync-up", folder, address.replace("//bucket", "//none"))
    assert refused("sync-down", address, str(tmp_path / "d")) == f"{shown}: holds no copy of a sweep"
    assert refused("sync-down", address, folder) == f"{source}: is there already; name a new folder"
    assert "is an address" in refused("sync-down", address, "s3://bucket/x")
    s3.client.put_object(Bucket="bucket", Key="refused/diary.txt", Body=b"dear")
    assert (
        refused("sync-up", folder, address)
        == f"{shown}: holds other files (diary.txt); add a name for this sweep to the address"
    )
    assert "holds no copy" in refused("sync-down", address, str(tmp_path / "d"))
    assert {path.name for path in tmp_path.iterdir()} == {"small", "empty"}
    listed = s3.client.list_objects_v2(Bucket="bucket", Prefix="refused")["Contents"]
    assert [entry["Key"] for entry in listed] == ["refused/diary.txt"]


def test_the_results_of_another_sweep_or_of_a_later_state_are_not_overwritten(tmp_path, s3):
    first_state(source := tmp_path / "small")
    old = shutil.copytree(source, tmp_path / "old")
    address = s3.address("mine")
    sync_up(source, address)
    # The same question, run elsewhere.
    append_at = tmp_path / "twin"
    append_at.mkdir()
    save_question(append_at, plan(4), declare=False)
    writer = Writer(append_at)
    writer.append([AttemptBegan(trial=plan(4).trials[0].id, attempt=1, lane="other", time=9.0)])
    writer.close()
    second_state(source)
    sync_up(source, address)
    before = {o["Key"]: o["ETag"] for o in s3.client.list_objects_v2(Bucket="bucket")["Contents"]}
    with pytest.raises(FolderError, match=r"the results of another sweep \(journal/000001\.jsonl differs"):
        sync_up(append_at, address)
    with pytest.raises(FolderError, match=r"holds journal/000002\.jsonl, which .* of a later state of this"):
        sync_up(old, address)
    # Without the index, too, which then is compared by content.
    s3.client.delete_object(Bucket="bucket", Key="mine/sync.json")
    with pytest.raises(FolderError, match="another sweep"):
        sync_up(append_at, address)
    after = {o["Key"]: o["ETag"] for o in s3.client.list_objects_v2(Bucket="bucket")["Contents"]}
    assert {**after, "mine/sync.json": before["mine/sync.json"]} == before


def test_a_store_that_gives_no_rights_is_named(tmp_path, capsys, monkeypatch):
    pytest.importorskip("moto")
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    first_state(source := tmp_path / "small")
    # From the second request on, moto knows no such key.
    with s3_server(tmp_path / "log", INITIAL_NO_AUTH_ACTION_COUNT="1") as server:
        line = refusal(capsys, monkeypatch, "sync-up", str(source), server.address("x"))
    assert line.startswith(f"{server.address('x')}: ")
    assert "ACCESS_DENIED" in line or "INVALID_ACCESS_KEY_ID" in line


# ---------------------------------------------------------------------------------- again and again


def test_copies_repeat_until_the_run_has_ended(tmp_path, s3, capsys, monkeypatch):
    (source := tmp_path / "small").mkdir()
    save_question(source, plan(4), declare=False)
    append(source, plan(4), slice(0, 1))
    address = s3.address("every")
    ended = threading.Event()

    def run() -> None:
        with held(source):
            ready.set()
            time.sleep(3)
            append(source, plan(4), slice(1, 2))
        ended.set()

    ready = threading.Event()
    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    monkeypatch.setattr("sys.argv", ["vitc-sweep", "sync-up", str(source), address, "--every", "0.02"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert ended.is_set()
    thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert 3 <= len(lines) <= 6
    assert all(line.startswith(f"{source} -> {address}: ") for line in lines)
    sync_down(address, tmp_path / "down")
    assert read_journal(tmp_path / "down") == read_journal(source)


def test_an_onlooker_takes_a_run_without_a_sign_of_life_for_dead(tmp_path, monkeypatch):
    assert not Onlooker(tmp_path).at_work()
    (tmp_path / "lease.json").write_text(json.dumps({"number": 3, "host": "elsewhere", "process": 1}))
    clock = [100.0]
    monkeypatch.setattr("orchestrator.store.lease.time.monotonic", lambda: clock[0])
    onlooker = Onlooker(tmp_path)
    assert onlooker.at_work()
    clock[0] += 59
    assert onlooker.at_work()
    os.utime(tmp_path / "lease.json", (1, 1))
    assert onlooker.at_work()
    clock[0] += 59
    assert onlooker.at_work()
    clock[0] += 2
    assert not onlooker.at_work()
