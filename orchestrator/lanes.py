"""Ray: lanes that take trial after trial, and the clerk that keeps the record of them.

    Tune ──one Tune trial per trial──▶ Lane (actor, reused) ──submit──▶ Clerk ◀──take── worker group
                                          ▲                               │ ▲              │
                                          └────────── next_event ─────────┘ └─ row, end ───┘

A lane holds one long Ray Train run whose workers ask the clerk for a trial, train it, ask for the next.
So a trial does not pay for starting Python, torch, a process group and a CUDA context. The clerk is the
journal's one writer: rank 0 sends it each epoch's row, and what the clerk has acknowledged is on disk.
Tune decides which trial a lane takes next; its own state is disposable. Ray Train restarts a lane's
workers when one dies; the clerk then hands them the interrupted trial again. Nothing else retries.

Facts of Ray 2.60 that shape this file: the State API, and so the dashboard, must be on, or the workers of
a stopped lane are never released; a Tune trial must ask for some resource, and asking for a CPU would
starve the workers, so lanes ask for a sliver of the head node, where the driver's fate is theirs anyway;
`ray.train.report` is a barrier polled every two seconds, so rows do not go that way.
"""

import asyncio
import contextlib
import dataclasses
import gc
import io
import os
import shutil
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.gang import Gang, Node, num_lanes
from orchestrator.journal import Writer, write_atomically
from orchestrator.results import RULES, AttemptEnd, Event, attempt_event, end_event, epoch_event

if TYPE_CHECKING:
    # Every process of a lane imports this file; only the workers need torch and the model code.
    from orchestrator.plan import Trial
    from trainables.context import Context

#: Seconds between two checkpoints of a trial, at ends of epochs; most small trials never write one.
CHECKPOINT_SECONDS = 120.0

#: Seconds a step of a lane waits before it looks whether its worker group is still there.
_POLL_SECONDS = 2.0


class ClusterError(RuntimeError):
    """The cluster cannot run the sweep; the message says what is missing."""


# ---------------------------------------------------------------------------------------------------
# The clerk


