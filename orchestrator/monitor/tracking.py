"""MLflow as a view of the journal: a parent run per sweep, a nested run per trial.

Only this file uses MLflow, and it imports it in its own thread, when there is something to send. The journal
is the source: anything that MLflow lacks is sent when the sweep runs again.

The store is asked once per connection what it has. The file `mlflow.json` in the sweep's folder contains only
the name under which stores know this sweep. A lost reply, a process that died between two calls, a store that
was wiped and a changed `MLFLOW_TRACKING_URI` are therefore one case: ask what is there, send the rest. A
folder without `mlflow.json` gets a new parent run with all data; the old one stays. Deleting the file also
helps if a store was wiped during a sweep, because that store otherwise gets only later data.

An epoch is sent once, as first seen. A trial that runs again keeps its MLflow run, and the epochs that it
repeats are not sent again; the journal has the later ones.
"""

import contextlib
import fcntl
import itertools
import json
import logging
import math
import os
import queue
import re
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, TypeVar, assert_never
from urllib.parse import quote, unquote, urlencode, urlsplit

from orchestrator.analysis.shift import shift_errors_in
from orchestrator.cost.utilization import mfu_pct
from orchestrator.monitor.sqlite_store import sqlite_fault
from orchestrator.stats.corruption import corruption_error
from orchestrator.trials.events import AttemptBegan, AttemptEnded, DeviceUsed, EpochDone, Event
from orchestrator.trials.outcomes import SETTLED
from orchestrator.trials.trial import Plan, Trial
from trainables.base import EPOCH_LABELS, DeviceUse, Epoch
from trainables.io.storage import redacted
from trainables.presets import leaves
from trainables.tasks.base import Objective
from trainables.tasks.classification import Classification

STATE_FILE = "mlflow.json"

_INTERVAL_SECONDS = 2.0
_MAX_BACKOFF_SECONDS = 30.0

# MLflow's own limits, which a server enforces. 800 metrics leave room for 100 parameters, some tags and the
# extra values of the last row among the 1000 entries of a call.
_METRICS_PER_CALL = 800
_PARAMS_PER_CALL = 100
_PARAM_CHARS = 6000
_TAG_CHARS = 8000

_ENVIRONMENT = {
    # Retries are done here only, and a server that does not answer must not delay the end of a sweep.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

_Item = TypeVar("_Item")

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

#: MLflow's status by outcome. FINISHED is a result, and so is a diverged trial, which counts as 100 % error.
#: KILLED means ended from outside before the last epoch. The tag `outcome` has the exact outcome.
_STATUS: dict[str, Status] = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "diverged": "FINISHED",
    "stopped": "KILLED",
    "cancelled": "KILLED",
    "unfinished": "KILLED",
    "invalid": "FAILED",
    "out_of_memory": "FAILED",
    "failed": "FAILED",
    "preempted": "FAILED",
    "lost": "FAILED",
}

#: Order of outcomes within one attempt; all others come last. `unfinished` is set when a process ends.
_OUTCOME_ORDER = {"running": 0, "unfinished": 1}


def tracking_uri(sweep_dir: Path) -> str:
    """Returns the store in use: `MLFLOW_TRACKING_URI`, or else an SQLite file next to the sweeps."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI", "").strip():
        return uri
    path = str(sweep_dir.resolve().parent / "mlflow.db")
    # Elsewhere a question mark would begin the URL's query, and the database would lie in another place.
    return "sqlite:///" + re.sub("[?%#]", lambda mark: quote(mark[0]), path)


def sqlite_path(uri: str) -> Path | None:
    """Returns the file of an SQLite store. None for other stores."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])).resolve()


