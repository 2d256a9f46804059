"""Sweeps that cannot start, and machines where they cannot.

`python tests/test_preflight.py` writes the messages anew."""

import contextlib
import dataclasses
import errno
import fractions
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import orchestrator.cli
import orchestrator.execution.preflight
import orchestrator.execution.session
import orchestrator.execution.states_probe
import trainables.profiling.dry_run
from orchestrator.backends.base import Clock
from orchestrator.cost.devices import Machine
from orchestrator.cost.ledger import ledger
from orchestrator.execution.preflight import (
    CLOCK_SECONDS,
    LEAST_SECONDS,
    SHARE,
    _space_faults,
    clock_faults,
    expected_text,
    preflight,
    subjects,
)
from orchestrator.execution.preflight_child import Child
from orchestrator.execution.session import Preparation, Session
from orchestrator.trials.events import Event, PhaseBegan, PreflightDone, SessionBegan, SessionClosed
from orchestrator.trials.gang import Gang, Node
from orchestrator.trials.trial import Plan
from tests.conftest import png
from tests.support.sweeps import plan_from, sweep_tree, tiny_base
from trainables.config import TrainConfig
from trainables.models.vit import ViTConfig
from trainables.profiling.dry_run import Reply, Request, answer
from trainables.profiling.footprint import footprint

GOLDEN = Path(__file__).parents[2] / "golden" / "preflight"
GIB = 2**30
LIMITED = trainables.profiling.dry_run._limited

SWEEP = """\
base:
  model: {family: vit, image_size: 16, patch_size: 8, width: 16, depth: 2, heads: 2, mlp_ratio: 2}
  data: digits
  schedule: {epochs: 2}
  optim: {name: adamw, weight_decay: 0.1}
  batch_size: 128
arms:
  narrow: {model.width: 16}
  wide: {model.width: 32}
vary:
  optim.lr: {log_uniform: [1e-3, 1e-2]}
design: {kind: sobol, points: 2, seed: 0}
"""


def in_this_process(gang: Gang, request: Request) -> Reply:
    """A checker that starts no process; what goes to one and back goes through the same text."""
    return answer(Request.parse(request.plain()))


class _InThisProcess:
    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Callable[[Gang, Request], Reply]:
        return in_this_process

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """No process, a machine of 4 cores with 8 GiB free, and an empty folder to be in."""
    settle(monkeypatch)
    monkeypatch.chdir(tmp_path)


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orchestrator.execution.session, "Child", _InThisProcess)
    machine = Machine("a processor", (Node(4, 0),), 16.0)
    monkeypatch.setattr(orchestrator.execution.session, "this_machine", lambda: machine)
    monkeypatch.setattr(trainables.profiling.dry_run, "free_bytes", lambda device: 8 * GIB)
    # What is free must not depend on what this process has taken before.
    monkeypatch.setattr(trainables.profiling.dry_run, "_limited", lambda device: contextlib.nullcontext())


# ------------------------------------------------------------------------------------------- what is planted

#: A plant changes the folder or the program, and returns the options that go with it.
Plant = Callable[[Path, pytest.MonkeyPatch], list[str]]
PLANTS: dict[str, Plant] = {}


def plant(function: Plant) -> Plant:
    PLANTS[function.__name__] = function
    return function


def parquet(path: Path, images: list[bytes], column: str = "label") -> str:
    """Images of four classes in the Hugging Face layout."""
    path.parent.mkdir(exist_ok=True)
    image = pa.array([{"bytes": data, "path": None} for data in images])
    pq.write_table(pa.table({"image": image, column: [i % 4 for i in range(len(images))]}), path)
    return str(path.parent)


def dots(count: int) -> list[bytes]:
    return [png([[[i % 256] * 3] * 8] * 8) for i in range(count)]


@plant
def data_that_are_not_there(folder, monkeypatch):
    return ["--set", "data=data/nowhere"]


@plant
def data_without_labels(folder, monkeypatch):
    parquet(folder / "data" / "train.parquet", dots(64), column="kind")
    return ["--set", "data=data"]


