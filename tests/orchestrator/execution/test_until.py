"""Runs that go on until their question is settled, without Ray: where they stop, killed or not."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from orchestrator.analysis.findings import gather
from orchestrator.api import run_sweep
from orchestrator.backends import ray_cluster
from orchestrator.cost.actual import saved
from orchestrator.cost.ledger import ledger
from orchestrator.execution import looks, run, session
from orchestrator.execution.looks import extended
from orchestrator.execution.session import Preparation, Session, prepare
from orchestrator.monitor.observer import Observer, Round, SessionEnd
from orchestrator.store.folder import open_folder, record_retries
from orchestrator.store.journal import Writer
from orchestrator.sweep.document import SweepError
from orchestrator.trials.events import AttemptBegan, AttemptEnded, EpochDone, Event, LookTaken, SessionBegan
from orchestrator.trials.gang import Node
from orchestrator.trials.plan import make_plan
from orchestrator.trials.records import Record
from orchestrator.trials.rounds import goes_until_settled, look_lines, looks_taken
from orchestrator.trials.sweep_file import SweepFile
from orchestrator.trials.trial import Trial
from tests.support.sweeps import epoch_row, plan_from, sweep_tree, tiny_base

#: One hour of a core.
SECONDS = 3600.0


def late(trial: Trial) -> float:
    """An error that is alike in both arms at the first 8 points, and lower in c from there on."""
    base = 10.0 + (trial.point * 7) % 13 / 2
    return base - 4.0 if trial.arm == "c" and trial.point >= 8 else base


def never(trial: Trial) -> float:
    """An error that favours the arms in turn, by far."""
    return 10.0 + 8.0 * ((trial.point % 2 == 0) == (trial.arm == "c"))


def at_once(trial: Trial) -> float:
    return 10.0 + (trial.point * 7) % 13 / 2 - 4.0 * (trial.arm == "c")


def tree(**changes: Any) -> dict[str, Any]:
    return sweep_tree(design={"kind": "sobol", "points": 8, "max_points": 32}) | changes


class Killed(BaseException):
    """In place of SIGKILL: nothing that follows runs."""


class Cluster:
    """In place of Ray: ends a trial per look, with an error by its point and arm."""

    def __init__(self) -> None:
        self.error: Callable[[Trial], float] = late
        self.ran: list[str] = []
        self.dies_after: int | None = None
        self.drained = False


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    state, clock = Cluster(), itertools.count(1000.0)

    class Run:
        def __init__(self, folder: Path, trials: Sequence[Trial], *_: Any) -> None:
            self.folder, self.left, self.lanes, self.error = folder, list(trials), 1, None

        @property
        def done(self) -> bool:
            return not self.left

        def start(self) -> None:
            self.writer = Writer(self.folder)
            self.writer.append([SessionBegan(time=next(clock), began=next(clock))])

        def events(self) -> list[Event]:
            if not self.left:
                return []
            if state.dies_after is not None and len(state.ran) >= state.dies_after:
                self.writer.close()
                raise Killed
            trial = self.left.pop(0)
            state.ran.append(trial.id)
            row = epoch_row(3, state.error(trial))
            events: list[Event] = [AttemptBegan(trial=trial.id, attempt=1, lane="lane", time=next(clock))]
            events += [
                EpochDone(trial=trial.id, attempt=1, row=epoch_row(number, row.val_error_pct))
                for number in (1, 2, 3)
            ]
            events.append(
                AttemptEnded(
                    trial=trial.id, attempt=1, end="finished", detail="", seconds=SECONDS, time=next(clock),
                    final=True, epochs=3,
                )
            )  # fmt: skip
            self.writer.append(events)
            return events

        def drain(self) -> None:
            self.left.clear()

        def stop(self) -> None:
            self.left.clear()

        def close(self) -> None:
            self.writer.close()

    monkeypatch.setattr(run, "Run", Run)
    monkeypatch.setattr(ray_cluster, "connect", lambda _: None)
    monkeypatch.setattr(ray_cluster, "nodes", lambda: [Node(2, 0)])
    monkeypatch.setattr(ray_cluster, "shutdown", lambda: None)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return state


class Told(Observer):
    def __init__(self, dies_at_end: int = 0) -> None:
        self.notices: list[str] = []
        self.rounds: list[tuple[int, int, int]] = []
        self._dies_at_end = dies_at_end

    def notice(self, text: str, level: str = "info") -> None:
        self.notices.append(text)

    def begin(self, round: Round) -> None:
        self.rounds.append((round.number, round.of, len(round.trials)))

    def end(self, end: SessionEnd) -> None:
        if self._dies_at_end and len(self.rounds) == self._dies_at_end:
            raise Killed


def file_of(tmp_path: Path, content: dict[str, Any]) -> SweepFile:
    path = tmp_path / "question.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return SweepFile(path)


def go(
    file: SweepFile,
    folder: Path,
    told: Told | None = None,
    wanted: Sequence[str] = (),
    until: Any = "settled",
) -> SessionEnd:
    """Runs as `vitc-sweep run FILE --until settled` does."""
    observers = [told or Told()]
    plan, _ = prepare(SweepFile(file.path), folder, observers, check=False, until=until)
    folder.mkdir(exist_ok=True)
    answers = iter(wanted)
    lease: Any = SimpleNamespace(folder=folder, lost=False, stop_wanted=lambda: next(answers, None))
    return Session(lease, observers).run_rounds(plan, Preparation(), until)


def taken(folder: Path) -> list[LookTaken]:
    return list(looks_taken(open_folder(folder).events))


def points_of(folder: Path) -> int:
    return open_folder(folder).plan.sweep.design.points


# --- where it stops


def test_it_stops_at_the_look_that_decides_and_says_what_that_saves(cluster, tmp_path):
    folder, told = tmp_path / "x", Told()
    end = go(file_of(tmp_path, tree()), folder, told)
    assert end.how == "ended"
    assert told.rounds == [(1, 3, 16), (2, 3, 16)]
    assert (len(cluster.ran), points_of(folder)) == (32, 16)
    assert [(look.points, look.last, look.goes_on) for look in taken(folder)] == [
        (8, 32, True),
        (16, 32, False),
    ]
    # 16 more points in two arms, an hour of one core each.
    assert told.notices == [
        "look at 8 of at most 32 points: p against c is not settled",
        "look at 16 of at most 32 points: c is better than p",
        "stopped at 16 of at most 32 points: 32 trials, about 32 core-hours not needed",
    ]
    opened = open_folder(folder)
    assert look_lines(ledger(opened.events).looks) == told.notices
    found = gather(opened.plan, opened.records, ledger(opened.events))
    assert found.spent is not None
    # No trial beyond a look began before all up to it had ended.
    points = {trial.id: trial.point for trial in opened.plan.trials}
    assert [points[trial] // 8 for trial in cluster.ran] == [0] * 16 + [1] * 16


def test_a_question_that_is_settled_at_once_takes_one_round(cluster, tmp_path):
    cluster.error = at_once
    told = Told()
    go(file_of(tmp_path, tree()), tmp_path / "x", told)
    assert told.rounds == [(1, 3, 16)]
    assert told.notices[-1].startswith("stopped at 8 of at most 32 points: 48 trials, about 48 core-hours")


def test_out_of_points_it_ends_unsettled(cluster, tmp_path):
    cluster.error = never
    told = Told()
    go(file_of(tmp_path, tree()), tmp_path / "x", told)
    assert told.rounds == [(1, 3, 16), (2, 3, 16), (3, 3, 32)]
    assert told.notices[-2:] == [
        "look at 32 of at most 32 points: p against c is not settled",
        "stopped at 32 of at most 32 points",
    ]


def test_every_cell_must_be_decided_or_the_declared_one(cluster, tmp_path):
    cells = {"length": {"short": {"schedule.epochs": 3}, "long": {"schedule.epochs": 4}}}

    def error(trial: Trial) -> float:
        return (at_once if trial.cell_name == "short" else never)(trial)

    cluster.error = error
    told = Told()
    content = tree(cells=cells, design={"kind": "sobol", "points": 16, "max_points": 32})
    go(file_of(tmp_path, content), tmp_path / "x", told)
    assert len(told.rounds) == 2
    assert "c is better than p in short, p against c is not settled in long" in told.notices[0]
    told = Told()
    declared = content | {"primary": {"measure": "error", "cell": "short"}}
    go(file_of(tmp_path, declared), tmp_path / "y", told)
    assert len(told.rounds) == 1
    assert told.notices[0] == "look at 16 of at most 32 points: c is better than p in short"


def test_arms_that_are_alike_are_an_answer(cluster, tmp_path):
    cluster.error = lambda trial: 10.0 + trial.point % 5
    told = Told()
    content = tree(
        design={"kind": "sobol", "points": 64, "max_points": 128},
        primary={"measure": "area_common", "margin": 0.2},
    )
    go(file_of(tmp_path, content), tmp_path / "x", told)
    assert told.notices[0] == "look at 64 of at most 128 points: p and c are alike"


# --- killed and resumed


def whole(tmp_path: Path, cluster: Cluster, error: Callable[[Trial], float]) -> tuple[Any, ...]:
    """What a run is that nobody kills."""
    cluster.error, cluster.ran, cluster.dies_after = error, [], None
    folder = tmp_path / "whole"
    go(file_of(tmp_path, tree()), folder)
    return outcome(folder)


def outcome(folder: Path) -> tuple[Any, ...]:
    opened = open_folder(folder)
    seen = [(look.points, look.last, look.goes_on, look.detail) for look in taken(folder)]
    ended = sorted(trial for trial, record in opened.records.items() if record.settled)
    return opened.plan.sweep.design, seen, ended


@pytest.mark.parametrize("error", [late, never])
@pytest.mark.parametrize("dies_after", [0, 5, 16, 31])
def test_killed_at_any_trial_it_stops_where_it_would_have(cluster, tmp_path, error, dies_after):
    expected = whole(tmp_path, cluster, error)
    file, folder = file_of(tmp_path, tree()), tmp_path / "x"
    cluster.ran, cluster.dies_after = [], dies_after
    if dies_after < len(expected[2]):
        with pytest.raises(Killed):
            go(file, folder)
    cluster.dies_after = None
    go(file, folder)
    assert outcome(folder) == expected
    assert len(cluster.ran) == len(set(cluster.ran)) == len(expected[2])
    # Once more: there is nothing to do, and nothing is recorded twice.
    told = Told()
    assert go(file, folder, told).how == "nothing to do"
    assert outcome(folder) == expected
    assert told.notices[-1].startswith("stopped at ")
    events = open_folder(folder).events
    assert len([event for event in events if isinstance(event, LookTaken)]) == len(expected[1])


@pytest.mark.parametrize("moment", ["before the look", "after the look", "before the question is kept"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_killed_between_rounds_it_stops_where_it_would_have(cluster, tmp_path, monkeypatch, moment, rounds):
    expected = whole(tmp_path, cluster, never)
    file, folder = file_of(tmp_path, tree()), tmp_path / "x"
    told = Told(dies_at_end=rounds if moment == "before the look" else 0)
    count = itertools.count(1)

    def die(original: Callable[..., Any], at: int) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if next(count) == at:
                if moment == "after the look":
                    original(*arguments, **named)
                raise Killed
            return original(*arguments, **named)

        return wrapped

    with monkeypatch.context() as patch:
        if moment == "after the look":
            patch.setattr(looks, "next_look", die(looks.next_look, rounds))
        elif moment == "before the question is kept":
            patch.setattr(session, "save_question", die(session.save_question, rounds + 1))
        with pytest.raises(Killed):
            go(file, folder, told)
    assert points_of(folder) == 8 * 2 ** (rounds - 1)
    go(file, folder)
    assert outcome(folder) == expected


def test_a_drained_round_is_not_looked_at(cluster, tmp_path):
    file, folder, told = file_of(tmp_path, tree()), tmp_path / "x", Told()
    end = go(file, folder, told, wanted=["", "drain"])
    assert (end.how, len(told.rounds)) == ("ended", 1)
    assert taken(folder) == []
    go(file, folder)
    assert [look.points for look in taken(folder)] == [8, 16]


def test_without_until_the_points_of_the_folder_run_and_no_more(cluster, tmp_path):
    cluster.error = never
    file, folder = file_of(tmp_path, tree()), tmp_path / "x"
    cluster.dies_after = 20
    with pytest.raises(Killed):
        go(file, folder)
    assert goes_until_settled(open_folder(folder).events)
    cluster.dies_after = None
    told = Told()
    go(file, folder, told, until=None)
    assert told.rounds == [(1, 1, 12)]
    assert points_of(folder) == 16
    assert not goes_until_settled(open_folder(folder).events)
    # The looks are still those of the declared points.
    assert open_folder(folder).declared.looks == (8, 16, 32)
    told = Told()
    go(file, folder, told)
    assert told.rounds == [(3, 3, 32)]


def test_a_retried_trial_is_run_before_the_next_look(cluster, tmp_path):
    file, folder = file_of(tmp_path, tree()), tmp_path / "x"
    go(file, folder)
    record_retries(folder, [cluster.ran[3]])
    cluster.error = never
    told = Told()
    go(file, folder, told)
    assert told.rounds == [(2, 3, 1)]
    assert told.notices[-1].startswith("stopped at 16 of at most 32 points")


# --- what may follow from the spread


def spread(trial: Trial) -> float:
    """Errors of arms that differ by far, in turn: more points are needed than planned."""
    return 10.0 + 6.0 * ((trial.point % 2 == 0) == (trial.arm == "c")) + trial.point % 3


def test_a_sweep_that_must_detect_something_ends_where_the_spread_says_that_it_would(cluster, tmp_path):
    chosen = {"detect": 0.35, "power": 0.5, "points": 8}
    content = tree(design={"kind": "sobol", "points": 8, "max_points": 256, "chosen_for": chosen})
    cluster.error, told = spread, Told()
    folder = tmp_path / "x"
    go(file_of(tmp_path, content), folder, told)
    first = told.notices[0]
    assert "with what the first 8 points show (blinded), " in first
    number = int(first.partition("(blinded), ")[2].split()[0])
    assert 8 < number < 128
    assert f"{number} points are needed rather than 8 to detect 0.35 at power 0.5" in first
    end = next(points for points in (8, 16, 32, 64, 128, 256) if points >= number)
    assert points_of(folder) == end
    assert f"; {number} points were to be enough" in told.notices[-2]
    assert told.notices[-1].startswith(f"stopped at {end} of at most 256 points: ")
    # With the arms' names exchanged at some points, the number is the same.
    mixed = tmp_path / "y"
    cluster.error = lambda trial: (
        spread(trial) if trial.point % 4 else 2 * 13.0 + 2 * (trial.point % 3) - spread(trial)
    )
    again = Told()
    go(file_of(tmp_path, content), mixed, again)
    assert f"(blinded), {number} points" in again.notices[0]


# --- refused


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"design": {"kind": "sobol", "points": 8}, "search": {}}, "search: a search compares no arms"),
        ({"arms": {"p": {}}}, "arms: there is one arm, so nothing is settled"),
        ({"design": {"kind": "grid", "levels": 8}}, "design.kind: cannot be extended, which --until settled"),
        ({"design": {"kind": "latin", "points": 8}}, "design.kind: cannot be extended, which --until"),
    ],
)
def test_what_cannot_be_settled_is_refused_before_anything_is_written(tmp_path, changes, fault):
    folder = tmp_path / "x"
    with pytest.raises(SweepError) as raised:
        prepare(file_of(tmp_path, tree(**changes)), folder, check=False, until="settled")
    assert fault in str(raised.value)
    assert not folder.exists()


def test_trials_of_later_looks_are_tried_before_the_first(tmp_path, monkeypatch):
    seen: list[list[int]] = []

    def try_out(plan: Any, trials: Any, folder: Any, *_: Any) -> Any:
        *_, later = _
        seen.append([len(trials), len(later)])
        return SimpleNamespace(faults=[], expected="", seconds=1.0, checked=())

    monkeypatch.setattr(session, "try_out", try_out)
    prepare(file_of(tmp_path, tree()), tmp_path / "x", until="settled")
    prepare(file_of(tmp_path, tree()), tmp_path / "x")
    assert seen == [[16, 64], [16, 0]]


def test_saved_hours_are_those_of_the_trials_like_them():
    plan = plan_from(tree(design={"kind": "sobol", "points": 2}))
    longer = make_plan(extended(plan.sweep, 5), plan.infos, [])
    hours = {"p": 2.0, "c": 5.0}
    records = {t.id: Record("finished", busy_seconds=3600 * hours[t.arm]) for t in plan.trials}
    found = saved(plan, longer, records, [Node(4, 0)])
    assert (found.trials, found.hours, found.unit) == (6, 3 * 2.0 + 3 * 5.0, "core-hours")
    # Nothing is known of trials that have not run.
    assert saved(plan, longer, {}, [Node(4, 0)]).hours == 0
    on_gpu = saved(plan, longer, records, [Node(4, 4)])
    assert (on_gpu.hours, on_gpu.unit) == (21.0, "GPU-hours")


# --- with Ray


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_sweep_ends_at_a_look_and_again_there(tmp_path):
    content = tree(
        base=tiny_base(schedule={"epochs": 1}),
        # One arm learns nothing, so the question is easy.
        arms={"p": {}, "c": {"optim.lr_batch_size": 16384}},
        vary={"optim.lr": {"log_uniform": [5e-3, 5e-2]}},
        design={"kind": "sobol", "points": 4, "max_points": 16},
        resources={"lanes": 2},
    )
    file, folder = file_of(tmp_path, content), tmp_path / "x"
    end = run_sweep(file, folder, check=False, until="settled")
    assert end.how == "ended"
    opened, seen = open_folder(folder), taken(folder)
    # 4 pairs are too few for any verdict.
    assert [look.points for look in seen] == [4, 8, 16][: len(seen)]
    assert len(seen) > 1
    assert not seen[-1].goes_on
    assert opened.plan.sweep.design.points == seen[-1].points
    assert all(record.settled for record in opened.records.values())
    assert len(opened.records) == 2 * seen[-1].points
    assert run_sweep(file, folder, check=False, until="settled").how == "nothing to do"
    assert taken(folder) == seen
