"""Processes that try a shape before the first trial, on this machine or on a cluster."""

import contextlib
import signal
from typing import Any

import ray

from orchestrator.backends.ray_cluster import NO_GPU, MachineGone, on_machine
from orchestrator.execution.preflight_child import died
from orchestrator.execution.waiting import Watch
from orchestrator.trials.gang import Gang
from trainables.errors import Unavailable
from trainables.profiling.dry_run import Reply, Request

#: Seconds between two looks at the machines while a task runs, or waits for one.
_LOOK_SECONDS = 2.0


def check_start(gang: Gang, request: "Request", watch: Watch, tries: int = 3) -> "Reply":
    """Tries a request in a Ray task with the resources of one worker. A process that dies is a reply, too.

    Raises:
      Unavailable: no machine with these resources has come in time.
    """
    # A process that has used a GPU holds half a gigabyte of it until it ends, hence `max_calls`; only the
    # decorator takes it. Ray hides no GPU from a task without one.
    limits = {"num_gpus": gang.gpus, "max_calls": 1} if gang.gpus else {"num_gpus": 0, "runtime_env": NO_GPU}
    task = ray.remote(num_cpus=gang.cpus, max_retries=0, **limits)(_answer)
    answer = task.remote(request.plain())
    try:
        while not ray.wait([answer], timeout=_LOOK_SECONDS)[0]:
            watch.check(lambda: [Gang(1, gang.cpus, gang.gpus)])
        reply: Reply = ray.get(answer)
    except Unavailable:
        ray.cancel(answer)
        raise
    except ray.exceptions.OutOfMemoryError:
        return died(-signal.SIGKILL, False, request.planned_bytes)
    except ray.exceptions.WorkerCrashedError:
        return died(1, False, request.planned_bytes)
    except ray.exceptions.NodeDiedError:
        # The loss of a machine is no fault of the sweep, so the request is tried again.
        if tries == 1:
            raise
        return check_start(gang, request, watch, tries - 1)
    return reply


def machines_without(address: str, content: str) -> list[str]:
    """Returns the machines with CPUs that do not read this content at this address."""
    found = []
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0):
            # One that has left needs no place.
            with contextlib.suppress(MachineGone):
                if not on_machine(node["NodeID"], _holds, address, content):
                    found.append(node["NodeManagerAddress"])
    return found


def _holds(address: str, content: str) -> bool:
    from trainables.io.storage import holds

    return holds(address, content)


def _answer(content: dict[str, Any]) -> "Reply":
    from trainables.profiling.dry_run import reply_to

    return reply_to(content)
