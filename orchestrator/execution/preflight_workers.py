"""Processes that try a shape before the first trial, here or on a cluster."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any, Self

import ray

from orchestrator.cost.estimate import GIB
from orchestrator.trials.gang import Gang
from trainables.profiling.dry_run import Reply, Request


def check_start(gang: Gang, request: "Request", tries: int = 3) -> "Reply":
    """Tries a request in a task with what one worker of the gang gets; dying of it is a reply, too."""
    pass

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


# ---------------------------------------------------------------------------------------------------
# Another process


class Child:
    """Tries requests in a process of its own on this machine; a new one where the last one died."""

    def __init__(self, on_gpu: bool, timeout_seconds: float) -> None:
        """
        Args:
          on_gpu: whether the first request will be for a gang with GPUs.
          timeout_seconds: for one request; the process is ended then.
        """
        self._on_gpu, self._timeout_seconds = on_gpu, timeout_seconds
        self._process: subprocess.Popen[str] | None = None
        #: Workers run in folders of their own, so a path that leads somewhere from ours only is found here.
        self._folder = tempfile.TemporaryDirectory(prefix="vitc-sweep-")

    def __enter__(self) -> Self:
        # It imports torch while shapes are built here.
        self._started(self._on_gpu)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._folder.cleanup()

    def __call__(self, gang: Gang, request: Request) -> Reply:
        """Where a worker of a gang would run; a process that dies of it is a reply, too."""
        process = self._started(bool(gang.gpus))
        assert process.stdin
        assert process.stdout
        late = threading.Timer(self._timeout_seconds, process.kill)
        late.start()
        try:
            process.stdin.write(json.dumps(request.plain()) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            was_late = not late.is_alive()
            late.cancel()
        if line:
            return Reply(**json.loads(line))
        code = process.wait()
        self._end()
        return died(code, was_late, request.planned_bytes)

    def _started(self, on_gpu: bool) -> "subprocess.Popen[str]":
        if self._process is not None and self._on_gpu != on_gpu:
            self._end()
        if self._process is None:
            self._on_gpu = on_gpu
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trainables.profiling.dry_run", self._folder.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ if on_gpu else os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def died(code: int, was_late: bool, planned_bytes: int) -> Reply:
    """What to say of a process that is gone.

    Args:
      code: of its exit; below 0 the signal that ended it.
      was_late: it was ended for taking too long.
      planned_bytes: what it was counted to need.
    """
    if was_late:
        return Reply("model", "the process that tried it made no step in the time that a trial has for one")
    if code == -signal.SIGKILL:
        return Reply(
            "batch_size",
            "the process that tried it was killed, as happens where memory runs out; "
            f"{planned_bytes / GIB:.3g} GiB planned for a worker",
        )
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return Reply("model", f"the process that tried it ended {how}")
