"""Local paths in files: found from anywhere, by us and by workers that run in other folders."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import trainables.__main__
from orchestrator.cli.app import main
from orchestrator.execution.preflight import PreflightResult
from orchestrator.execution.preflight_child import Child
from orchestrator.store.folder import open_folder, save_question
from orchestrator.store.journal import Writer, read_journal
from orchestrator.sweep.document import Override, SweepError
from orchestrator.sweep.load import load_sweep
from orchestrator.trials.events import AttemptEnded, EpochDone, row_of
from orchestrator.trials.gang import Gang
from orchestrator.trials.plan import data_configs, make_plan
from tests.conftest import png
from tests.test_docs import ROOT, blocks
from trainables.config import TrainConfig
from trainables.data.packing import import_folder
from trainables.io.faults import Fault
from trainables.profiling.dry_run import Request

#: As a new user writes it: the data lie beside the file.
SWEEP = """\
base:
  model: {family: vit, image_size: 16, patch_size: 8, width: 16, depth: 2, heads: 2, mlp_ratio: 2}
  data: photos.parquet
  optim: {name: adamw, weight_decay: 0.1}
  schedule: {epochs: 1}
  batch_size: 10
arms: {vit_p: {model.stem: patchify}, vit_c: {model.stem: conv}}
vary: {optim.lr: {log_uniform: [1e-3, 1e-2]}}
design: {kind: sobol, points: 1}
"""


@pytest.fixture
def project(tmp_path, write_parquet, monkeypatch) -> Path:
    """A folder with a sweep file and its data; the current folder is another one."""
    images = [png(np.full((8, 8, 3), 5 * i)) for i in range(40)]
    for name in ("project/photos.parquet", "project/other.parquet"):
        write_parquet(name, images, [0, 1] * 20, ["a", "b"])
    (tmp_path / "project" / "my.yaml").write_text(SWEEP)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def written(project: Path, **changes: Any) -> Path:
    """A sweep file beside the data, with some top-level keys replaced."""
    file = project / "changed.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(SWEEP) | changes, sort_keys=False))
    return file


def base(**settings: Any) -> dict[str, Any]:
    return yaml.safe_load(SWEEP)["base"] | settings


def sets(*texts: str) -> list[Override]:
    return [Override.parse(text) for text in texts]


def plan_of(file: Path, *texts: str) -> Any:
    sweep = load_sweep(file, sets(*texts))
    return make_plan(sweep, {config: config.info() for config in data_configs(sweep)})


def command(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", ["vitc-sweep", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    return int(end.value.code or 0)


# ------------------------------------------------------------------------------------------- where it looks


def test_data_beside_the_sweep_file_are_found_from_another_folder(project):
    [data] = {trial.config.data.path for trial in plan_of(Path("../project/my.yaml")).trials}
    assert data == f"{project}/photos.parquet"


def test_the_folder_of_the_file_comes_first_and_then_the_current_one(project):
    here = Path.cwd()
    shutil.copy(project / "photos.parquet", here / "photos.parquet")
    shutil.copy(project / "photos.parquet", here / "only_here.parquet")
    assert load_sweep(project / "my.yaml").base["data"] == f"{project}/photos.parquet"
    file = written(project, base=base(data="only_here.parquet"))
    assert load_sweep(file).base["data"] == f"{here}/only_here.parquet"


def test_where_neither_has_it_the_message_names_both_and_the_key_with_its_place(project, capsys):
    (project / "photos.parquet").unlink()
    assert command("plan", project / "my.yaml") == 2
    [line] = capsys.readouterr().err.splitlines()[1:]
    assert line == (
        f"  {project}/my.yaml:3:3: base.data: {project}/photos.parquet: there is no such file or folder "
        f"(photos.parquet was looked for in {project} and in {Path.cwd()})"
    )


@pytest.mark.parametrize("data", ["gone.parquet", {"name": "parquet", "path": "gone.parquet"}])
@pytest.mark.parametrize("other", [{"batch_size": 0}, {"label_smoothing": 2}])
def test_data_that_are_not_there_are_told_with_all_other_faults(project, data, other):
    with pytest.raises(SweepError) as caught:
        load_sweep(written(project, base=base(data=data, **other), nonsense=1))
    assert len(caught.value.faults) == 3
    [told] = [fault for fault in caught.value.faults if fault.path == "base.data"]
    assert told.rule.startswith(f"{project}/gone.parquet: there is no such file or folder (gone.parquet was ")
    # Data that are described can be planned without.
    expects = {"name": "parquet", "path": "gone.parquet", "expects": {"classes": 2, "train": 90}}
    with pytest.raises(SweepError) as caught:
        load_sweep(written(project, base=base(data=expects, **other)))
    assert len(caught.value.faults) == 1


def test_what_the_command_line_sets_is_relative_to_the_current_folder_alone(project, capsys):
    shutil.copy(project / "photos.parquet", "mine.parquet")
    swept = load_sweep(project / "my.yaml", sets("data=mine.parquet"))
    assert swept.base["data"] == f"{Path.cwd()}/mine.parquet"
    assert command("plan", project / "my.yaml", "--set", "data=photos.parquet") == 2
    [line] = capsys.readouterr().err.splitlines()[1:]
    assert line == (
        f"  --set data=photos.parquet: base.data: {Path.cwd()}/photos.parquet: "
        "there is no such file or folder"
    )


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("data.path=x.parquet", ("base", "data.path")),
        ("arms.vit_c.data.path=x.parquet", ("arms", "vit_c", "data.path")),
        ("start.run.data=x.parquet", ("base", "start.run.data")),
        ("resources.checkpoints=x.parquet", ("resources", "checkpoints")),
        ("vary.data={choice: [x.parquet]}", ("vary", "data", "choice", 0)),
    ],
)
def test_every_key_of_the_command_line_that_holds_a_path(project, text, where):
    from orchestrator.sweep.load import overridden

    value: Any = overridden(project / "my.yaml", sets(text), None).tree
    for key in where:
        value = value[key]
    assert value == f"{Path.cwd()}/x.parquet"


def test_the_home_folder_is_where_a_tilde_stands(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project))
    file = written(project, base=base(data="~/other.parquet"), resources={"checkpoints": "~/states"})
    sweep = load_sweep(file)
    assert sweep.base["data"] == f"{project}/other.parquet"
    assert sweep.resources.checkpoints == f"{project}/states"
    assert load_sweep(file, sets("data=~/photos.parquet")).base["data"] == f"{project}/photos.parquet"


def test_a_path_of_an_extended_file_is_relative_to_that_file(project):
    below = project / "deep" / "er"
    below.mkdir(parents=True)
    (below / "top.yaml").write_text("extends: ../../my.yaml\narms: {vit_c: {data.path: own.parquet}}\n")
    shutil.copy(project / "photos.parquet", below / "own.parquet")
    shutil.copy(project / "photos.parquet", below / "photos.parquet")
    sweep = load_sweep(below / "top.yaml")
    assert sweep.base["data"] == f"{project}/photos.parquet"
    assert sweep.arms["vit_c"]["data.path"] == f"{below}/own.parquet"


def test_dots_are_taken_out_unless_a_link_leads_elsewhere(project, tmp_path):
    (tmp_path / "far" / "off").mkdir(parents=True)
    (project / "link").symlink_to(tmp_path / "far" / "off")
    shutil.copy(project / "photos.parquet", tmp_path / "far" / "photos.parquet")
    (project / "deep").mkdir()
    plain = load_sweep(written(project, base=base(data="./deep/../other.parquet"))).base["data"]
    assert plain == f"{project}/other.parquet"
    by_link = load_sweep(written(project, base=base(data="link/../photos.parquet"))).base["data"]
    assert Path(by_link).samefile(tmp_path / "far" / "photos.parquet")


# ----------------------------------------------------------------------------------------- every kind of path


def test_every_setting_that_holds_a_path_is_made_absolute_and_nothing_else_is(project):
    from orchestrator.sweep.document import read_source

    at = f"{project}/x"
    kinds: dict[str, Any] = {
        "base": {
            "data": "x",
            "data.path": "x",
            "evaluate.shifted": [{"name": "x", "uri": "x"}],
            "evaluate": {"shifted": [{"name": "x", "uri": "x"}]},
            "start.run": {"data": "x", "start": {"run": {"data": {"path": "x", "image_column": "x"}}}},
            "start.run.start.run.data.path": "x",
            "resources.checkpoints": "x",
            "model": "x",
        },
        "arms": {"x": {"data": {"name": "parquet", "path": "x"}}},
        "cells": {"x": {"x": {"data": "x", "resources": {"checkpoints": "x"}}}},
        "vary": {
            "data.path": {"x": {"choice": ["x", "s3://x/y"]}, "y": {"ordinal": ["x"]}},
            "data": {"choice": ["x", "digits", {"name": "parquet", "path": "x"}], "zip": "x"},
            "evaluate.shifted": {"choice": [[{"name": "x", "uri": "x"}]]},
            "optim.lr": {
                "choice": [1],
                "when": {"data.path": ["x"], "start.run.data": "x", "model.stem": "x"},
            },
        },
        "where": ["data.path in ['x', 'gs://x/y'] or model.stem == 'x' and 'x' != data.path"],
        "resources": {"checkpoints": "x", "keep": "best"},
        "question": "x",
        "notify": "x",
    }
    expected: dict[str, Any] = {
        "base": {
            "data": at,
            "data.path": at,
            "evaluate.shifted": [{"name": "x", "uri": at}],
            "evaluate": {"shifted": [{"name": "x", "uri": at}]},
            "start.run": {"data": at, "start": {"run": {"data": {"path": at, "image_column": "x"}}}},
            "start.run.start.run.data.path": at,
            "resources.checkpoints": at,
            "model": "x",
        },
        "arms": {"x": {"data": {"name": "parquet", "path": at}}},
        "cells": {"x": {"x": {"data": at, "resources": {"checkpoints": at}}}},
        "vary": {
            "data.path": {"x": {"choice": [at, "s3://x/y"]}, "y": {"ordinal": [at]}},
            "data": {"choice": [at, "digits", {"name": "parquet", "path": at}], "zip": "x"},
            "evaluate.shifted": {"choice": [[{"name": "x", "uri": at}]]},
            "optim.lr": {"choice": [1], "when": {"data.path": [at], "start.run.data": at, "model.stem": "x"}},
        },
        "where": [f"data.path in ['{at}', 'gs://x/y'] or model.stem == 'x' and '{at}' != data.path"],
        "resources": {"checkpoints": at, "keep": "best"},
        "question": "x",
        "notify": "x",
    }
    file = project / "kinds.yaml"
    file.write_text(yaml.safe_dump(kinds))
    assert read_source(file).tree == expected


@pytest.mark.parametrize("path", ["digits", "s3://bucket/x", "gs://b/x", "file:///x", "http://h/x", "/x/y"])
def test_names_of_data_sets_and_whole_addresses_stay_as_they_are(project, path):
    (project / path.replace("/", "_")).touch()
    assert load_sweep(written(project, base=base(data=path))).base["data"] == path


def test_what_is_no_path_is_refused_in_its_place_as_before(project):
    file = written(project, base=base(data={"name": "parquet", "path": ""}))
    with pytest.raises(SweepError, match=r"changed\.yaml:12:5: base\.data\.path: must have at least 1 char"):
        load_sweep(file)
    file = written(project, base=base(data={"name": "parquet", "path": ["photos.parquet"]}))
    with pytest.raises(SweepError, match=r"changed\.yaml:12:5: base\.data\.path: must be text"):
        load_sweep(file)
    file.write_text(SWEEP.replace("photos.parquet", '"photos\\0"'))
    assert command("plan", file) == 2


def test_ids_do_not_depend_on_how_a_path_is_written_nor_on_where_one_stands(project, monkeypatch):
    shifted = [{"name": "other", "uri": "other.parquet"}]
    first = base() | {"optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}}
    file = written(project, base=base(evaluate={"shifted": shifted}, **{"start.run": first}))
    ids = [trial.id for trial in plan_of(file).trials]
    assert len(set(ids)) == 3
    monkeypatch.chdir(project)
    assert [trial.id for trial in plan_of(Path("changed.yaml")).trials] == ids
    copied = project.parent / "copy"
    shutil.copytree(project, copied)
    assert [trial.id for trial in plan_of(copied / "changed.yaml").trials] == ids


# ---------------------------------------------------------------------------------------- folders of results


def as_earlier(folder: Path, project: Path) -> None:
    """Leaves a folder of results as versions did that wrote paths down as they were typed."""
    for name in ("sweep.yaml", "record.json"):
        text = (folder / name).read_text()
        assert f"{project}/photos.parquet" in text
        (folder / name).write_text(text.replace(f"{project}/", ""))


@pytest.fixture
def ended(project) -> Path:
    """A folder of results, `project/runs/my`; one of its two trials has failed, the other has finished."""
    plan = plan_of(project / "my.yaml")
    folder = project / "runs" / "my"
    save_question(folder, plan)
    row = {
        "epoch": 1,
        "step": 4,
        "lr": 1e-5,
        "train_loss": 0.5,
        "val_loss": 0.4,
        "val_top1_error_pct": 12.5,
        "val_raw_top1_error_pct": 12.5,
        "train_seconds": 0.5,
        "val_seconds": 0.1,
        "test_top1_error_pct": 13.5,
    }
    writer = Writer(folder)
    finished, failed = [trial.id for trial in plan.trials]
    writer.append([EpochDone(trial=finished, attempt=1, row=row_of(row))])
    common = {"attempt": 1, "seconds": 1.0, "time": 2.0, "final": True}
    writer.append([AttemptEnded(trial=finished, end="finished", detail="", **common)])
    writer.append([AttemptEnded(trial=failed, end="failed", detail="OSError: the disk is on fire", **common)])
    writer.close()
    return folder


@pytest.fixture
def tried(monkeypatch) -> list[str]:
    """Paths of the data of trials that a command was about to run; it goes no further."""
    found: list[str] = []

    def try_out(plan, todo, *_):
        found.extend(trial.config.data.path for trial in todo)
        return PreflightResult(1, (), (Fault("base.data", "so far and no further"),), 1.0, None)

    monkeypatch.setattr("orchestrator.execution.session.try_out", try_out)
    return found


@pytest.mark.parametrize("earlier", [False, True], ids=["now", "earlier"])
def test_a_folder_of_results_is_gone_on_with_from_another_folder(project, ended, tried, earlier, capsys):
    if earlier:
        as_earlier(ended, project)
    assert command("retry", ended, "--failed") == 2
    assert tried == [f"{project}/photos.parquet"]
    assert command("confirm", ended, "--top", 1, "--seeds", 2) == 2
    assert tried == [f"{project}/photos.parquet"] * 3
    assert command("run", project / "my.yaml", "--out", ended, "--points", 2) == 2
    assert tried == [f"{project}/photos.parquet"] * 5
    assert command("report", ended) == 1


def test_what_earlier_versions_wrote_is_shown_as_it_stands_and_looked_for_to_run(project, ended):
    ids = [trial.id for trial in open_folder(ended).plan.trials]
    as_earlier(ended, project)
    shown, to_run = open_folder(ended).plan, open_folder(ended, to_run=True).plan
    assert [config.path for config in shown.infos] == ["photos.parquet"]
    assert [config.path for config in to_run.infos] == [f"{project}/photos.parquet"]
    assert [trial.id for trial in shown.trials] == [trial.id for trial in to_run.trials] == ids
    # The nearest folder above is asked first.
    shutil.copy(project / "other.parquet", ended.parent / "photos.parquet")
    [config] = open_folder(ended, to_run=True).plan.infos
    assert config.path == f"{ended.parent}/photos.parquet"


def test_data_that_are_nowhere_are_told_by_what_stands_in_the_folder(project, ended, tried, capsys):
    as_earlier(ended, project)
    (project / "photos.parquet").unlink()
    assert command("retry", ended, "--failed") == 2
    assert capsys.readouterr().err == "photos.parquet: there is no such file or folder\n"
    assert not tried


# --------------------------------------------------------------------------- where others work: children, Ray


def test_preflight_tries_from_a_folder_of_its_own(project, monkeypatch):
    monkeypatch.chdir(project)
    tree = yaml.safe_load(SWEEP)["base"] | {"optim.lr": 1e-3}
    request = Request(TrainConfig.model_validate(tree))
    with Child(on_gpu=False, timeout_seconds=120) as child:
        assert child(Gang(1, 1, 0.0), request).rule == "photos.parquet: there is no such file or folder"
        folder = Path(child._folder.name)
        assert Path(os.readlink(f"/proc/{child._process.pid}/cwd")) == folder
    assert not folder.exists()


def test_one_run_alone_finds_its_data_beside_its_file_or_here(project, capsys, run_tree):
    def run(data: str) -> int:
        file = project / "run.yaml"
        # So short a run learns nothing, which is no matter here.
        settings = {"batch_size": 10, "schedule__epochs": 1, "divergence": {"margin_pct": 0, "window": 9}}
        file.write_text(yaml.safe_dump(run_tree(data=data, **settings)))
        return trainables.__main__.main([str(file)])

    # It may end as diverged; it has read its data and trained.
    assert run("photos.parquet") != 2
    assert '"epoch": 1' in capsys.readouterr().out
    shutil.copy(project / "photos.parquet", "mine.parquet")
    assert run("mine.parquet") != 2
    assert '"epoch": 1' in capsys.readouterr().out
    assert run("gone.parquet") == 2
    assert capsys.readouterr().err == (
        f"{project}/run.yaml: data: {project}/gone.parquet: there is no such file or folder "
        f"(gone.parquet was looked for in {project} and in {Path.cwd()})\n"
    )


def test_results_may_go_to_the_home_folder(project, monkeypatch, tried):
    asked = []
    monkeypatch.setenv("HOME", str(project))
    monkeypatch.setattr("orchestrator.execution.session.check_free", asked.append)
    assert command("run", project / "my.yaml", "--out=~/there") == 2
    assert asked == [project / "there"]


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_the_example_of_the_readme_runs_from_another_folder(tmp_path):
    [example] = blocks((ROOT / "README.md").read_text(), "yaml")
    assert "data: photos.parquet" in example
    project, here = tmp_path / "project", tmp_path / "elsewhere"
    here.mkdir()
    for label, shade in (("dark", 40), ("light", 200)):
        (project / "photos" / label).mkdir(parents=True)
        for i in range(20):
            image = Image.fromarray(np.full((40, 40, 3), shade + i, np.uint8))
            image.save(project / "photos" / label / f"{i}.jpg")
    import_folder(project / "photos", project / "photos.parquet")
    (project / "my.yaml").write_text(example)
    small = [
        "model.size=nano",
        "model.image_size=32",
        "model.patch_size=8",
        "schedule.epochs=1",
        "batch_size=10",
    ]
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("vitc-sweep"), "run", "../project/my.yaml", "--no-mlflow"),
            *("--points", "1", "--out", "results", *(word for one in small for word in ("--set", one))),
        ],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 trials to run; results go to results\n" in done.stdout
    events = [event for event in read_journal(here / "results").events if isinstance(event, AttemptEnded)]
    # With such a rate an arm may learn nothing in one epoch, which is a result, too.
    assert len(events) == 4
    assert {event.end for event in events} <= {"finished", "diverged"}
    saved = yaml.safe_load((here / "results" / "sweep.yaml").read_text())
    assert saved["base"]["data"] == f"{project}/photos.parquet"
    [data] = json.loads((here / "results" / "record.json").read_text())["data"]
    assert data["config"]["path"] == f"{project}/photos.parquet"
    assert re.search(r"^report: results/report/report.html$", done.stdout, re.MULTILINE)
