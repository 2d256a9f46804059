"""Checkpoints: a run that was stopped at any points ends exactly like an uninterrupted one."""

import asyncio
import dataclasses
import io
import json
import os
import random
import signal
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.fs
import pytest
import torch
import yaml

from orchestrator.store.weights import WeightStore
from tests import workers
from trainables.__main__ import main
from trainables.base import TIMING_FIELDS, Diverged, Invalid, Preempted
from trainables.config import TrainConfig
from trainables.context import Context
from trainables.training import checkpoint, loop
from trainables.training.checkpoint import Checkpointer, Corrupt, Store, checkpoint_bytes, dump, parse
from trainables.training.loop import train
from trainables.transforms import light_pipeline as light

#: Batch norm in the stem, stochastic depth, mixing, averages: all that has a state or draws.
ADAMW = {
    "model.stem": "conv",
    "model.drop_path": 0.2,
    "model.depth": 3,
    "mixup": {},
    "ema": {"every_steps": 2},
    "clip_grad_norm": 1.0,
    "augment.flip": 0.5,
    "divergence.margin_pct": 0,
}
SGD = {"optim": {"name": "sgd", "lr": 0.1, "weight_decay": 1e-4}, "model.stem": "conv"}
#: Batch norm behind stochastic depth, and its statistics taken anew: that draws outside of training steps.
REGNET = {
    "model": {
        "family": "regnety",
        "depths": [1, 1, 1, 1],
        "widths": [8, 8, 8, 8],
        "group_width": 8,
        "image_size": 16,
        "drop_path": 0.5,
    },
    "data": {"name": "digits"},
    "batch_size": 400,
    "precise_bn_images": 256,
    "divergence.margin_pct": 0,
}


@pytest.fixture
def config_of(run_tree):
    return lambda settings: TrainConfig.model_validate(run_tree(**settings))


@pytest.fixture
def every_step(monkeypatch):
    """Makes every step one at which a run can be stopped."""
    monkeypatch.setattr(loop, "LOOK_STEPS", 1)


def measured(row):
    return {name: value for name, value in dataclasses.asdict(row).items() if name not in TIMING_FIELDS}


class StopAt:
    """Wants to stop when it has been asked so often."""

    def __init__(self, times):
        self.left = times

    def __call__(self):
        self.left -= 1
        return self.left == 0


def run_alone(config):
    rows = []
    for row, state in train(config, Context()):
        rows.append(measured(row))
        weights = state.weights_digest()
    return rows, weights


def run_with_stops(config, store, stops):
    """Rows by epoch of a run that is stopped after each of these numbers of steps, then finished."""
    rows = {}
    for stop in [*stops, 0]:
        # What else happened in this process must not matter.
        torch.manual_seed(stop)
        try:
            with Checkpointer(store, StopAt(stop)) as keeper:
                for row, state in train(config, Context(), keeper=keeper):
                    assert rows.setdefault(row.epoch, measured(row)) == measured(row)
                    weights = state.weights_digest()
        except Preempted:
            assert keeper.notices == []
        else:
            return list(rows.values()), weights
    raise AssertionError("never finished")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_a_run_stopped_at_random_steps_ends_exactly_like_one_left_alone(
    settings, seed, config_of, tmp_path, every_step
):
    config = config_of(settings)
    # 20 steps in all; the last step of an epoch is one of the places.
    stops = random.Random(seed).choices(range(1, 9), k=2) if seed else [10, 10]
    assert run_with_stops(config, Store(tmp_path), stops) == run_alone(config)


def test_what_draws_after_the_last_step_of_an_epoch_draws_the_same_after_a_stop_there(
    config_of, tmp_path, every_step
):
    config = config_of(REGNET)
    assert run_with_stops(config, Store(tmp_path), [3, 2]) == run_alone(config)