@dataclasses.dataclass
class _Desk:
    """The clerk's view of one lane."""

    number: int = 0
    job: dict[str, Any] | None = None
    in_flight: bool = False
    started: float = 0.0
    node: str = ""
    closed: bool = False
    events: "asyncio.Queue[dict[str, Any]]" = dataclasses.field(default_factory=asyncio.Queue)
    changed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class Clerk:
    """An async actor: hands trials to worker groups, writes the journal, decides who tries again."""

    def __init__(self, folder: str, attempts: dict[str, int], retries: dict[str, int]) -> None:
        """
        Args:
          folder: the sweep's.
          attempts: how often each trial was started before this run.
          retries: how often each trial may be tried again after failing, in this run.
        """
        self._folder = Path(folder)
        self._writer = Writer(self._folder)
        self._attempts, self._retries = attempts, retries
        self._desks: dict[str, _Desk] = {}
        self._fresh: list[Event] = []
        self._stopping = False

    def _desk(self, lane: str) -> _Desk:
        return self._desks.setdefault(lane, _Desk())

    def _note(self, event: Event) -> None:
        self._writer.append([event])
        self._fresh.append(event)

    async def note(self, event: Event) -> None:
        """Writes an event of the driver's."""
        self._note(event)

    async def drain(self) -> list[Event]:
        """Events since the last call; for the one driver."""
        fresh, self._fresh = self._fresh, []
        return fresh

    # Called by lanes.

    async def submit(self, lane: str, job: dict[str, Any]) -> None:
        """Puts a trial on a lane's desk."""
        desk = self._desk(lane)
        desk.events = asyncio.Queue()
        if self._stopping:
            desk.events.put_nowait({"done": True})
            return
        self._put(desk, job)

    def _put(self, desk: _Desk, job: dict[str, Any]) -> None:
        desk.number += 1
        desk.job, desk.in_flight, desk.started = job, False, 0.0
        desk.changed.set()

    async def next_event(self, lane: str, timeout_seconds: float) -> dict[str, Any] | None:
        """What the lane should tell Tune next, or None when nothing has happened for so long."""
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self._desk(lane).events.get(), timeout_seconds)
        return None

    async def give_up(self, lane: str, detail: str) -> None:
        """The lane's worker group is gone for good; its trial has failed."""
        desk = self._desk(lane)
        if desk.job is not None:
            if not desk.in_flight:
                self._begin(lane, desk)
            self._finish(desk, "failed", detail, can_retry=False)

    async def close_lane(self, lane: str) -> None:
        """The workers of a lane are to leave when they ask next."""
        desk = self._desk(lane)
        desk.closed = True
        desk.changed.set()

    # Called by workers.

    async def enter(self, lane: str, node: str) -> int:
        """Rank 0 of a new worker group is here; a trial in flight was lost with the group before it.

        Args:
          lane: whose group it is.
          node: id of the machine rank 0 is on.

        Returns:
          The number of the last job that is not for this group.
        """
        desk = self._desk(lane)
        desk.node = node
        if desk.in_flight:
            self._finish(desk, "lost", "a worker process died (killed, out of memory, or its node left)")
        return desk.number - (1 if desk.job is not None else 0)

    async def take(self, lane: str, last: int) -> tuple[int, dict[str, Any]] | None:
        """The lane's next job after number `last`, the same for every rank; None to leave."""
        desk = self._desk(lane)
        while not desk.closed:
            if desk.job is not None and desk.number > last:
                if not desk.in_flight:
                    self._begin(lane, desk)
                return desk.number, desk.job
            desk.changed.clear()
            await desk.changed.wait()
        return None

    def _begin(self, lane: str, desk: _Desk) -> None:
        assert desk.job is not None
        trial = desk.job["trial"]
        attempt = self._attempts[trial] = self._attempts.get(trial, 0) + 1
        desk.job = desk.job | {"attempt": attempt}
        desk.in_flight, desk.started = True, time.monotonic()
        self._note(attempt_event(trial, attempt, lane, time.time(), desk.node))

    async def row(self, lane: str, number: int, row: dict[str, Any]) -> bool:
        """An epoch's row from rank 0; False tells it to drop the trial."""
        desk = self._desk(lane)
        if desk.job is None or number != desk.number or not desk.in_flight:
            return False
        self._note(epoch_event(desk.job["trial"], desk.job["attempt"], row))
        desk.events.put_nowait(
            {"epoch": row["epoch"], "val_top1_error_pct": row["val_top1_error_pct"], "done": False}
        )
        return True

    async def end(
        self, lane: str, number: int, end: AttemptEnd, detail: str, log: str = "", weights: str = ""
    ) -> None:
        """An attempt is over; the first rank to say so is heard."""
        desk = self._desk(lane)
        if desk.job is None or number != desk.number or not desk.in_flight:
            return
        if log:
            name = f"attempt-{desk.job['attempt']}.log"
            write_atomically(self._folder / "trials" / desk.job["trial"] / name, log)
        self._finish(desk, end, detail, weights=weights)

    def _finish(
        self, desk: _Desk, end: AttemptEnd, detail: str, can_retry: bool = True, weights: str = ""
    ) -> None:
        assert desk.job is not None
        trial, attempt = desk.job["trial"], desk.job["attempt"]
        again = RULES[end].again == "always"
        if RULES[end].again == "retries" and self._retries.get(trial, 0) > 0:
            self._retries[trial] -= 1
            again = True
        again = again and can_retry and not self._stopping
        if end == "lost" and not again:
            end = "failed"
        seconds = time.monotonic() - desk.started
        self._note(end_event(trial, attempt, end, detail, seconds, time.time(), not again, weights))
        if again:
            self._put(desk, desk.job)
            return
        checkpoint_path(self._folder, trial).unlink(missing_ok=True)
        desk.job, desk.in_flight = None, False
        desk.events.put_nowait({"done": True})

    async def stop(self) -> None:
        """Ends the run: trials in flight are cancelled, and keep their checkpoints for the next one."""
        self._stopping = True
        for desk in self._desks.values():
            if desk.in_flight and desk.job is not None:
                seconds = time.monotonic() - desk.started
                trial, attempt = desk.job["trial"], desk.job["attempt"]
                self._note(
                    end_event(trial, attempt, "cancelled", "interrupted", seconds, time.time(), final=True)
                )
            desk.job, desk.in_flight = None, False
            desk.events.put_nowait({"done": True})