@plant
def an_image_of_train_that_does_not_decode(folder, monkeypatch):
    # In light augmentation the first error would come when all images are decoded, minutes into a trial.
    parquet(folder / "cut" / "train.parquet", [data[:40] for data in dots(64)])
    parquet(folder / "cut" / "test.parquet", dots(16))
    parquet(folder / "cut" / "val.parquet", dots(16))
    return ["--set", "data=cut"]


@plant
def an_image_of_test_that_does_not_decode(folder, monkeypatch):
    # A trial would come to it after its last epoch.
    parquet(folder / "bad" / "train.parquet", dots(64))
    parquet(folder / "bad" / "test.parquet", [b"no image", *dots(15)])
    parquet(folder / "bad" / "val.parquet", dots(16))
    return ["--set", "data=bad", "--set", "augment=paper"]


@plant
def an_image_of_a_shifted_set_that_does_not_decode(folder, monkeypatch):
    # After the last epoch, too; and where it lies is a setting of its own.
    (folder / "photos" / "7").mkdir(parents=True)
    (folder / "photos" / "7" / "a.png").write_bytes(b"no image")
    return ["--set", "evaluate={shifted: [{name: photos, uri: photos}]}"]


@plant
def more_images_than_are_kept_decoded(folder, monkeypatch):
    return ["--set", "model.image_size=2048"]


@plant
def workers_with_one_image_each(folder, monkeypatch):
    return ["--set", "resources.workers=4", "--set", "batch_size=4"]


@plant
def gpus_that_are_not_there(folder, monkeypatch):
    return ["--set", "resources.gpus_per_worker=1"]


@plant
def more_workers_than_cores(folder, monkeypatch):
    return ["--set", "arms.wide.resources.workers=8"]


LARGE = ["--set", "arms.wide.batch_size=1024", "--set", "arms.wide.model.width=256"]


