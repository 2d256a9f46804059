"""Lanes on a real Ray: results do not depend on the lane, a fault costs one trial, nothing is repeated."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from orchestrator.plan import Plan, Trial, data_configs, make_plan
from orchestrator.results import Event, Record, fold
from orchestrator.sweep import build_sweep
from trainables.base import TIMING_FIELDS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

BASE = {
    "model": {"family": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 2, "heads": 2},
    "model.mlp_ratio": 2,
    "data": "digits",
    "optim": {"name": "adamw", "weight_decay": 0.05},
    "schedule": {"epochs": 2, "warmup": "10%"},
    "batch_size": 128,
}


def plan_of(points: int, base: dict[str, Any] | None = None, **changes: Any) -> Plan:
    tree = {
        "name": "tiny",
        "base": BASE | (base or {}),
        "arms": {"p": {"model.stem": "patchify"}, "c": {"model.stem": "conv"}},
        "vary": {"optim.lr": {"log_uniform": [1e-3, 1e-2]}},
        "design": {"kind": "sobol", "points": points},
    } | changes
    sweep = build_sweep(json.loads(json.dumps(tree)), "test")
    return make_plan(sweep, {config: config.info() for config in data_configs(sweep)})


@pytest.fixture(scope="module")
def lanes() -> Iterator[Any]:
    """The module under test, connected to a Ray of two CPUs that several tests share."""
    from orchestrator import lanes

    lanes.connect(None)
    yield lanes
    lanes.shutdown()


def run_trials(
    lanes: Any,
    folder: Path,
    trials: list[Trial],
    count: int | None = None,
    retries: int = 1,
    meddle: Callable[[list[Event]], None] = lambda events: None,
) -> tuple[dict[str, Record], list[Event]]:
    run = lanes.Run(folder, trials, {}, retries, count)
    run.start()
    events: list[Event] = []
    while True:
        done = run.done
        events += run.events()
        meddle(events)
        if done:
            break
        time.sleep(0.1)
    assert run.error is None
    return fold(events), events


def rows_without_times(record: Record) -> list[dict[str, Any]]:
    rows = [dataclasses.asdict(record.rows[epoch]) for epoch in sorted(record.rows)]
    return [{key: value for key, value in row.items() if key not in TIMING_FIELDS} for row in rows]


def test_a_trial_is_the_same_alone_in_a_cold_lane_and_as_the_tenth_of_a_warm_one(lanes, tmp_path):
    plan = plan_of(5)
    target = plan.trials[-1]
    assert target.arm == "c"
    warm, _ = run_trials(lanes, tmp_path / "warm", list(plan.trials), count=1)
    cold, _ = run_trials(lanes, tmp_path / "cold", [target], count=1)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(target.config.model_dump(mode="json")))
    alone = subprocess.run(
        [sys.executable, "-m", "trainables", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    *rows, last = [json.loads(line) for line in alone.stdout.splitlines()]
    rows = [{key: value for key, value in row.items() if key not in TIMING_FIELDS} for row in rows]

    assert len(warm) == 10
    assert rows_without_times(warm[target.id]) == rows_without_times(cold[target.id]) == rows
    assert warm[target.id].weights == cold[target.id].weights == last["weights"]
    # The digest tells runs apart.
    assert len({record.weights for record in warm.values()}) == 10


def test_an_error_in_a_trial_is_recorded_and_costs_that_trial_only(lanes, tmp_path, write_parquet, png_bytes):
    images = [png_bytes([[i] * 8] * 8) for i in range(64)]
    good = write_parquet("good.parquet", images, [i % 2 for i in range(64)], ["a", "b"])
    bad = write_parquet(
        "bad.parquet", [*images[:-1], images[-1][:30]], [i % 2 for i in range(64)], ["a", "b"]
    )
    plan = plan_of(
        2,
        {"batch_size": 16, "divergence.margin_pct": 0},
        arms={"good": {"data": str(good)}, "bad": {"data": str(bad)}},
    )
    records, events = run_trials(lanes, tmp_path / "sweep", list(plan.trials), count=1)
    for trial in plan.trials:
        record = records[trial.id]
        if trial.arm == "good":
            assert record.outcome in ("finished", "diverged")
            assert record.attempts == 1
        else:
            assert record.outcome == "failed"
            assert "bad.parquet: row 63 does not decode" in record.detail
            # Once, and once again as `retries` says.
            assert record.attempts == 2
            log = tmp_path / "sweep" / "trials" / trial.id / "attempt-2.log"
            assert "Traceback" in log.read_text()
    assert [e["final"] for e in events if e["kind"] == "end" and e["end"] == "failed"] == [False, True] * 2


def train_workers() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any("RayTrainWorker" in part for part in process.info["cmdline"] or [])
    ]


def test_a_killed_worker_costs_its_trial_an_attempt_and_changes_no_result(lanes, tmp_path):
    plan = plan_of(2)
    undisturbed, _ = run_trials(lanes, tmp_path / "a", list(plan.trials), count=1)
    killed = []

    def kill_once(events: list[Event]) -> None:
        # In the middle of the second trial.
        if not killed and len([event for event in events if event["kind"] == "epoch"]) == 3:
            for process in train_workers():
                process.kill()
                killed.append(process.pid)

    disturbed, events = run_trials(lanes, tmp_path / "b", list(plan.trials), count=1, meddle=kill_once)
    assert killed
    assert [event["end"] for event in events if event["kind"] == "end"].count("lost") == 1
    assert sum(record.attempts for record in disturbed.values()) == len(plan.trials) + 1
    for trial in plan.trials:
        assert rows_without_times(disturbed[trial.id]) == rows_without_times(undisturbed[trial.id])
        assert disturbed[trial.id].weights == undisturbed[trial.id].weights


def test_two_workers_train_one_model_together_and_runs_of_another_size_follow(lanes, tmp_path):
    plan = plan_of(1, arms={"solo": {}, "pair": {"resources.workers": 2}})
    records, _ = run_trials(lanes, tmp_path / "sweep", list(plan.trials))
    solo, pair = (records[trial.id] for trial in plan.trials)
    assert (solo.outcome, pair.outcome) == ("finished", "finished")
    # Without batch norm two workers compute what one does, up to rounding: same batches, same gradients.
    for one, two in zip(rows_without_times(solo), rows_without_times(pair), strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
        assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-3)
    assert solo.weights != pair.weights


def test_a_trial_that_needs_more_than_there_is_is_refused_before_anything_is_written(lanes, tmp_path):
    plan = plan_of(1, resources={"workers": 3})
    with pytest.raises(lanes.ClusterError, match=r"2 trial\(s\) need 3 worker\(s\) with 1 CPU"):
        lanes.Run(tmp_path / "sweep", plan.trials, {}, 0)
    assert not (tmp_path / "sweep").exists()


def test_stopping_records_what_was_in_flight_within_seconds(lanes, tmp_path):
    plan = plan_of(4, {"schedule.epochs": 500})
    run = lanes.Run(tmp_path / "sweep", plan.trials, {}, 1)
    run.start()
    events: list[Event] = []
    while not any(event["kind"] == "epoch" for event in events):
        events += run.events()
        time.sleep(0.1)
    began = time.monotonic()
    run.stop()
    events += run.events()
    assert time.monotonic() - began < 5
    records = fold(events)
    assert {record.outcome for record in records.values()} == {"cancelled"}
    assert not any(record.settled or record.running for record in records.values())
    while not run.done:
        assert time.monotonic() - began < 60
        time.sleep(0.2)


# Last in the file: these start Ray instances of their own, in processes of their own.


def sweep_file(folder: Path, points: int, epochs: int = 3) -> Path:
    tree = {
        "base": BASE | {"schedule": {"epochs": epochs, "warmup": "10%"}},
        "arms": {"p": {"model.stem": "patchify"}, "c": {"model.stem": "conv"}},
        "vary": {"optim.lr": {"log_uniform": [1e-3, 1e-2]}},
        "design": {"kind": "sobol", "points": points},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start_cli(*arguments: str | Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [Path(sys.executable).with_name("vitc-sweep"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def results(folder: Path) -> list[dict[str, Any]]:
    """The results table without what measures the machine."""
    from orchestrator.folder import open_folder
    from orchestrator.report import results_rows

    opened = open_folder(folder)
    timed = ("busy_seconds", "attempts")
    rows = results_rows(opened.plan, opened.records)
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def ends_in(folder: Path) -> list[str]:
    from orchestrator.journal import read_journal

    return [
        event["trial"] for event in read_journal(folder).events if event["kind"] == "end" and event["final"]
    ]


def test_after_a_kill_of_everything_run_again_repeats_nothing_and_ends_the_same(tmp_path):
    file, folder, calm = sweep_file(tmp_path, 4), tmp_path / "runs" / "tiny", tmp_path / "runs" / "calm"
    process = start_cli("run", file, "--out", folder, "--no-mlflow")
    deadline = time.monotonic() + 180
    while len(ends_in(folder)) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    # Nobody told Ray; its processes notice by themselves. Its agents, which hold nothing, take a minute.
    holding = [member for member in family if member.is_running() and "Agent" not in member.name()]
    _, survivors = psutil.wait_procs(holding, timeout=30)
    assert not survivors
    before = ends_in(folder)
    assert 3 <= len(before) < 8

    again = start_cli("run", file, "--out", folder, "--no-mlflow")
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0, output
    assert f"{8 - len(before)} trials to run, {len(before)} have ended before" in output
    after = ends_in(folder)
    assert sorted(after) == sorted(set(after))
    assert after[: len(before)] == before

    undisturbed = start_cli("run", file, "--out", calm, "--no-mlflow")
    assert undisturbed.communicate(timeout=300) is not None
    assert results(folder) == results(calm)
    assert {row["state"] for row in results(folder)} == {"finished"}

    finished = start_cli("run", file, "--out", folder, "--no-mlflow")
    assert "nothing to do, all 8 trials have ended" in finished.communicate(timeout=120)[0]
    assert finished.returncode == 0
    assert ends_in(folder) == after


def test_ctrl_c_stops_within_seconds_says_how_to_go_on_and_going_on_does(tmp_path):
    file, folder = sweep_file(tmp_path, 2, epochs=100), tmp_path / "runs" / "tiny"
    process = start_cli("run", file, "--out", folder, "--no-mlflow")
    while not ends_in(folder):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert time.monotonic() - began < 20
    assert process.returncode == 130
    assert f"Go on with:  vitc-sweep run {file} --out {folder}" in output
    assert "Traceback" not in output

    again = start_cli("run", file, "--out", folder, "--points", "3", "--no-mlflow")
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0, output
    assert len(set(ends_in(folder))) == 6


def test_a_sweep_runs_on_a_cluster_of_two_nodes_by_its_address(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": True, "dashboard_host": "127.0.0.1"},
    )
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        file, folder = sweep_file(tmp_path, 2), tmp_path / "runs" / "tiny"
        process = start_cli("run", file, "--out", folder, "--no-mlflow", "--address", cluster.address)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
    finally:
        cluster.shutdown()
    from orchestrator.journal import read_journal

    events = read_journal(folder).events
    assert [event["lanes"] for event in events if event["kind"] == "session"] == [[2]]
    attempts = [event for event in events if event["kind"] == "attempt"]
    assert len({event["lane"] for event in attempts}) == 2
    # Two nodes of one CPU each: the lanes cannot have sat on one.
    assert len({event["node"] for event in attempts}) == 2
    assert os.path.isdir(folder / "report")
