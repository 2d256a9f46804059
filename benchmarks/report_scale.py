"""Measures how long a report on a large synthetic sweep takes.

    python -m benchmarks.report_scale [--points 208] [--cells 24] [--epochs 20] [--keep FOLDER]

Writes the journal of a sweep of 2 arms x cells x points with plausible learning curves, then times reading
the folder, folding the journal and writing the report. The same run measures MLflow for comparison: reading
as many final errors back from its default store, without any statistics.
"""

import argparse
import math
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from orchestrator.report.page import write_report
from orchestrator.store.folder import open_folder, save_question
from orchestrator.store.journal import encode
from orchestrator.sweep.load import build_sweep
from orchestrator.trials.events import AttemptBegan, AttemptEnded, EpochDone, Event, row_of
from orchestrator.trials.plan import data_configs, make_plan
from orchestrator.trials.trial import Plan, Trial
from trainables.base import derive_seed


def large_plan(num_cells: int, points: int, epochs: int) -> Plan:
    """Returns a plan of two arms, two optimizers, and enough schedule lengths for `num_cells` cells."""
    lengths = {
        f"e{epochs + extra}": {"schedule.epochs": epochs + extra} for extra in range((num_cells + 1) // 2)
    }
    sweep = build_sweep(
        {
            "name": "large",
            "question": "Does the report keep up?",
            "base": {
                "model": {"family": "vit", "size": "nano", "image_size": 32, "patch_size": 8},
                "data": "digits",
                "schedule.warmup": "10%",
            },
            "arms": {"vit_p": {"model.stem": "patchify"}, "vit_c": {"model.stem": "conv"}},
            "cells": {
                "optimizer": {"adamw": {"optim.name": "adamw"}, "sgd": {"optim.name": "sgd"}},
                "length": lengths,
            },
            "vary": {
                "optim.lr": {"adamw": {"log_uniform": [2.5e-4, 8e-3]}, "sgd": {"log_uniform": [0.1, 3.2]}},
                "optim.weight_decay": {
                    "adamw": {"log_uniform": [0.02, 0.8]},
                    "sgd": {"log_uniform": [4e-6, 1.2e-4]},
                },
            },
            "design": {"kind": "sobol", "points": points},
        },
        "large",
    )
    return make_plan(sweep, {config: config.info() for config in data_configs(sweep)})


def made_up_events(plan: Plan) -> Iterator[Event]:
    """Yields events of a synthetic sweep: per arm a bowl in log lr and log wd, with a cliff at high lr.

    Learning curves decay to that error.
    """
    for trial in plan.trials:
        rng = np.random.default_rng(derive_seed(trial.id))
        error = made_up_error(plan, trial, rng)
        yield AttemptBegan(trial=trial.id, attempt=1, lane="lane", time=0.0)
        if error is None:
            yield AttemptEnded(
                trial=trial.id,
                attempt=1,
                end="diverged",
                detail="the training loss is nan",
                seconds=3.0,
                time=3.0,
                final=True,
            )
            continue
        epochs = trial.config.schedule.epochs
        for epoch in range(1, epochs + 1):
            now = error + (90 - error) * math.exp(-5 * epoch / epochs)
            yield EpochDone(
                trial=trial.id,
                attempt=1,
                row=row_of(
                    {
                        "epoch": epoch,
                        "step": epoch * 19,
                        "lr": 1e-3,
                        "train_loss": now / 40,
                        "val_loss": now / 40,
                        "val_error_pct": now,
                        "val_raw_error_pct": now,
                        "train_seconds": 0.5,
                        "val_seconds": 0.1,
                        "test_error_pct": error + 0.3 if epoch == epochs else None,
                    }
                ),
            )
        yield AttemptEnded(
            trial=trial.id,
            attempt=1,
            end="finished",
            detail="",
            seconds=epochs * 0.6,
            time=epochs * 0.6,
            final=True,
            weights=trial.id,
        )


def made_up_error(plan: Plan, trial: Trial, rng: np.random.Generator) -> float | None:
    """Returns a final error in percent. None if the trial diverged."""
    domains = plan.sweep.domains(trial.arm, trial.cell)
    octaves = []
    for path, domain in domains.items():
        low, high = domain.extremes()[0], domain.extremes()[-1]
        octaves.append(math.log2(trial.values[path] / math.sqrt(low * high)))
    conv = trial.arm == "vit_c"
    lr, wd = octaves
    if lr > (2.3 if conv else 1.9):
        return None
    bowl = (0.25 if conv else 0.8) * (lr + 0.3) ** 2 + 0.1 * wd**2
    return float(np.clip((3 if conv else 5) + bowl + rng.normal(0, 0.3), 0, 90))


def main() -> None:
    """Prints seconds per stage, then the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=208)
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--keep", type=Path, help="leave the sweep's folder here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch) / "large"
        plan = large_plan(options.cells, options.points, options.epochs)
        save_question(folder, plan)
        (folder / "journal").mkdir(exist_ok=True)
        with (folder / "journal" / "000001.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(encode(event) for event in made_up_events(plan))
        began, used = time.perf_counter(), cpu_seconds()
        opened = open_folder(folder)
        read = time.perf_counter()
        write_report(opened.plan, opened.records, folder / "report", {})
        written = time.perf_counter()
        print(f"{len(plan.trials)} trials, {sum(len(r.rows) for r in opened.records.values())} epochs")
        print(f"open the folder   {read - began:7.1f} s")
        print(f"write the report  {written - read:7.1f} s")
        # On a busy machine, compare this figure.
        print(f"processor time    {cpu_seconds() - used:7.1f} s, both stages, all processes")
        print(f"report.html       {(folder / 'report' / 'report.html').stat().st_size / 1e6:7.2f} MB")
        mlflow = time_mlflow(Path(scratch), plan)
        print(f"MLflow, reading {len(plan.trials)} runs with their last metrics  {mlflow:7.1f} s")
        print(f"ratio, MLflow to ours: {mlflow / (written - began):.2f}")


def cpu_seconds() -> float:
    """Returns user and system time of this process and of the children that it has waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def time_mlflow(folder: Path, plan: Plan) -> float:
    """Returns seconds to read one metric and the parameters of every trial from an SQLite store."""
    import mlflow
    from mlflow.entities import Metric, Param

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("large")
    for trial in plan.trials:
        run = client.create_run(experiment)
        params = [Param(path, str(value)) for path, value in trial.values.items()]
        client.log_batch(run.info.run_id, [Metric("error", 5.0, 0, 20)], params)
    began = time.perf_counter()
    token, count = None, 0
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        count += len(page)
        token = page.token
        if not token:
            break
    assert count == len(plan.trials)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
