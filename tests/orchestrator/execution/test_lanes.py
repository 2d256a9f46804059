"""Lanes on a real Ray: results do not depend on the lane, a fault costs one trial, nothing is repeated."""

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from orchestrator.backends import ray_cluster
from orchestrator.backends.ray_cluster import ClusterError
from orchestrator.execution.lane import cause_of
from orchestrator.execution.run import Run
from orchestrator.sweep.config import Resources
from orchestrator.trials.events import AttemptBegan, AttemptEnded, DeviceUsed, EpochDone, Event
from orchestrator.trials.records import Record, fold
from orchestrator.trials.trial import Plan, Trial
from tests.conftest import parquet_file, png
from tests.support.sweeps import TINY, plan_from, sweep_tree, tiny_base
from trainables.base import TIMING_FIELDS, DeviceUse
from trainables.errors import UserError
from trainables.io.code import trusting_code

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def plan_of(points: int, base: dict[str, Any] | None = None, **changes: Any) -> Plan:
    tree = sweep_tree(
        base=tiny_base() | (base or {}),
        vary={"optim.lr": {"log_uniform": [1e-3, 1e-2]}},
        design={"kind": "sobol", "points": points},
    )
    return plan_from(tree | changes)


@pytest.fixture(scope="module")
def lanes(cluster: str) -> Iterator[None]:
    """A connection to a Ray of two CPUs that several tests share."""
    ray_cluster.connect(cluster)
    yield None
    ray_cluster.shutdown()


def run_trials(
    lanes: None,
    folder: Path,
    trials: list[Trial],
    count: int | None = None,
    resources: Resources | None = None,
    meddle: Callable[[list[Event]], None] = lambda events: None,
) -> tuple[dict[str, Record], list[Event]]:
    run = Run(folder, trials, {}, resources or Resources(lanes=count))
    run.start()
    events: list[Event] = []
    while True:
        done = run.done
        events += run.events()
        meddle(events)
        if done:
            break
        time.sleep(0.02)
    assert run.error is None
    return fold(events), events


def rows_without_times(record: Record) -> list[dict[str, Any]]:
    rows = [dataclasses.asdict(record.rows[epoch]) for epoch in sorted(record.rows)]
    return [{key: value for key, value in row.items() if key not in TIMING_FIELDS} for row in rows]


def train_workers() -> list[psutil.Process]:
    """Those of the cluster that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        # Some end meanwhile.
        with contextlib.suppress(psutil.Error):
            if any("RayTrainWorker" in part for part in process.cmdline()):
                found.append(process)
    return found


#: Starting a lane takes longer than dozens of trials: those that may share one are run by one.
Ran = tuple[dict[str, Record], list[Event]]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two trials each of an arm whose last image does not decode, and of one whose images all do."""
    images, labels = [png([[i] * 8] * 8) for i in range(64)], [i % 2 for i in range(64)]
    folder = tmp_path_factory.mktemp("data")
    good = parquet_file(folder / "good.parquet", images, labels, ["a", "b"])
    bad = parquet_file(folder / "bad.parquet", [*images[:-1], images[-1][:30]], labels, ["a", "b"])
    return plan_of(
        2,
        {"batch_size": 16, "divergence.margin_pct": 0},
        arms={"good": {"data": str(good)}, "bad": {"data": str(bad)}},
    )


@pytest.fixture(scope="module")
def pair() -> Trial:
    """The first point of arm p, trained by two workers."""
    [trial] = plan_of(1, arms={"pair": {"model.stem": "patchify", "resources.workers": 2}}).trials
    return trial


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `crowd`."""
    return tmp_path_factory.mktemp("crowd")


@pytest.fixture(scope="module")
def crowd(lanes: None, folder: Path, faulty: Plan, pair: Trial) -> Ran:
    """Ten trials of one lane, the faulty ones in their middle, and then the one of two workers."""
    trials = plan_of(5).trials
    return run_trials(lanes, folder, [*trials[:4], *faulty.trials, *trials[4:], pair], count=1)


@pytest.fixture(scope="module")
def disturbed(lanes: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The last of these ten and then three others, whose lane loses its worker in one of them."""
    killed = []

    def kill_once(events: list[Event]) -> None:
        begun = sum(isinstance(event, AttemptBegan) for event in events)
        ended = sum(isinstance(event, AttemptEnded) for event in events)
        # In the second or third trial, so that another one follows should it end in this moment.
        if not killed and begun in (2, 3) and begun > ended:
            for process in train_workers():
                process.kill()
                killed.append(process.pid)

    trials = plan_of(5).trials
    folder = tmp_path_factory.mktemp("disturbed")
    ran = run_trials(lanes, folder, [trials[-1], *trials[:3]], count=1, meddle=kill_once)
    assert killed
    return ran


