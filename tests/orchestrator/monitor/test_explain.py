"""Finding a trial by what people call it, and its story; the logs of its attempts."""

import functools
import logging
import re
import warnings
from pathlib import Path

import pytest

from benchmarks.report_scale import large_plan
from orchestrator.monitor.explain import attempts_of, story
from orchestrator.store.logs import append_log, kept, last_lines, logs_of
from orchestrator.trials.confirm import Confirmation, with_confirmation
from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    DeviceUsed,
    EpochDone,
    InFlight,
    Pulse,
    RetryWanted,
    SessionBegan,
    row_of,
)
from orchestrator.trials.names import UnknownTrial, find_trial, name_of
from orchestrator.trials.records import Record, Result, fold
from orchestrator.trials.trial import Plan, Trial
from trainables.base import DeviceUse


@pytest.fixture(scope="module")
def plan() -> Plan:
    plan = large_plan(num_cells=2, points=12, epochs=4)
    return with_confirmation(plan, Confirmation({("adamw/e4", "vit_c"): (3,)}, seeds=2))


def trial(plan: Plan, arm: str, cell: str, point: int, role: str = "sweep", replicate: int = 0) -> Trial:
    wanted = (arm, cell, point, role, replicate)
    return next(t for t in plan.trials if (t.arm, t.cell_name, t.point, t.role, t.replicate) == wanted)


def test_every_trial_is_found_by_its_id_its_name_and_its_label(plan):
    for wanted in plan.trials:
        assert find_trial(plan, wanted.id) is wanted
        assert find_trial(plan, name_of(wanted)) is wanted
        assert find_trial(plan, wanted.label) is wanted


def test_a_trial_is_found_by_as_much_as_tells_it_from_others(plan):
    wanted = trial(plan, "vit_c", "adamw/e4", 3)
    for text in ("vit_c/adamw/3", "vit_c adamw p3", "adamw/vit_c/3", "3, vit_c, adamw", wanted.id[:10]):
        assert find_trial(plan, text) is wanted
    assert find_trial(plan, "vit_c/3/confirm/r1") is trial(plan, "vit_c", "adamw/e4", 3, "confirm", 1)


@pytest.mark.parametrize("text", ["vit_c/adamw", "vit_c/3", "", "confirm"])
def test_a_name_that_fits_several_is_refused_with_some_of_them(plan, text):
    with pytest.raises(UnknownTrial, match=r"fits \d+ trials: vit_|no trial") as refused:
        find_trial(plan, text)
    assert "vit_c/adamw/e4/" in str(refused.value) or "vit_p/adamw/e4/0" in str(refused.value)


def test_a_name_that_fits_none_is_refused_with_the_nearest(plan):
    with pytest.raises(UnknownTrial, match=r"no trial is called 'vit_c/adamv/e4/3'.* vit_c/adamw/e4/3 "):
        find_trial(plan, "vit_c/adamv/e4/3")


def row(epoch: int, step: int) -> dict:
    return {
        "epoch": epoch,
        "step": step,
        "lr": 0.0,
        "train_loss": 1.0,
        "val_loss": 1.0,
        "val_error_pct": 42.0,
        "val_raw_error_pct": 42.0,
        "train_seconds": 1.0,
        "val_seconds": 0.0,
        "test_error_pct": None,
    }


def test_the_story_tells_each_attempt_its_end_and_what_to_do(plan):
    wanted = trial(plan, "vit_c", "adamw/e4", 3)
    other = trial(plan, "vit_p", "adamw/e4", 3)
    events = [
        SessionBegan(time=0.0, began=0.0),
        AttemptBegan(trial=wanted.id, attempt=1, lane="a1", time=100.0, node="9f3c5ab2e1"),
        AttemptBegan(trial=other.id, attempt=1, lane="b2", time=100.0),
        DeviceUsed(trial=other.id, attempt=1, use=DeviceUse(name="another")),
        DeviceUsed(trial=wanted.id, attempt=1, use=DeviceUse(name="a processor", deterministic=True)),
        EpochDone(trial=wanted.id, attempt=1, row=row_of(row(1, 19))),
        Pulse(time=130.0, in_flight={wanted.id: InFlight(0, 25, 129.0)}),
        SessionBegan(time=200.0, began=200.0),
        AttemptBegan(trial=wanted.id, attempt=2, lane="c3", time=210.0),
        AttemptEnded(
            trial=wanted.id,
            attempt=2,
            end="lost",
            detail="a worker process died",
            seconds=5.0,
            time=215.0,
            final=False,
            from_step=19,
            step=30,
        ),
        AttemptBegan(trial=wanted.id, attempt=3, lane="c3", time=220.0),
        DeviceUsed(
            trial=wanted.id,
            attempt=3,
            use=DeviceUse(name="NVIDIA L4", dtype="bf16", driver="580.65.06", cuda="13.0", tf32="conv"),
        ),
        AttemptEnded(
            trial=wanted.id,
            attempt=3,
            end="failed",
            detail="OSError: no space",
            seconds=7.5,
            time=227.5,
            final=True,
            from_step=30,
            step=33,
        ),
    ]
    attempts = attempts_of(wanted.id, events)
    assert [(a.number, a.end, a.from_step, a.step, a.epochs) for a in attempts] == [
        (1, "cut off", 0, 25, 1),
        (2, "lost", 19, 30, 0),
        (3, "failed", 30, 33, 0),
    ]
    result = Result(wanted, fold(events)[wanted.id])
    lines = list(story(result, attempts, "runs/x", steps=76, excerpt=["OSError: no space"]))
    text = "\n".join(lines)
    assert lines[0] == f"vit_c/adamw/e4/3  ({wanted.id})"
    cpu, gpu = (
        "a processor (fp32, deterministic)",
        "NVIDIA L4 (bf16, driver 580.65.06, CUDA 13.0, TF32 conv)",
    )
    assert f"attempt 1 on lane a1, node 9f3c5ab2, {cpu}, from step 0 to 25 of 76; cut off" in text
    assert "attempt 2 on lane c3, 5.0 s, from step 19" in text
    assert f"attempt 3 on lane c3, {gpu}, 7.5 s, from step 30 to 33 of 76; failed: OSError: no space" in text
    assert "epoch 1 of 4, error 42.0 %" in text
    assert "vitc-sweep retry runs/x --trial vit_c/adamw/e4/3" in text
    assert "    OSError: no space" in lines
    # What a person had thrown away is told as such.
    again = attempts_of(wanted.id, [*events, RetryWanted(trial=wanted.id, time=300.0)])
    assert all(attempt.discarded for attempt in again)


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ("out_of_memory", "batch_size (now 64)"),
        ("invalid", "narrow `vary`"),
        ("diverged", "counts as 100 % error"),
        ("cancelled", "continue it from its last checkpoint"),
        (None, "The next `vitc-sweep run`"),
    ],
)
def test_every_outcome_has_its_advice(plan, outcome, told):
    wanted = plan.trials[0]
    record = Record(outcome=outcome)
    attempts = attempts_of(wanted.id, [AttemptBegan(trial=wanted.id, attempt=1, lane="a", time=0.0)])
    text = "\n".join(story(Result(wanted, record), attempts if outcome else [], "runs/x", 76))
    assert told.replace("64", str(wanted.config.batch_size)) in text


