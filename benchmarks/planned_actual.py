"""Compares planned memory and time with measurements on this CPU. Exits 1 if a bound is broken.

    python -m benchmarks.planned_actual [--rounds 4] [--table]

Memory: each shape trains in its own process, two trials of one epoch one after the other, as in a lane. The
peak is computed from torch's allocations and frees (torch.profiler), so it is exact and independent of the
plan. Bound: 10 %.

Time: CPU time of the process (`time.process_time`) per epoch, so that other work on the machine counts
little. Shapes take turns, epoch by epoch, so that load affects all of them. Each shape is planned twice from
data that exclude the predicted epochs: from the *other shapes* alone, and from *every other epoch* of its own
for those between, so that both see the same load. Bound: 20 % for both.

--table prints the share of the data sheet's speed that published training speeds reach.
"""

import argparse
import gc
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

from orchestrator.cost.devices import DEVICES, this_machine
from orchestrator.cost.shapes import Shape, counted, shape_of
from orchestrator.cost.speed import REACHED, Sample, scaled
from orchestrator.sweep.load import build_sweep
from orchestrator.trials.plan import data_configs, make_plan
from orchestrator.trials.trial import Plan
from trainables.config import TrainConfig
from trainables.profiling.footprint import footprint

MEMORY_BOUND, TIME_BOUND = 0.10, 0.20

#: Settings of each shape on top of the base: model, batch, image side, patch, optimizer, averaging.
SHAPES: dict[str, dict[str, Any]] = {
    "vit_p nano": {},
    "vit_c nano": {"model.stem": "conv"},
    "vit_p nano b256": {"batch_size": 256},
    "vit_c nano sgd ema": {
        "model.stem": "conv",
        "optim": {"name": "sgd", "lr": 0.01, "weight_decay": 1e-4},
        "ema": {},
    },
    "vit_p 16 tokens more": {"model.patch_size": 4},
    "vit_c wide": {"model.stem": "conv", "model.width": 128},
    "vit_p deep": {"model.depth": 8},
    "vit_p wide, mixup": {"model.width": 128, "mixup": {}},
    "vit_c 48 pixels": {"model.stem": "conv", "model.image_size": 48},
}


def plan_of(settings: dict[str, Any]) -> Plan:
    """Returns the plan of a sweep of one trial on the digits."""
    base = {
        "model.family": "vit",
        "model.size": "nano",
        "model.image_size": 32,
        "model.patch_size": 8,
        "data": "digits",
        "optim": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.1},
        "schedule": {"epochs": 50},
        "batch_size": 64,
        "divergence": {"margin_pct": 0},
    }
    tree = {
        "name": "bench",
        "base": base | settings,
        "arms": {"only": {}},
        "design": {"kind": "random", "points": 1},
    }
    sweep = build_sweep(tree, "bench")
    return make_plan(sweep, {config: config.info() for config in data_configs(sweep)})


