"""Processes that try a shape before the first trial, on this machine or on a cluster."""

import signal
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.execution.preflight_child import died
from orchestrator.trials.gang import Gang
from trainables.profiling.dry_run import Reply, Request


def check_start(gang: Gang, request: "Request", tries: int = 3) -> "Reply":
    """Tries a request in a Ray task with the resources of one worker. A process that dies is a reply, too."""
    task = ray.remote(_answer).options(num_cpus=gang.cpus, num_gpus=gang.gpus or 0, max_retries=0)
    try:
        reply: Reply = ray.get(task.remote(request.plain()))
    except ray.exceptions.OutOfMemoryError:
        return died(-signal.SIGKILL, False, request.planned_bytes)
    except ray.exceptions.WorkerCrashedError:
        return died(1, False, request.planned_bytes)
    except ray.exceptions.NodeDiedError:
        # The loss of a machine is no fault of the sweep, so the request is tried again.
        if tries == 1:
            raise
        return check_start(gang, request, tries - 1)
    return reply


def machines_without(address: str, content: str) -> list[str]:
    """Returns the machines with CPUs that do not read this content at this address."""
    found = []
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(_holds).options(num_cpus=0, scheduling_strategy=there)
            if not ray.get(task.remote(address, content)):
                found.append(node["NodeManagerAddress"])
    return found


def _holds(address: str, content: str) -> bool:
    from trainables.io.storage import holds

    return holds(address, content)


def _answer(content: dict[str, Any]) -> "Reply":
    from trainables.profiling.dry_run import reply_to

    return reply_to(content)