def test_a_worker_that_says_nothing_leaves_no_file(tmp_path):
    sent: list[str] = []
    with kept(sent.append):
        logging.getLogger("quiet").info("not worth keeping")
    assert sent == []


@pytest.mark.filterwarnings("default")
def test_warnings_and_messages_of_an_attempt_are_kept_per_rank_and_once_per_attempt(tmp_path):
    def speak() -> None:
        warnings.warn("the learning rate is large", UserWarning, stacklevel=1)
        logging.getLogger("data").error("part %d is short", 3)

    for attempt, rank in ((1, 0), (1, 1), (2, 0)):
        with kept(functools.partial(append_log, tmp_path, "abc", attempt, rank)):
            speak()
    logging.getLogger("data").error("after the attempt")
    for attempt, rank in ((1, 0), (1, 1), (2, 0)):
        text = (tmp_path / "trials" / "abc" / f"attempt-{attempt}.rank-{rank}.log").read_text()
        assert text.count("UserWarning: the learning rate is large") == 1
        assert text.count("data ERROR: part 3 is short") == 1
        assert "after" not in text


def test_storage_that_fails_costs_the_lines_and_not_the_trial(tmp_path):
    (tmp_path / "trials").write_text("a file where a folder should be")
    append_log(tmp_path, "abc", 1, 0, "part 3 is short\n")


def test_lines_are_sent_at_once_then_together_and_none_is_left_at_the_end(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("orchestrator.store.logs.time.monotonic", lambda: now[0])
    sent: list[str] = []
    log = logging.getLogger("data")
    with kept(sent.append) as send_due:
        # The first may be the last that a process says.
        log.error("first")
        assert [text.count("\n") for text in sent] == [1]
        log.error("second")
        log.error("third")
        send_due()
        assert len(sent) == 1
        now[0] += 1.0
        send_due()
        assert [text.count("\n") for text in sent] == [1, 2]
        log.error("last")
    assert [re.findall(r"first|second|third|last", text) for text in sent] == [
        ["first"],
        ["second", "third"],
        ["last"],
    ]


def test_a_worker_that_never_stops_talking_fills_neither_its_memory_nor_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.store.logs.MOST_BYTES", 2000)
    monkeypatch.setattr("orchestrator.store.logs.SEND_SECONDS", 1e9)
    sent: list[str] = []
    with kept(sent.append):
        for number in range(1000):
            logging.getLogger("data").error("part %d is short", number)
    assert len("".join(sent)) < 2000
    assert "part 999 is short" in sent[-1]
    for number in range(100):
        append_log(tmp_path, "abc", 1, 0, f"{number} {'x' * 90}\n")
    files = [log.path.read_text() for log in logs_of(tmp_path, "abc")]
    assert sum(map(len, files)) <= 2000
    assert files[-1].splitlines()[-1].startswith("99 ")


def test_logs_are_listed_by_attempt_and_rank_and_empty_ones_are_not(tmp_path):
    place = tmp_path / "trials" / "abc"
    place.mkdir(parents=True)
    for name, text in (
        ("attempt-1.log", "Traceback\nOSError: x\n"),
        ("attempt-10.log", "Traceback\n\nValueError: last\n"),
        ("attempt-1.rank-0.stack", ""),
        ("attempt-1.rank-1.stack", "Thread 0x1"),
        ("attempt-1.rank-1.log", "a warning\n"),
        ("attempt-1.rank-1.log.1", "an older warning\n"),
        ("checkpoint", "not a log"),
    ):
        (place / name).write_text(text)
    assert [(log.attempt, log.rank, log.path.name) for log in logs_of(tmp_path, "abc")] == [
        (1, None, "attempt-1.log"),
        (1, 1, "attempt-1.rank-1.log.1"),
        (1, 1, "attempt-1.rank-1.log"),
        (1, 1, "attempt-1.rank-1.stack"),
        (10, None, "attempt-10.log"),
    ]
    assert [log.path.name for log in logs_of(tmp_path, "abc", attempt=1, rank=0)] == ["attempt-1.log"]
    assert last_lines(logs_of(tmp_path, "abc"), 1) == ["ValueError: last"]
    assert last_lines(logs_of(Path(tmp_path), "nobody"), 5) == []
