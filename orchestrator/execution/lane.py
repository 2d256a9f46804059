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

import threading
import uuid
from collections.abc import Iterable
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from orchestrator.execution.dispatch import Cause
from orchestrator.execution.worker import lane_loop
from orchestrator.trials.gang import Gang

#: Seconds a step of a lane waits before it looks whether its worker group is still there.
_POLL_SECONDS = 2.0


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


class Slots(Searcher):  # type: ignore[misc]
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


class Forget(tune.Callback):  # type: ignore[misc]
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
