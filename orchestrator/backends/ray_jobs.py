"""Sweeps as jobs of a Ray cluster, by way of the HTTP address of its dashboard (Ray's Jobs API)."""

import asyncio
import contextlib
import logging
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import requests
from ray._private.runtime_env import packaging
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from trainables.errors import UserError
from trainables.io.storage import redacted

#: Seconds in which the dashboard answers a request.
_ANSWER_SECONDS = 30

#: Seconds between two looks at a job.
_LOOK_SECONDS = 1.0

#: Seconds without output after which one asks whether the job, and the connection, are still there.
_SILENT_SECONDS = 15.0

#: Seconds for which a dashboard may be away while a job is followed.
_AWAY_SECONDS = 60.0

#: Seconds that a job has to end after SIGTERM, before Ray kills it. Ray's own 3 are few on a busy machine.
STOP_SECONDS = 60

# Ray says on standard error what it sends and how a connection ended.
for _name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", packaging.__name__):
    logging.getLogger(_name).setLevel(logging.ERROR)


class JobsError(UserError):
    """The cluster cannot be asked, or has no such job."""


class ClusterAway(JobsError):
    """The dashboard does not answer."""


class Sink(Protocol):
    """Receives text, such as a stream."""

    def write(self, text: str, /) -> object:
        """Receives a piece of text."""


@dataclass(frozen=True)
class Job:
    """A job of a cluster.

    Attributes:
      id: its submission id.
      is_over: whether it has ended.
      was_stopped: whether it was asked to end, and did.
      exit_code: of its command; None if it is at work, was stopped, or never began. Negative for a signal.
      message: Ray's words about its state.
      sweep, folder, command: the sweep's name, its folder on the head, and the command that submits it again.
        Empty for jobs of others.
    """

    id: str
    is_over: bool
    was_stopped: bool
    exit_code: int | None
    message: str
    sweep: str
    folder: str
    command: str


_SWEEP, _FOLDER, _COMMAND = "vitc_sweep", "vitc_sweep_folder", "vitc_sweep_command"


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, which does not wait for ever."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return super()._do_request(*arguments, **{"timeout": _ANSWER_SECONDS, **options})