@plant
def less_memory_than_counted(folder, monkeypatch):
    monkeypatch.setattr(trainables.profiling.dry_run, "free_bytes", lambda device: GIB // 4)
    return [*LARGE, "--set", "arms.wide.model.patch_size=4"]


@plant
def less_memory_than_it_takes(folder, monkeypatch):
    # As if counting had missed it; the limit on this process is real, and so is the error.
    monkeypatch.setattr(trainables.profiling.dry_run, "_limited", LIMITED)
    monkeypatch.setattr(trainables.profiling.dry_run, "free_bytes", lambda device: GIB // 4)
    monkeypatch.setattr(trainables.profiling.dry_run, "_check_room", lambda *_: None)
    return [*LARGE, "--set", "arms.wide.model.patch_size=2"]


def build_with(monkeypatch: pytest.MonkeyPatch, change: Callable[[nn.Module], Any]) -> None:
    """Networks of one arm get a fault in their code."""
    network = ViTConfig.network

    def changed(config: ViTConfig, num_classes: int) -> nn.Module:
        model = network(config, num_classes)
        return (change(model) or model) if config.width == 32 else model

    monkeypatch.setattr(ViTConfig, "network", changed)


@plant
def weights_that_are_not_numbers(folder, monkeypatch):
    def change(model: nn.Module) -> None:
        with torch.no_grad():
            list(model.parameters())[-1].fill_(float("nan"))

    build_with(monkeypatch, change)
    return []


@plant
def a_network_for_other_classes(folder, monkeypatch):
    network = ViTConfig.network
    monkeypatch.setattr(ViTConfig, "network", lambda config, num_classes: network(config, 1000))
    return []


@plant
def a_network_that_its_images_do_not_fit(folder, monkeypatch):
    build_with(monkeypatch, lambda model: nn.Sequential(nn.Conv2d(4, 3, 1), model))
    return []


class _Remembers(nn.Module):
    """A part whose state is an object of its own class, which no checkpoint takes back."""

    def get_extra_state(self) -> Any:
        return fractions.Fraction(1, 2)

    def set_extra_state(self, state: Any) -> None:
        pass


@plant
def a_state_that_does_not_load(folder, monkeypatch):
    build_with(monkeypatch, lambda model: model.add_module("memory", _Remembers()))
    return []


class _Forgets(nn.Module):
    """A part that takes back another number than it gave."""

    def get_extra_state(self) -> torch.Tensor:
        self.count = getattr(self, "count", 0) + 1
        return torch.tensor(self.count)

    def set_extra_state(self, state: Any) -> None:
        pass


@plant
def a_state_that_comes_back_changed(folder, monkeypatch):
    build_with(monkeypatch, lambda model: model.add_module("memory", _Forgets()))
    return []


@plant
def results_where_no_folder_can_be(folder, monkeypatch):
    (folder / "notes").write_text("not a folder")
    return ["--out", "notes/results"]


@plant
def a_full_disk(folder, monkeypatch):
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    return []


@plant
def a_disk_without_room_for_checkpoints(folder, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=GIB // 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    return ["--set", "arms.wide.model.width=256"]


@plant
def a_storage_that_is_ahead(folder, monkeypatch):
    write = orchestrator.execution.states_probe._write_durably

    def ahead(probe: Path) -> None:
        write(probe)
        # What a server of files with another clock would have written.
        os.utime(probe / "b", (time.time() + 180.5,) * 2)

    monkeypatch.setattr(orchestrator.execution.states_probe, "_write_durably", ahead)
    return []


@plant
def a_folder_that_workers_do_not_see(folder, monkeypatch):
    monkeypatch.setattr("trainables.profiling.dry_run.holds", lambda address, content: False)
    return ["--set", "resources.keep=best"]


@plant
def a_place_of_states_that_workers_do_not_reach(folder, monkeypatch):
    monkeypatch.setattr("trainables.profiling.dry_run.holds", lambda address, content: False)
    return ["--set", f"resources.checkpoints={folder}/states"]


@plant
def several_at_once(folder, monkeypatch):
    (folder / "notes").write_text("not a folder")
    weights_that_are_not_numbers(folder, monkeypatch)
    return ["--out", "notes/results", "--set", "arms.narrow.resources.workers=8"]


def command(*arguments: str) -> int:
    """The exit code of a command."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", ["vitc-sweep", *arguments])
        with pytest.raises(SystemExit) as end:
            orchestrator.cli.main()
    return int(end.value.code or 0)


def message(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `vitc-sweep run` says before it starts anything, with numbers that machines differ in left out."""
    file = folder / "sweep.yaml"
    file.write_text(SWEEP)
    options = PLANTS[name](folder, monkeypatch)
    before = sorted(folder.rglob("*"))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert command("run", "sweep.yaml", "--no-mlflow", *options) == 2, err.getvalue()
    assert sorted(folder.rglob("*")) == before, "something was left behind"
    text = err.getvalue().replace(str(folder), "/here")
    text = re.sub(r"\.preflight-\w+", ".preflight-*", text)
    return re.sub(r"[\d.]+ GiB wanted", "# GiB wanted", text)


@pytest.mark.parametrize("name", PLANTS)
def test_what_would_end_a_trial_is_told_before_the_first_one(name, tmp_path, monkeypatch):
    assert message(name, tmp_path, monkeypatch) == (GOLDEN / f"{name}.txt").read_text()


def test_every_golden_message_has_its_plant():
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == sorted(PLANTS)


# ------------------------------------------------------------------------------------------------ what holds


def plan_of(**changes: Any) -> Plan:
    tree = sweep_tree(
        base=tiny_base(),
        arms={"narrow": {"model.width": 16}, "wide": {"model.width": 32}},
        vary={"optim.lr": {"log_uniform": [1e-3, 1e-2]}},
        design={"kind": "sobol", "points": 4, "seed": 0},
    )
    return plan_from(tree | changes)


NODES = (Node(2, 0),)


def test_a_sweep_that_can_start_is_found_so_and_nothing_is_left_behind(tmp_path):
    plan = plan_of()
    outcome = preflight(plan, plan.trials, NODES, in_this_process, tmp_path / "results")
    assert outcome.faults == ()
    assert (outcome.shapes, len(outcome.checked)) == (2, 2)
    assert all(found.step_seconds > 0 for found in outcome.checked)
    assert list(tmp_path.iterdir()) == []


def on_another_machine(gang: Gang, request: Request) -> Reply:
    """A worker's answer, where the driver's folders are other folders."""
    return in_this_process(gang, dataclasses.replace(request, folder="/nowhere/else"))


def test_a_folder_that_workers_do_not_see_is_no_fault_where_nothing_has_to_stay(tmp_path):
    plan = plan_of()
    outcome = preflight(plan, plan.trials, NODES, on_another_machine, tmp_path / "results")
    assert (outcome.faults, outcome.alone, len(outcome.checked)) == ((), True, 2)
    # One of the machines that are up is enough, wherever Ray puts the tries.
    asked = []
    other = lambda address, content: asked.append(Path(address).read_text() == content) or ["10.0.0.2"]  # noqa: E731
    assert preflight(plan, plan.trials, NODES, in_this_process, tmp_path / "results", alone=other).alone
    assert asked == [True]
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_to_stay_need_a_place_that_all_machines_reach(tmp_path):
    plan = plan_of(resources={"keep": "best"})
    [fault] = preflight(plan, plan.trials, NODES, on_another_machine, tmp_path / "results").faults
    assert fault.path == "resources.checkpoints"
    assert "keep: best needs a place that all machines reach, and not all see" in fault.rule
    # With one, nothing is asked of the sweep's own folder.
    plan = plan_of(resources={"keep": "best", "checkpoints": str(tmp_path / "states")})
    outcome = preflight(plan, plan.trials, NODES, in_this_process, tmp_path / "results")
    assert (outcome.faults, outcome.alone) == ((), False)
    assert list(tmp_path.iterdir()) == []


def test_the_command_tells_what_it_ran_as_json(tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    assert command("preflight", "sweep.yaml", "--no-mlflow", "--json") == 0
    told = capsys.readouterr()
    assert "2 kinds of trial made two steps" in told.err
    content = json.loads(told.out)
    assert [row["shape"] for row in content["checked"]] == [
        "all wide (batch 128 adamw)",
        "all narrow (batch 128 adamw)",
    ]
    assert sum(row["trials"] for row in content["checked"]) == 4
    assert sorted(tmp_path.iterdir()) == [tmp_path / "sweep.yaml"]


def test_a_run_begins_with_it_unless_told_not_to(tmp_path, monkeypatch):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    timings = []

    def run_rounds(session: Session, plan: Plan, preparation: Preparation, until: object) -> None:
        timings.append((preparation.began, preparation.seconds))
        raise SystemExit(1)

    monkeypatch.setattr(Session, "run_rounds", run_rounds)
    began = time.time()
    assert command("run", "sweep.yaml", "--no-mlflow") == 1
    assert command("run", "sweep.yaml", "--no-mlflow", "--no-preflight") == 1
    (with_it, seconds), (without, none) = timings
    assert began <= with_it <= with_it + seconds <= without
    assert (seconds > 0, none) == (True, 0.0)


def test_corruptions_and_shifted_sets_are_tried(tmp_path):
    (tmp_path / "photos" / "7").mkdir(parents=True)
    (tmp_path / "photos" / "7" / "a.png").write_bytes(dots(1)[0])
    evaluate = {"corruptions": {}, "shifted": [{"name": "photos", "uri": str(tmp_path / "photos")}]}
    plan = plan_of(arms={"one": {"evaluate": evaluate}})
    assert preflight(plan, plan.trials, NODES, in_this_process, tmp_path).faults == ()


def test_a_rate_that_makes_runs_diverge_is_no_fault(tmp_path):
    plan = plan_of(vary={"optim.lr": {"choice": [1e30]}})
    outcome = preflight(plan, plan.trials, NODES, in_this_process, tmp_path)
    assert outcome.faults == ()


def _num_shapes(vary: dict[str, Any]) -> int:
    plan = plan_of(vary=vary)
    return len(subjects(plan, plan.trials))


def test_shapes_differ_in_what_is_built_and_not_in_rates():
    vary = {"optim.lr": {"log_uniform": [1e-3, 1e-2]}, "model.drop_path": {"uniform": [0, 0.3]}}
    # Two arms.
    assert _num_shapes(vary) == 2
    vary["batch_size"] = {"choice": [64, 128]}
    vary["ema.time_constant"] = {"uniform": [0.1, 0.2]}
    # Two arms at two batch sizes, both of which four scrambled points have.
    assert _num_shapes(vary) == 4


def test_the_largest_come_first():
    plan = plan_of(vary={"batch_size": {"choice": [32, 128, 512]}, "optim.lr": {"choice": [1e-3]}})
    found = subjects(plan, plan.trials)
    peaks = [footprint(item.shape.config, 10, 1197, 1797).peak for item in found]
    assert len(peaks) == 6
    # Two that are nearly equal may stand either way.
    assert all(before > 0.8 * after for before, after in itertools.pairwise(peaks))
    assert peaks[0] == max(peaks)


class _Ticking:
    """A clock, and a checker on which each request takes so long."""

    def __init__(self, seconds: float, step_seconds: float) -> None:
        self.now, self.seconds, self.step_seconds = 0.0, seconds, step_seconds

    def __call__(self) -> float:
        return self.now

    def check(self, gang: Gang, request: Request) -> Reply:
        self.now += self.seconds
        return Reply(step_seconds=self.step_seconds)


def test_shapes_are_run_while_there_is_time_for_it(tmp_path):
    plan = plan_of(vary={"batch_size": {"choice": [32, 64, 128]}, "optim.lr": {"choice": [1e-3]}})
    shapes = len(subjects(plan, plan.trials))
    assert shapes == 6
    tiny = _Ticking(seconds=0.6 * LEAST_SECONDS, step_seconds=1e-3)
    outcome = preflight(plan, plan.trials, NODES, tiny.check, tmp_path, clock=tiny)
    # The second begins within the least time, the third would not.
    assert len(outcome.checked) == 2
    assert outcome.line() == (
        "preflight, 24 s: 2 of 6 kinds of trial made two steps; the other 4 were only built, as trying may "
        "take 1 % of the sweep's time at most, or 20 s"
    )
    long = _Ticking(seconds=0.6 * LEAST_SECONDS, step_seconds=1e3)
    outcome = preflight(plan, plan.trials, NODES, long.check, tmp_path, clock=long)
    assert len(outcome.checked) == 6
    assert outcome.plan_seconds is not None
    assert outcome.seconds < SHARE * outcome.plan_seconds


def test_the_plan_takes_steps_times_epochs_times_trials_over_lanes(tmp_path):
    plan = plan_of()
    ticking = _Ticking(seconds=1, step_seconds=0.5)
    outcome = preflight(plan, plan.trials, NODES, ticking.check, tmp_path, clock=ticking)
    # 1,197 of 1,797 digits are for training, ten batches of 128; 2 epochs, 8 trials, 2 lanes.
    assert outcome.plan_seconds == pytest.approx(0.5 * 10 * 2 * 8 / 2)
    assert outcome.line() == "preflight, 2 s: 2 kinds of trial made two steps"


def test_clocks_are_judged_by_what_the_answer_proves():
    # Asked at 100, answered at 130: a clock that reads 135 is ahead by 5 at least, one that reads 115 by 0.
    assert Clock("a", 100, 135, 130).ahead == 5
    assert Clock("a", 100, 115, 130).ahead == 0
    assert Clock("a", 100, 88, 130).ahead == -12
    assert not clock_faults([Clock("a", 100, 100 - CLOCK_SECONDS, 101)])
    (fault,) = clock_faults([Clock("10.0.0.7", 100, 40, 101)])
    assert "10.0.0.7 is 60 s behind" in str(fault)


def test_what_torch_says_of_memory_is_understood():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50, dtype=torch.uint8)
    assert trainables.profiling.dry_run._wanted_bytes(error.value) == 2**50
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total ...")
    assert trainables.profiling.dry_run._wanted_bytes(cuda) == 2.5 * GIB
    assert trainables.profiling.dry_run._wanted_bytes(MemoryError()) == 0
    assert trainables.profiling.dry_run._wanted_bytes(ValueError("memory of another kind")) is None


def test_a_process_that_is_killed_takes_nobody_with_it(run_tree, monkeypatch, tmp_path):
    monkeypatch.undo()
    config = TrainConfig.model_validate(run_tree())
    request = Request(config, planned_bytes=3 * GIB // 2)
    gang = Gang(1, 1, 0.0)
    with Child(on_gpu=False, timeout_seconds=120) as child:
        assert child._process is not None
        child._process.kill()
        reply = child(gang, request)
        assert reply.setting == "batch_size"
        assert reply.rule.endswith("killed, as happens where memory runs out; 1.5 GiB planned for a worker")
        # The next one is tried in a new process.
        reply = child(gang, Request(config, folder=str(tmp_path)))
        assert (reply.rule, list(tmp_path.iterdir())) == ("", [])


def test_a_process_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/cat")
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kw: popen(["/bin/sleep", "60"], **kw))
    config = TrainConfig.model_construct()
    monkeypatch.setattr(Request, "plain", lambda self: {})
    with Child(on_gpu=False, timeout_seconds=0.2) as child:
        assert "made no step" in child(Gang(1, 1, 0.0), Request(config)).rule


def test_its_time_has_a_heading_in_the_ledger():
    events: list[Event] = [
        SessionBegan(time=30.0, began=0.0),
        PreflightDone(time=30.0, seconds=20.0),
        PhaseBegan(time=31.0, lanes=2, devices=2, device="core"),
        SessionClosed(time=100.0),
    ]
    spent = ledger(events)
    # Two cores for 20 of 100 seconds.
    assert (spent.preflight, spent.total) == (40.0, 200.0)


def test_room_is_looked_for_where_checkpoints_lie(tmp_path, monkeypatch):
    def fault(checkpoints):
        found = _space_faults(subjects(plan, plan.trials), {plan.trials[0].gang: 1}, tmp_path, checkpoints)
        return [(f.path, f.rule.partition(", and ")[2]) for f in found]

    plan = plan_of()
    there = tmp_path / "fast"
    there.mkdir()
    usage = shutil.disk_usage(tmp_path)
    room = {tmp_path: GIB, there: 1000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=room[path]))
    assert fault(None) == []
    told = [("resources.checkpoints", f"{there} has 9.31e-07 GiB free")]
    assert fault(f"{there}/states") == fault(f"file://{there}") == told
    # Of a bucket nobody knows; what lies in the sweep's folder is not asked then.
    room[tmp_path] = 0
    assert fault("s3://bucket/states") == []
    assert [path for path, _ in fault(None)] == ["--out"]


def _write_all() -> Iterator[str]:
    import tempfile

    for name in PLANTS:
        with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as folder:
            settle(monkeypatch)
            monkeypatch.chdir(folder)
            (GOLDEN / f"{name}.txt").write_text(message(name, Path(folder), monkeypatch))
        yield f"{name}\n{(GOLDEN / f'{name}.txt').read_text()}"


if __name__ == "__main__":
    for text in _write_all():
        print(text, flush=True)


def test_the_time_of_trials_follows_from_the_steps_that_were_run(tmp_path):
    plan = plan_of()

    assert expected_text(plan, plan.trials, NODES, tmp_path / "results") == ""
    ticking = _Ticking(seconds=1, step_seconds=60)
    checked = preflight(plan, plan.trials, NODES, ticking.check, tmp_path, clock=ticking).checked
    told = expected_text(plan, plan.trials, NODES, tmp_path / "results", checked)
    # 10 steps of a minute, 2 epochs, 8 trials, 2 at a time: 80 min; evaluation comes on top.
    assert re.fullmatch(
        r"8 trials will take about 1 h [2-5]\d min \(\S+ \S+.* to .*\) on 2 cores, 2 at a time", told
    )
    half = expected_text(plan, plan.trials[:4], NODES, tmp_path / "results", checked)
    assert re.match(r"4 trials will take about [4-5]\d min", half)


def test_nothing_left_to_run_takes_no_time(tmp_path):
    plan = plan_of()
    assert expected_text(plan, (), NODES, tmp_path) == ""