def peak_bytes(name: str) -> int:
    """Returns torch's peak allocation while two trials run one after the other in this process."""
    from torch.profiler import ProfilerActivity, profile

    from trainables.context import this_process
    from trainables.gpu import visible_device
    from trainables.training.loop import train

    trial = plan_of(SHAPES[name]).trials[0]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(2):
            # One epoch of a longer schedule. Only the end of a run loads the final split, so the first trial
            # has one epoch and leaves the split decoded in memory, as trials of a lane do.
            config = trial.config.model_copy(
                update={"schedule": trial.config.schedule.model_copy(update={"epochs": 1})}
            )
            for _row in train(config, this_process(device=visible_device())):
                pass
            _row = None  # holds the state
            gc.collect()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def epoch_seconds(rounds: int) -> dict[str, list[float]]:
    """Returns CPU seconds of every epoch of every shape, without first epochs. Shapes take turns."""
    from trainables.context import this_process
    from trainables.gpu import visible_device
    from trainables.training.loop import train

    running: dict[str, Iterator[Any]] = {
        name: train(plan_of(settings).trials[0].config, this_process(device=visible_device()))
        for name, settings in SHAPES.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for round_ in range(rounds + 1):
        for name, epochs in running.items():
            began = time.process_time()
            next(epochs)
            if round_:
                seconds[name].append(time.process_time() - began)
    return seconds


def main() -> None:
    """Prints a row per shape; exits 1 where a bound is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4, help="epochs of each shape that are timed")
    parser.add_argument("--table", action="store_true", help="published speeds beside the data sheet instead")
    options = parser.parse_args()
    if options.table:
        print_table()
        return
    # Forked from a process that has imported everything and trained nothing: quick to start, without caches.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["trainables.training.loop", "torch.profiler", "orchestrator.cost.estimate"]
    )
    with context.Pool(1, maxtasksperchild=1) as pool:
        measured = dict(zip(SHAPES, pool.imap(peak_bytes, SHAPES), strict=True))
    with context.Pool(1) as pool:
        seconds = pool.apply(epoch_seconds, (options.rounds,))

    device = this_machine().device
    plans = {name: plan_of(settings) for name, settings in SHAPES.items()}
    shapes: dict[str, Shape] = {name: shape_of(plan.trials[0]) for name, plan in plans.items()}
    found = {name: counted(plans[name], shape, on_gpu=False) for name, shape in shapes.items()}

    def sample(name: str, part: list[float]) -> Sample:
        return Sample(shapes[name], device, found[name][1], tuple(part))

    print(f"{device}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; n = {options.rounds} epochs")
    print(
        f"{'':22}{'peak MiB':>9}{'planned':>9}{'':>7}{'CPU s/epoch':>13}{'from others':>13}{'':>7}"
        f"{'range':>14}{'from own epochs':>17}{'':>7}"
    )
    broken, inside = 0, 0
    for name in SHAPES:
        memory = found[name][0].peak / measured[name] - 1
        actual = statistics.median(seconds[name])
        others = [sample(other, seconds[other]) for other in SHAPES if other != name]
        span = scaled(found[name][1], others)
        unseen = span.central / actual - 1
        seen, kept = statistics.median(seconds[name][::2]), statistics.median(seconds[name][1::2])
        again = seen / kept - 1
        broken += (abs(memory) > MEMORY_BOUND) + (abs(unseen) > TIME_BOUND) + (abs(again) > TIME_BOUND)
        inside += span.low <= actual <= span.high
        print(
            f"{name:22}{measured[name] / 2**20:9.2f}{found[name][0].peak / 2**20:9.2f}{memory:+7.1%}"
            f"{actual:13.3f}{span.central:13.3f}{unseen:+7.1%}{f'{span.low:.2f}-{span.high:.2f}':>14}{seen:17.3f}"
            f"{again:+7.1%}"
        )
    print(f"{inside} of {len(SHAPES)} epochs within the range told from other shapes")
    print(f"bounds: memory {MEMORY_BOUND:.0%}, time {TIME_BOUND:.0%}; broken: {broken}")
    sys.exit(1 if broken else 0)


#: GPU, model, images per GPU and step, images per second and GPU. Xiao et al. 2021, tables 1 and 2: minutes
#: per epoch of 1,281,167 images on 8 V100; timm's benchmark-train-amp-nchw-pt112-cu113-rtx3090.csv.
PUBLISHED: list[tuple[str, Any, int, float]] = [
    *(
        ("V100", model, batch, 1281167 / (60 * minutes * 8))
        for model, batch, minutes in (
            ("vit_p_1gf", 256, 2.6),
            ("vit_c_1gf", 256, 2.7),
            ("vit_p_4gf", 256, 3.8),
            ("vit_c_4gf", 256, 3.9),
            ("vit_p_18gf", 128, 11.5),
            ("vit_c_18gf", 128, 11.4),
            ("vit_p_36gf", 64, 18.8),
            ("vit_c_36gf", 64, 18.6),
            ("resnet_50", 256, 3.4),
            ("resnet_101", 256, 5.5),
            ("resnet_152", 256, 7.7),
            ("resnet_200", 128, 10.7),
            ("regnety_1gf", 256, 3.1),
            ("regnety_4gf", 256, 7.6),
            ("regnety_16gf", 128, 17.9),
        )
    ),
    ("RTX-3090", {"family": "vit", "width": 192, "depth": 12, "heads": 3, "mlp_ratio": 4}, 256, 2294),
    ("RTX-3090", {"family": "vit", "width": 384, "depth": 12, "heads": 6, "mlp_ratio": 4}, 256, 1053),
    ("RTX-3090", {"family": "vit", "width": 768, "depth": 12, "heads": 12, "mlp_ratio": 4}, 128, 391),
    ("RTX-3090", "resnet_50", 256, 826),
]


def print_table() -> None:
    """Prints the share of the data sheet's speed that published training reaches, the source of `REACHED`."""
    shares = []
    for gpu, model, batch, images_per_second in PUBLISHED:
        tree = {
            "model": model,
            "data": "digits",
            "optim": {"name": "sgd", "lr": 0.1, "weight_decay": 1e-4},
            "schedule": {"epochs": 1},
            "batch_size": batch,
            "precision": "fp16",
            "augment": "paper",
        }
        device, config = DEVICES[gpu], TrainConfig.model_validate(tree)
        work = footprint(config, 1000, batch, batch, on_gpu=True).step
        ideal = 2 * work.flops / (device.half_tflops * 1e12) + work.moved_bytes / (
            device.bandwidth_gb_s * 1e9
        )
        shares.append(ideal * images_per_second / batch)
        name = model if isinstance(model, str) else f"vit, width {model['width']}"
        print(f"{gpu:9}{name:17}{images_per_second:7.0f} images/s   {shares[-1]:.2f} of the data sheet")
    low, central, high = min(shares), statistics.median(shares), max(shares)
    print(f"lowest {low:.2f}, median {central:.2f}, highest {high:.2f}; in the plan: {REACHED}")


if __name__ == "__main__":
    main()