def test_a_trial_is_the_same_alone_in_a_cold_lane_and_as_the_tenth_of_a_warm_one(crowd, disturbed, tmp_path):
    *others, target = plan_of(5).trials
    assert target.arm == "c"
    warm, (cold, events) = {trial.id: crowd[0][trial.id] for trial in [*others, target]}, disturbed
    # The first of its lane, before anything happened to that.
    assert next(event.trial for event in events if isinstance(event, AttemptEnded)) == target.id
    assert cold[target.id].attempts == 1
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


def test_every_attempt_tells_its_device_before_its_rows(crowd):
    processor = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    assert processor is not None
    told = [event for event in crowd[1] if isinstance(event, DeviceUsed)]
    began = [event for event in crowd[1] if isinstance(event, AttemptBegan)]
    assert [(e.trial, e.attempt) for e in told] == [(e.trial, e.attempt) for e in began]
    assert {event.use for event in told} == {DeviceUse(name=processor[1])}
    for record in crowd[0].values():
        assert set(record.devices) == set(record.rows)


def test_an_error_in_a_trial_is_recorded_and_costs_that_trial_only(crowd, faulty, folder):
    records, events = crowd
    for trial in faulty.trials:
        record = records[trial.id]
        if trial.arm == "good":
            assert record.outcome in ("finished", "diverged")
            assert record.attempts == 1
        else:
            assert record.outcome == "failed"
            assert "bad.parquet: row 63 does not decode" in record.detail
            # Once, and once again as `retries` says.
            assert record.attempts == 2
            log = folder / "trials" / trial.id / "attempt-2.log"
            assert "Traceback" in log.read_text()
    assert [e.final for e in events if isinstance(e, AttemptEnded) and e.end == "failed"] == [False, True] * 2


def test_a_killed_worker_costs_its_trial_an_attempt_and_changes_no_result(crowd, disturbed):
    undisturbed, (records, events) = crowd[0], disturbed
    assert len(records) == 4
    assert [event.end for event in events if isinstance(event, AttemptEnded)].count("lost") == 1
    assert sum(record.attempts for record in records.values()) == 4 + 1
    for trial, record in records.items():
        assert rows_without_times(record) == rows_without_times(undisturbed[trial])
        assert record.weights == undisturbed[trial].weights


def test_two_workers_train_one_model_together_and_runs_of_another_size_follow(crowd, pair):
    solo, together = crowd[0][plan_of(1).trials[0].id], crowd[0][pair.id]
    assert (solo.outcome, together.outcome) == ("finished", "finished")
    # Without batch norm two workers compute what one does, up to rounding: same batches, same gradients.
    for one, two in zip(rows_without_times(solo), rows_without_times(together), strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
        assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-3)
    assert solo.weights != together.weights


def test_a_trial_that_needs_more_than_there_is_is_refused_before_anything_is_written(lanes, tmp_path):
    plan = plan_of(1, resources={"workers": 3})
    with pytest.raises(ClusterError, match=r"2 trial\(s\) need 3 workers with 1 CPU"):
        Run(tmp_path / "sweep", plan.trials, {}, Resources())
    assert issubclass(ClusterError, UserError)
    assert not (tmp_path / "sweep").exists()


def test_stopping_records_what_was_in_flight_within_seconds(lanes, tmp_path):
    plan = plan_of(4, {"schedule": {"epochs": 500, "warmup": "10%"}})
    run = Run(tmp_path / "sweep", plan.trials, {}, Resources())
    run.start()
    events: list[Event] = []
    while not any(isinstance(event, EpochDone) for event in events):
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


def test_a_machine_that_has_died_and_is_still_listed_is_passed_over(lanes, tmp_path, monkeypatch):
    import ray

    from orchestrator.backends.ray_cluster import MachineGone, clocks, on_machine
    from orchestrator.execution.preflight_workers import machines_without

    alive = [node for node in ray.nodes() if node["Alive"]]
    gone = alive[0] | {"NodeID": "0f" * 28, "NodeManagerAddress": "192.0.2.1"}
    monkeypatch.setattr(ray, "nodes", lambda: [gone, *alive])
    with pytest.raises(MachineGone):
        on_machine(gone["NodeID"], lambda: None)
    assert len(clocks()) == len(alive)
    mark = tmp_path / "mark"
    mark.write_text("this")
    assert machines_without(str(mark), "this") == []
    # What a machine that is there answers counts.
    with_cores = [node for node in alive if node["Resources"].get("CPU")]
    assert machines_without(str(mark), "that") == [node["NodeManagerAddress"] for node in with_cores]


