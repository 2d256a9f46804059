"""The worker processes of a lane, which take trials from the Coordinator and train them.

Every process of a lane imports this module through `lane`, so torch and model code are imported inside the
functions that only workers call.
"""

import contextlib
import faulthandler
import gc
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import ray

from orchestrator.execution.coordinator import Verdict
from orchestrator.store.logs import kept as worker_log
from orchestrator.store.own_files import OwnFiles, stack_path
from orchestrator.store.weights import KeptWeights, WeightStore
from orchestrator.trials.gang import share_of_cores
from orchestrator.trials.outcomes import AttemptEnd

if TYPE_CHECKING:
    from trainables.base import Epoch
    from trainables.context import Context


#: Seconds between two questions whether this machine is drained.
_PREEMPTION_POLL_SECONDS = 2.0

#: Least seconds between two heartbeats of a trial.
_BEAT_SECONDS = 1.0


# ---------------------------------------------------------------------------------------------------
# The worker group of a lane


def lane_loop(settings: dict[str, Any]) -> None:
    """Runs one trial after the other until the Coordinator has no more. Every worker of a lane calls this."""
    import torch
    import torch.distributed as dist
    from ray.train.torch import get_device

    import trainables.training.loop  # noqa: F401  (imported now, so that the first trial does not wait)
    from trainables.context import this_process
    from trainables.io.code import receive

    receive(settings["code"])
    # Frozen, so that the collection after each trial does not walk through all of torch.
    gc.collect()
    gc.freeze()
    if settings["device"] == "cuda":
        # Every worker of a node sees all its GPUs; Ray has assigned one of them.
        torch.cuda.set_device(get_device())
    train_context = ray.train.get_context()
    rank, world_size = train_context.get_world_rank(), train_context.get_world_size()
    node = ray.get_runtime_context().get_node_id()
    cores = _cores_on(node, settings["gpus_for_cores"]) if settings["gpus_for_cores"] else None
    context = this_process(rank, world_size, settings["threads"], settings["device"], cores)
    coordinator, lane = settings["clerk"], settings["lane"]
    places = [node] * world_size
    if world_size > 1:
        dist.all_gather_object(places, node)
    last = [ray.get(coordinator.enter.remote(lane, node, places)) if rank == 0 else 0]
    if world_size > 1:
        dist.broadcast_object_list(last, src=0)
    number = last[0]
    preempted = threading.Event()
    threading.Thread(target=_watch_for_preemption, args=(node, preempted), daemon=True).start()
    _clear_leftovers(coordinator, node, settings["key"])
    while (taken := ray.get(coordinator.take.remote(lane, number, node))) is not None:
        number, job = taken
        _run_job(job, number, settings, context, preempted.is_set)
    _clear_leftovers(coordinator, node, settings["key"])


def _cores_on(node: str, gpus: float) -> int:
    """Returns the share of this machine's cores that belongs to a worker with some of its GPUs."""
    [resources] = [entry["Resources"] for entry in ray.nodes() if entry["NodeID"] == node]
    return max(1, share_of_cores(resources.get("CPU", 0.0), resources["GPU"], gpus))


def _clear_leftovers(coordinator: Any, node: str, key: str) -> None:
    """Deletes files of ended trials on this machine, such as those of an earlier run."""
    files = OwnFiles(key)
    if trial_ids := files.trials():
        files.clear(ray.get(coordinator.leftovers.remote(node, trial_ids)))
    files.tidy()


def _watch_for_preemption(node: str, preempted: threading.Event) -> None:
    """Sets the event when Ray drains this machine. Runs in a thread of each worker.

    SIGTERM to a node's Ray and decisions of the autoscaler become a drain with a deadline. The training loop
    stops all ranks when one of them must stop. A signal handler is impossible: Ray has its own for SIGTERM,
    and the training function runs in a thread, which may not install one.
    """
    while True:
        # The cluster's head may be busy, or be started again.
        with contextlib.suppress(Exception):
            if node in ray._private.state.state.get_draining_nodes():
                preempted.set()
                return
        time.sleep(_PREEMPTION_POLL_SECONDS)


