"""Measures the cost of checkpoints: by the Checkpointer, and by torch.save after each epoch.

    python -m benchmarks.checkpoint_cost [--seconds 120] [--rounds 2]

Trains one model (ViT_C of 4 blocks and width 192 on digits of 32 pixels, AdamW, averaged weights) in three
ways, one after the other, for `--rounds` rounds:

- without any checkpoint;
- with a `Checkpointer` at its defaults;
- with a synchronous `torch.save` and fsync after each epoch, as a loop without a Checkpointer does.

"share" is the time for checkpoints over the wall time of the run. For the Checkpointer it counts the copy on
the training thread and the processor time of the writing thread; for torch.save, the wall time of the call.
Step times are medians over epochs. On a busy machine they mean little, but the shares stay valid.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from trainables.config import TrainConfig
from trainables.context import Context, this_process
from trainables.gpu import visible_device
from trainables.training.checkpoint import KEPT, LEAST_SECONDS, SHARE, Checkpointer, Store, checkpoint_bytes
from trainables.training.loop import train
from trainables.training.state import State


def example() -> TrainConfig:
    """Returns a run with epochs of 38 steps and a state of tens of megabytes. It is stopped early."""
    return TrainConfig.model_validate(
        {
            "model": {
                "family": "vit",
                "stem": "conv",
                "image_size": 32,
                "patch_size": 8,
                "width": 192,
                "depth": 5,
                "heads": 3,
                "mlp_ratio": 3,
            },
            "data": "digits",
            "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
            "schedule": {"epochs": 10_000},
            "batch_size": 32,
            "ema": {},
            "divergence": {"window": 10_000},
        }
    )


def save_now(state: State, path: Path) -> float:
    """Returns the seconds of a plain, durable torch.save."""
    began = time.perf_counter()
    with path.open("wb") as file:
        state.save(file)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began


def run(config: TrainConfig, context: Context, seconds: float, way: str) -> tuple[float, float, int]:
    """Returns milliseconds per step, the share of the time for checkpoints, and their number."""
    spent, count, steps_ms = 0.0, 0, []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(Store(folder)) if way == "Checkpointer" else None
        before = 0
        for row, state in train(config, context, keeper=checkpointer):
            steps_ms.append(1000 * row.train_seconds / (row.step - before))
            before = row.step
            if way == "torch.save each epoch":
                spent += save_now(state, Path(folder, "state.pt"))
                count += 1
            if time.perf_counter() - began > seconds:
                break
        elapsed = time.perf_counter() - began
        if checkpointer is not None:
            checkpointer.__exit__()
            spent, count = checkpointer.spent_seconds, checkpointer.written
    return statistics.median(steps_ms), spent / elapsed, count


def main() -> None:
    """Prints one line per way and round, then the ratio of the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="length of each run")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    config, context = example(), this_process(device=visible_device())
    megabytes = checkpoint_bytes(config) / 1e6
    print(f"state: {megabytes:.1f} MB; {KEPT} kept; share {SHARE:.1%}, at least {LEAST_SECONDS:g} s apart")
    shares: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for way in ("none", "Checkpointer", "torch.save each epoch"):
            step_ms, share, count = run(config, context, options.seconds, way)
            shares.setdefault(way, []).append(share)
            print(
                f"round {number + 1}  {way:22} {step_ms:7.2f} ms a step  {share:7.3%} in {count} checkpoints"
            )
    checkpointer, plain = (statistics.mean(shares[way]) for way in ("Checkpointer", "torch.save each epoch"))
    print(f"share of the time, torch.save each epoch to Checkpointer: {plain / checkpointer:.1f}")
    print(f"load average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
