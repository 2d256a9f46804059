"""Imports in several processes, in shards, and after they were stopped or killed."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import orchestrator.cli
from tests.conftest import png
from tests.support.trees import fault_of, imported, picture, plant
from trainables.base import DataError
from trainables.data.packing import import_folder
from trainables.data.packing_parts import Layout
from trainables.data.parquet import Parquet

ROOT = Path(__file__).parents[3]

#: Parts and shards of a few pictures.
SMALL = Layout(group_bytes=900, part_bytes=3_000, shard_bytes=3_000)


def pictures(root: Path, splits: tuple[str, ...] = ("train", "val"), count: int = 40) -> Path:
    """A tree of distinct pictures of 300 to 900 bytes."""
    rng = np.random.default_rng(0)
    for split in splits:
        for number in range(count):
            pixels = rng.integers(0, 256, (10, int(rng.integers(8, 26)), 3))
            plant(root, f"{split}/{'cat' if number % 3 else 'dog'}/{number:03}.png", data=png(pixels))
    return root


def content(folder: Path) -> dict[str, str]:
    """Digests of all files in a folder, hidden ones too."""
    return {
        os.path.relpath(path, folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("is_file", [False, True])
def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path, is_file):
    tree = pictures(tmp_path / "tree", ("all",)) / "all" if is_file else pictures(tmp_path / "tree")
    found = {}
    for workers in (1, 2, 4):
        out = tmp_path / f"out{workers}"
        result = imported(tree, f"{out}/x.parquet" if is_file else str(out), workers=workers, layout=SMALL)
        assert result.num_images == (40 if is_file else 80)
        found[workers] = content(out)
    assert found[1] == found[2] == found[4]
    if is_file:
        assert list(found[1]) == ["x.parquet"]
    else:
        count = sum(name.startswith("train") for name in found[1])
        assert count > 5
        assert f"train-00000-of-{count:05}.parquet" in found[1]
        assert Parquet(path=str(tmp_path / "out1")).info().sizes["train"] == 36


def test_shards_hold_the_rows_of_the_tree_in_order_and_within_their_size(tmp_path):
    tree = pictures(tmp_path / "tree")
    result = imported(tree, layout=SMALL)
    names = [
        row["path"] for path in result.files["train"] for row in pq.read_table(path)["image"].to_pylist()
    ]
    assert names == sorted(os.path.relpath(path, tree) for path in tree.rglob("train/*/*.png"))
    for path in result.files["train"]:
        images = pq.read_table(path)["image"].to_pylist()
        assert sum(len(row["bytes"]) for row in images) <= 3_000
    # A split below the limit stays one file.
    small = imported(tree, "single", layout=Layout())
    assert [path.name for files in small.files.values() for path in files] == ["train.parquet", "val.parquet"]


def test_a_shard_without_an_image_is_kept_so_that_none_is_missing(tmp_path):
    tree = pictures(tmp_path / "tree")
    for number in range(40):
        if number % 3:
            plant(tree, f"train/cat/{number:03}.png", data=picture()[:40])
    plant(tree, "train/cat/000.png")
    result = imported(tree, on_bad_image="skip", layout=Layout(part_bytes=99, shard_bytes=99))
    assert result.counts["train"] == [1, 14]
    info = Parquet(path=str(tmp_path / "out")).info()
    assert (info.class_names, sum(info.sizes.values())) == (("cat", "dog"), 15 + 40)


CHILD = """
import os, signal, sys
from pathlib import Path
from trainables.data.packing import import_folder
from trainables.data.packing import import_folder
from trainables.data.packing_parts import Layout