def test_stops_change_nothing_of_what_is_seen_each_image_once_an_epoch(
    config_of, tmp_path, every_step, monkeypatch
):
    seen = []
    honest = light.step_samples
    monkeypatch.setattr(light, "step_samples", lambda *a: [seen.append(rows := honest(*a)), rows][1])
    run_with_stops(config_of({}), Store(tmp_path), [3, 9, 2])
    order = np.concatenate(seen)
    assert len(order) == 2 * 1199
    for epoch in (order[:1199], order[1199:]):
        assert sorted(epoch) == list(range(1199))


def test_a_state_of_another_run_is_refused(config_of, tmp_path, every_step):
    store = Store(tmp_path)
    with pytest.raises(Preempted, match="after step 3 of epoch 1"):
        list(train(config_of({}), Context(), keeper=Checkpointer(store, StopAt(3))))
    with pytest.raises(Invalid, match="a run with other settings or other data"):
        list(train(config_of({"optim.lr": 1e-3}), Context(), keeper=Checkpointer(store)))


# --- several workers ----------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_two_workers_stop_together_and_go_on_exactly_and_one_can_go_on_for_both(run_tree, tmp_path):
    jobs = [(run_tree(**ADAMW), 14), (run_tree(**SGD), random.Random(1).randrange(1, 10))]
    said = [tmp_path / f"rank-{rank}.txt" for rank in range(2)]
    ranks = [
        workers.start(said[rank], workers.stop_and_go_on, rank, tmp_path / "meeting", tmp_path, jobs)
        for rank in range(2)
    ]
    for process in ranks:
        process.join(timeout=800)
    outputs = [path.read_text().splitlines() for path in said]
    assert [process.exitcode for process in ranks] == [0, 0], outputs
    first, second = ([json.loads(line) for line in lines] for lines in outputs)
    fewer = first[8:]
    for number, (_, stop) in enumerate(jobs):
        runs = [[what for _, what in lines[4 * number : 4 * number + 4]] for lines in (first, second)]
        for (alone, stopped, resumed, _), other in zip(runs, reversed(runs), strict=True):
            assert stopped["weights"] == f"after step {(stop - 1) % 10 + 1} of epoch {(stop - 1) // 10 + 1}"
            assert stopped["rows"] + resumed["rows"] == alone["rows"] == other[0]["rows"]
            assert resumed["weights"] == alone["weights"] == other[0]["weights"]
        # A stop by two workers, an end by one: every image once an epoch all the same.
        parts = [run[3]["seen"] for run in runs]
        steps = [[*a, *b] for a, b in zip(*parts, strict=True)] + fewer[number][1]["seen"]
        assert len(steps) == 20
        for epoch in (steps[:10], steps[10:]):
            assert sorted(row for step in epoch for row in step) == list(range(1199))
        rows = runs[0][3]["rows"] + fewer[number][1]["rows"]
        assert [row["epoch"] for row in rows] == [1, 2]
    # Plain SGD draws nothing per rank. Batch norm of half a batch is not that of a whole one, yet close.
    last = (first[8 + 1][1]["rows"][-1], first[4][1]["rows"][-1])
    assert last[0]["train_loss"] == pytest.approx(last[1]["train_loss"], rel=0.1)


