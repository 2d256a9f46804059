"""Paths in the wrong place, and other input that every verb must answer in one message."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import trainables.__main__
from orchestrator.cli.app import main
from orchestrator.cli.meant import in_order, on_disk, results_folder
from orchestrator.store.folder import save_question
from orchestrator.store.journal import Writer
from orchestrator.trials.events import AttemptBegan, AttemptEnded
from tests.support.sweeps import plan_from, sweep_tree
from trainables.errors import UserError

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs a command in a folder with small.yaml, runs/small, photos/ and what.txt."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(sweep_tree()))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(sweep_tree()))
    (tmp_path / "what.txt").write_text("what?")
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "0.jpg").write_bytes(b"")
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    plan = plan_from(sweep_tree())
    save_question(folder, plan)
    writer = Writer(folder)
    for trial in plan.trials[:3]:
        writer.append(
            [
                AttemptBegan(trial=trial.id, attempt=1, lane="a", node="n", time=0.0),
                AttemptEnded(
                    trial=trial.id, attempt=1, end="failed", detail="DataError: gone", seconds=1.0, time=1.0,
                    final=True, weights="", from_step=0, step=0, heard=1.0, epochs=0,
                ),
            ]
        )  # fmt: skip
    writer.close()
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vitc-sweep", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small.yaml"], "small.yaml is a question; to run it:  vitc-sweep run small.yaml"),
        (["runs/small"], "runs/small holds results; to look at them:  vitc-sweep status runs/small"),
        (["import", "a", "b c"], "import is a verb of `data`:  vitc-sweep data import a 'b c'"),
        (["status", "runs"], "runs holds a folder of results (small): name it, as in  vitc-sweep"),
        (["status", "other.yaml"], "other.yaml is a question and has no results in runs/other; to run it:"),
        (["status", "what.txt"], "what.txt: holds no sweep"),
        (["plan", "what.txt"], "what.txt: 1 fault"),
        (["plan", "photos"], "photos: is a folder, not a file"),
        (["data", "info", "photos"], "To pack them:  vitc-sweep data import photos photos.parquet"),
        (["plan", "small.yaml", "--set", "data=photos"], "vitc-sweep data import"),
        (["data", "import", "photos", "/proc/none/x.parquet"], "/proc/none"),
        (["export", "runs/small", "--format", "csv", "--out", "/proc/none/x.csv"], "/proc/none"),
        (["why", "runs/small", "nobody"], "no trial is called 'nobody'"),
        (["compare", "runs/small", "other.yaml"], "other.yaml is a question and has no results"),
        (["verify", "what.txt"], "what.txt: is no readable bundle"),
    ],
)
def test_wrong_input_gets_one_message_and_exit_code_2(command, arguments, message):
    code, _, error = command(*arguments)
    assert code == 2
    assert message in error
    assert "Traceback" not in error


def test_a_question_stands_for_its_results(command):
    code, out, error = command("status", "small.yaml")
    assert code == 0
    assert "small" in out
    assert error == "small.yaml is a question; its results are in runs/small\n"
    assert command("plan", "runs/small")[0] == 0


def test_folder_and_trial_may_stand_in_any_order(command):
    assert command("why", "p/all/0", "runs/small")[1] == command("why", "runs/small", "p/all/0")[1]
    assert in_order(Path("a"), "b") == (Path("a"), "b")


def test_why_without_a_trial_tells_the_causes_and_the_commands(command):
    code, out, _ = command("why", "runs/small")
    assert code == 0
    assert "DataError: gone" in out
    assert "3 trials failed, all for one cause." in out
    assert "why: vitc-sweep why runs/small p/all/0" in out
    assert "try again: vitc-sweep retry runs/small --failed" in out


def test_a_file_name_that_is_no_name_of_a_folder_becomes_one(command):
    shutil.copy("small.yaml", "my größte sweep!.yaml")
    tree = yaml.safe_load(Path("small.yaml").read_text())
    del tree["name"]
    Path("my größte sweep!.yaml").write_text(yaml.safe_dump(tree))
    code, out, _ = command("plan", "my größte sweep!.yaml")
    assert code == 0
    assert out.startswith("my-gr-te-sweep")


def test_a_folder_that_is_not_there_is_left_to_the_verb(tmp_path):
    assert results_folder(tmp_path / "none") == tmp_path / "none"
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "record.json").touch()
    with pytest.raises(UserError, match="holds 2 folders of results"):
        results_folder(tmp_path / "runs")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save", "/proc/none/x.pt"], "--save /proc/none/x.pt: the folder is not there"),
        (["--start", "garbage.pt"], "run.yaml: the file to start from holds no weights of a run"),
        (["--start", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_one_run_ends_with_a_message_too(tmp_path, monkeypatch, capsys, run_tree, options, message):
    monkeypatch.chdir(tmp_path)
    tree: dict[str, Any] = run_tree(schedule__epochs=1)
    if "--start" in options:
        tree["start"] = {"run": run_tree(schedule__epochs=1)}
    Path("run.yaml").write_text(yaml.safe_dump(tree))
    Path("garbage.pt").write_text("garbage")
    assert trainables.__main__.main(["run.yaml", *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "small.yaml", "--out", "s3://bucket/runs"),
        ("status", "s3://bucket/runs"),
        ("bundle", "runs/small", "--out", "gs://bucket/b.tar.gz"),
        ("export", "runs/small", "--out", "file:///results.csv"),
        ("compare", "runs/small", "runs/small", "--out", "s3://bucket/runs"),
        ("schema", "--out", "s3://bucket/schema.json"),
        ("examples", "lr_wd", "--out", "s3://bucket/spaces"),
    ],
)
def test_an_address_is_no_folder_of_that_name(command, arguments):
    before = set(Path.cwd().rglob("*"))
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    [line] = [line for line in err.splitlines() if "://" in line]
    assert "is an address, but the files of a sweep lie on a disk" in line
    assert set(Path.cwd().rglob("*")) == before


def test_a_home_is_expanded_where_the_shell_does_not(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert on_disk(Path("~/results")) == tmp_path / "results"
    assert on_disk(Path("a:b/c")) == Path("a:b/c")