def test_what_a_killed_lane_has_reserved_is_free_again_and_nothing_else(lanes):
    import ray
    from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

    from orchestrator.backends.placement_groups import name_of, remove_orphans, remove_own

    class Maker:
        def make(self, named: bool) -> str:
            name = name_of(ray.get_runtime_context().get_actor_id(), 0) if named else "another's"
            self.group = placement_group([{"CPU": 0.5}], name=name)
            ray.get(self.group.ready())
            return str(self.group.id.hex())

    def state(group: str) -> str:
        return str(placement_group_table()[group]["state"])

    # Killed, killed but without a name of ours, alive.
    makers = [ray.remote(Maker).options(num_cpus=0).remote() for _ in range(3)]
    killed, other, used = [
        ray.get(maker.make.remote(named)) for maker, named in zip(makers, (True, False, True), strict=True)
    ]
    assert remove_orphans() == []
    for maker in makers[:2]:
        ray.kill(maker)
    deadline = time.monotonic() + 60
    while not (removed := remove_orphans()):
        # Ray itself leaves it there.
        assert state(killed) == "CREATED"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert removed == [killed]
    assert (state(killed), state(other), state(used)) == ("REMOVED", "CREATED", "CREATED")
    remove_own()
    whole = placement_group([{"CPU": 1}] * 2)
    ray.get(whole.ready(), timeout=60)
    assert (state(other), state(used)) == ("REMOVED", "REMOVED")
    remove_placement_group(whole)


#: Networks that say in which process and on which device they train, and of which some lose their device.
#: Once trained in a process, they make it one that sees a GPU.
NETS = """
import os
import torch
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes, said, fails):
        super().__init__(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))
        self.said, self.fails = said, fails

    def forward(self, images):
        # Counting a network's cost calls it on tensors without content.
        if self.training and type(images) is torch.Tensor and images.device.type != "meta":
            torch.cuda.is_available = lambda: True
            # torch itself asks the driver, which is not there, at each step.
            torch.optim.Optimizer._accelerator_graph_capture_health_check = lambda _: None
            with open(self.said, "a") as file:
                print(self.fails, os.getpid(), images.device, file=file)
            if self.fails:
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return super().forward(images)


def make(num_classes, said, fails):
    return Net(num_classes, said, fails)
"""


def test_a_process_that_has_lost_its_device_leaves_and_one_that_only_sees_a_gpu_stays_off_it(lanes, tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    model = {"family": "python", "build": f"{tmp_path / 'nets.py'}:make", "image_size": 16}
    with trusting_code():
        plan = plan_of(
            2,
            {"model": model | {"arguments": {"said": str(tmp_path / "said")}}, "divergence.margin_pct": 0},
            arms={name: {"model.arguments.fails": name == "bad"} for name in ("bad", "good")},
        )
    [bad, _], good = ([trial for trial in plan.trials if trial.arm == arm] for arm in ("bad", "good"))
    records, events = run_trials(lanes, tmp_path / "sweep", [bad, *good], count=1)

    detail = "its GPU stopped working: AcceleratorError: CUDA error: an illegal memory access was encountered"
    assert [(e.trial, e.end, e.detail) for e in events if isinstance(e, AttemptEnded)] == [
        (bad.id, "lost", detail),
        (bad.id, "failed", f"{detail}, twice"),
        *((trial.id, "finished", "") for trial in good),
    ]
    said = dict.fromkeys(tuple(line.split()) for line in (tmp_path / "said").read_text().splitlines())
    # Each loss ends a process; both good trials have the third.
    assert [(fails, device) for fails, _, device in said] == [("True", "cpu")] * 2 + [("False", "cpu")]
    assert len({pid for _, pid, _ in said}) == 3
    assert {use.is_gpu for record in records.values() for use in record.devices.values()} == {False}


def test_a_trial_that_hangs_is_ended_with_its_stack_and_the_lane_goes_on(lanes, tmp_path):
    quick = plan_of(1, arms={"quick": {}})
    # A step of it takes longer than a step may.
    large = TINY | {"width": 512, "depth": 24}
    slow = plan_of(1, {"model": large, "batch_size": 1024}, arms={"slow": {}})
    trials = [*slow.trials, *quick.trials]
    resources = Resources(retries=0, lanes=1, hang_minutes=0.05)
    records, _ = run_trials(lanes, tmp_path / "sweep", trials, resources=resources)
    hung, fine = (records[trial.id] for trial in trials)
    assert hung.outcome == "failed"
    assert hung.detail.startswith("it made no step for a long time; see trials/")
    stack = tmp_path / "sweep" / hung.detail.split("see ")[1]
    assert "loop.py" in stack.read_text()
    assert fine.outcome == "finished"


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([ValueError("no GPU\nand more")], ("process", "a worker process died: ValueError: no GPU")),
        ([WorkerGroupStartupTimeoutError(4)], ("node", "its machine has gone")),
        ([NodeDiedError("node has died")], ("node", "its machine has gone")),
        # A process that died without an error has no reason to tell.
        ([ActorDiedError()], ("process", "a worker process died")),
        # Of several ranks, the one that has a reason.
        (
            [ActorDiedError(), OSError("no data")],
            ("process", "a worker process died: OSError: no data"),
        ),
        (
            [OSError("x"), OutOfMemoryError("Memory on the node was 7.9GB / 8GB\nmore")],
            (
                "memory",
                "its machine ran out of memory, and Ray killed a worker: "
                "OutOfMemoryError: Memory on the node was 7.9GB / 8GB",
            ),
        ),
    ],
)
def test_the_cause_of_a_lost_group_is_the_one_that_its_errors_name(errors, expected):
    assert cause_of(errors) == expected
