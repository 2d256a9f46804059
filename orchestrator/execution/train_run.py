"""The Ray Train run of a lane, whose controller runs in the lane's own process.

Ray Train 2.60 gives each run five processes on the head: its controller, a cleaner of placement groups, a
barrier for its workers, a manager of datasets and a watcher for drained machines. Two of them import torch,
so a lane cost the head more than 1 GB (`python -m benchmarks.lanes`). Here the controller is a thread of the
lane. The others are left out, because `placement_groups` removes groups without a maker, the workers of a
lane meet in the process group and read their data by themselves, and each asks whether its machine is
drained.

This module relies on internals of Ray Train, so pyproject.toml allows one minor version of Ray.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.metrics import ControllerMetricsCallback, WorkerMetricsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import placement_group

from orchestrator.backends.placement_groups import name_of
from orchestrator.backends.ray_cluster import NO_GPU
from orchestrator.execution.process_group import ProcessGroup
from orchestrator.trials.gang import Gang

_UNUSED = (ControllerMetricsCallback, WorkerMetricsCallback, PlacementGroupCleanerCallback, DatasetsCallback)

#: Called with the errors of the workers of a lost group.
OnLoss = Callable[[Iterable[BaseException]], None]

_numbers = itertools.count()


def run_train(
    name: str,
    loop: Callable[..., None],
    settings: dict[str, Any],
    gang: Gang,
    scratch: str,
    on_loss: OnLoss,
) -> None:
    """Runs `loop` on the workers of a gang until it returns on all.

    Args:
      name: of the run, unique in `scratch`.
      loop: called with `settings` by every worker.
      settings: pickled, and sent to the workers.
      gang: number of workers, and the CPUs and GPUs of each.
      scratch: a folder for the files of Ray Train.
      on_loss: called with the errors of a group that has died or did not start, before this raises.

    Raises:
      ray.train.TrainingFailedError: the group has died or did not start, or the controller failed.
    """
    resources = {"CPU": float(gang.cpus)} | ({"GPU": gang.gpus} if gang.gpus else {})
    trainer = _Trainer(
        loop,
        train_loop_config=settings,
        backend_config=ProcessGroup("nccl" if gang.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=gang.workers, use_gpu=bool(gang.gpus), resources_per_worker=resources
        ),
        # The Coordinator counts attempts per trial, and decides what workers follow on a lane.
        run_config=RunConfig(
            name=name,
            storage_path=scratch,
            worker_runtime_env={} if gang.gpus else NO_GPU,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
    trainer.on_loss = on_loss
    trainer.fit()


class _Losses(WorkerGroupCallback):  # type: ignore[misc]
    def __init__(self, on_loss: OnLoss) -> None:
        self._on_loss = on_loss

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Reports a lost worker group at once, because its end may take a while."""
        if worker_group_status.errors:
            self._on_loss(worker_group_status.errors.values())


class _Trainer(DataParallelTrainer):  # type: ignore[misc]
    on_loss: OnLoss

    def _create_default_callbacks(self) -> list[Any]:
        used = [each for each in super()._create_default_callbacks() if not isinstance(each, _UNUSED)]
        # Here and not in the RunConfig, which is sent to the workers.
        return [*used, _Losses(self.on_loss)]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        controller = _Controller(**settings)
        controller.on_loss = self.on_loss
        asyncio.run(controller.run())
        return controller.get_result()


class _Group(WorkerGroup):  # type: ignore[misc]
    def _create_placement_group(self, scaling_config: ScalingConfig, context: Any) -> Any:
        """Reserves the room of the workers, under a name that says who must be alive to use it."""
        group = placement_group(
            bundles=[context.resources_per_worker] * context.num_workers,
            strategy=context.placement_strategy,
            name=name_of(ray.get_runtime_context().get_actor_id(), next(_numbers)),
        )
        return DefaultPlacementGroupHandle(group)


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _Group
    on_loss: OnLoss

    def _start_worker_group(self, **settings: Any) -> None:
        """Starts a group. Reports why it does not start."""
        try:
            super()._start_worker_group(**settings)
        except Exception as error:
            self.on_loss([error])
            raise


class _NoBarrier:
    """Stands in for the actor behind `ray.train.report` and its like, which no lane uses."""

    @classmethod
    def options(cls, **_: Any) -> type["_NoBarrier"]:
        """Returns itself."""
        return cls

    @classmethod
    def remote(cls, **_: Any) -> "_NoBarrier":
        """Returns what is sent to the workers in place of the actor."""
        return cls()


worker_group.SynchronizationActor = _NoBarrier
state._shutdown_sync_actor = lambda _: None
