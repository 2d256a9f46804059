"""Processes that tests start where a process is what is tested, without each of them importing torch anew.

They are copies of one process that has imported the training code and done nothing else.
"""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["orchestrator.execution.lane", "trainables.__main__", "tests.workers"])


def start(said: Path, function: Callable[..., int | None], *arguments: Any) -> BaseProcess:
    """Calls a function of this module in a process of its own, what it prints going to a file.

    What the function returns is the exit code; None is 0.
    """
    process = _CONTEXT.Process(target=_call, args=(said, function, arguments), daemon=True)
    process.start()
    return process


def _call(said: Path, function: Callable[..., int | None], arguments: tuple[Any, ...]) -> None:
    with said.open("w", buffering=1) as file, contextlib.redirect_stdout(file):
        code = function(*arguments)
    sys.exit(code)


def run_trainables(*arguments: str) -> int:
    """Runs `python -m trainables`."""
    from trainables.__main__ import main

    return main(list(arguments))


def _meet(rank: int, meeting: Path) -> None:
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)


def stop_and_go_on(rank: int, meeting: Path, folder: Path, jobs: list[tuple[dict[str, Any], int]]) -> None:
    """Trains each job as one of two workers, alone, then with a stop; prints rows, weights, samples seen."""
    import torch

    from trainables.base import TIMING_FIELDS, Preempted
    from trainables.config import TrainConfig
    from trainables.context import Context
    from trainables.training import loop
    from trainables.training.checkpoint import Checkpointer, Store
    from trainables.transforms import light_pipeline as light

    _meet(rank, meeting)
    loop.LOOK_STEPS = 1
    seen: list[Any] = []
    honest = light.step_samples

    def step_samples(*arguments: Any) -> Any:
        rows = honest(*arguments)
        seen.append(rows.tolist())
        return rows

    light.step_samples = step_samples

    def run(config: TrainConfig, name: str, context: Context, stop: int = 0) -> dict[str, Any]:
        left = [stop if rank == 1 else 0]

        def should_stop() -> bool:
            left[0] -= 1
            return left[0] == 0

        rows, weights = [], ""
        seen.clear()
        store = Store(f"{folder}/{name}") if rank == 0 else None
        try:
            with Checkpointer(store, should_stop) as keeper:
                for row, state in loop.train(config, context, keeper=keeper):
                    rows.append({k: v for k, v in dataclasses.asdict(row).items() if k not in TIMING_FIELDS})
                    weights = state.weights_digest()
        except Preempted as error:
            weights = str(error)
        return {"rows": rows, "weights": weights, "seen": list(seen)}

    both = Context(rank=rank, world_size=2)
    for number, (tree, stop) in enumerate(jobs):
        config = TrainConfig.model_validate(tree)
        print(json.dumps(["alone", run(config, f"{number}-alone", both)]))
        # Only rank 1 is told to stop.
        print(json.dumps(["stopped", run(config, f"{number}", both, stop)]))
        print(json.dumps(["resumed", run(config, f"{number}", both)]))
        # The same number of steps, and then one worker alone.
        print(json.dumps(["stopped", run(config, f"{number}-fewer", both, stop)]))
    torch.distributed.destroy_process_group()
    if rank == 0:
        for number, (tree, _) in enumerate(jobs):
            fewer = run(TrainConfig.model_validate(tree), f"{number}-fewer", Context())
            print(json.dumps(["fewer", fewer]))


def train_and_go_on(rank: int, meeting: Path, trees: list[dict[str, Any]]) -> None:
    """Trains each run as one of two workers, and again from the end of its first epoch; prints the rows."""
    import torch

    from trainables.base import TIMING_FIELDS
    from trainables.config import TrainConfig
    from trainables.context import Context
    from trainables.training.loop import train

    _meet(rank, meeting)

    def run(config: TrainConfig, checkpoint: io.BytesIO | None = None) -> tuple[list[Any], list[io.BytesIO]]:
        rows, files = [], []
        for row, state in train(config, Context(rank=rank, world_size=2), checkpoint):
            rows.append({k: v for k, v in dataclasses.asdict(row).items() if k not in TIMING_FIELDS})
            files.append(io.BytesIO())
            state.save(files[-1])
            if row.epoch == config.schedule.epochs:
                # Whether so short a run counts as diverged is not the question here.
                break
        return rows, files

    for tree in trees:
        config = TrainConfig.model_validate(tree)
        rows, files = run(config)
        # Every rank goes on from what rank 0 saved.
        content = [files[0].getvalue()]
        torch.distributed.broadcast_object_list(content, src=0)
        later, _ = run(config, io.BytesIO(content[0]))
        print(json.dumps([rows, later]))
    torch.distributed.destroy_process_group()


def compare_with_plain_ddp(rank: int, meeting: Path, tree: dict[str, Any]) -> None:
    """Takes steps as one of two workers, then with plain DDP; prints weights and collectives of a step."""
    import torch
    from torch.nn.parallel import DistributedDataParallel
    from torch.profiler import profile

    from trainables.config import TrainConfig
    from trainables.context import Context
    from trainables.training import loop

    _meet(rank, meeting)
    config = TrainConfig.model_validate(tree)
    info, images = config.data.info(), config.data.open()["train"]

    def plain(model: torch.nn.Module, **settings: Any) -> DistributedDataParallel:
        return DistributedDataParallel(model)

    for ddp in (DistributedDataParallel, plain):
        loop.DistributedDataParallel = ddp
        run = loop.TrainingRun(config, Context(rank=rank, world_size=2), info, images)
        if ddp is plain:
            run.learner.network.broadcast_buffers = True
        batches = run.pipeline.train_batches(images, config.seeds.order, config.batch_size, 0)
        collectives = 0
        for step in range(4):
            with profile() as watched:
                run.train_step(next(batches), 1e-2, step, config.batch_size)
            kinds = [event for event in watched.key_averages() if event.key.startswith("gloo:")]
            collectives = sum(event.count for event in kinds)
        run._agree_on_buffers()
        print(json.dumps([run.state.weights_digest(), collectives]))
    torch.distributed.destroy_process_group()


def hang(folder: Path) -> None:
    """Goes on for 2 s under the watch of a lane, which allows a step 1 s, and then no more."""
    from orchestrator.execution import worker
    from orchestrator.store.own_files import key_of

    clerk = SimpleNamespace(beat=SimpleNamespace(remote=lambda *told: True))
    worker.ray = SimpleNamespace(wait=lambda values, timeout: (values, []), get=lambda value: value)
    settings = {"clerk": clerk, "lane": "lane", "key": key_of(folder), "hang_seconds": 1.0}
    with worker._Watch({"trial": "abc", "attempt": 1}, 1, settings, 0) as watch:
        for step in range(4):
            time.sleep(0.5)
            watch.look(step)

        def stuck_in_here() -> None:
            time.sleep(600)

        stuck_in_here()