def checkpoint_path(folder: Path, trial_id: str) -> Path:
    """Where a trial that has not ended keeps its state."""
    return folder / "trials" / trial_id / "checkpoint.pt"


# ---------------------------------------------------------------------------------------------------
# The worker group of a lane


def lane_loop(settings: dict[str, Any]) -> None:
    """What every worker of a lane runs: one trial after the other, until told to leave."""
    import torch
    import torch.distributed as dist
    from ray.train.torch import get_device

    import trainables.loop  # noqa: F401  (so that the first trial does not wait for it)
    from trainables.context import this_process

    # What is here now stays: collecting after a trial need not walk through all of torch.
    gc.collect()
    gc.freeze()
    device = get_device()
    if device.type == "cuda":
        # Workers of one node all see its GPUs; which one is whose, Ray knows.
        torch.cuda.set_device(device)
    train_context = ray.train.get_context()
    rank, world_size = train_context.get_world_rank(), train_context.get_world_size()
    context = this_process(rank, world_size, settings["threads"])
    clerk, lane = settings["clerk"], settings["lane"]
    node = ray.get_runtime_context().get_node_id()
    last = [ray.get(clerk.enter.remote(lane, node)) if rank == 0 else 0]
    if world_size > 1:
        dist.broadcast_object_list(last, src=0)
    number = last[0]
    while (taken := ray.get(clerk.take.remote(lane, number))) is not None:
        number, job = taken
        _run_job(job, number, clerk, lane, Path(settings["folder"]), context)


def _run_job(
    job: dict[str, Any], number: int, clerk: Any, lane: str, folder: Path, context: "Context"
) -> None:
    """Trains one trial and reports how it went; only what takes the whole group down gets out."""
    import torch

    from trainables.base import Diverged, Invalid
    from trainables.config import TrainConfig
    from trainables.loop import train

    def end(kind: AttemptEnd, detail: str = "", log: str = "", weights: str = "") -> None:
        if context.rank == 0 or log:
            ray.get(clerk.end.remote(lane, number, kind, detail, log, weights))

    path = checkpoint_path(folder, job["trial"])
    saved = time.monotonic()
    try:
        config = TrainConfig.model_validate(job["config"])
        for row, state in train(config, context, _read_checkpoint(path, context)):
            wanted = [True, False]
            if context.rank == 0:
                wanted[0] = ray.get(clerk.row.remote(lane, number, dataclasses.asdict(row)))
                wanted[1] = time.monotonic() - saved > CHECKPOINT_SECONDS
                if all(wanted) and row.epoch < config.schedule.epochs:
                    buffer = io.BytesIO()
                    state.save(buffer)
                    write_atomically(path, buffer.getvalue())
                    saved = time.monotonic()
            if context.world_size > 1:
                # All ranks go on or none: a rank alone would wait in the next all-reduce for ever.
                torch.distributed.broadcast_object_list(wanted, src=0)
            if not wanted[0]:
                return
        end("finished", weights=state.weights_digest() if context.rank == 0 else "")
    except Diverged as error:
        end("diverged", str(error))
    except Invalid as error:
        end("invalid", str(error))
    except (torch.OutOfMemoryError, MemoryError) as error:
        end("out_of_memory", str(error).splitlines()[0], traceback.format_exc())
        if context.world_size > 1:
            raise
    except Exception as error:
        end("failed", f"{type(error).__name__}: {error}".splitlines()[0], traceback.format_exc())
        if context.world_size > 1:
            # The other ranks may be waiting in a collective; only a new group is in step again.
            raise
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _read_checkpoint(path: Path, context: "Context") -> io.BytesIO | None:
    """The checkpoint of an interrupted attempt, read by rank 0 for all; None if there is no whole one."""
    import torch

    content: list[bytes | None] = [None]
    if context.rank == 0:
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            # Written whole or not at all, but a disk may have other ideas.
            with contextlib.suppress(Exception):
                torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
                content[0] = data
    if context.world_size > 1:
        torch.distributed.broadcast_object_list(content, src=0)
    return io.BytesIO(content[0]) if content[0] is not None else None


