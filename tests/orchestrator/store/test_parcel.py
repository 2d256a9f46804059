"""The sweep file that is sent to another machine, the files that go with it, and the paths that must not."""

import json
from pathlib import Path

import pytest

from orchestrator.store.parcel import QUESTION, pack
from orchestrator.sweep.document import Override, SweepError
from orchestrator.sweep.load import load_sweep
from tests.support.sweeps import sweep_tree

NETS = """
from torch import nn

def make(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
"""


def write(path: Path, tree: dict) -> Path:
    path.write_text(json.dumps(tree))
    return path


def sent(folder: Path, *arguments, **options) -> Path:
    """What arrives there, in a folder that holds nothing else."""
    parcel = pack(*arguments, **options)
    folder.mkdir()
    parcel.write(folder)
    return folder / QUESTION


def test_what_arrives_asks_the_same_question_without_the_files_that_it_extends(tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / "common").mkdir(parents=True)
    tree = sweep_tree(question="1e-4", arms={"p": {"model.stem": "patchify"}, "010": {"model.stem": "conv"}})
    del tree["name"]
    write(here / "common" / "base.yaml", tree)
    file = here / "my sweep.yaml"
    file.write_text("extends: common/base.yaml\nvary: {optim.lr: {log_uniform: [1e-5, 0.5]}}\n")
    sets = [Override.parse("schedule.epochs=7"), Override.parse("optim.weight_decay=1e-7")]
    wanted = load_sweep(file, sets, 16)
    there = sent(tmp_path / "there", file, sets, 16)
    # Not even by accident.
    monkeypatch.chdir(tmp_path / "there")
    (here / "common" / "base.yaml").unlink()
    assert load_sweep(there) == wanted
    assert wanted.name == "my-sweep"
    assert wanted.design.points == 16
    assert wanted.question == "1e-4"


def test_a_python_file_goes_along_under_its_digest_and_the_trials_keep_their_ids(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    (here / "nets.py").write_text(NETS)
    arms = {"p": {"model": {"family": "python", "build": "nets.py:make", "image_size": 16}}}
    tree = sweep_tree(arms=arms)
    del tree["base"]["model"]
    file = write(here / "my.yaml", tree)
    wanted = load_sweep(file)
    there = sent(tmp_path / "there", file)
    (here / "nets.py").unlink()
    found = load_sweep(there)
    ours, theirs = (sweep.arms["p"]["model.build"] for sweep in (wanted, found))
    assert theirs.startswith(f"{tmp_path}/there/files/")
    assert theirs.partition("#")[2] == ours.partition("#")[2] != ""
    assert {path.name for path in (tmp_path / "there").rglob("*") if path.is_file()} == {QUESTION, "nets.py"}


@pytest.mark.parametrize("written", ["photos.parquet", "~/photos.parquet", "../here/photos.parquet"])
def test_data_of_this_machine_are_refused_whether_they_are_there_or_not(tmp_path, written):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "photos.parquet").touch()
    file = write(tmp_path / "here" / "my.yaml", sweep_tree(base=sweep_tree()["base"] | {"data": written}))
    with pytest.raises(SweepError, match="is a path of this machine") as refused:
        pack(file)
    [fault] = refused.value.faults
    assert (fault.path, fault.found) == ("base.data", written)
    assert fault.place.startswith(f"{file}:")
    assert "s3://" in fault.rule
    assert "absolute path that the cluster has" in fault.rule


def test_all_faults_are_told_at_once_with_the_file_or_option_that_each_is_in(tmp_path):
    base = sweep_tree()["base"] | {"data": "photos.parquet", "batch_size": -1}
    file = write(tmp_path / "my.yaml", sweep_tree(base=base))
    with pytest.raises(SweepError) as refused:
        pack(file, [Override.parse("resources.checkpoints=states")])
    told = {fault.path: fault.place for fault in refused.value.faults}
    assert set(told) == {"base.batch_size", "base.data", "resources.checkpoints"}
    assert told["resources.checkpoints"] == "--set resources.checkpoints=states"
    assert told["base.data"].startswith(f"{file}:")


def test_a_bucket_and_a_path_of_the_cluster_are_sent_as_they_are(tmp_path):
    arms = {
        "p": {"data.path": "s3://bucket/photos", "data.name": "parquet"},
        "c": {"data.path": "/nowhere/photos", "data.name": "parquet"},
    }
    tree = sweep_tree(arms=arms)
    del tree["base"]["data"]
    parcel = pack(write(tmp_path / "my.yaml", tree))
    assert parcel.elsewhere == ("/nowhere/photos",)
    assert b"s3://bucket/photos" in parcel.files[QUESTION]
    assert list(parcel.files) == [QUESTION]


def test_where_messages_go_is_sent_in_the_file_which_no_list_of_jobs_shows(tmp_path):
    file = write(tmp_path / "my.yaml", sweep_tree(notify="mail me"))
    assert load_sweep(sent(tmp_path / "there", file)).notify == "mail me"
    assert load_sweep(sent(tmp_path / "then", file, notify="$HOOK")).notify == "$HOOK"