class Jobs:
    """The jobs of one cluster. Every call may raise JobsError, and ClusterAway if nothing answers."""

    def __init__(self, address: str) -> None:
        """
        Args:
          address: of the dashboard: http://HOST:PORT.
        """
        self.address = address
        with self._telling(), _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            self._client = _Client(address)

    def submit(self, sweep: str, folder: str, entrypoint: Sequence[str], files: Path, command: str) -> str:
        """Submits the run of a sweep.

        Args:
          sweep: its name.
          folder: of its results, on the head.
          entrypoint: the words of the command; its current folder holds a copy of `files`.
          files: a folder.
          command: the command that submits it again.

        Returns:
          The job's id.

        Raises:
          JobsError: a job for that folder is at work.
        """
        jobs = self.all()
        if busy := [job for job in jobs if not job.is_over and job.folder == folder]:
            raise JobsError(f"{folder}: is in use by the job {busy[0].id}")
        taken = {job.id for job in jobs}
        number = 1
        while (job_id := f"{sweep}-{number}") in taken:
            number += 1
        with self._telling():
            return str(
                self._client.submit_job(
                    # Without a shell between Ray and the run, so that signals and exit code are the run's.
                    entrypoint=f"exec {shlex.join(entrypoint)}",
                    submission_id=job_id,
                    runtime_env={
                        "working_dir": str(files),
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
                    },
                    metadata={_SWEEP: sweep, _FOLDER: folder, _COMMAND: command},
                )
            )

    def all(self) -> list[Job]:
        """Returns all submitted jobs of the cluster, the last one first."""
        with self._telling():
            details = [one for one in self._client.list_jobs() if one.type is JobType.SUBMISSION]
        return [_job(one) for one in sorted(details, key=lambda one: -(one.start_time or 0))]

    def find(self, wanted: str) -> Job:
        """Returns a job by its id, or the one of a sweep or folder: that at work, else the last one.

        Raises:
          JobsError: there is none.
        """
        jobs = self.all()
        ours = [job for job in jobs if wanted.rstrip("/") in (job.sweep, job.folder) and job.folder]
        for job in [job for job in jobs if job.id == wanted] + sorted(ours, key=lambda job: job.is_over):
            return job
        known = f"; its jobs: {', '.join(job.id for job in jobs[:8])}" if jobs else ""
        raise JobsError(f"{self.address}: has no job {wanted}{known}")

    def stop(self, job: Job) -> Job:
        """Sends SIGTERM to a job, and waits until it has ended. Returns it as it is then."""
        with self._telling():
            self._client.stop_job(job.id)
        while not (now := self._look(job.id)).is_over:
            time.sleep(_LOOK_SECONDS)
        return now

    def output(self, job: Job) -> str:
        """Returns what a job has printed so far."""
        with self._telling():
            return str(self._client.get_job_logs(job.id))

    def follow(self, job: Job, to: Sink, away_seconds: float = _AWAY_SECONDS) -> Job:
        """Hands on what a job has printed, and prints, until it ends. Returns it as it is then.

        The connection may break meanwhile.

        Raises:
          ClusterAway: the dashboard does not answer for `away_seconds`.
        """
        copier = _Copier(to)
        while True:
            copier.begin()
            # Whatever broke, the next look tells whether the cluster is there.
            with contextlib.suppress(Exception):
                asyncio.run(self._tail(job.id, copier))
            job = self._look(job.id, away_seconds)
            if job.is_over:
                copier.begin()
                # The machine on which it ran may be gone, with its output.
                with contextlib.suppress(JobsError):
                    copier.write(self.output(job))
                return job
            time.sleep(_LOOK_SECONDS)

    async def _tail(self, job_id: str, to: "_Copier") -> None:
        pieces = self._client.tail_job_logs(job_id)
        while True:
            piece = asyncio.ensure_future(anext(pieces))
            while not (await asyncio.wait({piece}, timeout=_SILENT_SECONDS))[0]:
                # A connection that a sleeping laptop has lost is silent, too.
                if self._look(job_id, 0).is_over:
                    piece.cancel()
                    return
            try:
                to.write(piece.result())
            except StopAsyncIteration:
                return

    def _look(self, job_id: str, away_seconds: float = _AWAY_SECONDS) -> Job:
        deadline = time.monotonic() + away_seconds
        while True:
            try:
                with self._telling():
                    return _job(self._client.get_job_info(job_id))
            except ClusterAway:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_LOOK_SECONDS)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Turns errors of Ray's client into ours, of one line."""
        shown = redacted(self.address)
        try:
            yield
        except AuthenticationError as error:
            raise JobsError(
                f"{shown}: the cluster wants a token, or another one: set RAY_AUTH_MODE=token, and "
                "RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN where it is not in ~/.ray/auth_token"
            ) from error
        except (ConnectionError, requests.ConnectionError, requests.Timeout) as error:
            raise ClusterAway(
                f"{shown}: no Ray dashboard answers there; `ray dashboard CLUSTER.yaml` brings one to "
                "http://127.0.0.1:8265"
            ) from error
        # Of a server that is none of Ray's: a page in place of JSON, or JSON without what is asked for.
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise JobsError(f"{shown}: is no Ray dashboard: {_first_line(error)}") from error
        except RuntimeError as error:
            raise JobsError(f"{shown}: {_first_line(error)}") from error


class _Copier:
    """Hands on a text that is read again from its beginning each time a connection broke."""

    def __init__(self, to: Sink) -> None:
        self._to, self._written, self._at = to, 0, 0

    def begin(self) -> None:
        """The text begins anew."""
        self._at = 0

    def write(self, text: str) -> None:
        """Hands on what is new."""
        new = text[max(self._written - self._at, 0) :]
        self._at += len(text)
        self._written = max(self._written, self._at)
        if new:
            self._to.write(new)


def _job(details: JobDetails) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id or "",
        is_over=details.status.is_terminal(),
        was_stopped=details.status is JobStatus.STOPPED,
        exit_code=details.driver_exit_code,
        message=details.message or "",
        sweep=metadata.get(_SWEEP, ""),
        folder=metadata.get(_FOLDER, ""),
        command=metadata.get(_COMMAND, ""),
    )


def _first_line(error: Exception) -> str:
    return redacted(next(iter(str(error).strip().splitlines()), type(error).__name__))[:300]


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Hides environment variables that would come before what the user has said."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
