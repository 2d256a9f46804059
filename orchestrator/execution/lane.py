"""Lanes: Ray Tune actors whose worker groups take trial after trial from the Coordinator.

    Tune ──one Tune trial per trial──▶ Lane (actor, reused) ──open──▶ Coordinator ◀──take── worker group
                                          ▲                             │ ▲                   │
                                          └───────── next_event ────────┘ └──── row, end ─────┘

A lane is told by the Coordinator for what gang to start workers: one long Ray Train run, whose controller
is a thread of the lane (`train_run`). The workers ask the Coordinator for a trial, train it, and ask for
the next. So a trial does not pay for starting Python, torch, a process group and a CUDA context. The
Coordinator is the journal's one writer: rank 0 sends it each epoch's row, and an acknowledged row is on
disk. Tune sets the number of lanes and opens a slot per trial; its own state is disposable. A Ray Train run
ends with the first loss of a worker, and when the Coordinator wants its room for another gang. Then the
lane is told a gang again. Only the Coordinator decides whether and where a trial runs again. If Tune loses
lanes, the remaining trials run in another round.

Every process of a lane imports this module. A lane is a process on the head, which may have hundreds of them,
so nothing that it imports may import torch or model code. The workers do so inside the functions of `worker`.

Facts of Ray 2.60 that shape this file:

- The State API, and so the dashboard, must be on, or the workers of a stopped lane are never released.
- A Tune trial must ask for some resource. Lanes ask for a sliver of the head node, because a CPU would be
  missing for the workers. Lanes end with the driver, which is on that node, anyway.
- `ray.train.report` is a barrier polled every two seconds, so rows do not go that way.
- `ray.train.get_preemption_info` is a barrier, too, and needs two processes per lane on the head, so a thread
  of each worker asks whether its machine is drained.
"""

import itertools
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

#: Seconds that a step of a lane waits for a message before it checks that its worker group is alive.
_POLL_SECONDS = 2.0


# ---------------------------------------------------------------------------------------------------
# Lanes, as Tune sees them


class _Workers:
    """One Ray Train run of a lane, in a thread."""

    def __init__(self, coordinator: Any, lane: str, name: str, gang: Gang, settings: dict[str, Any]) -> None:
        self._coordinator, self._lane = coordinator, lane
        self._told = False
        settings = settings | {
            "threads": gang.cpus,
            "device": "cuda" if gang.gpus else "cpu",
            # Decided where the worker is, because machines may have different numbers of cores.
            "gpus_for_cores": gang.gpus if gang.shares_cores else None,
        }
        self._thread = threading.Thread(target=self._fit, args=(name, gang, settings), daemon=True)
        self._thread.start()

    def _fit(self, name: str, gang: Gang, settings: dict[str, Any]) -> None:
        from orchestrator.execution.train_run import run_train

        try:
            run_train(name, lane_loop, settings, gang, settings["scratch"], self._lose)
        except BaseException as error:
            if not self._told:
                self._lose([error])

    def _lose(self, errors: Iterable[BaseException]) -> None:
        self._told = True
        cause, detail = cause_of(errors)
        ray.get(self._coordinator.lose.remote(self._lane, cause, detail))

    def run(self) -> bool:
        """Returns whether the workers are there, or are being started."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Waits until they have left."""
        self._thread.join(timeout=seconds)