# --- a process that is killed -------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_a_process_killed_at_random_moments_ends_like_one_left_alone(run_tree, tmp_path):
    tree = run_tree(**ADAMW, **{"batch_size": 8, "schedule.epochs": 3})
    file, place, said = tmp_path / "run.yaml", tmp_path / "state", tmp_path / "said.txt"
    file.write_text(yaml.safe_dump(tree))
    command = [str(file), "--checkpoint", str(place), "--checkpoint-share", "1", "--checkpoint-seconds", "0"]
    rng = random.Random(0)
    rows, ends = {}, []
    for how in (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, None):
        before = set(Store(place).paths())
        process = workers.start(said, workers.run_trainables, *command)
        if how is not None:
            while not set(Store(place).paths()) - before and process.is_alive():
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
            os.kill(process.pid, how)
        process.join(timeout=200)
        out = said.read_text()
        ends.append(process.exitcode)
        for line in out.splitlines():
            if line.endswith("}") and "epoch" in (row := json.loads(line)):
                row = {name: value for name, value in row.items() if name not in TIMING_FIELDS}
                assert rows.setdefault(row["epoch"], row) == row
    assert ends == [-signal.SIGKILL] * 3 + [75, 0], out
    undisturbed, weights = run_alone(TrainConfig.model_validate(tree))
    assert list(rows.values()) == undisturbed
    assert json.loads(out.splitlines()[-1]) == {"weights": weights}
    # A run that is over needs no state.
    assert list(place.iterdir()) == []


