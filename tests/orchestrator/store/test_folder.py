"""The folder of a sweep: what was asked is kept, and another question is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.execution import session
from orchestrator.execution.session import check_data
from orchestrator.store.folder import (
    known_infos,
    merge_points,
    open_folder,
    save_question,
    shifted_contents,
)
from orchestrator.store.journal import FolderError, Writer
from orchestrator.trials.events import AttemptBegan, AttemptEnded, EpochDone
from orchestrator.trials.plan import make_plan
from orchestrator.trials.sweep_file import SweepFile
from orchestrator.trials.trial import Plan
from tests.support.sweeps import epoch_row, plan_from

TREE = {
    "name": "small",
    "question": "A or B?",
    "base": {
        "model": {"family": "vit", "size": "nano", "image_size": 32, "patch_size": 8},
        "data": "digits",
        "schedule": {"epochs": 2, "warmup": "10%"},
    },
    "arms": {
        "vit_p": {"model.stem": "patchify"},
        "vit_c": {"model.stem": {"channels": [16, 64], "strides": [4, 2]}},
    },
    "cells": {"optimizer": {"adamw": {"optim.name": "adamw"}, "sgd": {"optim.name": "sgd"}}},
    "vary": {
        "optim.lr": {"adamw": {"log_uniform": [1e-4, 1e-2]}, "sgd": {"log_uniform": [0.01, 0.1]}},
        "optim.weight_decay": {"uniform": [0, 0.1]},
        "batch_size": {"choice": [32, 64]},
    },
    "design": {"kind": "sobol", "points": 4},
    "primary": {"measure": "error"},
}


def plan_of(**changes: object) -> Plan:
    return plan_from(TREE | changes)


def test_a_folder_gives_back_the_same_trials_as_were_planned(tmp_path):
    plan = plan_of()
    save_question(tmp_path, plan)
    opened = open_folder(tmp_path)
    assert opened.plan.trials == plan.trials
    assert opened.plan.infos == plan.infos
    assert opened.plan.sweep == plan.sweep


def test_a_folder_is_read_without_its_data(tmp_path, monkeypatch):
    save_question(tmp_path, plan_of())

    def refuse(self: object) -> None:
        raise AssertionError("the data were looked at")

    monkeypatch.setattr("trainables.data.digits.Digits.info", refuse)
    assert len(open_folder(tmp_path).plan.trials) == 16


def run_all(folder: Path, plan: Plan, extra: dict[str, float] | None = None) -> None:
    writer = Writer(folder)
    for trial in plan.trials:
        writer.append([AttemptBegan(trial=trial.id, attempt=1, lane="lane", time=0.0)])
        if extra:
            writer.append([EpochDone(trial=trial.id, attempt=1, row=epoch_row(extra=extra))])
        writer.append(
            [
                AttemptEnded(
                    trial=trial.id, attempt=1, end="finished", detail="", seconds=1.0, time=1.0, final=True
                )
            ]
        )
    writer.close()


def test_more_points_are_taken_up_and_the_old_trials_kept(tmp_path):
    save_question(tmp_path, plan_of())
    run_all(tmp_path, plan_of())
    longer = plan_of(design={"kind": "sobol", "points": 8})
    save_question(tmp_path, longer)
    done = [key for key, record in open_folder(tmp_path).records.items() if record.settled]
    assert {trial.point for trial in longer.remaining(done)} == {4, 5, 6, 7}


def test_a_sweep_that_was_extended_stays_extended(tmp_path):
    save_question(tmp_path, plan_of(design={"kind": "sobol", "points": 8}))
    assert merge_points(tmp_path, plan_of().sweep).design.points == 8


def test_another_question_in_the_same_folder_is_refused_and_nothing_is_written(tmp_path):
    save_question(tmp_path, plan_of())
    run_all(tmp_path, plan_of())
    before = (tmp_path / "sweep.yaml").read_bytes()
    other = json.loads(json.dumps(TREE))
    other["base"]["schedule"]["epochs"] = 3
    with pytest.raises(FolderError, match=r"16 trial\(s\) that this sweep file does not ask for"):
        save_question(tmp_path, plan_of(**other))
    assert (tmp_path / "sweep.yaml").read_bytes() == before


def test_changed_data_are_another_question(tmp_path):
    plan = plan_of()
    save_question(tmp_path, plan)
    run_all(tmp_path, plan)
    infos = {config: dataclasses.replace(info, fingerprint="other") for config, info in plan.infos.items()}
    with pytest.raises(FolderError, match="other data"):
        save_question(tmp_path, make_plan(plan.sweep, infos))


def test_shifted_sets_whose_images_have_changed_are_refused_once_trials_were_tested_on_them(
    tmp_path, png_bytes
):
    picture, folder, away = tmp_path / "set" / "3" / "a.png", tmp_path / "runs", tmp_path / "away"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(png_bytes(np.full((8, 8, 3), 10)))
    evaluate = {"shifted": [{"name": "other", "uri": str(tmp_path / "set")}]}
    plan = plan_of(base=TREE["base"] | {"evaluate": evaluate})

    def save():
        save_question(folder, plan, shifted=shifted_contents(plan))

    save()
    first = open_folder(folder).record["shifted"]
    picture.write_bytes(png_bytes(np.full((8, 8, 3), 11)))
    # Nothing has been tested on it yet, so the set is as it is now; nor if trials failed before that.
    run_all(folder, plan, {"clean": 30.0})
    save()
    check_data(open_folder(folder))
    assert (second := open_folder(folder).record["shifted"]) != first
    run_all(folder, plan, {"shifted/other": 90.0})
    save()
    # A machine that cannot read the set keeps what is on record.
    (tmp_path / "set").rename(away)
    save()
    assert open_folder(folder).record["shifted"] == second
    away.rename(tmp_path / "set")
    picture.write_bytes(png_bytes(np.full((8, 8, 3), 10)))
    with pytest.raises(FolderError, match="images of the shifted set other have changed"):
        save()
    with pytest.raises(FolderError, match="images of the shifted set other have changed"):
        check_data(open_folder(folder))
    assert open_folder(folder).record["shifted"] == second


def test_shifted_sets_are_looked_at_before_the_preflight(tmp_path, png_bytes, monkeypatch):
    picture, folder, file = tmp_path / "set" / "3" / "a.png", tmp_path / "runs", tmp_path / "small.yaml"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(png_bytes(np.full((8, 8, 3), 10)))
    evaluate = {"shifted": [{"name": "other", "uri": str(tmp_path / "set")}]}
    file.write_text(json.dumps(TREE | {"base": TREE["base"] | {"evaluate": evaluate}}))
    asked = SweepFile(file)
    plan = asked.plan()
    # A new sweep has nothing to compare with, so its sets are not read yet.
    assert session.prepare(asked, folder, check=False)[1].shifted is None
    save_question(folder, plan, shifted=shifted_contents(plan))
    run_all(folder, plan, {"shifted/other": 90.0})
    assert session.prepare(asked, folder, check=False)[1].shifted == shifted_contents(plan)
    picture.write_bytes(png_bytes(np.full((8, 8, 3), 11)))
    monkeypatch.setattr(session, "checked", lambda *_: pytest.fail("the preflight began"))
    with pytest.raises(FolderError, match="images of the shifted set other have changed"):
        session.prepare(SweepFile(file, points=8), folder)


def test_a_folder_that_is_no_sweep_is_named(tmp_path):
    with pytest.raises(FolderError, match="holds no sweep"):
        open_folder(tmp_path)
    with pytest.raises(FolderError, match="none: there is no such folder"):
        open_folder(tmp_path / "none")


@pytest.mark.parametrize("content", ["", "{", '{"data": 3}', '{"data": [{"config": {"name": "x"}}]}'])
def test_a_damaged_record_is_an_error_with_its_name_and_no_traceback(tmp_path, content):
    save_question(tmp_path, plan_of())
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(FolderError, match=r"record\.json"):
        open_folder(tmp_path)


def test_the_record_names_code_versions_and_machine(tmp_path):
    save_question(tmp_path, plan_of())
    record = open_folder(tmp_path).record
    assert record["versions"].keys() >= {"torch", "ray", "timm"}
    assert record["machine"]["cpus"] >= 1
    assert record["created"].endswith("Z")


def test_the_record_holds_no_environment_variable(tmp_path, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@example.org")
    save_question(tmp_path, plan_of())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert not any(b"hunter2" in path.read_bytes() for path in files)


def test_trials_keep_their_ids_where_a_folder_knows_the_data_by_an_earlier_fingerprint(tmp_path):
    plan = plan_of()
    [(config, info)] = plan.infos.items()
    earlier = dataclasses.replace(info, fingerprint="earlier")
    before = make_plan(plan.sweep, {config: earlier})
    save_question(tmp_path, before)
    now = {config: dataclasses.replace(info, earlier_fingerprint="earlier")}
    again = make_plan(plan.sweep, known_infos(tmp_path, now))
    assert [trial.id for trial in again.trials] == [trial.id for trial in before.trials]
    # Other data are other data, and a folder that is not there knows none.
    assert known_infos(tmp_path, plan.infos) == plan.infos
    assert known_infos(tmp_path / "none", now) == now
