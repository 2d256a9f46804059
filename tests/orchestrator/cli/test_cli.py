"""The command line as a user meets it; what needs Ray is in test_lanes."""

import csv
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pyarrow.parquet as pq
import pytest
import typer.main
import yaml

from orchestrator.cli import app
from orchestrator.cli.app import BAD_INPUT, INCOMPLETE, INTERRUPTED, OK, main
from orchestrator.cli.options import ReadingLines, folders, trial_ids
from orchestrator.cli.watching import _mlflow_pages
from orchestrator.cost.speed import Rates
from orchestrator.execution.preflight import PreflightResult
from orchestrator.store.folder import open_folder, save_question
from orchestrator.store.journal import FolderError, Writer
from orchestrator.sweep.constraints import ConstraintError
from orchestrator.sweep.document import SweepError
from orchestrator.sweep.load import load_sweep
from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    EpochDone,
    Notice,
    RetryWanted,
    SessionBegan,
    row_of,
)
from orchestrator.trials.joint_sweep import MergeError
from orchestrator.trials.names import UnknownTrial
from tests.support.sweeps import plan_with_data
from trainables.base import DataError
from trainables.errors import UserError
from trainables.io.faults import Fault
from trainables.io.yaml import YamlError

LR_WD = Path(__file__).parents[3] / "search_spaces" / "lr_wd.yaml"


def edited(folder: Path, **changes: Any) -> Path:
    """lr_wd.yaml with some top-level keys replaced."""
    tree = yaml.safe_load(LR_WD.read_text())
    path = folder / "edited.yaml"
    path.write_text(yaml.safe_dump(tree | changes))
    return path


