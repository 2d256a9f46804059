import dataclasses
import typing
from types import SimpleNamespace

import pytest

from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    DeviceUsed,
    EpochDone,
    Event,
    RetryWanted,
    Unknown,
    row_of,
)
from orchestrator.trials.outcomes import RULES, SETTLED, AttemptEnd, Outcome
from orchestrator.trials.records import Record, Result, by_cell_and_arm, by_point, fold
from tests.support.sweeps import epoch_row
from trainables.base import DeviceUse, Epoch


def row(epoch: int, error: float = 50.0, test: float | None = None) -> Epoch:
    return epoch_row(epoch, error, test_pct=test)


def start(attempt: int = 1, trial: str = "t", time: float = 100.0) -> Event:
    return AttemptBegan(trial=trial, attempt=attempt, lane="lane", time=time)


def end(how: str, attempt: int = 1, final: bool = True, time: float = 200.0) -> Event:
    return AttemptEnded(
        trial="t", attempt=attempt, end=how, detail=f"because {how}", seconds=60.0, time=time, final=final
    )


def result(how: str | None, *errors: float, error_rule: str = "last_epoch") -> Result:
    events = [
        start(),
        *(EpochDone(trial="t", attempt=1, row=row(i + 1, error)) for i, error in enumerate(errors)),
    ]
    record = fold([*events, *([end(how)] if how else [])])["t"]
    return Result(None, record, error_rule)


def test_every_outcome_and_every_end_of_an_attempt_has_its_rule():
    outcomes, ends = set(typing.get_args(Outcome)), set(typing.get_args(AttemptEnd))
    assert set(RULES) == ends
    assert ends - outcomes == {"preempted", "lost"}
    assert all(rule.means for rule in RULES.values())


def test_the_rules_are_those_that_were_decided():
    # Who runs it again, whether it may be the best, and what it counts as in an EDF (None: not at all).
    own = "its own error"
    decided = {
        "finished": ("never", True, own),
        "diverged": ("never", False, 100.0),
        "stopped": ("never", False, None),
        "invalid": ("never", False, None),
        "out_of_memory": ("never", False, None),
        "failed": ("retries", False, None),
        "cancelled": ("next run", False, None),
        "preempted": ("always", False, None),
        "lost": ("losses", False, None),
    }
    for name, (again, ranked, counts_as) in decided.items():
        rule = RULES[name]
        assert (rule.again, rule.ranked) == (again, ranked)
        assert rule.in_edf == (counts_as is not None)
        assert rule.error_pct == (counts_as if isinstance(counts_as, float) else None)
    assert {"finished", "diverged", "stopped", "invalid", "out_of_memory", "failed"} == SETTLED


def test_an_undisturbed_trial_is_folded_into_one_record():
    events = [
        start(),
        EpochDone(trial="t", attempt=1, row=row(1)),
        EpochDone(trial="t", attempt=1, row=row(2, 40.0)),
        end("finished"),
    ]
    record = fold(events)["t"]
    assert (record.outcome, record.attempts, record.running, record.settled) == ("finished", 1, False, True)
    assert (record.started, record.ended, record.busy_seconds) == (100.0, 200.0, 60.0)
    assert record.detail == "because finished"
    assert list(record.rows) == [1, 2]
    assert record.last == row(2, 40.0)


def test_a_trial_under_way_is_running_and_has_no_outcome():
    record = fold([start(), EpochDone(trial="t", attempt=1, row=row(1))])["t"]
    assert (record.running, record.outcome, record.settled) == (True, None, False)
    assert Result(None, record).state == "running"


def test_an_epoch_that_was_repeated_counts_once_by_the_later_attempt():
    events = [
        start(1),
        EpochDone(trial="t", attempt=1, row=row(1, 60.0)),
        EpochDone(trial="t", attempt=1, row=row(2, 50.0)),
        end("lost", 1, final=False),
        start(2, time=300.0),
        EpochDone(trial="t", attempt=2, row=row(2, 49.0)),
        EpochDone(trial="t", attempt=2, row=row(3, 40.0)),
        end("finished", 2, time=400.0),
    ]
    record = fold(events)["t"]
    assert [r.val_error_pct for r in record.rows.values()] == [60.0, 49.0, 40.0]
    assert (record.attempts, record.busy_seconds) == (2, 120.0)
    assert (record.started, record.ended) == (100.0, 400.0)


def test_an_attempt_that_is_tried_again_is_no_outcome():
    record = fold([start(), end("failed", final=False)])["t"]
    assert (record.outcome, record.settled, record.running) == (None, False, False)
    record = fold([start(), end("failed", final=False), start(2), end("failed", 2)])["t"]
    assert (record.outcome, record.settled, record.attempts) == ("failed", True, 2)