# ---------------------------------------------------------------------------------------------------
# Lanes, as Tune sees them


class Lane(tune.Trainable):  # type: ignore[misc]
    """One Ray Train run that outlives the trials it takes."""

    def setup(self, config: dict[str, Any], clerk: Any, gang: Gang, folder: str, scratch: str) -> None:
        """Starts the worker group; its first trial is waiting on the desk when it arrives."""
        self._clerk, self._lane = clerk, uuid.uuid4().hex[:8]
        self._error: BaseException | None = None
        self._submit(config)
        settings = {"clerk": clerk, "lane": self._lane, "folder": folder, "threads": gang.cpus}
        self._thread = threading.Thread(target=self._fit, args=(gang, settings, scratch), daemon=True)
        self._thread.start()

    def _fit(self, gang: Gang, settings: dict[str, Any], scratch: str) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        try:
            resources = {"CPU": float(gang.cpus)} | ({"GPU": gang.gpus} if gang.gpus else {})
            TorchTrainer(
                lane_loop,
                train_loop_config=settings,
                scaling_config=ScalingConfig(
                    num_workers=gang.workers, use_gpu=bool(gang.gpus), resources_per_worker=resources
                ),
                # The clerk counts attempts per trial; the group itself may come back as often as need be.
                run_config=RunConfig(
                    name=f"lane-{self._lane}",
                    storage_path=scratch,
                    failure_config=FailureConfig(max_failures=-1),
                ),
            ).fit()
        except BaseException as error:
            self._error = error

    def _submit(self, config: dict[str, Any]) -> None:
        ray.get(self._clerk.submit.remote(self._lane, config["job"]))

    def step(self) -> dict[str, Any]:
        """One epoch of the trial, or its end."""
        while True:
            event = ray.get(self._clerk.next_event.remote(self._lane, _POLL_SECONDS))
            if event is not None:
                return dict(event)
            if not self._thread.is_alive():
                cause = self._error or "it returned"
                ray.get(self._clerk.give_up.remote(self._lane, f"the worker group ended: {cause}"))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next trial; False asks Tune for a new lane where the worker group has died."""
        if not self._thread.is_alive():
            return False
        self._submit(new_config)
        return True

    def cleanup(self) -> None:
        """Lets the workers go, so that lanes of another size find room."""
        ray.get(self._clerk.close_lane.remote(self._lane))
        self._thread.join(timeout=20)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial's state is its workers', and they keep it."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""


class _Queue(Searcher):  # type: ignore[misc]
    """Gives Tune the trials in the plan's order, until there are none or the run is stopped."""

    def __init__(self, trials: Sequence["Trial"], stopping: threading.Event) -> None:
        super().__init__()
        self._trials: Iterator[Trial] = iter(trials)
        self._stopping = stopping

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial."""
        trial = None if self._stopping.is_set() else next(self._trials, None)
        if trial is None:
            return str(Searcher.FINISHED)
        return {"job": {"trial": trial.id, "config": trial.config.model_dump(mode="json")}}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore that never comes; a lock does not pickle."""
        return {}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: the order is fixed."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal knows what is left."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


# ---------------------------------------------------------------------------------------------------
# The driver


