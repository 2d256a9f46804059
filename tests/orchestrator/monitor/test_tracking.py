import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from orchestrator.monitor import tracking
from orchestrator.monitor.observers import numbers_of
from orchestrator.monitor.tracking import (
    STATE_FILE,
    Tracker,
    artifact_root,
    experiment_address,
    metrics_of,
    sqlite_path,
    tracking_uri,
    ui_address,
    ui_command,
    ui_environment,
    unanswered,
)
from orchestrator.report.page import write_report
from orchestrator.store.folder import open_folder, save_question
from orchestrator.store.journal import Writer
from orchestrator.trials.events import AttemptBegan, AttemptEnded, DeviceUsed, EpochDone, Event, row_of
from orchestrator.trials.outcomes import RULES
from orchestrator.trials.trial import Plan
from tests.support.sweeps import base_tree, plan_of
from trainables.base import EPOCH_LABELS, DeviceUse
from trainables.tasks.classification import Classification

BEGAN = 1_700_000_000.0
QUESTION = "Is a convolutional stem more forgiving of lr?"


def a_plan(points: int = 2) -> Plan:
    """Two arms in one cell."""
    return plan_of(
        question=QUESTION,
        base=base_tree(optim=None) | {"optim.weight_decay": 0.1},
        arms={"vit_p": {"model.stem": "patchify"}, "vit_c": {"model.stem": "conv"}},
        cells={"optimizer": {"adamw": {"optim.name": "adamw"}}},
        vary={"optim.lr": {"log_uniform": [2.5e-4, 8e-3]}},
        design={"kind": "sobol", "points": points, "seed": 0},
    )


@pytest.fixture(scope="module")
def plan() -> Plan:
    return a_plan()


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables, which MLflow takes seconds to make."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def bare_folder(tmp_path: Path) -> Path:
    """The folder of a sweep, and nothing beside it."""
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "sweep.yaml").write_text("name: small\n")
    return folder


@pytest.fixture
def folder(bare_folder: Path, empty_store: Path) -> Path:
    """The folder of a sweep beside a store that knows nothing of it."""
    shutil.copyfile(empty_store, bare_folder.parent / "mlflow.db")
    return bare_folder


@pytest.fixture(autouse=True)
def _default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


#: Errors have the name of what they are the error of, where that is not their column's.
METRICS = {
    "val_error_pct": "val_top1_error_pct",
    "val_raw_error_pct": "val_raw_top1_error_pct",
    "test_error_pct": "test_top1_error_pct",
}


def row(epoch: int, **changes: Any) -> dict[str, Any]:
    """One row of results, every number told apart from the others."""
    numbers = {name: index + epoch / 100 for index, name in enumerate(EPOCH_LABELS)}
    return numbers | {"epoch": epoch, "step": 20 * epoch, "test_error_pct": None} | changes


def story(
    trial_id: str, epochs: range, end: str | None, attempt: int = 1, began: float = BEGAN
) -> list[Event]:
    """What the journal says of one attempt at a trial."""
    events = [AttemptBegan(trial=trial_id, attempt=attempt, lane="lane-0", time=began)]
    events += [EpochDone(trial=trial_id, attempt=attempt, row=row_of(row(epoch))) for epoch in epochs]
    if end is not None:
        events.append(
            AttemptEnded(
                trial=trial_id,
                attempt=attempt,
                end=end,
                detail=f"why {end}",
                seconds=9.0,
                time=began + 99,
                final=end != "lost",
            )
        )  # type: ignore[arg-type]
    return events


def tell(
    plan: Plan, folder: Path, events: list[Event], *artifacts: Path, uri: str | None = None
) -> str | None:
    """One process that runs a sweep, as far as its tracker sees it."""
    tracker = Tracker(plan, folder, uri or tracking_uri(folder))
    tracker.start()
    tracker.observe(events)
    for artifact in artifacts:
        tracker.add_artifact(artifact)
    return tracker.close(30)