def test_a_cancelled_trial_is_not_settled_and_a_new_attempt_clears_it():
    record = fold([start(), end("cancelled")])["t"]
    assert (record.outcome, record.settled) == ("cancelled", False)
    assert fold([start(), end("cancelled"), start(2)])["t"].outcome is None


def test_folding_goes_on_from_what_was_folded_and_passes_over_what_it_does_not_know():
    events = [
        start(),
        EpochDone(trial="t", attempt=1, row=row(1)),
        Unknown({"kind": "moon"}),
        start(trial="u"),
        end("finished"),
    ]
    at_once = fold(events)
    in_parts = fold(events[2:], fold(events[:2]))
    assert at_once == in_parts
    assert set(at_once) == {"t", "u"}


def test_fields_of_a_row_that_are_not_known_yet_are_passed_over():
    record = fold(
        [EpochDone(trial="t", attempt=1, row=row_of(dataclasses.asdict(row(1)) | {"from_the_future": 1}))]
    )["t"]
    assert record.last == row(1)


def test_a_finished_trial_counts_with_its_own_error_by_the_rule_of_the_sweep():
    assert result("finished", 50.0, 30.0, 40.0).error_pct == 40.0
    assert result("finished", 50.0, 30.0, 40.0, error_rule="best_epoch").error_pct == 30.0


def test_a_diverged_trial_counts_as_all_wrong_and_still_shows_what_was_measured():
    diverged = result("diverged", 50.0, 89.5)
    assert diverged.error_pct == 100.0
    assert diverged.own_error_pct == 89.5
    assert diverged.state == "diverged"


@pytest.mark.parametrize("how", ["stopped", "invalid", "out_of_memory", "failed", "cancelled"])
def test_what_did_not_end_by_itself_has_no_error(how):
    assert result(how, 50.0).error_pct is None
    assert result(how, 50.0).state == how


def test_a_trial_never_started_is_missing():
    missing = Result(None, Record())
    assert (missing.state, missing.error_pct, missing.own_error_pct) == ("missing", None, None)
    assert missing.test_error_pct is None
    assert missing.rule is None


def test_the_final_number_is_that_of_the_last_epoch():
    events = [
        start(),
        EpochDone(trial="t", attempt=1, row=row(1)),
        EpochDone(trial="t", attempt=1, row=row(2, 40.0, 41.0)),
        end("finished"),
    ]
    assert Result(None, fold(events)["t"]).test_error_pct == 41.0


def test_results_are_grouped_by_cell_and_arm_and_by_point_in_their_order():
    places = [("c", "b", 1), ("c", "a", 0), ("d", "b", 1), ("c", "b", 0), ("c", "b", 1)]
    results = [
        Result(SimpleNamespace(cell_name=cell, arm=arm, point=point), Record()) for cell, arm, point in places
    ]
    first, second, third, fourth, fifth = results
    groups = by_cell_and_arm(results)
    assert list(groups) == [("c", "b"), ("c", "a"), ("d", "b")]
    assert groups == {("c", "b"): [first, fourth, fifth], ("c", "a"): [second], ("d", "b"): [third]}
    points = by_point(groups["c", "b"])
    assert list(points.items()) == [(1, [first, fifth]), (0, [fourth])]


def test_each_epoch_has_the_device_of_the_attempt_that_computed_it():
    fast, slow = DeviceUse(name="H100", dtype="bf16", cuda="13.0"), DeviceUse(name="a processor")
    events = [
        start(1),
        DeviceUsed(trial="t", attempt=1, use=slow),
        EpochDone(trial="t", attempt=1, row=row(1)),
        EpochDone(trial="t", attempt=1, row=row(2)),
        end("lost", 1, final=False),
        start(2),
        # The second epoch is computed again, from a checkpoint before it.
        DeviceUsed(trial="t", attempt=2, use=fast),
        EpochDone(trial="t", attempt=2, row=row(2)),
        EpochDone(trial="t", attempt=2, row=row(3)),
        end("preempted", 2, final=False),
    ]
    record = fold(events)["t"]
    assert record.devices == {1: slow, 2: fast, 3: fast}
    assert record.computed_on == [slow, fast]
    assert record.busy_on == {slow: 60.0, fast: 60.0}
    # An attempt of an earlier version, which did not tell, is not taken for the one before it.
    record = fold([start(3), EpochDone(trial="t", attempt=3, row=row(3)), end("finished", 3)], {"t": record})[
        "t"
    ]
    assert (record.device, record.devices) == (None, {1: slow, 2: fast})
    assert record.busy_on == {slow: 60.0, fast: 60.0, None: 60.0}
    assert record.busy_seconds == 180.0
    again = fold([RetryWanted(trial="t", time=300.0)], {"t": record})["t"]
    assert again.computed_on == []
