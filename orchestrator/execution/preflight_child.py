"""A process of this machine that tries shapes before the first trial; it may die without harm."""

import json
import os
import signal
import subprocess
import tempfile
import threading
from typing import Self

from orchestrator.cost.estimate import GIB
from orchestrator.trials.gang import Gang
from trainables.io.children import own_program
from trainables.profiling.dry_run import Reply, Request

# ---------------------------------------------------------------------------------------------------
# Another process


_PROGRAM = "from trainables.profiling.dry_run import main; main(sys.argv[1], int(sys.argv[2]))"


class Child:
    """Tries requests in another process on this machine. Starts a new process if the last one died."""

    def __init__(self, on_gpu: bool, timeout_seconds: float) -> None:
        """
        Args:
          on_gpu: whether the first request will be for a gang with GPUs.
          timeout_seconds: for one request; the process is killed after that.
        """
        self._on_gpu, self._timeout_seconds = on_gpu, timeout_seconds
        self._process: subprocess.Popen[str] | None = None
        #: Workers run in other folders, so this empty one reveals paths that only exist in the user's.
        self._folder = tempfile.TemporaryDirectory(prefix="vitc-sweep-")

    def __enter__(self) -> Self:
        # Started early, so that it imports torch while shapes are built here.
        self._started(self._on_gpu)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._folder.cleanup()

    def __call__(self, gang: Gang, request: Request) -> Reply:
        """Tries a request in the process. A process that dies is a reply, too."""
        process = self._started(bool(gang.gpus))
        assert process.stdin
        was_late = threading.Event()

        def end() -> None:
            was_late.set()
            process.kill()

        late = threading.Timer(self._timeout_seconds, end)
        late.start()
        try:
            process.stdin.write(json.dumps(request.plain()) + "\n")
            process.stdin.flush()
            line = self._replies.readline()
        except BrokenPipeError:
            line = ""
        finally:
            late.cancel()
        if line:
            return Reply(**json.loads(line))
        code = process.wait()
        self._end()
        return died(code, was_late.is_set(), request.planned_bytes)

    def _started(self, on_gpu: bool) -> "subprocess.Popen[str]":
        if self._process is not None and self._on_gpu != on_gpu:
            self._end()
        if self._process is None:
            self._on_gpu = on_gpu
            # A pipe of its own, because what is imported may print.
            reading, writing = os.pipe()
            self._process = subprocess.Popen(
                own_program(_PROGRAM, self._folder.name, str(writing)),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                pass_fds=(writing,),
                env=os.environ if on_gpu else os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            )
            os.close(writing)
            self._replies = open(reading, encoding="utf-8")  # noqa: SIM115
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._replies.close()
            self._process = None


def died(code: int, was_late: bool, planned_bytes: int) -> Reply:
    """Returns the reply for a process that died.

    Args:
      code: exit code; below 0 the signal that ended the process.
      was_late: whether it was killed for taking too long.
      planned_bytes: memory that the plan counts for a worker.
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