class Lane(tune.Trainable):  # type: ignore[misc]
    """Workers that train many trials, one after the other."""

    def setup(
        self,
        config: dict[str, Any],
        clerk: Any,
        folder: str,
        key: str,
        scratch: str,
        hang_seconds: float,
        checkpoints: str | None,
        mark: str,
        must_reach: str,
        code: dict[str, bytes],
    ) -> None:
        """Opens the first slot."""
        self._coordinator, self._lane = clerk, uuid.uuid4().hex[:8]
        self._workers: _Workers | None = None
        self._names = (f"lane-{self._lane}-{number}" for number in itertools.count())
        self._settings = {
            "clerk": clerk,
            "lane": self._lane,
            "folder": folder,
            "key": key,
            "scratch": scratch,
            "hang_seconds": hang_seconds,
            "checkpoints": checkpoints,
            "mark": mark,
            "must_reach": must_reach,
            "code": code,
        }
        ray.get(self._coordinator.open_slot.remote(self._lane))

    def step(self) -> dict[str, Any]:
        """Returns the next epoch of a trial, or its end. Meanwhile starts the workers that are asked for."""
        while True:
            self._look_after()
            event = ray.get(self._coordinator.next_event.remote(self._lane, _POLL_SECONDS))
            if event is not None and "gang" in event:
                name = next(self._names)
                self._workers = _Workers(self._coordinator, self._lane, name, event["gang"], self._settings)
            elif event is not None:
                return dict(event)

    def _look_after(self) -> None:
        """Tells the Coordinator once the workers have gone."""
        if self._workers is not None and not self._workers.run():
            self._workers = None
            ray.get(self._coordinator.vacate.remote(self._lane))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Opens the next slot."""
        self._look_after()
        ray.get(self._coordinator.open_slot.remote(self._lane))
        return True

    def cleanup(self) -> None:
        """Releases the workers, so that other lanes have room."""
        ray.get(self._coordinator.close_lane.remote(self._lane))
        if self._workers is not None:
            self._workers.wait(seconds=20)
        # What has not left by then ends with this process.
        ray.get(self._coordinator.vacate.remote(self._lane))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Does nothing, because the workers write checkpoints themselves."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Does nothing, because the workers read checkpoints themselves."""


def cause_of(errors: Iterable[BaseException]) -> tuple[Cause, str]:
    """Returns the cause of a worker group's loss and a message, from Ray's errors of its workers."""
    errors = list(errors)
    texts = [_chain(error) for error in errors]
    for text in texts:
        if "OutOfMemoryError" in text or "running low on memory" in text:
            return "memory", "its machine ran out of memory, and Ray killed a worker: " + _wanted(text)
    for text in texts:
        if any(word in text for word in _NODE_HAS_GONE):
            return "node", "its machine has gone"
    for error in errors:
        if (reason := _reason(error)) is not None:
            return "process", f"a worker process died: {reason}"
    return "process", "a worker process died"


#: Words of Ray's errors. A group that waited for its machines in vain has lost nothing by its own fault.
_NODE_HAS_GONE = ("node has died", "preempted", "NodeDiedError", "WorkerGroupStartupTimeoutError")


def _reason(error: BaseException) -> str | None:
    """Returns the innermost error in one line. None if a process has died without one."""
    while (
        inner := getattr(error, "_base_exc", None) or getattr(error, "cause", None) or error.__cause__
    ) is not None:
        error = inner
    if isinstance(error, ray.exceptions.RayError) or "ray.train" in type(error).__module__:
        return None
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _chain(error: BaseException | None) -> str:
    """Returns the text of an error and of those that it wraps."""
    texts: list[str] = []
    while error is not None and len(texts) < 10:
        texts.append(f"{type(error).__name__}: {error}")
        error = getattr(error, "_base_exc", None) or error.__cause__
    return "\n".join(texts)


def _wanted(text: str) -> str:
    """Returns the line of Ray's memory monitor that states the memory used."""
    lines = [line.strip() for line in text.splitlines() if "memory used" in line.lower() or "GB" in line]
    return lines[0] if lines else "see its log"


class Slots(Searcher):  # type: ignore[misc]
    """Gives Tune a slot per trial, until all are given or the run is stopped."""

    def __init__(self, count: int, stopping: threading.Event) -> None:
        super().__init__()
        self._numbers = iter(range(count))
        self._stopping = stopping

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Returns the next slot, or FINISHED."""
        number = None if self._stopping.is_set() else next(self._numbers, None)
        return str(Searcher.FINISHED) if number is None else {"slot": number}

    def __getstate__(self) -> dict[str, Any]:
        """Returns no state, because a lock cannot be pickled. Tune never restores its searcher here."""
        return {}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Does nothing, because the order is fixed."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing, because the journal records which trials are left."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, because runs are never restored by Tune."""


class Forget(tune.Callback):  # type: ignore[misc]
    """Frees what Tune keeps of ended slots: statistics of every metric, 30 KB a slot."""

    def __init__(self) -> None:
        self._last: Any = None

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Frees the slot that ended before this one, because Tune no longer uses it."""
        if self._last is not None:
            known = self._last.run_metadata
            known.metric_analysis.clear()
            known.metric_n_steps.clear()
            known._cached_json = self._last._state_json = None
        self._last = trial