if __name__ == "__main__":
    tree, out, workers, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    calls = 0

    def counted(original):
        def call(*arguments, **options):
            global calls
            calls += 1
            if calls == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)
        return call

    for name in ("replace", "fsync", "unlink", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    import_folder(tree, out, workers=workers, say=print, layout=Layout(900, 1024, 3000, 4096, 3000))
    print(calls)
"""


#: The sizes of that program.
KILLED = Layout(900, 1024, 3000, 4096, 3000)


def started(tmp_path: Path, tree: Path, out: Path, workers: int, limit: int = 0) -> subprocess.Popen[str]:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    command = [sys.executable, str(script), str(tree), str(out), str(workers), str(limit)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


@pytest.mark.parametrize("is_file", [False, True])
def test_an_import_killed_at_any_write_goes_on_to_the_same_files(tmp_path, is_file):
    tree = pictures(tmp_path / "tree", ("all",) if is_file else ("train", "val"), 8)
    if is_file:
        tree /= "all"

    def target(name: str) -> Path:
        return tmp_path / name / "x.parquet" if is_file else tmp_path / name

    output, _ = started(tmp_path, tree, target("whole"), 1).communicate()
    total = int(output.split()[-1])
    assert total > 30
    expected = content(tmp_path / "whole")
    assert len(expected) == (1 if is_file else 4)
    said: list[str] = []
    limits = sorted({*range(2, total, total // 10), total - 2, total - 1, total})
    for limit in limits:
        name = f"killed{limit}"
        killed = started(tmp_path, tree, target(name), 1, limit)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        # Killed while it deletes its own traces, it is complete, and what it has written is in the way.
        with contextlib.suppress(DataError):
            import_folder(tree, target(name), say=said.append, layout=KILLED)
        found = {path: digest for path, digest in content(tmp_path / name).items() if ".gone/" not in path}
        assert found == expected, limit
    assert sum(line.startswith("goes on with") for line in said) >= 5


def test_an_import_by_two_processes_killed_at_random_goes_on_to_the_same_files(tmp_path):
    tree = pictures(tmp_path / "tree", count=400)
    began = time.monotonic()
    started(tmp_path, tree, tmp_path / "whole", 2).communicate()
    seconds = time.monotonic() - began
    expected = content(tmp_path / "whole")
    draw = random.Random(0)
    outputs = ""
    for _ in range(3):
        killed = started(tmp_path, tree, tmp_path / "out", 2)
        time.sleep(seconds * draw.uniform(0.5, 0.9))
        killed.kill()
        # Ends once the processes of the pool, which hold the same pipe, have ended too.
        outputs += killed.communicate(timeout=60)[0]
    again = started(tmp_path, tree, tmp_path / "out", 2)
    outputs += again.communicate()[0]
    assert content(tmp_path / "out") == expected
    assert "goes on with an import that was stopped" in outputs or again.returncode


def stopped(tree: Path, out: str, at: int, **options: Any) -> None:
    def stop(done: int, total: int) -> None:
        if done >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imported(tree, out, tell=stop, layout=SMALL, **options)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_import_says_what_it_keeps_and_goes_on(tmp_path, workers):
    tree = pictures(tmp_path / "tree")
    said: list[str] = []
    told: list[int] = []
    stopped(tree, "out", 30, workers=workers, say=said.append)
    assert len(said) == 1
    assert f"stay in {tmp_path}/out/.import: the same command goes on from there" in said[0]
    assert not list((tmp_path / "out").glob("*.parquet"))
    written = {path: path.stat().st_ino for path in (tmp_path / "out" / ".import").glob("*.parquet")}
    result = imported(tree, say=said.append, tell=lambda done, total: told.append(done), layout=SMALL)
    assert said[1].startswith(f"goes on with an import that was stopped: {len(written)} of ")
    assert told[0] > 10
    assert result.num_images == 80
    # Finished parts were moved, and not made again.
    assert set(written.values()) <= {path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    assert content(tmp_path / "out") == content_of_whole(tree)


def content_of_whole(tree: Path) -> dict[str, str]:
    imported(tree, "whole", layout=SMALL)
    return content(tree.parent / "whole")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tree: plant(tree, "train/dog/000.png"), "files of the tree have changed"),
        (lambda tree: os.utime(tree / "train/cat/001.png", (1, 1)), "files of the tree have changed"),
        (lambda tree: plant(tree, "train/dog/999.png"), "splits differ"),
        (lambda tree: plant(tree, "train/emu/0.png"), "splits, classes differ"),
    ],
)
def test_an_import_of_changed_files_begins_anew_and_says_why(tmp_path, change, reason):
    tree = pictures(tmp_path / "tree")
    stopped(tree, "out", 30)
    change(tree)
    said: list[str] = []
    imported(tree, say=said.append, layout=SMALL)
    assert said == [f"an import was stopped here before, but {reason}: begins anew"]
    assert content(tmp_path / "out") == content_of_whole(tree)


def test_an_import_with_other_sizes_begins_anew_and_says_why(tmp_path):
    tree = pictures(tmp_path / "tree")
    stopped(tree, "out", 30)
    said: list[str] = []
    imported(tree, say=said.append, layout=Layout(part_bytes=5_000, shard_bytes=5_000))
    assert said == ["an import was stopped here before, but sizes of parts differ: begins anew"]


def test_bad_images_of_all_parts_are_listed_and_skipping_them_goes_on(tmp_path):
    tree = pictures(tmp_path / "tree")
    bad = ["train/cat/001.png", "train/dog/039.png", "val/cat/020.png"]
    plant(tree, *bad, data=picture()[:40])
    said: list[str] = []
    with pytest.raises(DataError) as caught:
        imported(tree, workers=2, say=said.append, layout=SMALL)
    message = str(caught.value)
    assert message.startswith("3 images cannot be used; --on-bad-image skip leaves them out:\n")
    assert all(f"{tree}/{name} does not decode" in message for name in bad)
    assert not list((tmp_path / "out").glob("*.parquet"))
    decoded: list[int] = []
    result = imported(
        tree, on_bad_image="skip", say=said.append, layout=SMALL, tell=lambda *a: decoded.append(1)
    )
    assert result.num_images == 77
    assert len(decoded) == 1
    assert {os.path.relpath(path, tree) for path in result.left_out} == set(bad)


def test_two_imports_to_one_place_do_not_mix(tmp_path):
    tree = pictures(tmp_path / "tree")
    faults = []

    def other(done: int, total: int) -> None:
        if done == 20:
            with pytest.raises(DataError) as caught:
                imported(tree, layout=SMALL)
            faults.append(str(caught.value))

    imported(tree, tell=other, layout=SMALL)
    assert faults == [f"{tmp_path}/out/.import: another import is writing there"]
    assert content(tmp_path / "out") == content_of_whole(tree)


def test_ctrl_c_reaches_all_processes_and_leaves_a_state_to_go_on_from(tmp_path):
    tree = pictures(tmp_path / "tree", count=500)
    child = f"""
import signal, sys
from trainables.data import packing, packing_parts
packing_parts.LAYOUT = packing.LAYOUT = None
import orchestrator.cli
packing.import_folder.__defaults__ = (
    *packing.import_folder.__defaults__[:-1], packing_parts.Layout(900, 1024, 3000, 4096, 3000)
)
if __name__ == "__main__":
    sys.argv[1:] = ["data", "import", {str(tree)!r}, {str(tmp_path / "out")!r}, "--workers", "2"]
    orchestrator.cli.main()
"""
    (tmp_path / "command.py").write_text(child)
    command = subprocess.Popen(
        [sys.executable, str(tmp_path / "command.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not list(tmp_path.glob("out/.import/train-00002.json")):
        assert command.poll() is None, command.communicate()
        time.sleep(0.01)
    # As a terminal does it: the whole group gets the signal.
    os.killpg(command.pid, signal.SIGINT)
    output, _ = command.communicate(timeout=60)
    assert command.returncode == 130, output
    assert "the same command goes on from there" in output
    assert "Traceback" not in output
    assert result_after(tree) == content_of_whole(tree)


def result_after(tree: Path) -> dict[str, str]:
    said: list[str] = []
    imported(tree, say=said.append, layout=SMALL)
    assert said[0].startswith("goes on")
    return content(tree.parent / "out")


def test_the_command_takes_a_number_of_workers(tmp_path):
    tree = pictures(tmp_path / "tree")
    arguments = ["data", "import", str(tree), str(tmp_path / "out"), "--workers"]
    refused = CliRunner().invoke(orchestrator.cli.app, [*arguments, "0"])
    assert refused.exit_code == 2
    done = CliRunner().invoke(orchestrator.cli.app, [*arguments, "2"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{tmp_path}/out/train.parquet: 40 images, ")


KINDS = st.sampled_from(["good", "cut", "text", "empty"])


@settings(max_examples=3, deadline=None)
@given(st.lists(KINDS, min_size=10, max_size=30), st.integers(200, 2_000))
def test_images_in_are_images_out_and_images_named_with_two_workers(tmp_path_factory, kinds, most_bytes):
    place = tmp_path_factory.mktemp("any")
    tree = plant(place / "tree", "cat/good.png", "dog/good.png")
    contents = {"cut": picture()[:40], "text": b"text", "empty": b""}
    for number, kind in enumerate(kinds):
        data = contents.get(kind) or png(np.full((2, 2, 3), number))
        plant(tree, f"{'cat' if number % 2 else 'dog'}/{number}.png", data=b"" if kind == "empty" else data)
    layout = Layout(most_bytes, 3, most_bytes, 7, most_bytes, 7)
    result = imported(tree, on_bad_image="skip", workers=2, layout=layout)
    rows = [row for path in result.files["train"] for row in pq.read_table(path)["image"].to_pylist()]
    for row in rows:
        assert row["bytes"] == (tree / row["path"]).read_bytes()
    stored = [tree / row["path"] for row in rows]
    assert len(set(stored)) == len(stored) == 2 + kinds.count("good")
    assert set(stored) | set(result.left_out) == {path for path in tree.rglob("*") if path.is_file()}
    assert not set(stored) & set(result.left_out)


def test_a_refused_import_of_one_part_leaves_nothing(tmp_path):
    tree = plant(tmp_path / "tree", "cat/0.png", "dog/0.png")
    plant(tree, "dog/0.png", data=picture()[:40])
    fault_of(tree, "new/out.parquet")
    assert os.listdir(tmp_path) == ["tree"]
