"""A session without Ray: what observers are told, and that every way out is an orderly one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.backends import autoscaler, ray_cluster
from orchestrator.execution import preflight_workers, run, waiting
from orchestrator.execution.session import Preparation, Session
from orchestrator.execution.states_probe import ALONE
from orchestrator.monitor.observer import Observer, Round, SessionEnd
from orchestrator.monitor.progress import Progress
from orchestrator.store.folder import open_folder
from orchestrator.store.journal import Writer
from orchestrator.sweep.document import Override
from orchestrator.trials.events import AttemptBegan, AttemptEnded, Event
from orchestrator.trials.gang import Node
from orchestrator.trials.sweep_file import SweepFile
from orchestrator.trials.trial import Plan

LR_WD = Path(__file__).parents[3] / "search_spaces" / "lr_wd.yaml"


@pytest.fixture
def plan() -> Plan:
    """Four trials."""
    return SweepFile(LR_WD, points=1).plan()


class Told(Observer):
    """Notes the name of every call, and does what it is asked to at each."""

    def __init__(self, **actions: Callable[[], None]) -> None:
        self.calls: list[str] = []
        self.ends: list[SessionEnd] = []
        self.notices: list[str] = []
        self.counts: list[int] = []
        self._actions = actions

    def _note(self, name: str) -> None:
        if self.calls[-1:] != [name]:
            self.calls.append(name)
        self._actions.get(name, lambda: None)()

    def notice(self, text: str, level: str = "info") -> None:
        self.notices.append(text)

    def begin(self, round: Round) -> None:
        self._note("begin")

    def observe(self, events: Sequence[Event], progress: Progress) -> None:
        self.counts.append(progress.ended)
        self._note("observe")

    def stopping(self) -> None:
        self._note("stopping")

    def end(self, end: SessionEnd) -> None:
        self.ends.append(end)
        self._note("end")

    def close(self, end: SessionEnd) -> str | None:
        self.ends.append(end)
        self._note("close")
        return "could not say goodbye"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of Ray: a run that ends one trial per look. What is asked of it is returned."""
    asked: list[str] = []

    class Run:
        def __init__(self, folder: Path, trials: Any, *_: Any) -> None:
            self.folder, self.left, self.lanes, self.error = folder, list(trials), 2, None

        @property
        def done(self) -> bool:
            return not self.left

        def start(self) -> None:
            self.writer = Writer(self.folder)

        def events(self) -> list[Event]:
            if not self.left or "stop" in asked:
                return []
            trial = self.left.pop(0)
            events = [
                AttemptBegan(trial=trial.id, attempt=1, lane="lane", time=1.0),
                AttemptEnded(
                    trial=trial.id, attempt=1, end="diverged", detail="nan", seconds=1.0, time=2.0, final=True
                ),
            ]
            self.writer.append(events)
            return events

        def drain(self) -> None:
            asked.append("drain")
            self.left.clear()

        def stop(self) -> None:
            asked.append("stop")

        def close(self) -> None:
            asked.append("close")
            self.writer.close()

    monkeypatch.setattr(run, "Run", Run)
    for name, fake in (
        ("connect", lambda _: None),
        ("nodes", lambda: [Node(2, 0)]),
        ("shutdown", lambda: asked.append("shutdown")),
    ):
        monkeypatch.setattr(ray_cluster, name, fake)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return asked


def lease(folder: Path, wanted: Sequence[str | None] = ()) -> Any:
    """A held folder; `wanted` is what is asked of the holder, look by look."""
    folder.mkdir(exist_ok=True)
    answers = iter(wanted)
    return SimpleNamespace(folder=folder, lost=False, stop_wanted=lambda: next(answers, None))


def test_observers_follow_a_session_to_its_end_and_are_told_when_there_is_nothing_left(
    plan, cluster, tmp_path
):
    folder, told = tmp_path / "x", Told()
    end = Session(lease(folder), [told]).run_rounds(plan, Preparation())
    assert (end.how, end.num_trials, end.num_ended, end.num_run) == ("ended", 4, 4, 4)
    assert told.calls == ["begin", "observe", "end", "close"]
    # One more look when all is done.
    assert told.counts == [1, 2, 3, 4, 4]
    assert told.ends == [end, end]
    assert told.notices == ["could not say goodbye"]
    assert cluster == ["close", "shutdown"]
    again = Told()
    end = Session(lease(folder), [again]).run_rounds(plan, Preparation())
    assert (end.how, end.num_trials, end.num_ended) == ("nothing to do", 4, 4)
    assert again.calls == ["begin", "close"]
    assert cluster == ["close", "shutdown"]