def _run_job(
    job: dict[str, Any],
    number: int,
    settings: dict[str, Any],
    context: "Context",
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Trains one trial and reports its end. Raises only errors that must end the whole worker group."""
    import torch

    from trainables.base import Diverged, Invalid, Preempted
    from trainables.gpu import has_lost_device, is_out_of_memory

    end: AttemptEnd
    lost = False
    attempt = _Attempt(job, number, settings, context, should_stop)
    try:
        attempt.run()
    except Preempted as error:
        # Every rank reports it, because the first rank to leave ends the group. The group leaves, because Ray
        # Train starts its next one on machines that stay.
        attempt.end("preempted", str(error), attempt.notices, by_all=True)
        raise
    except Diverged as error:
        attempt.end("diverged", str(error))
    except Invalid as error:
        attempt.end("invalid", str(error))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if is_out_of_memory(error):
            end, reason = "out_of_memory", (str(error).splitlines() or ["memory ran out"])[0]
        elif lost := has_lost_device(error, context.device):
            end, reason = "lost", f"its GPU stopped working: {reason}"
        else:
            end = "failed"
        attempt.end(end, reason, traceback.format_exc())
        if lost or context.world_size > 1:
            # No trial can use this process's GPU again; the next group has other processes.
            # The other ranks may be waiting in a collective; only a new group is in step again.
            raise
    finally:
        del attempt
        gc.collect()
        # After `run` has returned, whose model and optimizer are only free now.
        if context.device.type == "cuda" and not lost:
            torch.cuda.empty_cache()


class _Attempt:
    """One rank's part in one attempt of a trial: it trains, and tells the Coordinator rows and end."""

    def __init__(
        self,
        job: dict[str, Any],
        number: int,
        settings: dict[str, Any],
        context: "Context",
        should_stop: Callable[[], bool],
    ) -> None:
        from trainables.training.checkpoint import Checkpointer, Store

        self._job, self._number, self._context = job, number, context
        self._coordinator, self._lane = settings["clerk"], settings["lane"]
        self._folder = Path(settings["folder"])
        self._own = OwnFiles(settings["key"])
        self._states = WeightStore(self._folder, settings["checkpoints"])
        self._must_reach = ""
        if settings.get("mark") and not self._states.has_mark(settings["mark"]):
            # A trial whose machine goes then starts over, as no other machine has its checkpoints.
            self._states, self._must_reach = WeightStore(self._own.folder), settings["must_reach"]
        self._is_first = context.rank == 0
        self._watch = watch = _Watch(job, number, settings, context.rank)
        store = Store(self._states.checkpoint(job["trial"])) if self._is_first else None
        # Rows that the journal lost in a crash are computed again, even if a checkpoint is past them.
        self._checkpointer = Checkpointer(
            store, lambda: should_stop() or watch.unwanted, most_epochs=job["epochs"], on_look=self._look
        )
        self._send_lines: Callable[[], None] = lambda: None

    def _look(self, step: int) -> None:
        self._watch.look(step)
        self._send_lines()

    def _log(self, text: str) -> None:
        # Not waited for: a message costs no time, and the Coordinator may drop it.
        job = self._job
        self._coordinator.log.remote(job["trial"], job["attempt"], self._context.rank, text)

    @property
    def notices(self) -> str:
        """The notices of the checkpointer, one line each."""
        return "\n".join(self._checkpointer.notices)

    def run(self) -> None:
        """Trains the trial and reports its end, unless it ends by an error.

        Raises:
          Preempted, Diverged, Invalid: the trial ended so.
          OSError: this machine must reach the place of states, and does not.
        """
        from trainables.config import TrainConfig
        from trainables.io.code import trusting_code
        from trainables.training.device import device_use
        from trainables.training.loop import train

        if self._must_reach:
            raise OSError(f"resources.checkpoints: {self._must_reach}")
        job = self._job
        with trusting_code(self._folder):
            config = TrainConfig.model_validate_json(job["config"])
        if self._is_first:
            # Not waited for: calls of one process arrive in order, so it is there before any row.
            use = device_use(config, self._context.device)
            self._coordinator.uses.remote(self._lane, self._number, use)
        first = self._states.open_kept(job["start"]) if job.get("start") else contextlib.nullcontext()
        # After this block nothing more is written, so the Coordinator may delete checkpoints.
        with (
            self._checkpointer,
            self._watch,
            worker_log(self._log) as self._send_lines,
            first as start,
        ):
            # The state is used after the last row.
            for row, state in train(config, self._context, keeper=self._checkpointer, start=start):  # noqa: B007
                verdict = self._verdict(row)
                if verdict == "drop":
                    return
                if verdict == "stop":
                    break
        if verdict == "stop":
            self.end("stopped", f"behind the others of its arm after epoch {row.epoch}", self.notices)
            return
        weights = state.weights_digest() if self._is_first else ""
        kept = self._keep(row.val_error_pct, state.save_weights)
        self.end("finished", log=self.notices, weights=weights, kept=kept)

    def _verdict(self, row: "Epoch") -> Verdict:
        """Tells the Coordinator of an epoch. Returns its verdict, the same on all ranks."""
        verdict: list[Verdict] = ["go on"]
        if self._is_first:
            verdict = [ray.get(self._coordinator.row.remote(self._lane, self._number, row))]
        if self._context.world_size > 1:
            from torch.distributed import broadcast_object_list

            # All ranks must agree, because a single rank would wait in the next all-reduce for ever.
            broadcast_object_list(verdict, src=0)
        return verdict[0]

    def _keep(self, error_pct: float, save: Callable[[IO[bytes]], None]) -> KeptWeights | None:
        """Writes the final weights if they are to be kept. Returns what was kept.

        Raises:
          OSError: the storage refuses weights of a first stage.
        """
        if not self._is_first:
            return None
        kept: KeptWeights | None = ray.get(
            self._coordinator.keeps.remote(self._lane, self._number, error_pct)
        )
        if kept is None or not (fault := keep_weights(self._states, kept, save)):
            return kept
        if not kept.group:
            # The trial fails, because trials that start from a first stage need its weights.
            raise OSError(fault)
        self._checkpointer.notices.append(fault)
        return None

    def end(
        self,
        kind: AttemptEnd,
        detail: str = "",
        log: str = "",
        weights: str = "",
        by_all: bool = False,
        kept: KeptWeights | None = None,
    ) -> None:
        """Tells the Coordinator how the attempt ended.

        Ranks other than the first do so only with a log, or if the end comes `by_all`.
        """
        if self._is_first or log or by_all:
            told = self._coordinator.end.remote(self._lane, self._number, kind, detail, log, weights, kept)
            if ray.get(told):
                self._own.clear([self._job["trial"]])


def keep_weights(states: WeightStore, kept: KeptWeights, save: Callable[[IO[bytes]], None]) -> str:
    """Writes final weights, with retries. Returns "", or a message if the storage keeps refusing them."""
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
    """A watchdog of one rank: sends the Coordinator the current step, and ends the process if it hangs.

    The timer of `faulthandler`, which needs neither the interpreter's lock nor its threads, dumps all stacks
    and ends the process unless the loop restarts the timer in time. Ray Train then restarts the group.
    """

    def __init__(self, job: dict[str, Any], number: int, settings: dict[str, Any], rank: int) -> None:
        self._coordinator, self._lane = settings["clerk"], settings["lane"]
        self._number, self._rank = number, rank
        self._seconds = settings["hang_seconds"]
        self._own, self._trial = OwnFiles(settings["key"]), job["trial"]
        self._path = stack_path(self._own.folder, job["trial"], job["attempt"], rank)
        self._told = 0.0
        self._answer: Any = None
        self.unwanted = False

    def __enter__(self) -> Self:
        self._own.make(self._trial)
        self._file = self._path.open("w", encoding="utf-8")
        self._wind_up()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            # Of the trial, if nothing else is in it.
            self._path.parent.rmdir()

    def _wind_up(self) -> None:
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def look(self, step: int) -> None:
        """Restarts the timer, and reports the step at most once per _BEAT_SECONDS."""
        self._wind_up()
        now = time.monotonic()
        if self._rank or now - self._told < _BEAT_SECONDS:
            return
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            # The Coordinator dropped this attempt: its lane was taken for dead, or the run was stopped.
            self.unwanted = not ray.get(self._answer)
        self._told = now
        self._answer = self._coordinator.beat.remote(self._lane, self._number, step)