def connect(address: str | None) -> None:
    """Starts Ray on this machine, or joins the cluster at `address`.

    Raises:
      ClusterError: there is no cluster there, or its dashboard is off.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray lowers the priority of its workers; beside any other work a trial would crawl.
    os.environ.setdefault("RAY_worker_niceness", "0")
    common = {"log_to_driver": False, "logging_level": "error", "runtime_env": {"env_vars": _WORKER_ENV}}
    os.environ.update({key: os.environ.get(key, value) for key, value in _WORKER_ENV.items()})
    try:
        if address is None:
            # Only small messages go through the object store.
            ray.init(
                include_dashboard=True, dashboard_host="127.0.0.1", object_store_memory=256 * 2**20, **common
            )
        else:
            ray.init(address=address, **common)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    # Ray prints its raylets' advice into the middle of a progress display, log_to_driver or not.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    if not ray.worker.get_dashboard_url():
        ray.shutdown()
        raise ClusterError("the Ray dashboard is off; start the head node with --include-dashboard=true")


_WORKER_ENV = {
    "RAY_TRAIN_V2_ENABLED": "1",
    # How soon a dead worker is noticed.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # An autoscaled node takes minutes to come; a lane waits for it.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
}


def nodes() -> list[Node]:
    """The machines of the connected cluster."""
    return [
        Node(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"]
    ]


class Run:
    """Trials on their way through a connected cluster; the caller polls `events` until `done`."""

    def __init__(
        self,
        folder: Path,
        trials: Sequence["Trial"],
        attempts: dict[str, int],
        retries: int,
        lanes: int | None = None,
    ) -> None:
        """
        Args:
          folder: the sweep's, seen by the driver and, for checkpoints, by the workers.
          trials: what is to run, in order.
          attempts: how often each was started before.
          retries: how often a failed one is tried again.
          lanes: trials at a time; None computes it from the cluster.

        Raises:
          ClusterError: a trial needs more than the cluster has.
        """
        self.folder = folder.resolve()
        self._attempts, self._retries = attempts, {trial.id: retries for trial in trials}
        self._stopping = threading.Event()
        cluster = nodes()
        from orchestrator.plan import by_gang

        self.phases: list[tuple[Gang, list[Trial], int]] = []
        for wanted, members in by_gang(trials).items():
            gang = wanted.on(cluster)
            count = lanes or num_lanes(gang, cluster, len(members))
            if count == 0:
                have = ", ".join(f"{node.cpus:g} CPU {node.gpus:g} GPU" for node in cluster)
                raise ClusterError(f"{len(members)} trial(s) need {gang}; the cluster has nodes of {have}")
            self.phases.append((gang, members, min(count, len(members))))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begins; the journal is open when this returns."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._clerk = (
            ray.remote(Clerk)
            .options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
            .remote(str(self.folder), self._attempts, self._retries)
        )
        event = {"kind": "session", "time": time.time(), "lanes": [count for *_, count in self.phases]}
        ray.get(self._clerk.note.remote(event))
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether nothing will happen any more."""
        return not self._thread.is_alive()

    def events(self) -> list[Event]:
        """What has happened since the last call."""
        fresh: list[Event] = ray.get(self._clerk.drain.remote())
        return fresh

    def stop(self, timeout_seconds: float = 8.0) -> None:
        """Cancels what is in flight and waits for the record of it, not for the workers."""
        self._stopping.set()
        ray.get(self._clerk.stop.remote(), timeout=timeout_seconds)

    def _run(self) -> None:
        scratch = Path(tempfile.mkdtemp(prefix="vitc-sweep-"))
        try:
            for gang, members, count in self.phases:
                if not self._stopping.is_set():
                    self._run_phase(gang, members, count, scratch)
        except BaseException as error:
            self.error = error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _run_phase(self, gang: Gang, members: list["Trial"], count: int, scratch: Path) -> None:
        lane = tune.with_parameters(
            Lane, clerk=self._clerk, gang=gang, folder=str(self.folder), scratch=str(scratch / "train")
        )
        sliver = tune.PlacementGroupFactory([{"node:__internal_head__": 0.0001}])
        tune.Tuner(
            tune.with_resources(lane, sliver),
            tune_config=tune.TuneConfig(
                search_alg=_Queue(members, self._stopping),
                num_samples=len(members),
                max_concurrent_trials=count,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="tune", storage_path=str(scratch / gang_name(gang)), verbose=0),
        ).fit()


def gang_name(gang: Gang) -> str:
    """A folder name for a gang."""
    return f"{gang.workers}x{gang.cpus}cpu{gang.gpus or 0:g}gpu"


def shutdown() -> None:
    """Leaves the cluster; a local one is taken down."""
    ray.shutdown()