def unanswered(uri: str, made: Path | None = None) -> str:
    """Returns why a tracking store accepts no runs, else an empty text. Creates a run and deletes it.

    In an SQLite file it creates none, because setting one up takes seconds.

    Args:
      uri: the store.
      made: a folder that will be made before the first run is written.
    """
    if path := sqlite_path(uri):
        fault = sqlite_fault(path, made)
        return f"MLflow accepts no runs: {fault}" if fault else ""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        # It fails on some variables, too.
        from mlflow import MlflowClient
        from mlflow.utils import logging_utils

        # What is told of it is told once, below.
        logging_utils.disable_logging()
        client = MlflowClient(uri)
        # The experiment called Default may have been deleted, so any other is as good.
        known = client.search_experiments(max_results=1)
        place = known[0].experiment_id if known else client.create_experiment("vitc-sweep preflight")
        client.delete_run(client.create_run(place, run_name="vitc-sweep preflight").info.run_id)
        if not known:
            client.delete_experiment(place)
    except Exception as error:
        return f"MLflow at {redacted(uri)} accepts no runs: {_one_line(error, most=1000)}"
    return ""


def artifact_root(uri: str) -> Path | None:
    """Returns the folder of artifacts next to an SQLite store. None for other stores, which choose their own.

    MLflow's default would be the current directory of the command.
    """
    path = sqlite_path(uri)
    return path and path.parent / "mlartifacts"


