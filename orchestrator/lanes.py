"""Ray: lanes that take trial after trial from the clerk.

    Tune ──one Tune trial per trial──▶ Lane (actor, reused) ──open──▶ Clerk ◀──take── worker group
                                          ▲                             │ ▲              │
                                          └───────── next_event ────────┘ └─ row, end ───┘

A lane holds one long Ray Train run whose workers ask the clerk for a trial, train it, ask for the next.
So a trial does not pay for starting Python, torch, a process group and a CUDA context. The clerk is the
journal's one writer: rank 0 sends it each epoch's row, and what the clerk has acknowledged is on disk.
Tune decides how many lanes there are and opens a slot per trial; its own state is disposable. Ray Train
restarts a lane's workers when one dies; the clerk decides what becomes of their trial, and where. Nothing
else retries. Should Tune lose lanes, what is left of the trials makes the next round.

Facts of Ray 2.60 that shape this file: the State API, and so the dashboard, must be on, or the workers of
a stopped lane are never released; a Tune trial must ask for some resource, and asking for a CPU would
starve the workers, so lanes ask for a sliver of the head node, where the driver's fate is theirs anyway;
`ray.train.report` is a barrier polled every two seconds, so rows do not go that way; nodes being drained are
told to workers by `ray.train.get_preemption_info`, a barrier as well, so a thread asks and not the loop.
"""

import contextlib
import faulthandler
import gc
import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.clerk import Clerk, Judge, Verdict, stack_path
from orchestrator.dispatch import Cause, Job
from orchestrator.orphans import Orphans
from orchestrator.store.logs import kept as worker_log
from orchestrator.store.weights import KeptWeights, WeightStore
from orchestrator.trials.events import Event, PhaseBegan, PreflightDone, SessionBegan, SessionClosed
from orchestrator.trials.gang import Gang, Node, Phase, lane_plan
from orchestrator.trials.outcomes import AttemptEnd
from orchestrator.trials.records import Record
from trainables.errors import UserError

if TYPE_CHECKING:
    # Every process of a lane imports this file; only the workers need torch and the model code.
    from orchestrator.preflight import Clock
    from orchestrator.sweep.config import Resources
    from orchestrator.trials.trial import Trial
    from trainables.context import Context
    from trainables.profiling.dry_run import Reply, Request

#: Seconds between two questions to Ray Train whether a machine is to be taken away; Ray looks every five.
_PREEMPTION_POLL_SECONDS = 2.0

#: Least seconds between two signs of life of a trial.
_BEAT_SECONDS = 1.0

#: Seconds a step of a lane waits before it looks whether its worker group is still there.
_POLL_SECONDS = 2.0

#: Seconds between two looks for placement groups that nobody owns.
_ORPHANS_SECONDS = 10.0

#: Rounds of lanes that end no trial before the run gives up.
_MAX_IDLE_ROUNDS = 3


class ClusterError(UserError):
    """The cluster cannot run the sweep; the message says what is missing."""


# ---------------------------------------------------------------------------------------------------
# The worker group of a lane


def lane_loop(settings: dict[str, Any]) -> None:
    """What every worker of a lane runs: one trial after the other, until told to leave."""
    import torch
    import torch.distributed as dist
    from ray.train.torch import get_device

    import trainables.training.loop  # noqa: F401  (so that the first trial does not wait for it)
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
    preempted = threading.Event()
    threading.Thread(target=_watch_for_preemption, args=(preempted,), daemon=True).start()
    while (taken := ray.get(clerk.take.remote(lane, number))) is not None:
        number, job = taken
        _run_job(job, number, settings, context, preempted.is_set)


def _watch_for_preemption(preempted: threading.Event) -> None:
    """Sets the event when Ray drains a node of this worker group; for a thread of each worker.

    SIGTERM to a node's Ray and the autoscaler's own decisions become a drain with a deadline. Ray Train hands
    it to the workers through `get_preemption_info`, which is a barrier of all of them: an actor
    call, too slow for the loop, but each worker's thread asks equally often. A signal handler is no way: Ray
    has its own for SIGTERM, and the training function runs in a thread, which may not install one.
    """
    # The actor behind the barrier goes with the group.
    with contextlib.suppress(ray.exceptions.RayError):
        while ray.train.get_preemption_info() is None:
            time.sleep(_PREEMPTION_POLL_SECONDS)
        preempted.set()