class Seen:
    """What MLflow's own client reads in a store."""

    def __init__(self, folder: Path, uri: str | None = None) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(uri or tracking_uri(folder))
        experiment = self.client.get_experiment_by_name("small")
        assert experiment is not None
        runs = self.client.search_runs([experiment.experiment_id])
        self.parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        sweep_id = json.loads((folder / STATE_FILE).read_text())["sweep_id"]
        (self.parent,) = [run for run in self.parents if run.data.tags["sweep_id"] == sweep_id]
        nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == self.parent.info.run_id]
        self.trials = {run.data.tags["trial_id"]: run for run in nested}
        assert len(self.trials) == len(nested)

    def curve(self, trial_id: str, metric: str) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.trials[trial_id].info.run_id, metric)
        return [(point.step, point.value) for point in history]


def test_a_sweep_is_a_run_with_one_nested_run_per_trial(
    plan: Plan, bare_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = bare_folder / "report.html"
    report.write_text("<p>result</p>")
    events = [event for trial in plan.trials for event in story(trial.id, range(1, 4), "finished")]

    assert tell(plan, bare_folder, events, report) is None
    # The terminal belongs to the sweep: nothing of tables created, runs to view, migrations.
    assert capfd.readouterr() == ("", "")

    seen = Seen(bare_folder)
    parent = seen.parent
    assert (parent.info.run_name, parent.info.status) == ("small", "FINISHED")
    assert parent.data.tags["question"] == QUESTION
    assert parent.data.tags["sweep_folder"] == str(bare_folder)
    artifacts = seen.client.list_artifacts(parent.info.run_id)
    assert [artifact.path for artifact in artifacts] == ["report.html", "sweep.yaml"]
    # Beside the store, not in the directory where the command was given.
    assert len(list((bare_folder.parent / "mlartifacts").rglob("report.html"))) == 1

    assert seen.trials.keys() == {trial.id for trial in plan.trials}
    for trial in plan.trials:
        run = seen.trials[trial.id]
        assert run.info.run_name == f"{trial.arm} adamw p{trial.point}"
        expected = {"arm": trial.arm, "cell": "adamw", "point": str(trial.point), "replicate": "0"}
        assert expected.items() <= run.data.tags.items()
        assert run.data.tags["outcome"] == "finished"
        assert run.info.status == "FINISHED"
        assert (run.info.start_time, run.info.end_time) == (BEGAN * 1000, (BEGAN + 99) * 1000)
        assert run.data.params["optim.lr"] == str(trial.values["optim.lr"])
        assert run.data.params["model.stem"] == ("conv" if trial.arm == "vit_c" else "patchify")
        assert run.data.params["schedule.epochs"] == "3"
        for name in EPOCH_LABELS:
            metric = METRICS.get(name, name)
            # What a row does not have is no point of a curve.
            points = [] if name == "test_error_pct" else [(n, row(n)[name]) for n in (1, 2, 3)]
            assert seen.curve(trial.id, metric) == points


def test_a_sweep_that_goes_on_says_nothing_twice(plan: Plan, folder: Path) -> None:
    first, second, third, fourth = (trial.id for trial in plan.trials)
    before = [
        *story(first, range(1, 4), "finished"),
        *story(second, range(1, 3), "lost"),
        *story(third, range(1, 2), None),
    ]
    assert tell(plan, folder, before) is None
    seen = Seen(folder)
    assert seen.parent.info.status == "KILLED"
    assert seen.trials[second].data.tags["outcome"] == "unfinished"
    runs = {trial_id: run.info.run_id for trial_id, run in seen.trials.items()}

    after = [
        # Tried again from a checkpoint after epoch 1: epoch 2 comes again.
        *story(second, range(2, 4), "finished", attempt=2, began=BEGAN + 500),
        # Found dead by the next run, and then started over.
        *story(third, range(1, 4), "finished", attempt=2, began=BEGAN + 600),
        *story(fourth, range(1, 4), "diverged", began=BEGAN + 700),
    ]
    assert tell(plan, folder, before + after) is None
    # And once more, with nothing new, as `run` on a sweep that is done.
    assert tell(plan, folder, before + after) is None

    seen = Seen(folder)
    assert len(seen.parents) == 1
    assert seen.parent.info.status == "FINISHED"
    assert {trial_id: seen.trials[trial_id].info.run_id for trial_id in runs} == runs
    for trial_id in (first, second, third, fourth):
        assert seen.curve(trial_id, "val_loss") == [(n, row(n)["val_loss"]) for n in (1, 2, 3)]
        assert seen.trials[trial_id].info.status == "FINISHED"
    assert seen.trials[second].data.tags["attempts"] == "2"
    assert seen.trials[fourth].data.tags["outcome"] == "diverged"


def test_metrics_go_on_where_they_were_when_a_sweep_is_told_piece_by_piece(plan: Plan, folder: Path) -> None:
    trial_id = plan.trials[0].id
    events = story(trial_id, range(1, 302), "finished")
    tracker = Tracker(plan, folder, tracking_uri(folder))
    # Without the waiting between batches, every few events are a batch of their own.
    for start in range(0, len(events), 40):
        tracker.observe(events[start : start + 40])
        tracker._read_inbox()
        tracker._flush(closing=False)
    # 301 epochs are more than fit into one call.
    tracker = Tracker(plan, folder, tracking_uri(folder))
    other = plan.trials[1].id
    tracker.observe(events + story(other, range(1, 302), "finished"))
    tracker._read_inbox()
    tracker._flush(closing=True)

    seen = Seen(folder)
    for name in (trial_id, other):
        assert seen.curve(name, "lr") == [(n, row(n)["lr"]) for n in range(1, 302)]


def test_errors_under_corruption_and_shift_are_metrics_of_the_last_epoch(plan: Plan, folder: Path) -> None:
    trial_id = plan.trials[0].id
    errors = {"clean": 20.0, "corruption/fog": 30.0, "corruption/snow": 50.0, "shifted/imagenet_v2": 35.0}
    events = story(trial_id, range(1, 4), "finished")
    last = events[-2]
    assert isinstance(last, EpochDone)
    events[-2] = dataclasses.replace(last, row=dataclasses.replace(last.row, extra=errors | {"iou/car": 7.0}))
    assert tell(plan, folder, events) is None
    seen = Seen(folder)
    for name, error in {"clean": 20.0, "fog": 30.0, "snow": 50.0, "imagenet_v2": 35.0}.items():
        assert seen.curve(trial_id, f"shift_top1_error_pct/{name}") == [(3, error)]
    assert seen.curve(trial_id, "iou/car") == [(3, 7.0)]
    # The mean over two kinds, and what it is above clean.
    assert seen.curve(trial_id, "corrupted_top1_error_pct") == [(3, 40.0)]
    assert seen.curve(trial_id, "corruption_added_pp") == [(3, 20.0)]


def test_a_store_that_has_more_than_we_were_told_is_asked_and_not_told_again(
    plan: Plan, folder: Path
) -> None:
    """As after a reply that was lost: the call arrived, and we do not know."""
    trial_id = plan.trials[0].id
    events = story(trial_id, range(1, 4), "finished")
    tracker = Tracker(plan, folder, tracking_uri(folder))
    tracker.observe(events)
    tracker._read_inbox()
    tracker._flush(closing=False)

    forgetful = Tracker(plan, folder, tracking_uri(folder))
    forgetful.observe(events)
    forgetful._read_inbox()
    forgetful._flush(closing=False)

    seen = Seen(folder)
    assert len(seen.trials) == len(seen.parents) == 1
    assert seen.curve(trial_id, "val_loss") == [(n, row(n)["val_loss"]) for n in (1, 2, 3)]


def test_numbers_that_are_none_are_left_out(plan: Plan, folder: Path) -> None:
    trial_id = plan.trials[0].id
    events = [
        AttemptBegan(trial=trial_id, attempt=1, lane="lane-0", time=BEGAN),
        DeviceUsed(trial=trial_id, attempt=1, use=DeviceUse(name="NVIDIA L4", dtype="bf16")),
        EpochDone(trial=trial_id, attempt=1, row=row_of(row(1))),
        EpochDone(
            trial=trial_id,
            attempt=1,
            row=row_of(row(2, train_loss=math.nan, val_loss=math.inf, test_error_pct=7.5)),
        ),
        AttemptEnded(
            trial=trial_id,
            attempt=1,
            end="diverged",
            detail="loss is nan",
            seconds=3.0,
            time=BEGAN + 9,
            final=True,
        ),
    ]
    assert tell(plan, folder, events) is None
    seen = Seen(folder)
    assert [step for step, _ in seen.curve(trial_id, "train_loss")] == [1]
    assert [step for step, _ in seen.curve(trial_id, "val_loss")] == [1]
    assert seen.curve(trial_id, "test_top1_error_pct") == [(2, 7.5)]
    assert seen.trials[trial_id].data.tags["detail"] == "loss is nan"
    assert seen.trials[trial_id].data.tags["device"] == "NVIDIA L4 (bf16)"


@pytest.fixture(scope="module")
def long_plan() -> Plan:
    return a_plan(points=len(RULES))


def test_every_outcome_is_shown(long_plan: Plan, folder: Path) -> None:
    ids = {end: trial.id for end, trial in zip(RULES, long_plan.trials, strict=False)}
    events = [
        event
        for end, trial_id in ids.items()
        for event in [
            AttemptBegan(trial=trial_id, attempt=1, lane="lane-0", time=BEGAN),
            AttemptEnded(
                trial=trial_id, attempt=1, end=end, detail="", seconds=1.0, time=BEGAN + 1, final=True
            ),
        ]
    ]
    assert tell(long_plan, folder, events) is None
    shown = defaultdict(set)
    for end, trial_id in ids.items():
        run = Seen(folder).trials[trial_id]
        assert run.data.tags["outcome"] == end
        shown[run.info.status].add(end)
    assert shown == {
        "FINISHED": {"finished", "diverged"},
        "KILLED": {"stopped", "cancelled"},
        "FAILED": {"invalid", "out_of_memory", "failed", "preempted", "lost"},
    }


def test_an_empty_store_and_a_lost_name_get_a_new_run_with_everything(
    plan: Plan, folder: Path, empty_store: Path
) -> None:
    trial_id = plan.trials[0].id
    events = story(trial_id, range(1, 4), "finished")
    curve = [(n, row(n)["val_loss"]) for n in (1, 2, 3)]
    assert tell(plan, folder, events) is None
    # Not the same file wiped: within one process MLflow holds on to a file that it has open.
    shutil.copyfile(empty_store, folder.parent / "empty.db")
    empty = f"sqlite:///{folder.parent}/empty.db"
    assert tell(plan, folder, events, uri=empty) is None
    assert len(Seen(folder, empty).parents) == 1
    assert Seen(folder, empty).curve(trial_id, "val_loss") == curve

    (folder / STATE_FILE).unlink()
    assert tell(plan, folder, events) is None
    seen = Seen(folder)
    assert len(seen.parents) == 2
    assert seen.curve(trial_id, "val_loss") == curve


def test_a_run_that_was_deleted_is_made_again(plan: Plan, folder: Path) -> None:
    trial_id = plan.trials[0].id
    events = story(trial_id, range(1, 4), "finished")
    assert tell(plan, folder, events) is None
    seen = Seen(folder)
    seen.client.delete_experiment(seen.parent.info.experiment_id)
    assert tell(plan, folder, events) is None
    assert len(Seen(folder).parents) == 1
    seen.client.delete_run(seen.trials[trial_id].info.run_id)
    assert tell(plan, folder, events) is None
    assert Seen(folder).curve(trial_id, "val_loss") == [(n, row(n)["val_loss"]) for n in (1, 2, 3)]


def test_a_server_that_is_down_costs_nothing_but_a_line(
    plan: Plan, bare_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_INTERVAL_SECONDS", 0.1)
    events = [event for trial in plan.trials for event in story(trial.id, range(1, 300), "finished")]
    tried, store = threading.Event(), tracking._Store

    def trying(*args: Any) -> Any:
        try:
            return store(*args)
        finally:
            tried.set()

    monkeypatch.setattr(tracking, "_Store", trying)
    monkeypatch.setattr(tracking, "_INTERVAL_SECONDS", 0.2)
    # Nothing listens on the discard port.
    tracker = Tracker(plan, bare_folder, "http://someone:secret@127.0.0.1:9")
    tracker.start()
    began = time.perf_counter()
    tracker.observe(events)
    assert time.perf_counter() - began < 0.05
    assert tried.wait(60)
    tracker.observe(events)
    began = time.perf_counter()
    warning = tracker.close(15)
    assert time.perf_counter() - began < 15.5
    assert warning is not None
    assert "http://***@127.0.0.1:9 is not up to date" in warning
    assert "\n" not in warning
    assert "secret" not in warning
    assert capfd.readouterr() == ("", "")


def test_a_server_that_takes_no_runs_is_told_of_without_its_password(bare_folder: Path) -> None:
    warning = unanswered("http://someone:secret@127.0.0.1:9")
    assert warning.startswith("MLflow at http://***@127.0.0.1:9 accepts no runs: ")
    assert "secret" not in warning
    # A file is there as soon as it is wanted.
    assert unanswered(f"sqlite:///{bare_folder}/mlflow.db") == ""
    assert not (bare_folder / "mlflow.db").exists()


def test_a_server_that_does_not_answer_is_not_waited_for(plan: Plan, bare_folder: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = Tracker(plan, bare_folder, f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracker.start()
        tracker.observe(story(plan.trials[0].id, range(1, 4), "finished"))
        began = time.perf_counter()
        warning = tracker.close(1.0)
        assert time.perf_counter() - began < 2
        assert warning is not None
        assert "not done after 1 s" in warning


def test_one_trial_that_the_store_refuses_does_not_hold_up_the_others(
    plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    bad, *good = (trial.id for trial in plan.trials)
    create_run, refusals = MlflowClient.create_run, threading.Semaphore(0)

    def refusing(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs["tags"].get("trial_id") == bad:
            refusals.release()
            raise RuntimeError("refused")
        return create_run(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", refusing)
    monkeypatch.setattr(tracking, "_INTERVAL_SECONDS", 0.1)
    tracker = Tracker(plan, folder, tracking_uri(folder))
    tracker.start()
    tracker.observe(
        [event for trial_id in (bad, *good) for event in story(trial_id, range(1, 3), "finished")]
    )
    # After the first refusal it comes last: at the second one the others have been sent.
    assert all(refusals.acquire(timeout=60) for _ in range(2))
    warning = tracker.close(30)
    assert warning is not None
    assert "RuntimeError: refused" in warning
    assert Seen(folder).trials.keys() == set(good)


def test_a_tracker_with_nothing_to_tell_leaves_no_trace(plan: Plan, bare_folder: Path) -> None:
    assert tell(plan, bare_folder, []) is None
    assert [path.name for path in bare_folder.parent.iterdir()] == ["small"]
    assert Tracker(plan, bare_folder, tracking_uri(bare_folder)).close(1) is None


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, orchestrator.monitor.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_store_is_a_file_beside_the_sweeps_unless_the_environment_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tracking_uri(tmp_path / "runs" / "small")
    assert uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert artifact_root(uri) == tmp_path / "runs" / "mlartifacts"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example.org")
    assert tracking_uri(tmp_path) == "https://tracking.example.org"
    assert artifact_root("https://tracking.example.org") is None


def test_the_pages_are_served_on_the_loopback_and_a_server_serves_its_own() -> None:
    command = ui_command("sqlite:////runs/mlflow.db", port=5001)
    assert command[:5] == [sys.executable, "-P", "-m", "mlflow", "ui"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5001"
    assert ui_address("127.0.0.1", 5001).startswith("http://127.0.0.1:5001/#/experiments")
    with pytest.raises(ValueError, match=r"https://\*\*\*@tracking.example.org is an MLflow server"):
        ui_command("https://me:secret@tracking.example.org")


def test_the_password_of_a_store_is_in_no_argument_and_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "mysql+pymysql://me:hunter2@127.0.0.1:1/db?ssl_key=k&password=hunter2"
    # Everyone on a machine sees the arguments of its processes.
    assert "hunter2" not in " ".join(ui_command(uri))
    assert ui_environment(uri) == {"MLFLOW_BACKEND_STORE_URI": uri}

    def refuse(*_: object) -> None:
        raise OSError(f"cannot reach {uri}\nor any other")

    monkeypatch.setattr(tracking, "_Store", refuse)
    plan = a_plan()
    tracker = Tracker(plan, tmp_path, uri)
    tracker.observe([AttemptBegan(trial=plan.trials[0].id, attempt=1, lane="lane", time=BEGAN)])
    tracker.start()
    warning = tracker.close(timeout_seconds=30)
    assert warning is not None
    assert "cannot reach mysql+pymysql://***@127.0.0.1:1/db" in warning
    assert "hunter2" not in warning


@pytest.mark.parametrize("name", ["plain", "what? 100%41 #1", "größe"])
def test_the_database_of_a_folder_of_any_name_lies_beside_its_sweeps(
    tmp_path: Path, empty_store: Path, plan: Plan, name: str
) -> None:
    folder = tmp_path / name / "small"
    folder.mkdir(parents=True)
    uri = tracking_uri(folder)
    assert sqlite_path(uri) == tmp_path / name / "mlflow.db"
    assert artifact_root(uri) == tmp_path / name / "mlartifacts"
    shutil.copyfile(empty_store, tmp_path / name / "mlflow.db")
    before = set(tmp_path.iterdir())
    assert tell(plan, folder, story(plan.trials[0].id, range(1, 3), "finished")) is None
    assert len(Seen(folder).trials) == 1
    assert set(tmp_path.iterdir()) == before


def test_the_sweeps_run_has_the_numbers_of_its_arms_and_no_empty_experiment_is_beside_it(
    plan: Plan, folder: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    arm = {"cell": "adamw: b=8", "arm": "vit_c", "best": {"val_error_pct": 3.5, "test_error_pct": 4.5}}
    arm |= {"confirmed": None, "measures": {"area_common": {"value": 0.75}}}
    # Two shapes, one of them on a device that nothing was planned for, and the total of those planned.
    hours = ((0.5, 0.75), (None, 9.0), (1.0, 0.5), (1.5, 1.25))
    planned = [{"planned_hours": was, "hours": spent} for was, spent in hours]
    content = {"cost": {"trial_seconds": 7200}, "arms": [arm], "planned": planned}
    (tmp_path / "summary.json").write_text(json.dumps(content))
    tracker = Tracker(plan, folder, tracking_uri(folder))
    tracker.start()
    tracker.observe(story(plan.trials[0].id, range(1, 2), "finished"))
    tracker.add_numbers(numbers_of(tmp_path / "summary.json"))
    assert tracker.close(30) is None
    place = "adamw: b_8 vit_c"
    assert Seen(folder).parent.data.metrics == {
        "trial_hours": 2.0,
        "planned_hours": 1.5,
        "spent_hours": 1.25,
        f"peak_error_pct {place}": 3.5,
        f"peak_test_error_pct {place}": 4.5,
        f"robustness {place}": 0.75,
    }
    [experiment] = MlflowClient(tracking_uri(folder)).search_experiments()
    assert experiment.name == "small"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_sync_hands_over_the_numbers_and_figures_of_the_report(cli: Any, plan: Plan, folder: Path) -> None:
    save_question(folder, plan)
    writer = Writer(folder)
    writer.append([event for trial in plan.trials for event in story(trial.id, range(1, 3), "finished")])
    writer.close()
    write_report(plan, open_folder(folder).records, folder / "report", {})
    assert cli("sync", folder)[0] == 0
    seen = Seen(folder)
    told = seen.parent.data.metrics
    assert {f"peak_error_pct adamw {arm}" for arm in plan.sweep.arms} <= told.keys()
    assert not any("/" in name for name in told)
    figures = {path.name for path in (folder / "report" / "figures").iterdir()}
    there = seen.client.list_artifacts(seen.parent.info.run_id, "figures")
    assert {Path(artifact.path).name for artifact in there} == figures != set()
    # A summary that cannot be read costs the numbers only.
    (folder / "report" / "summary.json").write_text("[1")
    assert cli("sync", folder)[0] == 0


@pytest.fixture
def pages() -> Iterator[tuple[str, dict[str, Any]]]:
    """The address of pages, and what their server says of experiments."""
    told: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path.startswith("/api/2.0/mlflow/experiments/search?")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield ui_address("127.0.0.1", server.server_address[1]), told
        server.shutdown()
        thread.join()


def test_the_link_opens_the_charts_of_the_trials_lowest_error_first(
    pages: tuple[str, dict[str, Any]], plan: Plan
) -> None:
    address, told = pages
    # Without an answer that names it, the list of all experiments.
    assert experiment_address(address) == experiment_address(address, "small") == address
    told["experiments"] = [{"name": "small", "experiment_id": "7"}]
    shown = urlsplit(urlsplit(experiment_address(address)).fragment)
    assert shown.path == "/experiments/7/runs"
    [metric] = [name for name in metrics_of(row_of(row(1)), Classification.objective) if "val_top1" in name]
    assert parse_qs(shown.query) == {
        "workflowType": ["machine_learning"],
        "compareRunsMode": ["CHART"],
        # In the order of their times, MLflow would close them in the sweep's run.
        "orderByKey": [f"metrics.`{metric}`"],
        "orderByAsc": ["true"],
    }
    told["experiments"].append({"name": "other", "experiment_id": "8"})
    assert experiment_address(address) == address
    assert "/experiments/8/runs?" in experiment_address(address, "other")
    assert experiment_address(address, "nobody") == address
    told["experiments"] = "nonsense"
    assert experiment_address(address, "other") == address
    assert experiment_address("http://127.0.0.1:9/#/experiments") == "http://127.0.0.1:9/#/experiments"


def test_a_server_without_its_default_experiment_accepts_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    class Client:
        """A server on which somebody has deleted the experiment called Default."""

        known: ClassVar[list[Any]] = []
        calls: ClassVar[list[str]] = []

        def __init__(self, uri: str) -> None:
            pass

        def search_experiments(self, max_results: int) -> list[Any]:
            return self.known

        def create_experiment(self, name: str) -> str:
            self.calls.append("create_experiment")
            return "7"

        def create_run(self, experiment: str, run_name: str) -> Any:
            assert experiment != "0"
            return SimpleNamespace(info=SimpleNamespace(run_id="r"))

        def delete_run(self, run: str) -> None:
            self.calls.append("delete_run")

        def delete_experiment(self, experiment: str) -> None:
            self.calls.append("delete_experiment")

    monkeypatch.setattr(mlflow, "MlflowClient", Client)
    assert unanswered("https://tracking.example.org") == ""
    assert Client.calls == ["create_experiment", "delete_run", "delete_experiment"]
    Client.calls.clear()
    Client.known.append(SimpleNamespace(experiment_id="3"))
    assert unanswered("https://tracking.example.org") == ""
    assert Client.calls == ["delete_run"]


def test_a_store_that_mlflow_refuses_is_told_before_the_run_with_all_its_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="filesystem tracking backend") as refused:
        MlflowClient("./mlruns").search_experiments()
    told = unanswered("./mlruns")
    advice = " ".join(str(refused.value).split())
    assert len(advice) > 400
    assert told == f"MLflow at ./mlruns accepts no runs: {type(refused.value).__name__}: {advice}"


def test_two_first_uses_at_once_both_arrive(tmp_path: Path, plan: Plan, empty_store: Path) -> None:
    places = [tmp_path / "runs" / name for name in ("one", "two")]
    for place in places:
        place.mkdir(parents=True)
    shutil.copyfile(empty_store, tmp_path / "runs" / "mlflow.db")
    trackers = [Tracker(plan, place, tracking_uri(place)) for place in places]
    for tracker in trackers:
        tracker.start()
        tracker.observe(story(plan.trials[0].id, range(1, 2), "finished"))
    assert [tracker.close(60) for tracker in trackers] == [None, None]
    assert [len(Seen(place).trials) for place in places] == [1, 1]


def test_one_process_at_a_time_sets_up_a_store(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, most, opened = 0, 0, []

    def find(store: Any, uri: str) -> str:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        # Long enough for the other to come, too.
        time.sleep(0.2)
        at_work -= 1
        opened.append(uri)
        raise OSError("far enough")

    monkeypatch.setattr(tracking._Store, "_find_experiment", find)
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def open_store() -> None:
        with contextlib.suppress(OSError):
            tracking._Store(plan, tmp_path, uri, BEGAN)

    threads = [threading.Thread(target=open_store) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Locks of open files, which hold between threads as they do between processes.
    assert (most, opened) == (1, [uri] * 3)


def garbage(path: Path) -> None:
    path.write_bytes(b"question: this is no database, it is a sweep file\n" * 100)


def of_another_version(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as store:
        store.executescript(
            "CREATE TABLE alembic_version (version_num); INSERT INTO alembic_version VALUES ('old')"
        )


def cut_off(path: Path) -> None:
    of_another_version(path)
    path.write_bytes(path.read_bytes()[:100])


FAULTS = {
    "garbage": (garbage, "file is not a database"),
    "cut off": (cut_off, "malformed"),
    "another version": (of_another_version, "mlflow db upgrade"),
    "a folder": (Path.mkdir, "is no file"),
    "read-only": (lambda path: path.symlink_to("/proc/version"), "may not be written|not a database|unable"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_cannot_be_the_store_is_told_before_the_run(name: str, tmp_path: Path) -> None:
    spoil, told = FAULTS[name]
    (path := tmp_path / "mlflow.db").parent.mkdir(exist_ok=True)
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    fault = unanswered(f"sqlite:///{path}")
    assert fault.startswith("MLflow accepts no runs: ")
    assert re.search(told, fault)
    assert "\n" not in fault
    assert not path.is_file() or path.read_bytes() == before


def test_a_store_whose_folder_is_missing_is_told_unless_the_run_makes_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/none/mlflow.db"
    assert unanswered(uri) == f"MLflow accepts no runs: there is no folder {tmp_path}/none"
    assert unanswered(uri, tmp_path / "none") == ""
    assert not list(tmp_path.iterdir())


def test_a_store_that_works_or_is_at_work_is_no_fault(tmp_path: Path, empty_store: Path) -> None:
    path = shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    assert unanswered(f"sqlite:///{path}") == ""
    (tmp_path / "new.db").touch()
    assert unanswered(f"sqlite:///{tmp_path}/new.db") == ""


def test_a_variable_that_stops_mlflow_is_a_fault_and_no_traceback() -> None:
    code = "from orchestrator.monitor.tracking import unanswered; print(unanswered('http://127.0.0.1:9'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MLFLOW_LOGGING_LEVEL": "none", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert "accepts no runs: ValueError: Unknown level" in done.stdout, done.stderr