def ui_command(uri: str, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """Returns the command that serves the pages of a store, by default on the loopback, as it has no login.

    Raises:
      ValueError: the store is a server, which serves its pages itself.
    """
    if urlsplit(uri).scheme in ("http", "https"):
        raise ValueError(f"{redacted(uri)} is an MLflow server: open it in a browser")
    return [
        *(sys.executable, "-P", "-m", "mlflow", "ui"),
        *("--host", host, "--port", str(port), "--workers", "1"),
    ]


def ui_environment(uri: str) -> dict[str, str]:
    """Returns the environment of `ui_command`: the store's URI, because `ps` shows arguments to all users."""
    return {"MLFLOW_BACKEND_STORE_URI": uri}


def ui_address(host: str = "127.0.0.1", port: int = 5000) -> str:
    """Returns the address of the pages that `ui_command` serves."""
    if host in ("0.0.0.0", "::"):
        # These mean all addresses of the machine, and are none that a browser opens.
        host = "localhost"
    # Without the last part a fresh browser opens the pages about language models, which hide the runs.
    return f"http://{host}:{port}/#/experiments?{_TRAINING}"


def experiment_address(pages: str, name: str = "", timeout_seconds: float = 2.0) -> str:
    """Returns the address of an experiment's charts, if the pages answer and know it.

    Args:
      pages: an address of `ui_address`, which is returned otherwise.
      name: the experiment. Empty means the only one, if there is only one.
      timeout_seconds: how long to wait for an answer.
    """
    server = pages.partition("#")[0]
    query = "api/2.0/mlflow/experiments/search?max_results=1000"
    try:
        with urllib.request.urlopen(server + query, timeout=timeout_seconds) as answer:
            found = json.load(answer).get("experiments", [])
        known = {one["name"]: one["experiment_id"] for one in found}
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return pages
    wanted = name or (next(iter(known)) if len(known) == 1 else "")
    if wanted not in known:
        return pages
    # Ordered by time, trials would be hidden in the closed run of the sweep, and there would be no charts.
    lowest_first = urlencode({"orderByKey": f"metrics.`{_VAL_ERROR}`", "orderByAsc": "true"})
    shown = f"compareRunsMode=CHART&{lowest_first}&{_TRAINING}"
    return f"{server}#/experiments/{quote(str(known[wanted]))}/runs?{shown}"


#: The part of an address with which MLflow shows its pages about training.
_TRAINING = "workflowType=machine_learning"

#: The metric that ranks trials, as `metrics_of` names it.
_VAL_ERROR = f"val_{Classification.objective.name}_pct"


#: Events that change what the store holds of a trial.
_OF_TRIALS = AttemptBegan | DeviceUsed | EpochDone | AttemptEnded


@dataclass(slots=True)
class _View:
    """The part of a trial's journal that the store may not have yet."""

    attempt: int = 0
    started: float = 0.0
    clock: float = 0.0
    rows: dict[int, tuple[float, Epoch, DeviceUse | None]] = field(default_factory=dict)
    outcome: str = "running"
    detail: str = ""
    use: DeviceUse | None = None
    ended: float = 0.0

    def fold(self, event: AttemptBegan | DeviceUsed | EpochDone | AttemptEnded) -> None:
        """Adds one event."""
        match event:
            case AttemptBegan():
                self.attempt, self.outcome, self.detail, self.use = event.attempt, "running", "", None
                self.started = self.started or event.time
                self.clock = event.time
            case DeviceUsed(use=use):
                self.use = use
            case EpochDone(row=row):
                # Rows have durations, not times. A time computed from events is the same when they are sent
                # again, and the store drops a point that it has.
                self.clock += row.train_seconds + row.val_seconds
                self.rows[row.epoch] = (self.clock, row, self.use)
            case AttemptEnded():
                self.detail, self.ended = event.detail, event.time
                # There was no attempt if the first stage left no weights.
                self.started = self.started or event.time
                if event.final:
                    self.outcome = event.end
            case _:
                assert_never(event)

    @property
    def progress(self) -> tuple[int, int]:
        """Grows with the journal; a store that has less is out of date."""
        return self.attempt, _OUTCOME_ORDER.get(self.outcome, 2)


@dataclass(slots=True)
class _Sent:
    """The state of a trial in the store, and the parameters that the store lacks."""

    run_id: str
    missing_params: dict[str, str]
    epoch: int = -1
    progress: tuple[int, int] = (0, 0)


class Tracker:
    """Sends a sweep to MLflow in a thread, so that a slow or broken store does not affect the sweep.

    Usage: `start`, then `observe` with every event of the journal in order, those of earlier runs first, then
    `close`.
    """

    def __init__(self, plan: Plan, folder: Path, uri: str) -> None:
        self._plan, self._folder, self._uri = plan, folder.resolve(), uri
        self._trials: dict[str, Trial] = {}
        for trial in plan.trials:
            # Arms that coincide in a cell share a trial, which has the name of the first of them.
            self._trials.setdefault(trial.id, trial)
        self._inbox: queue.SimpleQueue[Sequence[Event] | Path | dict[str, float]] = queue.SimpleQueue()
        self._views: dict[str, _View] = {}
        self._dirty: dict[str, None] = {}
        self._artifacts: dict[Path, None] = {}
        self._numbers: dict[str, float] = {}
        self._store: _Store | None = None
        self._fault: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self) -> None:
        """Starts the thread. MLflow is imported only when there is something to send."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.add_artifact(self._folder / "sweep.yaml")
        self._thread.start()

    def observe(self, events: Sequence[Event]) -> None:
        """Queues events of the journal in order. Returns at once and never raises.

        Events that the store has already, and those of trials outside the plan, are ignored.
        """
        if events:
            self._inbox.put(tuple(events))

    def add_numbers(self, numbers: Mapping[str, float]) -> None:
        """Gives the sweep's run numbers of its own, such as the peak of each arm."""
        self._inbox.put(dict(numbers))

    def add_artifact(self, path: Path) -> None:
        """Attaches a file or folder to the sweep's run. Replaces one of the same name."""
        self._inbox.put(path)

    def close(self, timeout_seconds: float) -> str | None:
        """Sends what is left and ends the sweep's run.

        Returns:
          A warning for people if the store does not have everything by then, else None.
        """
        if self._thread.ident is None:
            return None
        self._closing.set()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            reason = self._fault or f"not done after {timeout_seconds:g} s"
        elif self._fault:
            reason = self._fault
        else:
            return None
        return (
            f"MLflow at {redacted(self._uri)} is not up to date ({reason}). "
            "The journal has all data; `vitc-sweep sync` brings MLflow up to date."
        )

    def _work(self) -> None:
        wait = _INTERVAL_SECONDS
        while True:
            closing = self._closing.wait(wait)
            try:
                self._read_inbox()
                # Only when there is something to send, because importing MLflow takes seconds of a core.
                if self._views and (self._dirty or self._artifacts or self._numbers or closing):
                    self._flush(closing)
                self._fault, wait = None, _INTERVAL_SECONDS
            # Any exception of a store, a driver or a file system, because none may stop the sweep.
            except Exception as error:
                self._store = None
                self._fault = _one_line(error)
                wait = min(2 * wait, _MAX_BACKOFF_SECONDS)
            if closing:
                return

    def _read_inbox(self) -> None:
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, Path):
                self._artifacts[item] = None
                continue
            if isinstance(item, dict):
                self._numbers |= item
                continue
            for event in item:
                if isinstance(event, _OF_TRIALS) and event.trial in self._trials:
                    self._views.setdefault(event.trial, _View()).fold(event)
                    self._dirty[event.trial] = None

    def _flush(self, closing: bool) -> None:
        if self._store is None:
            started = min(view.started or time.time() for view in self._views.values())
            self._store = _Store(self._plan, self._folder, self._uri, started)
            # All trials, because the store may lack earlier data. Trials that failed to send come last.
            self._dirty = {
                trial_id: None for trial_id in self._views if trial_id not in self._dirty
            } | self._dirty
        if closing:
            for trial_id, view in self._views.items():
                if view.outcome == "running":
                    view.outcome, view.ended = "unfinished", view.ended or view.clock
                    self._dirty[trial_id] = None
        for trial_id in list(self._dirty):
            # Moved to the end, so that a trial that the store refuses does not block the others.
            del self._dirty[trial_id]
            self._dirty[trial_id] = None
            self._store.send(self._trials[trial_id], self._views[trial_id])
            del self._dirty[trial_id]
        for path in list(self._artifacts):
            self._store.attach(path)
            del self._artifacts[path]
        if self._numbers:
            self._store.note(self._numbers)
            self._numbers = {}
        if closing:
            self._store.end(max(view.ended for view in self._views.values()))


