"""Sweep files as trees, their plans, and rows and records of trials that nobody ran."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.store.folder import save_question
from orchestrator.store.journal import Writer
from orchestrator.sweep.config import Sweep
from orchestrator.sweep.load import build_sweep
from orchestrator.trials.events import AttemptBegan, AttemptEnded, EpochDone
from orchestrator.trials.outcomes import Outcome
from orchestrator.trials.plan import data_configs, make_plan
from orchestrator.trials.records import Record
from orchestrator.trials.trial import Plan, Suggestion, Trial
from trainables.base import Epoch

#: Planned and never trained.
NANO = {"family": "vit", "size": "nano", "image_size": 32, "patch_size": 8}
#: Trained in a second.
TINY = {"family": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 2, "heads": 2}
TINY |= {"mlp_ratio": 2}


def base_tree(**changes: Any) -> dict[str, Any]:
    """The settings that all arms share; a key that is None is left out."""
    tree = {
        "model": NANO,
        "data": "digits",
        "optim": {"name": "adamw", "weight_decay": 0.1},
        "schedule": {"epochs": 3},
        "batch_size": 64,
    } | changes
    return {key: copy.deepcopy(value) for key, value in tree.items() if value is not None}


def tiny_base(**changes: Any) -> dict[str, Any]:
    """The settings of runs that are really trained."""
    optim = {"name": "adamw", "weight_decay": 0.05}
    schedule = {"epochs": 2, "warmup": "10%"}
    return base_tree(**{"model": TINY, "optim": optim, "schedule": schedule, "batch_size": 128} | changes)


def sweep_tree(**changes: Any) -> dict[str, Any]:
    """A sweep of two arms over the learning rate, with top-level keys replaced."""
    tree = {
        "name": "small",
        "base": base_tree(),
        "arms": {"p": {"model.stem": "patchify"}, "c": {"model.stem": "conv"}},
        "vary": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}},
        "design": {"kind": "sobol", "points": 4},
    }
    return copy.deepcopy(tree | changes)


def plan_from(tree: dict[str, Any], suggestions: Sequence[Suggestion] = ()) -> Plan:
    """The plan of a sweep file."""
    return plan_with_data(build_sweep(copy.deepcopy(tree), "test"), suggestions)


def plan_with_data(sweep: Sweep, suggestions: Sequence[Suggestion] = ()) -> Plan:
    """The plan of a sweep whose data are looked at."""
    return make_plan(sweep, {config: config.info() for config in data_configs(sweep)}, suggestions)


def plan_of(**changes: Any) -> Plan:
    """The plan of `sweep_tree`."""
    return plan_from(sweep_tree(**changes))


def save_records(folder: Path, plan: Plan, records: Mapping[str, Record]) -> Path:
    """Writes a folder of a sweep whose trials have finished with these records, of one epoch each."""
    save_question(folder, plan, made=0.0)
    writer = Writer(folder)
    for name, record in records.items():
        [row] = record.rows.values()
        end = {"end": "finished", "detail": "", "seconds": 1.0, "time": 1.0, "final": True}
        writer.append(
            [
                AttemptBegan(trial=name, attempt=1, lane="lane", time=0.0),
                EpochDone(trial=name, attempt=1, row=row),
                AttemptEnded(trial=name, attempt=1, weights="w", **end),
            ]
        )
    writer.close()
    return folder


def epoch_row(
    epoch: int = 1,
    error_pct: float = 50.0,
    *,
    test_pct: float | None = None,
    extra: dict[str, float] | None = None,
    **fields: Any,
) -> Epoch:
    """The row of an epoch by what a test is about; the errors have names that no column has to keep."""
    columns: dict[str, Any] = {
        "step": 10 * epoch,
        "lr": 1e-3,
        "train_loss": 1.0,
        "val_loss": 1.0,
        "val_error_pct": error_pct,
        "val_raw_error_pct": error_pct,
        "train_seconds": 1.0,
        "val_seconds": 0.1,
        "test_error_pct": test_pct,
        "extra": extra,
    }
    return Epoch(epoch=epoch, **columns | fields)


def ended(rows: Sequence[Epoch], outcome: Outcome = "finished", busy_seconds: float = 1.0) -> Record:
    """The record of a trial that has ended after one attempt."""
    return Record(outcome, "", 1, {row.epoch: row for row in rows}, busy_seconds=busy_seconds)


def records_of(plan: Plan, record_of: Callable[[Trial], Record]) -> dict[str, Record]:
    """A record of every trial."""
    return {trial.id: record_of(trial) for trial in plan.trials}
