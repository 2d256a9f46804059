"""The process group of a lane's workers, for Ray Train.

Ray's own configuration for torch imports torch where it is made, which is in each lane on the head. There it
would cost 0.3 GB a lane. Nothing here imports torch but what workers call.
"""

import datetime
from dataclasses import dataclass
from typing import Any

import ray
from ray._common.network_utils import build_address
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

#: Seconds after which a collective operation fails. The watchdog of a trial usually ends it earlier.
_TIMEOUT_SECONDS = 1800

#: Seconds that workers have to leave their group; a worker that has crashed never does.
_LEAVE_SECONDS = 5


@dataclass
class ProcessGroup(BackendConfig):  # type: ignore[misc]
    """Connects the workers of a lane, if there are several.

    Attributes:
      backend: of torch.distributed, "gloo" or "nccl".
    """

    backend: str = "gloo"

    @property
    def backend_cls(self) -> type["_Connect"]:
        """The class that Ray Train calls."""
        return _Connect


class _Connect(Backend):  # type: ignore[misc]
    #: The workers of a machine see each other's GPUs, as NCCL wants.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Connects the workers before their training function is called."""
        size = len(worker_group)
        if size == 1:
            return
        url = f"tcp://{build_address(*worker_group.execute_single(0, get_address_and_port))}"
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, backend_config.backend, url, rank, size)
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Lets the workers leave their group."""
        if len(worker_group) > 1:
            leaving = worker_group.execute_async(_leave)
            ray.wait(leaving, num_returns=len(leaving), timeout=_LEAVE_SECONDS)


def _join(backend: str, url: str, rank: int, size: int) -> None:
    import torch.distributed as dist

    limit = datetime.timedelta(seconds=_TIMEOUT_SECONDS)
    dist.init_process_group(backend, init_method=url, rank=rank, world_size=size, timeout=limit)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