class _Store:
    """One connection to the store. It knows what the store has of the sweep, and sends the rest.

    It passes on any exception of MLflow and is then discarded; the next connection asks again what arrived.
    """

    def __init__(self, plan: Plan, folder: Path, uri: str, started: float) -> None:
        from mlflow import MlflowClient, entities
        from mlflow.utils import logging_utils

        # Progress lines of MLflow and Alembic would disturb the sweep's own display.
        logging_utils.disable_logging()
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self._entities = entities
        self._client = MlflowClient(uri)
        self._plan = plan
        with _alone(uri):
            self._experiment_id = self._find_experiment(uri)
        self._parent_id = self._find_parent(folder, started)
        self._sent: dict[str, _Sent] = {}
        self._outcomes: dict[str, str] = {}
        trials = {trial.id: trial for trial in plan.trials}
        for run in self._search(f"tags.`mlflow.parentRunId` = '{self._parent_id}'"):
            tags, status = run.data.tags, run.info.status
            if (trial := trials.get(tags.get("trial_id"))) is None:
                continue
            outcome = "running" if status == "RUNNING" else tags.get("outcome", "running")
            self._sent[trial.id] = _Sent(
                run.info.run_id,
                missing_params={k: v for k, v in _params(trial).items() if k not in run.data.params},
                epoch=int(run.data.metrics.get("epoch", -1)),
                progress=(int(tags.get("attempts", 0)), _OUTCOME_ORDER.get(outcome, 2)),
            )
            self._outcomes[trial.id] = outcome

    def _find_experiment(self, uri: str) -> str:
        from mlflow.exceptions import MlflowException

        name = self._plan.sweep.name
        if (found := self._client.get_experiment_by_name(name)) is not None:
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        root = artifact_root(uri)
        location = (root / name).as_uri() if root else None
        # Else MLflow may open the pages about language models, which hide runs.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            created = str(self._client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException:
            # Another run that began at the same time may have made it since.
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)
        if root and not self._client.search_runs(["0"], max_results=1) and created != "0":
            # MLflow's empty experiment called Default, which it makes in every new store.
            self._client.delete_experiment("0")
        return created

    def _find_parent(self, folder: Path, started: float) -> str:
        sweep, sweep_id = self._plan.sweep, _sweep_id(folder)
        tags = {"sweep_id": sweep_id, "sweep_folder": str(folder), "question": sweep.question}
        if found := self._search(f"tags.sweep_id = '{sweep_id}'"):
            run_id = str(found[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            self._client.log_batch(run_id, tags=self._tags(tags), synchronous=True)
            return run_id
        # Set only at creation, because the user may edit the description afterwards.
        tags |= {"mlflow.note.content": sweep.question, "mlflow.source.name": "vitc-sweep"}
        return self._create_run(sweep.name, started, tags)

    def _create_run(self, name: str, started: float, tags: dict[str, str]) -> str:
        run = self._client.create_run(
            self._experiment_id,
            start_time=_milliseconds(started),
            tags={key: value[:_TAG_CHARS] for key, value in tags.items()},
            run_name=name,
        )
        return str(run.info.run_id)

    def _search(self, condition: str) -> list[Any]:
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], condition, max_results=1000, page_token=token
            )
            runs.extend(page)
            if not (token := page.token):
                return runs

    def send(self, trial: Trial, view: _View) -> None:
        """Brings the run of one trial up to date and drops the rows that have arrived."""
        if (sent := self._sent.get(trial.id)) is None:
            run_id = self._create_trial_run(trial, view)
            sent = self._sent[trial.id] = _Sent(run_id, missing_params=_params(trial))
        # A journal that is sent again from its start passes through states older than the store's.
        news = view.progress > sent.progress
        status = _STATUS[view.outcome]
        if news and status == "RUNNING" and sent.progress > (0, 0):
            self._client.update_run(sent.run_id, status=status)

        # Rows are sent whole and in order, because the last epoch in the store marks where to continue.
        epochs = sorted(epoch for epoch in view.rows if epoch > sent.epoch)
        epoch_chunks = _chunks(epochs, _METRICS_PER_CALL // len(EPOCH_LABELS))
        param_chunks = _chunks(list(sent.missing_params.items()), _PARAMS_PER_CALL)
        for some_epochs, some_params in itertools.zip_longest(epoch_chunks, param_chunks, fillvalue=()):
            self._client.log_batch(
                sent.run_id,
                metrics=[m for epoch in some_epochs for m in self._metrics(trial, epoch, *view.rows[epoch])],
                params=[self._entities.Param(path, value) for path, value in some_params],
                synchronous=True,
            )
        if epochs:
            sent.epoch = epochs[-1]
        sent.missing_params = {}
        view.rows.clear()

        if news:
            tags = {"outcome": view.outcome, "attempts": str(view.attempt)}
            if view.use:
                tags["device"] = str(view.use)
            if view.detail or view.attempt > 1:
                tags["detail"] = view.detail
            self._client.log_batch(sent.run_id, tags=self._tags(tags), synchronous=True)
            # Last, because a run that has ended in the store must be complete there.
            if status != "RUNNING":
                self._client.set_terminated(sent.run_id, status, _milliseconds(view.ended))
            sent.progress = view.progress
            self._outcomes[trial.id] = view.outcome

    def _create_trial_run(self, trial: Trial, view: _View) -> str:
        tags = {
            "mlflow.parentRunId": self._parent_id,
            "mlflow.source.name": "vitc-sweep",
            "arm": trial.arm,
            "cell": trial.cell_name,
            "point": str(trial.point),
            "replicate": str(trial.replicate),
            "role": trial.role,
            "trial_id": trial.id,
        }
        return self._create_run(trial.label, view.started, tags)

    def _metrics(self, trial: Trial, epoch: int, time: float, row: Epoch, use: DeviceUse | None) -> list[Any]:
        values = metrics_of(row, trial.config.data.task.objective)
        values["mfu_pct"] = mfu_pct([(row, use)], self._plan.cost(trial), trial.gang)
        return [
            self._entities.Metric(name, float(value), _milliseconds(time), epoch)
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]

    def note(self, numbers: Mapping[str, float]) -> None:
        """Gives the sweep's run its own numbers."""
        now = _milliseconds(time.time())
        metrics = [self._entities.Metric(_allowed(name), value, now, 0) for name, value in numbers.items()]
        for some in _chunks(metrics, _METRICS_PER_CALL):
            self._client.log_batch(self._parent_id, metrics=some, synchronous=True)

    def attach(self, path: Path) -> None:
        """Copies a file or folder to the sweep's run."""
        if path.exists():
            self._client.log_artifact(self._parent_id, str(path))

    def end(self, ended: float) -> None:
        """Ends the sweep's run, as finished if every trial of the plan has a settled outcome."""
        done = all(self._outcomes.get(trial.id) in SETTLED for trial in self._plan.trials)
        self._client.set_terminated(self._parent_id, "FINISHED" if done else "KILLED", _milliseconds(ended))

    def _tags(self, tags: dict[str, str]) -> list[Any]:
        return [self._entities.RunTag(key, value[:_TAG_CHARS]) for key, value in tags.items()]


def metrics_of(row: Epoch, objective: Objective) -> dict[str, Any]:
    """Returns a row by names of metrics. Errors have the objective's name, as in `val_top1_error_pct`."""
    own = f"{objective.name}_pct"
    metrics = {name.replace("error_pct", own): getattr(row, name) for name in EPOCH_LABELS}
    extra = row.extra or {}
    errors = shift_errors_in(extra)
    for name, value in extra.items():
        # MLflow groups metrics by what is before the slash.
        metrics[f"shift_{own}/{name.rpartition('/')[2]}" if name in errors else name] = value
    if (under := corruption_error(extra)) is not None:
        metrics |= {f"corrupted_{own}": under.mean_pct, "corruption_added_pp": under.excess_pct}
    return metrics


def _params(trial: Trial) -> dict[str, str]:
    """Returns the whole configuration by dotted path, including drawn values under the path that varies."""
    values = dict(leaves(trial.config.model_dump(mode="json")))
    values = {path: value for path, value in trial.values.items() if path not in values} | values
    return {path: str(value)[:_PARAM_CHARS] for path, value in values.items()}


def _sweep_id(folder: Path) -> str:
    """Returns the name under which stores know the sweep in this folder. Creates it the first time."""
    path = folder / STATE_FILE
    try:
        return str(json.loads(path.read_text("utf-8"))["sweep_id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        sweep_id = uuid.uuid4().hex
    temporary = path.with_name(f".{STATE_FILE}.{sweep_id}")
    temporary.write_text(json.dumps({"sweep_id": sweep_id}) + "\n", "utf-8")
    temporary.replace(path)
    return sweep_id


def _chunks(items: list[_Item], size: int) -> list[list[_Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _milliseconds(seconds: float) -> int:
    return int((seconds or time.time()) * 1000)


def _one_line(error: Exception, most: int = 200) -> str:
    text = redacted(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:most]}" if text else type(error).__name__


def _allowed(name: str) -> str:
    """Returns a metric's name in characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Lets one process at a time set up a new SQLite store. Two at once would fail on each other's tables."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    with path.with_name(f"{path.name}.lock").open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    # MLflow makes the folder of the path as it stands in the URL.
    if (unread := Path(uri.removeprefix("sqlite:///")).parent) != path.parent:
        with contextlib.suppress(OSError):
            unread.rmdir()