def _run_job(
    job: dict[str, Any],
    number: int,
    settings: dict[str, Any],
    context: "Context",
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Trains one trial and reports how it went; only what takes the whole group down gets out."""
    import torch

    from trainables.base import Diverged, Invalid, Preempted
    from trainables.config import TrainConfig
    from trainables.training.checkpoint import Checkpointer, Store
    from trainables.training.loop import train

    clerk, lane, folder = settings["clerk"], settings["lane"], Path(settings["folder"])

    def end(
        kind: AttemptEnd,
        detail: str = "",
        log: str = "",
        weights: str = "",
        by_all: bool = False,
        kept: KeptWeights | None = None,
    ) -> None:
        if context.rank == 0 or log or by_all:
            ray.get(clerk.end.remote(lane, number, kind, detail, log, weights, kept))

    states = WeightStore(folder, settings["checkpoints"])
    store = Store(states.checkpoint(job["trial"])) if context.rank == 0 else None
    # Rows the journal lost in a crash are made again, even where a checkpoint is past them.
    watch = _Watch(job, number, settings, context.rank)
    keeper = Checkpointer(
        store, lambda: should_stop() or watch.unwanted, most_epochs=job["epochs"], on_look=watch.look
    )
    try:
        config = TrainConfig.model_validate_json(job["config"])
        first = states.open_kept(job["start"]) if job.get("start") else contextlib.nullcontext()
        # Once this block is left nothing is written any more, and the clerk may delete.
        with keeper, watch, worker_log(folder, job["trial"], job["attempt"], context.rank), first as start:
            # The state is wanted once the last row is out.
            for row, state in train(config, context, keeper=keeper, start=start):  # noqa: B007
                verdict: list[Verdict] = ["go on"]
                if context.rank == 0:
                    verdict = [ray.get(clerk.row.remote(lane, number, row))]
                if context.world_size > 1:
                    # All ranks go on or none: a rank alone would wait in the next all-reduce for ever.
                    torch.distributed.broadcast_object_list(verdict, src=0)
                if verdict[0] == "drop":
                    return
                if verdict[0] == "stop":
                    break
        if verdict[0] == "stop":
            end("stopped", f"behind the others of its arm after epoch {row.epoch}", "\n".join(keeper.notices))
            return
        weights = state.weights_digest() if context.rank == 0 else ""
        kept = None
        if context.rank == 0:
            kept = ray.get(clerk.keeps.remote(lane, number, row.val_error_pct))
        if kept is not None and (fault := keep_weights(states, kept, state.save_weights)):
            if not kept.group:
                # A first stage without weights is none.
                raise OSError(fault)
            kept = None
            keeper.notices.append(fault)
        end("finished", log="\n".join(keeper.notices), weights=weights, kept=kept)
    except Preempted as error:
        # Every rank says so, as whoever leaves first takes the group down. The group leaves, as Ray Train
        # starts its next one on machines that stay.
        end("preempted", str(error), "\n".join(keeper.notices), by_all=True)
        raise
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


def keep_weights(states: WeightStore, kept: KeptWeights, save: Callable[[IO[bytes]], None]) -> str:
    """Writes final weights; returns a line if the storage refuses again and again, which costs no trial."""
    from trainables.training.checkpoint import BACKOFF_SECONDS

    for delay in (*BACKOFF_SECONDS, None):
        try:
            states.keep(kept, save)
        except OSError as error:
            if delay is None:
                return f"{states.place}: weights are not kept: {error}"
            time.sleep(delay)
        else:
            break
    return ""


class _Watch:
    """One rank's watch over an attempt: tells the clerk where it is, and ends a process that hangs.

    A timer of the interpreter's own, which needs neither its lock nor its threads, writes down where all of
    them stand and ends the process, unless the loop winds it up again. Ray Train then restarts the group.
    """

    def __init__(self, job: dict[str, Any], number: int, settings: dict[str, Any], rank: int) -> None:
        self._clerk, self._lane, self._number, self._rank = settings["clerk"], settings["lane"], number, rank
        self._seconds = settings["hang_seconds"]
        self._path = stack_path(Path(settings["folder"]), job["trial"], job["attempt"], rank)
        self._told = 0.0
        self._answer: Any = None
        self.unwanted = False

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w")
        self._wind_up()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _wind_up(self) -> None:
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def look(self, step: int) -> None:
        """The loop is at this step."""
        self._wind_up()
        now = time.monotonic()
        if self._rank or now - self._told < _BEAT_SECONDS:
            return
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            # Nobody waits for this attempt any more: its lane was taken for dead, or the run was stopped.
            self.unwanted = not ray.get(self._answer)
        self._told = now
        self._answer = self._clerk.beat.remote(self._lane, self._number, step)


# ---------------------------------------------------------------------------------------------------
# Lanes, as Tune sees them


class Lane(tune.Trainable):  # type: ignore[misc]
    """One Ray Train run that outlives the trials it takes."""

    def setup(
        self,
        config: dict[str, Any],
        clerk: Any,
        gang: Gang,
        folder: str,
        scratch: str,
        hang_seconds: float,
        checkpoints: str | None,
    ) -> None:
        """Starts the worker group and opens the first slot."""
        self._clerk, self._lane = clerk, uuid.uuid4().hex[:8]
        self._error: BaseException | None = None
        ray.get(self._clerk.open_slot.remote(self._lane))
        settings = {
            "clerk": clerk,
            "lane": self._lane,
            "folder": folder,
            "threads": gang.cpus,
            "hang_seconds": hang_seconds,
            "checkpoints": checkpoints,
        }
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
                    callbacks=[_losses(self._clerk, self._lane)],
                ),
            ).fit()
        except BaseException as error:
            self._error = error

    def step(self) -> dict[str, Any]:
        """One epoch of a trial, or an end."""
        while True:
            event = ray.get(self._clerk.next_event.remote(self._lane, _POLL_SECONDS))
            if event is not None:
                return dict(event)
            if not self._thread.is_alive():
                cause = self._error or "it returned"
                ray.get(self._clerk.lose.remote(self._lane, "process", f"the worker group ended: {cause}"))
                # This lane takes nothing any more; its slot goes with it, and the trial to another.
                raise RuntimeError(f"the worker group ended: {cause}")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Opens the next slot; False asks Tune for a new lane where the worker group has died."""
        if not self._thread.is_alive():
            return False
        ray.get(self._clerk.open_slot.remote(self._lane))
        return True

    def cleanup(self) -> None:
        """Lets the workers go, so that lanes of another size find room."""
        ray.get(self._clerk.close_lane.remote(self._lane))
        self._thread.join(timeout=20)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial's state is its workers', and they keep it."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""


def _losses(clerk: Any, lane: str) -> Any:
    """Tells the clerk at once of a worker group that is gone; the next one may take minutes to come."""
    from ray.train import UserCallback

    class Losses(UserCallback):  # type: ignore[misc]
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            cause, detail = cause_of(worker_exceptions.values())
            ray.get(clerk.lose.remote(lane, cause, detail))

    return Losses()


def cause_of(errors: Iterable[BaseException]) -> tuple[Cause, str]:
    """What took a worker group away, from what Ray says of its workers."""
    texts = [_chain(error) for error in errors]
    for text in texts:
        if "OutOfMemoryError" in text or "running low on memory" in text:
            return "memory", "its machine ran out of memory, and Ray killed a worker: " + _wanted(text)
    for text in texts:
        if "node has died" in text or "preempted" in text or "NodeDiedError" in text:
            return "node", "its machine has gone"
    return "process", "a worker process died"


def _chain(error: BaseException | None) -> str:
    """An error and those that it wraps, as text."""
    texts: list[str] = []
    while error is not None and len(texts) < 10:
        texts.append(f"{type(error).__name__}: {error}")
        error = getattr(error, "_base_exc", None) or error.__cause__
    return "\n".join(texts)


def _wanted(text: str) -> str:
    """The line of Ray's memory monitor that says how much there was."""
    lines = [line.strip() for line in text.splitlines() if "memory used" in line.lower() or "GB" in line]
    return lines[0] if lines else "see its log"


class _Slots(Searcher):  # type: ignore[misc]
    """Gives Tune a slot per trial, until there are none or the run is stopped."""

    def __init__(self, count: int, stopping: threading.Event) -> None:
        super().__init__()
        self._numbers = iter(range(count))
        self._stopping = stopping

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next slot."""
        number = None if self._stopping.is_set() else next(self._numbers, None)
        return str(Searcher.FINISHED) if number is None else {"slot": number}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore that never comes; a lock does not pickle."""
        return {}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: the order is fixed."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal knows what is left."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Forget(tune.Callback):  # type: ignore[misc]
    """Lets go of what Tune keeps of slots that have ended: statistics of every metric, 30 KB a slot."""

    def __init__(self) -> None:
        self._last: Any = None

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Forgets the slot that ended before this one, with which Tune has nothing more to do."""
        if self._last is not None:
            known = self._last.run_metadata
            known.metric_analysis.clear()
            known.metric_n_steps.clear()
            known._cached_json = self._last._state_json = None
        self._last = trial


# ---------------------------------------------------------------------------------------------------
# The driver


def connect(address: str | None) -> None:
    """Starts Ray on this machine, or joins the cluster at `address`.

    Raises:
      ClusterError: there is no cluster there, it wants a token, or its dashboard is off.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray lowers the priority of its workers; beside any other work a trial would crawl.
    os.environ.setdefault("RAY_worker_niceness", "0")
    common = {"log_to_driver": False, "logging_level": "error", "runtime_env": {"env_vars": _WORKER_ENV}}
    os.environ.update({key: os.environ.get(key, value) for key, value in _WORKER_ENV.items()})
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            _start_here(common)
        else:
            ray.init(address=address, **common)
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(
            f"the Ray cluster at {address or 'this machine'} wants a token: set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN where it is not in ~/.ray/auth_token"
        ) from error
    except Exception as error:  # of no narrower kind where a node does not come up in time
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    if callable(on_terminate) and threading.current_thread() is threading.main_thread():
        # Ray takes SIGTERM for itself, even from a caller who had plans for it.
        signal.signal(signal.SIGTERM, on_terminate)
    # Ray prints its raylets' advice into the middle of a progress display, log_to_driver or not.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    if not ray.worker.get_dashboard_url():
        ray.shutdown()
        raise ClusterError("the Ray dashboard is off; start the head node with --include-dashboard=true")


def _start_here(common: dict[str, Any], tries: int = 2) -> None:
    """A cluster of this machine; once more where it is so busy that its processes do not come up in time."""
    for left in reversed(range(tries)):
        try:
            # `local`, as Ray would join whatever cluster runs here or RAY_ADDRESS names. Only small messages
            # go through the object store.
            ray.init(
                address="local",
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                object_store_memory=256 * 2**20,
                **common,
            )
        except Exception:  # of no narrower kind
            ray.shutdown()
            if not left:
                raise
        else:
            return


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


def check_start(gang: Gang, request: "Request", tries: int = 3) -> "Reply":
    """Tries a request in a task with what one worker of the gang gets; dying of it is a reply, too."""
    from orchestrator.preflight import died

    task = ray.remote(_answer).options(num_cpus=gang.cpus, num_gpus=gang.gpus or 0, max_retries=0)
    try:
        reply: Reply = ray.get(task.remote(request.plain()))
    except ray.exceptions.OutOfMemoryError:
        return died(-signal.SIGKILL, False, request.planned_bytes)
    except ray.exceptions.WorkerCrashedError:
        return died(1, False, request.planned_bytes)
    except ray.exceptions.NodeDiedError:
        # A machine that goes says nothing about the sweep.
        if tries == 1:
            raise
        return check_start(gang, request, tries - 1)
    return reply


def _answer(content: dict[str, Any]) -> "Reply":
    from trainables.profiling.dry_run import Request, answer

    return answer(Request.parse(content))


def clocks() -> "list[Clock]":
    """The clock of every machine of the connected cluster, beside this one's."""
    from orchestrator.preflight import Clock

    found = []
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(_now).options(num_cpus=0, scheduling_strategy=there)
            # The first call starts a process, which may take longer than clocks may differ.
            ray.get(task.remote())
            asked = time.time()
            found.append(Clock(node["NodeManagerAddress"], asked, ray.get(task.remote()), time.time()))
    return found


def _now() -> float:
    return time.time()


class Run:
    """Trials on their way through a connected cluster; the caller polls `events` until `done`."""

    def __init__(
        self,
        folder: Path,
        trials: Sequence["Trial"],
        records: Mapping[str, Record],
        resources: "Resources",
        began: float | None = None,
        preflight_seconds: float = 0.0,
        judge: Judge | None = None,
    ) -> None:
        """
        Args:
          folder: the sweep's, seen by the driver and, for checkpoints, by the workers.
          trials: what is to run, in order.
          records: what is known of trials from earlier runs.
          resources: lanes at a time (None computes it from the cluster), retries and the breaker.
          began: when starting up began, in seconds since 1970; now if left out.
          preflight_seconds: of the time since, what checks took.
          judge: who ends trials that fall behind; nobody if left out.

        Raises:
          ClusterError: a trial needs more than the cluster has, or the place of its states does not answer.
        """
        self.folder = folder.resolve()
        if resources.checkpoints:
            try:
                WeightStore(self.folder, resources.checkpoints).kept()
            except OSError as error:
                raise ClusterError(f"resources.checkpoints {resources.checkpoints}: {error}") from error
        self._records, self._resources, self._judge = records, resources, judge
        self._began, self._preflight_seconds = began or time.time(), preflight_seconds
        self._stopping, self._closing = threading.Event(), threading.Event()
        cluster = nodes()
        self.phases: list[Phase] = lane_plan(trials, cluster, resources.lanes)
        for gang, members, count in self.phases:
            if count == 0:
                have = ", ".join(f"{node.cpus:g} CPU {node.gpus:g} GPU" for node in cluster)
                raise ClusterError(f"{len(members)} trial(s) need {gang}; the cluster has nodes of {have}")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begins; the journal is open when this returns."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._clerk = (
            ray.remote(Clerk)
            .options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
            .remote(
                str(self.folder),
                self._resources.breaker,
                checkpoints=self._resources.checkpoints,
                keep=self._resources.keep,
                judge=self._judge,
            )
        )
        lanes = tuple(count for *_, count in self.phases)
        self._note(SessionBegan(time=time.time(), began=self._began, lanes=lanes))
        if self._preflight_seconds:
            self._note(PreflightDone(time=time.time(), seconds=self._preflight_seconds))
        self._thread.start()

    def _note(self, event: Event) -> None:
        ray.get(self._clerk.note.remote(event))

    @property
    def done(self) -> bool:
        """Whether nothing will happen any more."""
        return not self._thread.is_alive()

    def events(self) -> list[Event]:
        """What has happened since the last call."""
        fresh: list[Event] = ray.get(self._clerk.drain.remote())
        return fresh

    def drain(self) -> None:
        """Lets what is in flight go on to its end, and starts no more."""
        self._stopping.set()
        ray.get(self._clerk.stop.remote(after_flight=True))

    def stop(self, timeout_seconds: float = 8.0) -> None:
        """Cancels what is in flight and waits for the record of it, not for the workers."""
        self._stopping.set()
        ray.get(self._clerk.stop.remote(), timeout=timeout_seconds)

    def close(self, timeout_seconds: float = 8.0) -> None:
        """Puts the end of the session on record; the last thing to do with a run."""
        self._closing.set()
        ray.get(self._clerk.note.remote(SessionClosed(time=time.time())), timeout=timeout_seconds)

    def _run(self) -> None:
        scratch = Path(tempfile.mkdtemp(prefix="vitc-sweep-"))
        orphans = Orphans()
        threading.Thread(target=_look_after, args=(orphans, self._closing), daemon=True).start()
        try:
            for gang, members, count in self.phases:
                if not self._stopping.is_set():
                    self._run_phase(gang, members, count, scratch)
        except BaseException as error:
            self.error = error
        finally:
            # A run that was stopped is cut off from the cluster any moment, and its job ends with that.
            if not self._closing.is_set():
                self._closing.set()
                orphans.clear()
            shutil.rmtree(scratch, ignore_errors=True)

    def _run_phase(self, gang: Gang, members: list["Trial"], count: int, scratch: Path) -> None:
        jobs, ended = jobs_of(members, self._records, self._resources.retries)
        device = "GPU" if gang.gpus else "core"
        devices = count * gang.workers * (gang.gpus or gang.cpus)
        self._note(PhaseBegan(time=time.time(), lanes=count, devices=devices, device=device))
        for start in range(0, len(jobs), 1000):
            ray.get(self._clerk.add.remote(jobs[start : start + 1000], ended))
        lane = tune.with_parameters(
            Lane,
            clerk=self._clerk,
            gang=gang,
            folder=str(self.folder),
            scratch=str(scratch / "train"),
            hang_seconds=60 * self._resources.hang_minutes,
            checkpoints=self._resources.checkpoints,
        )
        sliver = tune.PlacementGroupFactory([{"node:__internal_head__": 0.0001}])
        # Without those that a first stage of an earlier run has taken with it.
        left, idle_rounds = ray.get(self._clerk.left.remote()), 0
        # One round, unless Tune loses lanes: what they had is left, and makes the next.
        while left and not self._stopping.is_set() and idle_rounds < _MAX_IDLE_ROUNDS:
            tune.Tuner(
                tune.with_resources(lane, sliver),
                tune_config=tune.TuneConfig(
                    search_alg=_Slots(left, self._stopping),
                    num_samples=left,
                    max_concurrent_trials=min(count, left),
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name=f"tune-{uuid.uuid4().hex[:8]}",
                    storage_path=str(scratch / gang_name(gang)),
                    verbose=0,
                    callbacks=[_Forget()],
                ),
            ).fit()
            before, left = left, ray.get(self._clerk.left.remote())
            idle_rounds = idle_rounds + 1 if left == before else 0
        if left and not self._stopping.is_set():
            raise RuntimeError(f"lanes of {gang} end without having run a trial; {left} trial(s) are left")


