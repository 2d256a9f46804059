"""The own files of a cluster's machines, reached by Ray tasks."""

import asyncio
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.store.own_files import OwnFiles

#: Longest wait in seconds for a machine. It may be gone without Ray's knowledge yet.
_TIMEOUT_SECONDS = 20.0


class RayMachines:
    """The machines of a Ray cluster by node id; see `own_files.Machines`."""

    def __init__(self, key: str) -> None:
        """
        Args:
          key: of the sweep; see `own_files.key_of`.
        """
        self._key = key

    async def take_stacks(self, node: str, trial_id: str, attempt: int) -> dict[int, str]:
        """See `Machines`."""
        found: dict[int, str] = await self._on(node, {}, _take_stacks, self._key, trial_id, attempt)
        return found

    async def clear(self, node: str, trial_ids: list[str]) -> None:
        """See `Machines`."""
        await self._on(node, None, _clear, self._key, trial_ids)

    async def _on(self, node: str, otherwise: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        if node == ray.get_runtime_context().get_node_id():
            return await asyncio.to_thread(function, *arguments)
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        answer = task.remote(*arguments)
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                return await answer
        except TimeoutError:
            ray.cancel(answer)
        except Exception:  # a machine that is gone is no fault: Ray raises several kinds of errors
            pass
        return otherwise


def _take_stacks(key: str, trial_id: str, attempt: int) -> dict[int, str]:
    return OwnFiles(key).take_stacks(trial_id, attempt)


def _clear(key: str, trial_ids: list[str]) -> None:
    OwnFiles(key).clear(trial_ids)
