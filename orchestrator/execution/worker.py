"""What a worker process of a lane does: it takes trials and trains them."""

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

from orchestrator.execution.coordinator import Verdict, stack_path
from orchestrator.store.logs import kept as worker_log
from orchestrator.store.weights import KeptWeights, WeightStore
from orchestrator.trials.outcomes import AttemptEnd

if TYPE_CHECKING:
    from trainables.context import Context


#: Seconds between two questions to Ray Train whether a machine is to be taken away; Ray looks every five.
_PREEMPTION_POLL_SECONDS = 2.0

#: Least seconds between two signs of life of a trial.
_BEAT_SECONDS = 1.0


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
