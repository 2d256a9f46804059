"""Trains a dense table of real trials: every arm at every point of a large Sobol design.

    python -m benchmarks.digits_table [--processes 2]

Trains the sweep of `benchmarks/data/digits_lr_wd.yaml`, one CPU thread per trial, and writes
`benchmarks/data/digits_lr_wd.csv`: a row per point with its quantiles and, per arm, the error of the last
epoch on the validation split (%), 100 where the trial diverged. Points that are already in the file are kept.
"""

import argparse
import csv
import multiprocessing
from pathlib import Path

from orchestrator.sweep.load import load_sweep
from orchestrator.trials.plan import data_configs, make_plan
from orchestrator.trials.trial import Plan
from trainables.base import Diverged
from trainables.config import TrainConfig
from trainables.context import this_process
from trainables.training.loop import train

DATA = Path(__file__).parent / "data"
SWEEP = DATA / "digits_lr_wd.yaml"
TABLE = DATA / "digits_lr_wd.csv"

DIVERGED_PCT = 100.0


def plan() -> Plan:
    """Returns the plan of the dense sweep."""
    sweep = load_sweep(SWEEP)
    return make_plan(sweep, {config: config.info() for config in data_configs(sweep)})


def error_pct(config: TrainConfig) -> float:
    """Trains a run. Returns the validation error after the last epoch."""
    found = DIVERGED_PCT
    try:
        for row, _ in train(config, this_process()):
            found = row.val_error_pct
    except Diverged:
        return DIVERGED_PCT
    return found


def main() -> None:
    """Trains the trials that the table lacks, in the order of the points."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="trials at a time (default: 2)")
    arguments = parser.parse_args()
    sweep = plan().sweep
    paths, arms = list(sweep.vary), list(sweep.arms)
    quantiles = sweep.design.quantiles(sweep.levels())
    done = len(TABLE.read_text("utf-8").splitlines()) - 1 if TABLE.exists() else -1
    trials = [trial for trial in plan().trials if trial.point >= done]
    with (
        TABLE.open("a", encoding="utf-8", newline="") as file,
        multiprocessing.Pool(arguments.processes) as pool,
    ):
        write = csv.writer(file, lineterminator="\n").writerow
        if done < 0:
            write(["point", *(f"{path}_quantile" for path in paths), *(f"{arm}_error_pct" for arm in arms)])
        errors = pool.imap(error_pct, [trial.config for trial in trials])
        for trial in trials[:: len(arms)]:
            place = [f"{quantiles[path][trial.point]:.6f}" for path in paths]
            write([trial.point, *place, *(f"{next(errors):.4f}" for _ in arms)])
            file.flush()


if __name__ == "__main__":
    main()
