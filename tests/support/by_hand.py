"""Trials trained by the loop alone: no lane, no Ray, no interruption."""

import dataclasses
import io
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.trials.records import Record
from orchestrator.trials.trial import Trial
from trainables.base import TIMING_FIELDS, Epoch
from trainables.context import this_process
from trainables.training.loop import train

#: Rows without what depends on the clock, and the digest of the final weights.
Outcome = tuple[list[dict[str, Any]], str]


def by_hand(trials: Iterable[Trial]) -> dict[str, Outcome]:
    """Trains trials one after the other. First stages come before the trials that start from them."""
    saved: dict[str, bytes] = {}
    found = {}
    for trial in trials:
        start = io.BytesIO(saved[trial.after]) if trial.after else None
        # As in a lane, because another number of threads may round differently.
        context = this_process(threads=trial.gang.cpus)
        epochs = [(plain(row), state) for row, state in train(trial.config, context, start=start)]
        state = epochs[-1][1]
        file = io.BytesIO()
        state.save(file)
        saved[trial.id] = file.getvalue()
        found[trial.id] = [row for row, _ in epochs], state.weights_digest()
    return found


def plain(row: Epoch) -> dict[str, Any]:
    """Returns a row without what depends on the clock."""
    return {key: value for key, value in dataclasses.asdict(row).items() if key not in TIMING_FIELDS}


def outcomes_of(records: Mapping[str, Record]) -> dict[str, Outcome]:
    """Returns what a run recorded, to compare with `by_hand`."""
    return {
        key: ([plain(record.rows[epoch]) for epoch in sorted(record.rows)], record.weights)
        for key, record in records.items()
    }