def test_models_lists_the_eight_of_the_paper_with_their_costs(cli):
    code, out, _ = cli("models", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    # paper.md 1.1: exact parameters and computed multiply-adds; activations as printed.
    paper = {
        "vit_p_1gf": (4.83, 1.08, 5.5),
        "vit_c_1gf": (4.57, 1.08, 5.7),
        "vit_p_4gf": (18.51, 3.91, 11.1),
        "vit_c_4gf": (17.75, 3.97, 11.3),
        "vit_p_18gf": (86.57, 17.58, 24.0),
        "vit_c_18gf": (81.57, 17.73, 24.1),
        "vit_p_36gf": (178.36, 36.00, 37.3),
        "vit_c_36gf": (167.80, 35.03, 36.7),
    }
    for name, (params_m, flops_g, activations_m) in paper.items():
        assert rows[name]["params_m"] == pytest.approx(params_m, abs=0.01)
        assert rows[name]["flops_g"] == pytest.approx(flops_g, abs=0.03)
        assert rows[name]["activations_m"] == pytest.approx(activations_m, abs=0.2)
    assert {"regnety_4gf", "resnet_50"} <= rows.keys()


def test_plan_lists_every_trial_and_writes_nothing(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli("plan", LR_WD, "--json", "--points", "3")
    assert code == 0
    trials = json.loads(out)["trials"]
    assert len(trials) == 3 * 2 * 2
    assert {trial["epochs"] for trial in trials} == {20}
    assert all(trial["params_m"] > 0 and trial["flops_g"] > 0 for trial in trials)
    code, out, _ = cli("plan", LR_WD)
    assert "lr is quoted for a batch size of 2048; at the batch size of 64 used here" in out
    assert "the optimizer's peak learning rate is 0.03125 times lr (scaled linearly)" in out
    assert list(tmp_path.iterdir()) == []


def test_plan_lists_the_first_trials_of_a_large_sweep_and_the_others_when_asked(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    _, out, _ = cli("plan", LR_WD, "--points", "17", "--json")
    trials = json.loads(out)["trials"]
    assert len(trials) == 17 * 2 * 2
    _, out, _ = cli("plan", LR_WD, "--points", "17")
    # Three points of two arms in two cells.
    assert {trial["point"] for trial in trials if trial["id"] in out} == {0, 1, 2}
    assert sum(trial["id"] in out for trial in trials) == 12
    assert "56 more trials with --all, or --json" in out
    _, out, _ = cli("plan", LR_WD, "--points", "17", "--all")
    assert all(trial["id"] in out for trial in trials)
    assert "more trials" not in out


def test_the_same_file_runs_on_other_data_and_sizes(cli, write_parquet, png_bytes):
    file = write_parquet(
        "own.parquet", [png_bytes([[i] * 8] * 8) for i in range(40)], [0, 1] * 20, ["a", "b"]
    )
    settings = [f"data={file}", "model.size=1gf", "model.depth=2", "batch_size=8"]
    code, out, _ = cli("plan", LR_WD, "--json", *(word for each in settings for word in ("--set", each)))
    assert code == 0
    for trial in json.loads(out)["trials"]:
        assert trial["config"]["data"]["path"] == str(file)
        assert trial["config"]["model"]["width"] == 192
        assert trial["config"]["batch_size"] == 8


BAD = {
    "an unknown key": ({"bass": {}}, ["bass: unknown key"]),
    "an unknown setting": ({"base": {"modl": 1, "data": "digits"}}, ["base.modl: unknown key (got 1)"]),
    "low above high": (
        {"vary": {"optim.lr": {"log_uniform": [1, 0.1]}, "optim.weight_decay": {"uniform": [0, 1]}}},
        ["vary.optim.lr: low <= high must hold, got 1.0 and 0.1"],
    ),
    "an lr domain with 0": (
        {"vary": {"optim.lr": {"log_uniform": [0, 0.1]}, "optim.weight_decay": {"uniform": [0, 1]}}},
        ["vary.optim.lr: a log_uniform domain must be above 0, got [0.0, 0.1]"],
    ),
    "a wrong type": (
        {"design": {"kind": "sobol", "points": "many"}},
        ["design.points: must be a whole number", "'many'"],
    ),
    "an unknown design": (
        {"design": {"kind": "magic", "points": 8}},
        ["design.kind: must be one of", "'magic'"],
    ),
    "no arms": ({"arms": {}}, ["arms: "]),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_bad_input_ends_with_one_message_exit_code_2_and_nothing_written(
    cli, tmp_path, monkeypatch, name, verb
):
    changes, messages = BAD[name]
    file = edited(tmp_path, **changes)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, out, err = cli(verb, file)
    assert code == 2
    assert out == ""
    assert err.startswith(f"{file}: ")
    for message in messages:
        assert message in err
    assert list((tmp_path / "here").iterdir()) == []


def test_all_faults_of_a_file_are_told_at_once_with_the_keys_that_caused_them(cli, tmp_path):
    tree = yaml.safe_load(LR_WD.read_text())
    tree["base"]["schedule"]["epochs"] = 0
    tree["base"]["batch_size"] = "big"
    tree["arms"]["vit_c"]["model.heads"] = 7
    tree["arms"]["odd"] = {"model.image_size": 30}
    tree["arms"]["short"] = {"model.stem": {"channels": [8, 16], "strides": [2, 2]}}
    code, _, err = cli("plan", edited(tmp_path, **tree))
    assert code == 2
    for message in (
        "base.schedule.epochs: must be greater than 0 (got 0)",
        "base.batch_size: must be a whole number",
        "heads must divide width, got heads=7, width=64",
        "patch_size must divide image_size, got patch_size=8, image_size=30",
        "the stem's strides must multiply to patch_size, got [2, 2]",
    ):
        assert message in err
    assert "Traceback" not in err


def test_data_at_fault_is_named_with_its_key(cli, tmp_path, write_parquet, png_bytes):
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(
        write_parquet("whole.parquet", [png_bytes([[0]])] * 4, [0, 1, 0, 1], ["a", "b"]).read_bytes()[:90]
    )
    outside = write_parquet("outside.parquet", [png_bytes([[0]])] * 4, [0, 1, 0, 7], ["a", "b"])
    for path, message in (
        ("no/such/place", "there is no such file or folder"),
        (cut, "is not a readable Parquet file"),
        (outside, "row 3 has label 7, outside the 2 classes 0 to 1"),
    ):
        code, _, err = cli("plan", LR_WD, "--set", f"data={path}")
        assert code == 2
        assert "base.data: " in err
        assert message in err


def test_a_file_that_is_not_there_or_no_yaml_is_named(cli, tmp_path):
    code, _, err = cli("plan", tmp_path / "none.yaml")
    assert code == 2
    assert "none.yaml: No such file" in err
    (tmp_path / "bad.yaml").write_text("a: [1\nb: 2")
    code, _, err = cli("plan", tmp_path / "bad.yaml")
    assert code == 2
    assert "bad.yaml:2" in err


def test_a_set_that_is_no_assignment_is_refused(cli):
    code, _, err = cli("plan", LR_WD, "--set", "points")
    assert code == 2
    assert "points: must be key=value" in err


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    """The folder of a sweep with one trial finished, one failed, one running, the rest missing."""
    sweep = load_sweep(LR_WD, points=2)
    plan = plan_with_data(sweep)
    folder = tmp_path / "runs" / "lr_wd"
    save_question(folder, plan)
    finished, failed, running, *_ = (trial.id for trial in plan.trials)
    row = {
        "epoch": 20,
        "step": 380,
        "lr": 1e-5,
        "train_loss": 0.5,
        "val_loss": 0.4,
        "val_error_pct": 12.5,
        "val_raw_error_pct": 12.5,
        "train_seconds": 0.5,
        "val_seconds": 0.1,
        "test_error_pct": 13.5,
    }
    writer = Writer(folder)
    writer.append(
        [
            AttemptBegan(trial=finished, attempt=1, lane="lane", time=0.0),
            EpochDone(trial=finished, attempt=1, row=row_of(row)),
            AttemptEnded(
                trial=finished,
                attempt=1,
                end="finished",
                detail="",
                seconds=12.0,
                time=12.0,
                final=True,
                weights="abc",
            ),
            AttemptBegan(trial=failed, attempt=1, lane="lane", time=12.0),
            AttemptEnded(
                trial=failed,
                attempt=1,
                end="failed",
                detail="OSError: the disk is on fire",
                seconds=1.0,
                time=13.0,
                final=True,
            ),
            AttemptBegan(trial=running, attempt=1, lane="lane", time=13.0),
        ]
    )
    writer.close()
    return folder


def test_status_says_how_far_a_sweep_is_from_its_folder_alone(cli, partial):
    code, out, _ = cli("status", partial, "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["trials"], told["ended"]) == (8, 2)
    states = {(cell["cell"], cell["arm"]): cell["states"] for cell in told["cells"]}
    assert states["adamw", "vit_p"] == {"finished": 1, "missing": 1}
    assert states["adamw", "vit_c"] == {"failed": 1, "missing": 1}
    assert states["sgd", "vit_p"] == {"running": 1, "missing": 1}
    code, out, _ = cli("status", partial)
    assert "OSError: the disk is on fire" in out


def test_watching_a_sweep_that_nobody_runs_shows_it_and_ends(cli, partial):
    code, out, _ = cli("status", partial, "--watch")
    assert code == 1
    assert "2/8 trials" in out
    assert "not running" in out
    code, _, _ = cli("status", partial, "--watch", "--json")
    assert code == 2


def test_why_tells_what_happened_to_a_trial_by_any_name(cli, partial):
    failed = open_folder(partial).plan.trials[1]
    (partial / "trials" / failed.id).mkdir(parents=True)
    (partial / "trials" / failed.id / "attempt-1.log").write_text("Traceback\n  line 1\nOSError: on fire\n")
    for name in (failed.id[:9], "vit_c/adamw/0", failed.label):
        code, out, _ = cli("why", partial, name)
        assert code == 0
        assert f"vit_c/adamw/0  ({failed.id})" in out
        assert "attempt 1 on lane lane, 1.0 s; failed: OSError: the disk is on fire" in out
        assert "    OSError: on fire" in out
        assert f"vitc-sweep retry {partial} --trial vit_c/adamw/0" in out


def test_logs_prints_what_attempts_have_left_behind(cli, partial):
    failed = open_folder(partial).plan.trials[1]
    place = partial / "trials" / failed.id
    place.mkdir(parents=True)
    (place / "attempt-1.log").write_text("Traceback\nOSError: on fire")
    (place / "attempt-1.rank-0.log").write_text("zero warns\n")
    (place / "attempt-1.rank-1.log").write_text("one warns\n")
    code, out, _ = cli("logs", partial, "vit_c/adamw/0")
    assert code == 0
    assert out.splitlines() == [
        "== attempt 1: traceback and notices (attempt-1.log)",
        "Traceback",
        "OSError: on fire",
        "== attempt 1, rank 0: warnings and messages (attempt-1.rank-0.log)",
        "zero warns",
        "== attempt 1, rank 1: warnings and messages (attempt-1.rank-1.log)",
        "one warns",
    ]
    # Nobody runs it, so nothing is waited for.
    code, out, _ = cli("logs", partial, "vit_c/adamw/0", "--rank", "1", "--follow")
    assert "zero" not in out
    assert "one warns" in out
    code, out, err = cli("logs", partial, "vit_c/adamw/0", "--attempt", "2")
    assert (code, out) == (0, "")
    assert "This trial wrote no log" in err


@pytest.mark.parametrize("verb", [["why"], ["logs"], ["retry", "--trial"]])
def test_a_trial_that_is_not_there_is_one_message_with_the_nearest(cli, partial, verb):
    name, *option = verb
    code, out, err = cli(name, partial, *option, "vit_c/adam/0")
    assert (code, out) == (2, "")
    assert "no trial is called 'vit_c/adam/0'; the nearest are vit_c/adamw/0" in err
    code, _, err = cli(name, partial, *option, "vit_c")
    assert code == 2
    assert "fits 4 trials" in err


def test_what_would_end_retried_or_confirmed_trials_is_told_and_nothing_written(cli, partial, monkeypatch):
    asked = []

    def try_out(plan, todo, folder, observers, address, wait_minutes, later):
        asked.append({trial.id for trial in todo})
        return PreflightResult(2, (), (Fault("base.data", "the images are gone"),), 1.0, None)

    monkeypatch.setattr("orchestrator.execution.session.try_out", try_out)
    plan = open_folder(partial).plan
    failed, *rest = [trial.id for trial in plan.trials[1:]]

    def files():
        # The lease is touched by whoever looks.
        names = ("sweep.yaml", "record.json", "confirm.json", "journal/*")
        return {path.name: path.read_bytes() for name in names for path in partial.glob(name)}

    before = files()
    code, _, err = cli("retry", partial, "--failed", "--no-mlflow")
    assert code == BAD_INPUT
    assert "sweep.yaml" in err
    assert "the images are gone" in err
    # With what failed all that is missing, and not what has finished.
    assert asked.pop() == {failed, *rest}
    assert files() == before
    row = dataclasses.replace(open_folder(partial).events[2].row, epoch=1)
    writer = Writer(partial)
    writer.append([RetryWanted(trial=failed, time=1.0)])
    for trial_id in (failed, *rest):
        writer.append(
            [
                AttemptBegan(trial=trial_id, attempt=1, lane="lane", time=0.0),
                EpochDone(trial=trial_id, attempt=1, row=row),
                AttemptEnded(
                    trial=trial_id, attempt=1, end="finished", detail="", seconds=1.0, time=2.0, final=True
                ),
            ]
        )
    writer.close()
    before = files()
    code, _, err = cli("confirm", partial, "--top", "1", "--seeds", "2", "--no-mlflow")
    assert (code, "the images are gone" in err) == (BAD_INPUT, True)
    # One point of two arms in two cells, twice each.
    assert len(asked.pop()) == 8
    assert files() == before


def test_ui_starts_mlflow_beside_the_reports_where_there_are_runs(tmp_path, monkeypatch):
    started = []
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    assert _mlflow_pages(tmp_path, "127.0.0.1", 5001) == ("", None)
    (tmp_path / "mlflow.db").touch()
    address, _ = _mlflow_pages(tmp_path, "127.0.0.1", 5001)
    assert address.startswith("http://127.0.0.1:5001/#/experiments")
    assert started[0][-6:] == ["--host", "127.0.0.1", "--port", "5001", "--workers", "1"]
    # A server of its own shows its own pages, and its password is nobody's business.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@mlflow.example.org")
    assert _mlflow_pages(tmp_path, "127.0.0.1", 5001) == ("https://***@mlflow.example.org", None)
    assert len(started) == 1


def test_a_shell_completes_folders_and_trials_that_were_started(partial, monkeypatch):
    monkeypatch.chdir(partial.parent.parent)
    assert folders("ru") == ["runs/lr_wd"]
    assert folders("runs/") == ["runs/lr_wd"]
    assert folders("runs/x") == []
    started = [trial.id for trial in open_folder(partial).plan.trials[:3]]
    assert trial_ids(SimpleNamespace(params={"folder": "runs/lr_wd"}), "") == started
    assert trial_ids(SimpleNamespace(params={"folder": "runs/lr_wd"}), started[1][:4]) == [started[1]]


def test_a_quiet_run_of_a_finished_sweep_prints_the_path_of_its_report(cli, tmp_path, monkeypatch):
    sweep = load_sweep(LR_WD, points=1)
    plan = plan_with_data(sweep)
    folder = tmp_path / "runs" / "lr_wd"
    save_question(folder, plan)
    writer = Writer(folder)
    writer.append(
        [
            AttemptEnded(
                trial=t.id, attempt=1, end="diverged", detail="nan", seconds=1.0, time=1.0, final=True
            )
            for t in plan.trials
        ]
    )
    writer.close()

    def write_report(folder: Path) -> Path:
        (folder / "report").mkdir()
        (folder / "report" / "summary.json").write_text('{"answer": ["not settled"]}')
        return folder / "report" / "report.html"

    monkeypatch.setattr("orchestrator.cli.conclusion._write_report", write_report)
    code, out, err = cli("run", LR_WD, "--points", "1", "--out", folder, "--quiet", "--no-mlflow")
    assert (code, err) == (0, "")
    assert out == f"{folder}/report/report.html\n"


@pytest.mark.parametrize("quiet", [False, True])
def test_a_run_shows_its_trials_tells_the_command_and_ends_with_its_report(cli, tmp_path, monkeypatch, quiet):
    from orchestrator.backends import ray_cluster
    from orchestrator.execution import run

    class Run:
        """Ray's part, without Ray: every trial ends at once, the last one badly."""

        def __init__(
            self, folder, trials, records, resources, began=None, seconds=0.0, judge=None, must_reach=""
        ):
            self.folder, self.trials, self.lanes = folder, trials, 2
            self.error, self.done, self.left = None, False, []

        def start(self):
            writer = Writer(self.folder)
            self.left = [SessionBegan(time=1.0, began=0.0, lanes=(2,))]
            for number, trial in enumerate(self.trials):
                last = number == len(self.trials) - 1
                detail = "OSError: on fire" if last else "nan"
                self.left += [
                    AttemptBegan(trial=trial.id, attempt=1, lane="lane", time=2.0 + number),
                    AttemptEnded(
                        trial=trial.id,
                        attempt=1,
                        end="failed" if last else "diverged",
                        detail=detail,
                        seconds=1.0,
                        time=3.0 + number,
                        final=True,
                    ),
                ]
            self.left.append(Notice(detail="the disk was slow"))
            writer.append([event for event in self.left if not isinstance(event, Notice)])
            writer.close()

        def events(self):
            events, self.left, self.done = self.left[:2], self.left[2:], len(self.left) <= 2
            return events

        def drain(self):
            """Nothing is left to hand out."""

        def close(self):
            pass

    def write_report(folder: Path) -> Path:
        (folder / "report").mkdir()
        (folder / "report" / "summary.json").write_text('{"answer": ["not settled"]}')
        return folder / "report" / "report.html"

    monkeypatch.setattr(run, "Run", Run)
    for name, fake in (("connect", lambda _: None), ("nodes", list), ("shutdown", lambda: None)):
        monkeypatch.setattr(ray_cluster, name, fake)
    monkeypatch.setattr("orchestrator.cli.conclusion._write_report", write_report)
    monkeypatch.setattr("time.sleep", lambda _: None)
    told = tmp_path / "told.json"
    command = f"{sys.executable} -c \"import sys; open('{told}', 'a').write(sys.stdin.read())\""
    options = ["--out", tmp_path / "x", "--points", "1", "--no-mlflow", "--no-preflight", "--notify", command]
    # Two trials of a second each are more.
    options += ["--set", "budget.max_core_hours=0.0005"]
    code, out, err = cli("run", LR_WD, *options, *(["--quiet"] if quiet else []))
    assert code == 1
    message = json.loads(told.read_text())
    assert (message["event"], message["ended"], message["failed"]) == ("end", 4, 1)
    if quiet:
        assert out == f"{tmp_path}/x/report/report.html\n"
        assert err.splitlines()[0] == "the disk was slow"
        assert "1 of 4 trials have no result" in err
    else:
        assert "[1/4] vit_p adamw p0  diverged  no epoch  1.0 s  (nan)" in out
        assert "[4/4] vit_c sgd p0  failed  no epoch  1.0 s  (OSError: on fire)" in out
        assert out.count("the budget is spent") == 1
        assert out.index("[2/4]") < out.index("the budget is spent") < out.index("[3/4]")
        assert "not settled" in out
        assert err == ""


@pytest.mark.usefixtures("no_pdfs")
def test_a_report_of_a_partial_sweep_shows_what_is_missing_and_does_not_exit_with_0(cli, partial):
    code, out, _ = cli("report", partial)
    assert code == 1
    assert "7 of 8 trials have no result" in out
    assert "the disk is on fire" in (partial / "report" / "report.html").read_text()


@pytest.mark.usefixtures("no_pdfs")
def test_several_sweeps_are_reported_one_by_one_and_none_if_one_is_no_sweep(cli, partial, tmp_path):
    other = Path(shutil.copytree(partial, tmp_path / "runs" / "other"))
    code, out, err = cli("report", partial, tmp_path, other, tmp_path / "none")
    assert (code, out) == (2, "")
    assert [line.split(":")[0] for line in err.splitlines()] == [str(tmp_path), str(tmp_path / "none")]
    assert not (partial / "report").exists()
    code, out, _ = cli("report", partial, other, partial)
    assert code == 1
    assert out.count("\nreport: ") == 2
    assert "vitc-sweep compare" in out
    assert (partial / "report" / "report.html").is_file()
    assert (other / "report" / "report.html").is_file()


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_export_has_one_row_per_trial_with_every_setting(cli, partial, tmp_path, format):
    target = tmp_path / f"out.{format}"
    code, _, _ = cli("export", partial, "--format", format, "--out", target)
    assert code == 0
    if format == "csv":
        rows = list(csv.DictReader(target.open()))
        assert float(rows[0]["test_error_pct"]) == 13.5
    else:
        rows = pq.read_table(target).to_pylist()
        assert rows[0]["test_error_pct"] == 13.5
    assert len(rows) == 8
    trials = open_folder(partial).plan.trials
    assert [row["trial"] for row in rows] == [trial.id for trial in trials]
    assert [float(row["optim.lr"]) for row in rows] == pytest.approx(
        [trial.values["optim.lr"] for trial in trials]
    )
    assert rows[1]["state"] == "failed"


def test_a_folder_that_is_no_sweep_is_an_error_not_a_traceback(cli, tmp_path):
    for verb in ("status", "report", "export"):
        code, _, err = cli(verb, tmp_path)
        assert code == 2
        assert "holds no sweep" in err


def test_a_tree_of_images_becomes_a_data_set(cli, tmp_path, png_bytes):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(12):
            (tmp_path / "photos" / name / f"{index}.png").write_bytes(png_bytes([[index * 20] * 4] * 4))
    code, out, _ = cli("data", "import", tmp_path / "photos", tmp_path / "photos.parquet")
    assert code == 0
    assert "24 images, " in out
    assert "2 classes of 12 images (cat, dog)" in out
    code, out, _ = cli("data", "info", tmp_path / "photos.parquet")
    assert code == 0
    assert "2 classes" in out


def commands(group: Any, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every verb with its command."""
    found = []
    for name, command in group.commands.items():
        inner = (*words, name)
        found += commands(command, inner) if hasattr(command, "commands") else [(inner, command)]
    return found


@pytest.mark.parametrize(
    "verb", ["", *(" ".join(words) for words, _ in commands(typer.main.get_command(app)))]
)
def test_every_verb_has_help_with_an_example(cli, verb):
    code, out, _ = cli(*verb.split(), "--help")
    assert code == 0
    assert "vitc-sweep" in out
    assert verb in ("",) or "Example: vitc-sweep " + verb in " ".join(out.split())
    # Help is Markdown, in which a word in angle brackets is not shown.
    assert "runs/]" not in out


def test_no_word_of_the_help_is_lost():
    for words, command in commands(typer.main.get_command(app)):
        texts = [command.help or "", *(getattr(one, "help", None) or "" for one in command.params)]
        assert not re.search("<[a-z]", " ".join(texts)), words


FRACTIONS = [
    (words, command, option)
    for words, command in commands(typer.main.get_command(app))
    for option in command.params
    if float in (hint := get_type_hints(command.callback)[option.name], *get_args(hint))
]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(("words", "command", "option"), FRACTIONS, ids=lambda one: getattr(one, "name", ""))
def test_no_option_takes_a_number_that_is_none(words, command, option, value, tmp_path):
    # Every argument is a file that is there, so that the option alone is at fault.
    (file := tmp_path / "x.yaml").touch()
    arguments = [str(file) for one in command.params if one.param_type_name == "argument"]
    with pytest.raises(BaseException, match=r"greater|finite|Invalid") as refused:
        command.make_context(" ".join(words), [*arguments, option.opts[0], value])
    assert type(refused.value).__name__ in ("BadParameter", "UsageError")
    assert refused.value.param.name == option.name


def test_there_are_options_with_fractions():
    assert {option.name for *_, option in FRACTIONS} >= {"wait_minutes", "price_per_gpu_hour", "every"}


@pytest.mark.parametrize(
    ("words", "command"),
    commands(typer.main.get_command(app)),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_example_in_the_help_of_every_verb_is_a_command_that_parses(words, command):
    name, *arguments = shlex.split(command.epilog.removeprefix("Example: "))
    assert name == "vitc-sweep"
    assert tuple(arguments[: len(words)]) == words
    # Refuses options that there are not, values of a wrong type, and arguments too many or too few.
    assert command.make_context(" ".join(words), arguments[len(words) :]).params


@pytest.mark.parametrize(
    "error",
    [
        ConstraintError,
        DataError,
        FolderError,
        MergeError,
        SweepError,
        UnknownTrial,
        YamlError,
    ],
)
def test_an_error_of_the_user_ends_with_its_message_alone_whatever_it_is_called(cli, monkeypatch, error):
    # An error that is made of it anew has no name that anybody could have listed.
    anew = type("Anew", (error,), {"__init__": lambda self: UserError.__init__(self, "at fault")})

    def fail() -> None:
        raise anew

    monkeypatch.setattr(sys.modules[main.__module__], "app", fail)
    assert cli("status", "there") == (BAD_INPUT, "", "at fault\n")


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch):
    def fail() -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(sys.modules[main.__module__], "app", fail)
    with pytest.raises(ValueError, match="a mistake of ours"):
        main()


def test_every_verb_stands_under_a_heading_of_the_help(cli):
    group = typer.main.get_command(app)
    headings = {name: command.rich_help_panel for name, command in group.commands.items()}
    assert set(headings.values()) == {"Ask", "Run", "Watch", "Answer"}
    _, out, _ = cli("--help")
    places = [out.index(f"─ {heading} ─") for heading in ("Ask", "Run", "Watch", "Answer")]
    assert places == sorted(places)


def test_the_help_tells_the_exit_codes(cli):
    _, out, _ = cli("--help")
    told = " ".join(out.split())
    for code in (OK, INCOMPLETE, BAD_INPUT, INTERRUPTED):
        assert re.search(rf"\b{code} [a-z]", told[told.index("Exit codes:") :])


def test_the_version_is_that_of_the_package(cli):
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert cli("--version") == (0, f"vitc-sweep {project['version']}\n", "")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['vitc-sweep', 'run', '--help']\n"
        "from orchestrator.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'ray', 'mlflow', 'scipy', 'pyarrow'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_examples_are_listed_and_copied_and_a_missing_one_is_offered(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli("examples")
    assert code == 0
    assert all(
        str(path.relative_to(LR_WD.parent).with_suffix("")) in out for path in LR_WD.parent.rglob("*.yaml")
    )
    code, _, err = cli("plan", "search_spaces/lr_wd.yaml")
    assert (code, err.rpartition("  ")[2]) == (BAD_INPUT, "vitc-sweep examples lr_wd\n")
    assert cli("examples", "lr_wd")[0] == 0
    assert Path("search_spaces/lr_wd.yaml").read_text() == LR_WD.read_text()
    assert cli("examples", "search_spaces/lr_wd.yaml")[0] == 0
    Path("search_spaces/lr_wd.yaml").write_text("# mine\n")
    assert cli("examples", "lr_wd")[0] == BAD_INPUT
    assert Path("search_spaces/lr_wd.yaml").read_text() == "# mine\n"
    assert cli("examples", "lr_dw")[0] == BAD_INPUT


def test_the_program_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "orchestrator", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("vitc-sweep ")


def test_plan_says_what_its_points_settle_and_times_this_cpu_if_no_sweep_has(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rates = Rates(1 / 40e9, 1 / 12e9, 1e-5)
    monkeypatch.setattr("orchestrator.cost.speed.probe_rates", lambda: rates)
    code, out, _ = cli("plan", LR_WD, "--points", "4")
    assert code == 0
    assert "4 points per arm can settle nothing: 6 are the least" in out
    assert "Smallest difference" not in out
    assert "speeds from CPU timing: products of matrices, timed on this CPU" in out
    assert out.count("CPU timing") > 1
    code, out, _ = cli("plan", LR_WD, "--points", "16", "--no-measure")
    assert "16 points per arm settle a difference of 0.20" in out
    assert "Smallest difference that is settled in 80 % of sweeps, by measure:" in out
    assert "no earlier sweep ran on it; --measure times this CPU" in " ".join(out.split())


@pytest.mark.parametrize("verb", ["plan", "preflight", "run"])
def test_a_person_is_told_what_is_read_before_the_libraries_are(cli, tmp_path, monkeypatch, verb):
    file = edited(tmp_path, arms={})
    code, out, err = cli(verb, file)
    assert (code, out) == (2, "")
    assert "reading" not in err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    code, out, err = cli(verb, file)
    assert (code, out) == (2, "")
    assert err.startswith(f"reading {file} and its data\n")


def test_a_long_read_is_told_now_and_then_and_a_short_one_is_not(capsys):
    seconds = iter([0.0, 1.9, 2.0, 11.9, 12.0, 100.0])
    lines = ReadingLines(lambda: next(seconds))
    for done in range(1, 7):
        lines("a\x1b.parquet", 1000 * done, 6000)
    assert capsys.readouterr().err.splitlines() == [
        f"reading a\\x1b.parquet: {done} of 6,000 images" for done in ("3,000", "5,000", "6,000")
    ]


def test_preflight_ends_with_how_long_the_sweep_will_take(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = PreflightResult(2, (), (), 1.0, None, "32 trials will take about 5 min 20 s on 2 cores")
    monkeypatch.setattr("orchestrator.execution.session.try_out", lambda *_: found)
    code, out, _ = cli("preflight", LR_WD)
    assert code == 0
    assert out.splitlines()[-1] == "lr_wd can start; 32 trials will take about 5 min 20 s on 2 cores"
    assert "8 points per arm settle a difference of 0.31" in out