def test_a_place_no_file_system_has_ends_with_2_and_one_message(run_tree, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run_tree()))
    assert main([str(file), "--checkpoint", "nowhere://bucket/x"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("--checkpoint nowhere://bucket/x: ")
    assert captured.out == ""


# --- the format and the place -------------------------------------------------------------------------

CONTENT = {"epoch": 3, "step": 7, "model": {"w": torch.arange(5.0)}, "loss_sums": (0.1, 0.2)}


def written(content):
    file = io.BytesIO()
    dump(content, file)
    return file.getvalue()


def test_a_checkpoint_cut_or_changed_at_any_byte_is_refused():
    data = written(CONTENT)
    assert str(parse(data)) == str(CONTENT)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        for bad in (data[:at], bytes(changed)):
            with pytest.raises(Corrupt):
                parse(bad)
    with pytest.raises(Corrupt):
        parse(data + b"\0")


@pytest.fixture(params=["folder", "uri", "object store"])
def store(request, tmp_path):
    if request.param == "folder":
        return Store(tmp_path / "run")
    if request.param == "uri":
        return Store((tmp_path / "run").as_uri())
    store = Store(tmp_path / "run")
    (tmp_path / "run").mkdir()
    # Any file system that is not the local one is written to as an object store is.
    store._filesystem = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    store._folder, store._is_local = "run", False
    return store


def test_the_two_newest_are_kept_and_the_older_serves_where_the_newer_is_damaged(store, tmp_path):
    assert store.read() == (None, [])
    for epoch, step in ((0, 900), (1, 5), (10, 0)):
        store.write(CONTENT | {"epoch": epoch, "step": step})
    files = sorted((tmp_path / "run").iterdir())
    assert len(files) == len(store.paths()) == 2
    content, notices = store.read()
    assert ((content["epoch"], content["step"]), notices) == ((10, 0), [])
    # Rows on record up to epoch 9: what is beyond them is passed over, and left.
    assert store.read(most_epochs=9)[0]["epoch"] == 1
    files[1].write_bytes(files[1].read_bytes()[:-10])
    content, notices = store.read()
    assert content["epoch"] == 1
    assert len(notices) == 1
    assert "its checksum does not match" in notices[0]
    # Told once: what is damaged is gone.
    assert store.read()[1] == []
    files[0].write_bytes(b"")
    assert store.read()[0] is None
    other = tmp_path / "run" / "notes.txt"
    other.write_text("mine")
    (tmp_path / "run" / ".000001-000000001.ckpt.0123abcd.part").write_bytes(b"half")
    store.write(CONTENT)
    store.clear()
    assert list((tmp_path / "run").iterdir()) == [other]


def test_the_older_ones_stay_until_the_new_one_is_there(tmp_path, monkeypatch):
    store = Store(tmp_path)
    for step in (1, 2):
        store.write(CONTENT | {"step": step})
    there = store.paths()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write(CONTENT | {"step": 3})
    assert sorted(str(path) for path in tmp_path.iterdir()) == there


# --- when ---------------------------------------------------------------------------------------------


class FlakyStore(Store):
    def __init__(self, place, failures):
        super().__init__(place)
        self.failures = failures

    def write(self, *arguments):
        self.failures -= 1
        if self.failures >= 0:
            raise OSError("the disk is away")
        return super().write(*arguments)


def test_a_write_that_fails_is_tried_again_and_given_up_with_a_notice(tmp_path):
    flaky = Checkpointer(FlakyStore(tmp_path, 2), backoff_seconds=(0.0, 0.0))
    flaky.take(CONTENT, wait=True)
    assert (flaky.written, flaky.notices) == (1, [])
    dead = Checkpointer(FlakyStore(tmp_path / "dead", 3), backoff_seconds=(0.0, 0.0))
    dead.take(CONTENT, wait=True)
    assert dead.written == 0
    assert dead.notices == [f"{tmp_path / 'dead'}: epoch 3, step 7: no checkpoint: OSError: the disk is away"]


def test_a_run_whose_checkpoints_cannot_be_written_is_the_same_run(config_of, tmp_path, every_step):
    config = config_of(SGD)
    store = FlakyStore(tmp_path, 10**9)
    with Checkpointer(store, share=1e9, least_seconds=0, backoff_seconds=()) as keeper:
        states = list(train(config, Context(), keeper=keeper))
    assert len(keeper.notices) > 2
    rows, weights = run_alone(config)
    assert [measured(row) for row, _ in states] == rows
    assert states[-1][1].weights_digest() == weights


def test_checkpoints_stay_within_their_share_and_use_it(tmp_path, monkeypatch):
    """Against a clock of its own: copying takes 0.2 s of the training's time, writing 0.3 s of a thread's."""
    clock = {"wall": 0.0, "thread": 0.0}
    fake = SimpleNamespace(perf_counter=lambda: clock["wall"], thread_time=lambda: clock["thread"])
    monkeypatch.setattr(checkpoint, "time", fake)
    keeper = Checkpointer(Store(tmp_path), share=0.01, least_seconds=10)

    def copy(content):
        clock["wall"] += 0.2
        return content

    def write(*_):
        clock["thread"] += 0.3

    monkeypatch.setattr(keeper, "_copy", copy)
    monkeypatch.setattr(keeper._store, "write", write)
    taken = []
    while clock["wall"] < 3600:
        clock["wall"] += 1
        if keeper.is_due(lambda: CONTENT):
            keeper.take(CONTENT, wait=True)
            taken.append(clock["wall"])
        assert keeper.spent_seconds <= 0.01 * clock["wall"] + 0.5
    # 0.5 s at one part in a hundred: one every 50 s. The first came when it seemed to cost nothing.
    assert taken[0] == pytest.approx(10, abs=1.5)
    assert np.diff(taken[1:]) == pytest.approx(50, abs=1.5)
    assert keeper.spent_seconds == pytest.approx(0.5 * len(taken))


def test_a_large_state_waits_until_its_guessed_cost_is_earned(tmp_path):
    keeper = Checkpointer(Store(tmp_path), share=0.005, least_seconds=0)
    asked = []

    def large():
        asked.append(True)
        # 50 GB, at half a GB a second.
        return {"w": torch.empty(50 * 10**9, dtype=torch.uint8, device="meta")}

    assert not keeper.is_due(large)
    assert not keeper.is_due(large)
    assert keeper._cost == pytest.approx(100)
    assert len(asked) == 1


def test_a_copy_does_not_move_with_the_state(tmp_path):
    live = {"epoch": 0, "step": 1, "w": torch.zeros(3), "list": [torch.ones(2, dtype=torch.int64)]}
    store = Store(tmp_path)
    keeper = Checkpointer(store)
    for step in (1, 2):
        copied = keeper._copy(live | {"step": step})
        live["w"] += 1
        live["list"][0] += 1
        assert copied["step"] == step
        assert copied["w"].tolist() == [step - 1.0] * 3
        assert copied["list"][0].tolist() == [step] * 2


# --- how large ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [ADAMW, SGD, REGNET, {"optim": {"name": "sgd", "lr": 1, "weight_decay": 0, "momentum": 0}}],
    ids=["adamw-ema", "sgd", "regnet", "no-momentum"],
)
def test_the_size_told_before_is_the_size_of_the_file(settings, config_of, tmp_path, every_step):
    config = config_of(settings)
    store = Store(tmp_path)
    with pytest.raises(Preempted), Checkpointer(store, StopAt(2)) as keeper:
        list(train(config, Context(), keeper=keeper))
    [path] = store.paths()
    told, content = checkpoint_bytes(config), store.read()[0]
    assert told == sum(tensor.nbytes for tensor in checkpoint._tensors(content))
    num_tensors = len(list(checkpoint._tensors(content)))
    assert told < Path(path).stat().st_size < told + 500 * num_tensors + 10_000


# --- the worker of a lane -----------------------------------------------------------------------------


class FakeClerk:
    """Takes what a worker says; a method's `remote` is a plain call."""

    def __init__(self):
        self.rows, self.ends, self.steps = [], [], []
        self.beat = SimpleNamespace(remote=lambda lane, number, step: self.steps.append(step) or True)
        self.row = SimpleNamespace(remote=self._row)
        self.end = SimpleNamespace(remote=self._end)
        self.keeps = SimpleNamespace(remote=lambda *_: None)
        self.uses = SimpleNamespace(remote=lambda *_: None)
        self.log = SimpleNamespace(remote=lambda *_: None)

    def _row(self, lane, number, row):
        self.rows.append(measured(row))
        return True

    def _end(self, lane, number, *rest):
        self.ends.append(rest)


LANE = {"lane": "lane", "key": "small-1", "hang_seconds": 600, "checkpoints": None}


def lanes_without_ray(monkeypatch) -> Any:
    """The worker's side of lanes with a clerk that answers at once, told of every look."""
    from orchestrator.execution import worker

    monkeypatch.setattr(worker.ray, "get", lambda value: value)
    monkeypatch.setattr(worker.ray, "wait", lambda values, timeout: (values, []))
    monkeypatch.setattr(worker, "_BEAT_SECONDS", 0.0)
    return worker


def test_a_lane_s_worker_ends_a_preempted_attempt_and_the_next_one_goes_on(
    run_tree, config_of, tmp_path, monkeypatch, every_step
):
    worker = lanes_without_ray(monkeypatch)
    job = {"trial": "abc", "config": config_of(SGD).model_dump_json(), "attempt": 1, "epochs": 2}
    clerk = FakeClerk()
    settings = LANE | {"clerk": clerk, "folder": str(tmp_path)}
    with pytest.raises(Preempted):
        worker._run_job(job, 1, settings, Context(), StopAt(13))
    assert [end[:2] for end in clerk.ends] == [("preempted", "after step 3 of epoch 2")]
    assert (clerk.steps[0], clerk.steps[-1]) == (0, 13)
    clerk.steps.clear()
    worker._run_job(job | {"attempt": 2}, 2, settings, Context())
    # The clerk hears where it goes on, and so what is not done again.
    assert clerk.steps[0] == 13
    rows, weights = run_alone(config_of(SGD))
    assert clerk.rows == rows
    assert clerk.ends[1] == ("finished", "", "", weights, None)
    assert Store(WeightStore(tmp_path).checkpoint("abc")).read()[0]["step"] == 3
    assert not list((tmp_path / "trials" / "abc").glob("*.stack"))


def test_an_attempt_that_nobody_waits_for_any_more_ends(config_of, tmp_path, monkeypatch, every_step):
    worker = lanes_without_ray(monkeypatch)
    job = {"trial": "abc", "config": config_of(SGD).model_dump_json(), "attempt": 1, "epochs": 0}
    clerk = FakeClerk()
    clerk.beat = SimpleNamespace(remote=lambda lane, number, step: clerk.steps.append(step) or step < 4)
    settings = LANE | {"clerk": clerk, "folder": str(tmp_path)}
    with pytest.raises(Preempted):
        worker._run_job(job, 1, settings, Context())
    assert max(clerk.steps) <= 6


def test_a_process_that_does_not_get_on_says_where_it_is_and_ends(tmp_path):
    from orchestrator.execution.coordinator import Coordinator
    from orchestrator.execution.dispatch import Job
    from orchestrator.store.own_files import OwnFiles, key_of, stack_path

    process = workers.start(tmp_path / "said.txt", workers.hang, tmp_path)
    process.join(timeout=120)
    assert process.exitcode == 1
    own = OwnFiles(key_of(tmp_path))
    assert "stuck_in_here" in stack_path(own.folder, "abc", 1, 0).read_text()

    async def told() -> list[dict[str, Any]]:
        clerk = Coordinator(str(tmp_path), hang_seconds=0.0)
        await clerk.add([Job("abc", "arm", "{}", retries=0)])
        await clerk.open_slot("lane")
        last = await clerk.enter("lane", "node")
        await clerk.take("lane", last)
        await clerk.lose("lane", "process", "a worker process died")
        return await clerk.drain()

    end = asyncio.run(told())[-1]
    assert (end.end, end.final) == ("failed", True)
    assert "it made no step for a long time; see trials/abc/attempt-1.rank-0.stack" in end.detail
    # It lies with the results now, and no longer on the machine of the worker.
    assert "stuck_in_here" in stack_path(tmp_path, "abc", 1, 0).read_text()
    assert own.trials() == []


@pytest.mark.parametrize(
    ("kind", "end"), [(None, "finished"), (torch.OutOfMemoryError, "out_of_memory"), (Diverged, "diverged")]
)
def test_nothing_of_a_trial_is_alive_when_its_memory_is_given_back(
    config_of, tmp_path, monkeypatch, kind, end
):
    worker = lanes_without_ray(monkeypatch)
    alive: list[weakref.ref[Any]] = []
    seen: list[list[Any]] = []
    honest = loop.TrainingRun.train_step

    def train_step(run, *arguments):
        alive[:] = [weakref.ref(part) for part in (run.state.model, run.state.optimizer, run.learner, run)]
        if kind is not None and run.state.step == 3:
            # Made here, because an error holds the frames that it was raised in.
            raise kind("made up")
        return honest(run, *arguments)

    attempt = worker._Attempt
    monkeypatch.setattr(loop.TrainingRun, "train_step", train_step)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append([ref() for ref in alive]))
    # It trains on the CPU, and gives memory back as on a GPU.
    monkeypatch.setattr(worker, "_Attempt", lambda *said: attempt(*said[:3], Context(), said[4]))
    job = {"trial": "abc", "config": config_of(SGD).model_dump_json(), "attempt": 1, "epochs": 0}
    clerk = FakeClerk()
    settings = LANE | {"clerk": clerk, "folder": str(tmp_path)}
    on_gpu = SimpleNamespace(device=torch.device("cuda", 0), world_size=1, rank=0)
    worker._run_job(job, 1, settings, on_gpu)
    assert [told[0] for told in clerk.ends] == [end]
    assert seen == [[None] * 4]


@pytest.mark.parametrize(
    ("option", "value"),
    [(f"--checkpoint-{one}", value) for one in ("share", "seconds") for value in ("nan", "inf", "-1", "x")]
    + [("--checkpoint-share", "0"), ("--threads", "0"), ("--threads", "-1"), ("--threads", "9" * 30)],
)
def test_an_option_that_is_no_such_number_is_one_message(option, value, capsys):
    from trainables.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(["x.yaml", f"{option}={value}"])
    assert ended.value.code == 2
    assert f"argument {option}: " in capsys.readouterr().err
