"""The live view and following a run: what is counted, in how much work, and what fits the terminal."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from benchmarks.report_scale import large_plan
from benchmarks.screens import made_up_run
from orchestrator.cost.ledger import ledger
from orchestrator.monitor.live import Display, Follower, follow, left_text, sparkline, view
from orchestrator.monitor.progress import FAILURES, Progress, TimeLeft
from orchestrator.store.folder import save_question
from orchestrator.store.journal import encode
from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    EpochDone,
    InFlight,
    Notice,
    Pulse,
    RetryWanted,
    Sealed,
    SessionBegan,
    row_of,
)
from orchestrator.trials.names import find_trial
from orchestrator.trials.records import fold, results_of
from orchestrator.trials.trial import Plan


@pytest.fixture(scope="module")
def plan() -> Plan:
    return large_plan(num_cells=4, points=6, epochs=4)


def text_of(progress: Progress, height: int | None = None, width: int = 100) -> str:
    console = Console(width=width, height=height or 200, file=io.StringIO(), record=True)
    console.print(view(progress, Path("runs/large"), height, width, progress.now, progress.ledger()))
    return console.export_text()


def counted_anew(plan: Plan, events: list) -> dict:
    """What `Progress` should know, from all records at once."""
    groups: dict = {}
    for result in results_of(plan, fold(events)):
        group = groups.setdefault((result.trial.cell_name, result.trial.arm), [{}, []])
        group[0][result.state] = group[0].get(result.state, 0) + 1
        if result.rule is not None and result.rule.in_edf:
            group[1].append(result.error_pct)
    return {key: (states, sorted(errors)) for key, (states, errors) in groups.items()}


def test_counts_kept_event_by_event_are_those_of_all_records_at_once(plan):
    events = made_up_run(plan, lanes=3, failing=0.3)
    progress, seen = Progress(plan, {}), []
    for index, event in enumerate(events):
        progress.observe([event])
        seen.append(event)
        if index % 20 == 0 or index == len(events) - 1:
            expected = counted_anew(plan, seen)
            found = {
                (t.cell, t.arm): (t.states, t.errors + [100.0] * t.num_at_worst) for t in progress.tallies
            }
            assert found == expected
            assert progress.ended == sum(r.record.settled for r in results_of(plan, fold(seen)))
    assert progress.causes  # or the test would show less than it says
    assert progress.ledger() == ledger(events)
    # The same when a run begins with what earlier ones have left.
    again = Progress(plan, fold(events), history=events)
    assert again.tallies == progress.tallies
    assert again.share == pytest.approx(progress.share)
    assert again.ledger() == progress.ledger()


def test_a_retry_takes_a_result_and_a_cause_back(plan):
    one, two = plan.trials[0].id, plan.trials[1].id
    ended = [
        event
        for number, trial in enumerate((one, two))
        for event in (
            AttemptBegan(trial=trial, attempt=1, lane="lane", time=1.0),
            AttemptEnded(
                trial=trial,
                attempt=1,
                end="failed",
                detail=f"OSError: part {number} of 12 is gone",
                seconds=1.0,
                time=2.0,
                final=True,
            ),
        )
    ]
    progress = Progress(plan, {})
    progress.observe(ended)
    # Numbers do not make another cause of it.
    assert [len(cause.trials) for cause in progress.causes.values()] == [2]
    progress.observe([RetryWanted(trial=one, time=3.0), RetryWanted(trial=two, time=3.0)])
    assert not progress.causes
    assert progress.ended == 0
    assert progress.share == 0
    assert sum(tally.failed for tally in progress.tallies) == 0


class Guarded(dict):
    """A dictionary by trial in which one may look up, but not walk."""

    def __iter__(self):
        raise AssertionError("looked at all trials")

    items = values = keys = __iter__


@pytest.mark.parametrize("points", [2, 12])
def test_work_per_event_and_per_refresh_does_not_grow_with_the_number_of_trials(points, monkeypatch):
    plan = large_plan(num_cells=2, points=points, epochs=4)
    events = made_up_run(plan, lanes=2, share=1.0)
    progress = Progress(plan, {})
    progress.observe(events[:3])
    looks = 0
    before = Progress.result

    def result(self, trial_id):
        nonlocal looks
        looks += 1
        return before(self, trial_id)

    monkeypatch.setattr(Progress, "result", result)
    for name in ("_places", "_known", "_work", "records"):
        setattr(progress, name, Guarded(getattr(progress, name)))
    count = len(plan.trials)
    # What has a length and nothing else.
    progress.plan = SimpleNamespace(
        sweep=plan.sweep, trials=type("Counted", (), {"__len__": lambda _: count})()
    )
    progress.observe(events[3:])
    assert looks <= len(events)
    looks = 0
    text_of(progress, height=30)
    assert looks <= 2 * len(progress.causes) + 1


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (60, 16), (200, 60)])
@pytest.mark.parametrize(("cells", "points"), [(1, 1), (2, 16), (24, 2)])
def test_the_view_fits_the_terminal_and_keeps_what_went_wrong(cells, points, width, height):
    plan = large_plan(cells, points, epochs=4)
    progress = Progress(plan, {})
    progress.observe(made_up_run(plan, lanes=4, failing=0.5, share=1.0))
    assert progress.causes
    shown = text_of(progress, height, width).splitlines()
    assert len(shown) < height
    assert max(map(len, shown)) <= width
    # Arms are read whole, and so are the counts.
    rows = [line.split() for line in shown if line.startswith(("adamw", "sgd")) or " cells " in line]
    assert rows
    assert {word for row in rows for word in row if word.startswith("vit")} <= {"vit_p", "vit_c"}
    assert all("…" not in word for row in rows for word in row[1:])
    assert "vitc-sweep why runs/large" in "\n".join(shown)


def test_cells_that_find_no_room_are_summed_up_with_nothing_lost():
    plan = large_plan(24, 2, epochs=4)
    progress = Progress(plan, {})
    progress.observe(made_up_run(plan, lanes=4, failing=0.2, share=0.7))
    lines = text_of(progress, height=24).splitlines()
    counts = [word for line in lines for word in line.split() if word.count("/") == 1 and word[0].isdigit()]
    total, *rows = [tuple(map(int, word.split("/"))) for word in counts]
    assert total == (sum(ended for ended, _ in rows), sum(planned for _, planned in rows))
    assert total[1] == len(plan.trials)
    assert sum("more cells" in line for line in lines) == 2


def test_a_sparkline_is_the_distribution_function(plan):
    progress = Progress(plan, {})
    progress.observe(made_up_run(plan, lanes=2, share=1.0, failing=0))
    for tally in progress.tallies:
        everything = np.array(tally.errors + [100.0] * tally.num_at_worst)
        for error in (2.0, 5.0, 7.5, 99.0):
            assert tally.edf(error) == pytest.approx(np.mean(everything <= error))
        # Eighths, rounded down; a dot for none.
        line = sparkline(tally, 2.0, 13.0)
        for bar, error in zip(line, np.linspace(2.0, 13.0, 12), strict=True):
            share = np.mean(everything <= error)
            assert bar == ("·▁▂▃▄▅▆▇█"[1 + min(int(8 * share), 7)] if share else "·")


def pulses(work_per_second: list[float], seconds: float, trial: str, steps: int) -> list:
    """A trial that gets on at these speeds, told every so many seconds."""
    found, step, now = [], 0.0, 0.0
    row = {
        "epoch": 1,
        "step": 0,
        "lr": 0.0,
        "train_loss": 1.0,
        "val_loss": 1.0,
        "val_error_pct": 50.0,
        "val_raw_error_pct": 50.0,
        "train_seconds": 1.0,
        "val_seconds": 0.0,
        "test_error_pct": None,
    }
    found += [
        AttemptBegan(trial=trial, attempt=1, lane="lane", time=0.0),
        EpochDone(trial=trial, attempt=1, row=row_of(row)),
    ]
    for speed in work_per_second:
        now, step = now + seconds, step + speed * seconds * steps
        found.append(Pulse(time=now, in_flight={trial: InFlight(0, int(step), now)}))
    return found


@pytest.fixture(scope="module")
def lone() -> Plan:
    plan = large_plan(1, 1, epochs=20)
    return Plan(plan.sweep, plan.trials[:1], plan.infos)


def test_at_an_even_speed_the_time_left_is_known_exactly(lone):
    trial, steps = lone.trials[0], lone.cost(lone.trials[0]).steps
    # 38 steps of 380 in each 15 s: after five of them half is left, which takes 75 s.
    progress = Progress(lone, {})
    progress.observe(pulses([0.1 / 15] * 5, 15.0, trial.id, steps))
    left = progress.time_left
    assert left is not None
    assert (left.seconds, left.low, left.high) == pytest.approx((75.0, 75.0, 75.0))
    assert left_text(progress, progress.now) == "about 1 min 15 s left (1 min 15 s to 1 min 15 s)"
    # Between events it counts down, and never says that nothing is left.
    assert left_text(progress, progress.now + 15).startswith("about 1 min 00 s left")
    assert left_text(progress, progress.now + 76) == "ending, or slower than before"


def test_the_interval_of_the_time_left_covers_the_truth(lone):
    trial, steps = lone.trials[0], lone.cost(lone.trials[0]).steps
    covered, total = 0, 200
    for seed in range(total):
        # Gamma speeds of mean 0.001 a second, independent over 15 s: the rest then takes (1 - share) / 0.001.
        speeds = np.random.default_rng(seed).gamma(4, 0.001 / 4, size=24).tolist()
        progress = Progress(lone, {})
        progress.observe(pulses(speeds, 15.0, trial.id, steps))
        left, truth = progress.time_left, (1 - progress.share) / 0.001
        assert isinstance(left, TimeLeft)
        covered += left.low <= truth and (left.high is None or truth <= left.high)
    # 95 % nominal; a normal interval from 24 skewed stretches may lose a little. Three standard errors of
    # 200 draws are 4.6 points.
    assert covered >= 0.88 * total


def test_nothing_is_said_of_the_time_left_before_there_is_a_speed(lone):
    progress = Progress(lone, {}, lanes=2)
    assert progress.time_left is None
    assert "starting, 2 at a time" in text_of(progress)


def test_where_there_is_no_terminal_each_ended_trial_is_a_line(plan):
    out = io.StringIO()
    events = made_up_run(plan, lanes=2, failing=0.2)
    with Display(Console(file=out, width=120), Progress(plan, {})) as display:
        for event in events:
            display.update([event])
        display.update([Notice(detail="the disk is [full]")])
    lines = out.getvalue().splitlines()
    ended = sum(isinstance(event, AttemptEnded) for event in events)
    assert len(lines) == ended + 1
    assert lines[0].startswith(f"[1/{len(plan.trials)}] ")
    assert lines[-1] == "the disk is [full]"
    assert "\x1b" not in out.getvalue()


def test_in_a_terminal_the_view_is_live_and_leaves_nothing_but_notices_behind(plan):
    out, now = io.StringIO(), 1_700_000_000.0
    console = Console(file=out, width=80, height=24, force_terminal=True, color_system=None)
    with Display(console, Progress(plan, {}), Path("runs/large"), clock=lambda: now) as display:
        display.update(made_up_run(plan, lanes=2, failing=0.3))
        display.update([Notice(detail="the disk is [full]")])
        shown = out.getvalue()
    assert "vit_p" in shown
    assert "running" in shown
    assert "GPU-hours" in shown
    assert "the disk is [full]" in shown
    # Rich's erase: a line up and cleared, for every line of the last view.
    assert out.getvalue().removeprefix(shown).count("\x1b[2K") > 10


def test_a_follower_sees_what_is_added_and_a_new_run_begin(plan, tmp_path):
    folder, events = tmp_path / "large", made_up_run(plan, lanes=2)
    save_question(folder, plan, declare=False)
    journal = folder / "journal" / "000001.jsonl"
    journal.parent.mkdir()
    journal.write_text("".join(encode(event) for event in events[:50]))
    follower = Follower(folder)
    before = follower.progress.share
    with journal.open("a") as file:
        file.writelines(encode(event) for event in events[50:])
    follower.progress.observe(follower.read())
    expected = Progress(plan, {})
    expected.observe(events)
    assert follower.progress.share == pytest.approx(expected.share)
    assert follower.progress.share > before
    assert follower.progress.tallies == expected.tallies
    assert any(tally.running for tally in expected.tallies)
    # Another run begins: what the first had in flight is not running any more.
    now = follower.progress.now + 5
    (folder / "journal" / "000002.jsonl").write_text(
        encode(Sealed(sizes={"000001.jsonl": journal.stat().st_size}))
        + encode(SessionBegan(time=now, began=now, lanes=(2,)))
    )
    assert follower.read() == []
    assert not any(tally.running for tally in follower.progress.tallies)
    assert follower.progress.began == now


def test_following_a_folder_that_nobody_runs_ends_at_once_and_writes_nothing(plan, tmp_path):
    folder = tmp_path / "large"
    save_question(folder, plan, declare=False)
    (folder / "journal").mkdir()
    (folder / "journal" / "000001.jsonl").write_text(
        "".join(encode(event) for event in made_up_run(plan, lanes=2))
    )
    before = sorted(path.name for path in folder.rglob("*"))
    progress = follow(Console(file=io.StringIO()), folder, sleep=lambda _: pytest.fail("waited"))
    assert progress.ended == sum(tally.ended for tally in progress.tallies) > 0
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_failures_of_all_kinds_are_named_as_such(plan):
    trial = find_trial(plan, plan.trials[0].id)
    for state in FAILURES:
        progress = Progress(plan, {})
        progress.observe(
            [
                AttemptBegan(trial=trial.id, attempt=1, lane="l", time=1.0),
                AttemptEnded(
                    trial=trial.id, attempt=1, end=state, detail="cause", seconds=1.0, time=2.0, final=True
                ),
            ]
        )
        assert f"1 {state}" in text_of(progress)
        assert "1 failed" in text_of(progress)