def _look_after(orphans: Orphans, closing: threading.Event) -> None:
    while not closing.wait(_ORPHANS_SECONDS):
        orphans.look()


def jobs_of(
    trials: Iterable["Trial"], records: Mapping[str, Record], retries: int
) -> tuple[list[Job], dict[str, tuple[AttemptEnd, str]]]:
    """What the clerk is to know of trials, and how the first stages of theirs ended that have done so."""
    jobs, ended = [], dict[str, tuple[AttemptEnd, str]]()
    for trial in trials:
        known = records.get(trial.id, Record())
        first = records.get(trial.after, Record())
        if first.outcome is not None and first.settled:
            ended[trial.after] = first.outcome, first.detail
        jobs.append(
            Job(
                trial.id,
                trial.arm,
                trial.config.model_dump_json(),
                known.attempts,
                known.whole_epochs,
                retries,
                group=f"{trial.cell_name} {trial.arm}",
                after=trial.after,
                is_first=trial.role == "first_stage",
            )
        )
    return jobs, ended


def gang_name(gang: Gang) -> str:
    """A folder name for a gang."""
    return f"{gang.workers}x{gang.cpus}cpu{gang.gpus or 0:g}gpu"


def shutdown() -> None:
    """Leaves the cluster; a local one is taken down."""
    ray.shutdown()