def test_a_request_to_stop_and_ctrl_c_end_it_the_same_way(plan, cluster, tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    for name, wanted, actions, reason in (
        ("asked", [None, "now"], {}, "as `vitc-sweep stop` asked"),
        ("keys", [], {"observe": interrupt}, "interrupted"),
    ):
        cluster.clear()
        told, first = Told(), Told(**actions)
        if actions:
            # Once: what comes while it stops is told like anything else.
            first._actions["stopping"] = lambda first=first: first._actions.pop("observe")
        end = Session(lease(tmp_path / name, wanted), [told, first]).run_rounds(plan, Preparation())
        assert (end.how, end.reason) == ("stopped", reason)
        assert 0 < end.num_ended < 4
        assert cluster == ["stop", "close", "shutdown"]
        assert told.calls[-4:] == ["stopping", "observe", "end", "close"]
        assert len(open_folder(tmp_path / name).records) == end.num_ended


def test_a_request_to_drain_is_passed_on_once(plan, cluster, tmp_path):
    told = Told()
    end = Session(lease(tmp_path / "x", ["drain", "drain"]), [told]).run_rounds(plan, Preparation())
    assert (end.how, end.num_ended) == ("ended", 1)
    assert cluster == ["drain", "close", "shutdown"]
    assert told.notices[0] == "stopping: trials in flight go on to their end, no more are started"


def test_a_lost_lease_ends_it(plan, cluster, tmp_path):
    held = lease(tmp_path / "x")
    held.lost = True
    end = Session(held).run_rounds(plan, Preparation())
    assert (end.how, end.reason) == ("stopped", "another run has taken the folder over")


@pytest.mark.parametrize("method", ["begin", "observe", "end", "close"])
def test_whatever_an_observer_raises_the_cluster_is_left_and_all_are_closed(plan, cluster, tmp_path, method):
    def fail() -> None:
        raise ZeroDivisionError

    broken, others = Told(**{method: fail}), [Told(), Told()]
    session = Session(lease(tmp_path / "x"), [others[0], broken, others[1]])
    with pytest.raises(ZeroDivisionError):
        session.run_rounds(plan, Preparation())
    assert [told.calls[-1] for told in (*others, broken)] == ["close"] * 3
    assert others[0].ends[-1].how == ("broke off" if method in ("begin", "observe") else "ended")
    if method == "observe":
        assert cluster == ["stop", "close", "shutdown"]


def test_nobody_is_asked_to_run_nothing(plan, cluster, tmp_path):
    told = Told()
    known: Any = SimpleNamespace(events=[], records={})
    end = Session(lease(tmp_path / "x"), [told]).run_trials(plan, [], known, Preparation())
    assert end.how == "nothing to do"
    assert told.calls == ["close"]
    assert cluster == []


@pytest.mark.parametrize("keep", ["none", "last"])
def test_without_preflight_machines_that_do_not_reach_the_states_are_told_once_or_refused(
    tmp_path, monkeypatch, keep
):
    plan = SweepFile(LR_WD, (Override("resources.keep", keep),), points=1).plan()
    tried = []

    def machines_without(address: str, content: str) -> list[str]:
        # The mark is there for machines to find.
        tried.append(Path(address).read_text() == content)
        return ["192.0.2.7"]

    monkeypatch.setattr(preflight_workers, "machines_without", machines_without)
    told = Told()
    session = Session(None, [told], "auto")  # type: ignore[arg-type]
    if keep == "none":
        session._check_states(plan, tmp_path)
        session._check_states(plan, tmp_path)
        assert told.notices == [ALONE]
    else:
        with pytest.raises(ray_cluster.ClusterError, match=r"resources\.checkpoints: keep: last needs .*192"):
            session._check_states(plan, tmp_path)
    assert tried == [True]
    assert list(tmp_path.iterdir()) == []


def test_machines_that_go_for_good_are_told_of_and_stop_it_with_nothing_lost(
    plan, cluster, tmp_path, monkeypatch
):
    there, clock, told = [[Node(2, 0)]], [0.0], Told()
    monkeypatch.setattr(ray_cluster, "nodes", lambda: there[0])
    monkeypatch.setattr(autoscaler, "last_word", lambda: "1 worker requested")
    monkeypatch.setattr(waiting.Watch.__init__, "__defaults__", (lambda: clock[0],))
    events = run.Run.events

    def one_trial_then_none(self: Any) -> list[Event]:
        clock[0] += 10.0
        # At first a trial runs, then its machine goes.
        if clock[0] <= 100:
            trial = self.left[0].id
            return [AttemptBegan(trial=trial, attempt=1, lane="lane", time=1.0)] if clock[0] == 10 else []
        there[0] = [Node(0, 0)]
        if clock[0] == 110:
            return events(self)
        return []

    monkeypatch.setattr(run.Run, "events", one_trial_then_none)
    end = Session(lease(tmp_path / "x"), [told], wait_minutes=1.0).run_rounds(plan, Preparation())
    room, ray = "machine with 1 CPU", "; Ray: 1 worker requested"
    assert told.notices[:-1] == [
        f"waiting for a {room}, 5 s{ray}",
        f"waiting for a {room}, 30 s{ray}",
    ]
    assert (end.how, end.gave_up, end.num_ended) == ("stopped", True, 1)
    assert end.reason == f"no {room} in 1 min{ray} (--wait-minutes)"
    assert cluster == ["stop", "close", "shutdown"]
