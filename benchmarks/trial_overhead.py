"""Measures the overhead of a trial in a lane and in Ray's documented pattern, in one run.

    python -m benchmarks.trial_overhead [--lane-trials 100] [--pattern-trials 4]

Both sides train the same trivial model (one step on 8-pixel digits) with one CPU worker, one trial at a
time, on one Ray instance. "Steady" leaves the first trial out, because it pays for starting up. The
documented pattern is a `TorchTrainer` started inside each Tune trial.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.backends import ray_cluster
from orchestrator.execution import run as execution_run
from orchestrator.sweep.config import Resources
from orchestrator.sweep.load import build_sweep
from orchestrator.trials.events import AttemptEnded
from orchestrator.trials.plan import data_configs, make_plan
from orchestrator.trials.trial import Plan


def trivial_plan(num_trials: int) -> Plan:
    """Returns the plan of distinct trials that do almost nothing."""
    sweep = build_sweep(
        {
            "name": "trivial",
            "base": {
                "model": {
                    "family": "vit",
                    "image_size": 8,
                    "patch_size": 4,
                    "width": 8,
                    "depth": 1,
                    "heads": 1,
                },
                "model.mlp_ratio": 1,
                "data": "digits",
                "optim": {"name": "adamw", "weight_decay": 0.0},
                "schedule": {"epochs": 1, "warmup": 0},
                "batch_size": 1199,
                "augment.shift": 0,
                "divergence.margin_pct": 0,
            },
            "arms": {"only": {}},
            "vary": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}},
            "design": {"kind": "random", "points": num_trials},
        },
        "trivial",
    )
    return make_plan(sweep, {config: config.info() for config in data_configs(sweep)})


def time_lane(num_trials: int) -> tuple[float, float]:
    """Returns seconds to the end of the first trial, and seconds per trial after it."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        run = execution_run.Run(
            Path(folder), trivial_plan(num_trials).trials, {}, Resources(retries=0, lanes=1)
        )
        run.start()
        ends = []
        while True:
            done = run.done
            ends += [event.time for event in run.events() if isinstance(event, AttemptEnded)]
            if done:
                break
            time.sleep(0.2)
        assert len(ends) == num_trials, run.error
        return ends[0] - began, (ends[-1] - ends[0]) / (num_trials - 1)


def _train_once(settings: dict[str, Any]) -> None:
    from trainables.config import TrainConfig
    from trainables.context import this_process
    from trainables.gpu import visible_device
    from trainables.training.loop import train

    for _ in train(TrainConfig.model_validate(settings["config"]), this_process(device=visible_device())):
        pass


def _documented_trial(settings: dict[str, Any]) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    TorchTrainer(
        _train_once,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=settings["storage"]),
    ).fit()
    Path(settings["storage"], f"end-{time.time()}").touch()


def time_documented_pattern(num_trials: int) -> tuple[float, float]:
    """Returns seconds to the end of the first trial, and seconds per trial after it."""
    from ray import tune

    trials = trivial_plan(num_trials).trials
    with tempfile.TemporaryDirectory() as storage:
        began = time.time()
        tune.Tuner(
            tune.with_resources(_documented_trial, {"CPU": 0.01}),
            param_space={
                "storage": storage,
                "config": tune.grid_search([trial.config.model_dump(mode="json") for trial in trials]),
            },
            tune_config=tune.TuneConfig(max_concurrent_trials=1),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        ).fit()
        ends = sorted(float(path.name.removeprefix("end-")) for path in Path(storage).glob("end-*"))
    assert len(ends) == num_trials
    return ends[0] - began, (ends[-1] - ends[0]) / (num_trials - 1)


def time_bare(num_trials: int) -> float:
    """Returns the median seconds of the same training in this process, which both sides include."""
    seconds = []
    for trial in trivial_plan(num_trials).trials:
        began = time.perf_counter()
        _train_once({"config": trial.config.model_dump(mode="json")})
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    """Prints one line per side, then the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lane-trials", type=int, default=100)
    parser.add_argument("--pattern-trials", type=int, default=4)
    options = parser.parse_args()
    ray_cluster.connect(None)
    try:
        bare = time_bare(20)
        lane_first, lane = time_lane(options.lane_trials)
        pattern_first, pattern = time_documented_pattern(options.pattern_trials)
    finally:
        ray_cluster.shutdown()
    print(f"load average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"bare loop            {bare:8.3f} s per trial (median of 20)")
    for name, seconds, first, count in (
        ("lane", lane, lane_first, options.lane_trials),
        ("TorchTrainer a trial", pattern, pattern_first, options.pattern_trials),
    ):
        print(f"{name:20} {seconds:8.3f} s per trial, the first after {first:5.1f} s (n = {count})")
    print(f"ratio, documented pattern to lane: {pattern / lane:.0f}")


if __name__ == "__main__":
    main()
