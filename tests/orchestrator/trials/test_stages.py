"""Sweeps whose trials start from others: planned once, run in order, the same to the bit as by hand."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.analysis.summary import summarise
from orchestrator.cost import estimate, plan_warnings, shapes
from orchestrator.execution import run, worker
from orchestrator.execution.coordinator import Coordinator
from orchestrator.execution.preflight import _build_fault, subjects
from orchestrator.monitor.explain import advice, attempts_of, story
from orchestrator.report.answer import stage_caveats
from orchestrator.store.folder import open_folder, record_retries, save_question
from orchestrator.store.journal import read_journal
from orchestrator.store.weights import WeightStore
from orchestrator.sweep.document import SweepError
from orchestrator.trials.confirm import Confirmation, with_confirmation
from orchestrator.trials.events import SessionBegan
from orchestrator.trials.gang import Gang, Node
from orchestrator.trials.names import find_trial, name_of
from orchestrator.trials.records import Record, brought_back, fold, results_of
from orchestrator.trials.trial import Plan, unique_trials
from tests.orchestrator.execution.test_run import (
    PATIENCE,
    ends_in,
    records_in,
    results,
    start_cli,
)
from tests.support.by_hand import by_hand, outcomes_of
from tests.support.sweeps import TINY, plan_from, tiny_base
from trainables.base import Diverged
from trainables.config import Seeds
from trainables.context import Context
from trainables.data.digits import Digits
from trainables.identity import identity
from trainables.training.loop import train

#: Another cut of the same images: a first stage's data are its own.
FIRST = {
    "model": TINY,
    "data": {"name": "digits", "split_seed": 7},
    "optim": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05},
    "schedule": {"epochs": 1},
    "batch_size": 128,
    "ema": {"every_steps": 2},
}


def tree_of(**changes: Any) -> dict[str, Any]:
    tree = {
        "name": "staged",
        "base": tiny_base() | {"start.run": FIRST},
        "arms": {
            "p": {"model.stem": "patchify", "start.run.model.stem": "patchify"},
            "c": {"model.stem": "conv", "start.run.model.stem": "conv"},
        },
        "vary": {"optim.lr": {"log_uniform": [1e-3, 1e-2]}},
        "design": {"kind": "sobol", "points": 2},
        "resources": {"gpus_per_worker": 0},
    }
    # As a file would be read: whole, and nothing shared.
    return json.loads(json.dumps(tree | changes))


def plan_of(**changes: Any) -> Plan:
    return plan_from(tree_of(**changes))


def firsts(plan: Plan) -> list[Any]:
    return [trial for trial in plan.trials if trial.role == "first_stage"]


# ------------------------------------------------------------------------------------------------ the plan


def test_every_first_stage_is_one_trial_that_all_points_and_replicates_of_an_arm_start_from():
    plan = plan_of(replicates=2, noise={"points": 1, "seeds": 2})
    assert [(trial.arm, trial.role) for trial in plan.trials[:2]] == [
        ("p", "first_stage"),
        ("c", "first_stage"),
    ]
    assert len(firsts(plan)) == 2
    by_arm = {trial.arm: trial.id for trial in firsts(plan)}
    others = plan.trials[2:]
    # 2 points x 2 arms x 2 replicates, and 3 streams of one point in both arms.
    assert len({trial.id for trial in others}) == len(others) == 8 + 6
    assert all(trial.after == by_arm[trial.arm] for trial in others)
    confirmed = with_confirmation(plan, Confirmation({("all", "c"): (1,)}, 3))
    assert [trial.after for trial in confirmed.trials[len(plan.trials) :]] == [by_arm["c"]] * 3
    more = plan_of(replicates=2, noise={"points": 1, "seeds": 2}, design={"kind": "sobol", "points": 4})
    assert {trial.id for trial in plan.trials} < {trial.id for trial in more.trials}
    assert len(firsts(more)) == 2


def test_ids_and_seeds_follow_from_the_content_of_both_runs():
    plan = plan_of(design={"kind": "sobol", "points": 2, "seed": 5})
    first, other = firsts(plan)
    assert first.config.seeds == other.config.seeds == Seeds.derived(5, "first stage")
    fingerprints = {seed: Digits(split_seed=seed).info().fingerprint for seed in (0, 7)}
    assert first.config.data == Digits(split_seed=7)
    assert first.id == identity(first.config, f"{fingerprints[7]} x1")
    for trial in plan.trials:
        if trial.after == first.id:
            assert trial.config.start.run == first.config
            assert trial.id == identity(trial.config, f"{fingerprints[0]} x1", first.id)
    assert set(plan.infos) == {Digits(), Digits(split_seed=7)}
    by_hand = plan_of(base=tree_of()["base"] | {"start.run.seeds": {"init": 3}})
    assert {trial.config.seeds for trial in firsts(by_hand)} == {Seeds(init=3)}


def test_arms_that_start_alike_share_the_run_with_the_largest_of_their_gangs():
    base = tiny_base() | {"start.run": FIRST | {"model": TINY | {"stem": "conv"}}}
    arms = {"low": {}, "high": {"optim.weight_decay": 0.3, "resources.workers": 2}}
    plan = plan_of(base=base | {"model.stem": "conv"}, arms=arms)
    assert [trial.arm for trial in firsts(plan)] == ["low", "high"]
    assert len(unique_trials(firsts(plan))) == 1
    assert {trial.gang for trial in firsts(plan)} == {Gang(2, 1, 0)}
    assert [trial.arm for trial in unique_trials(plan.trials)] == ["low", "low", "high", "low", "high"]
    # What is shared on purpose is no reason to warn.
    assert not any("same trials" in line for line in plan_warnings._pairing_warnings(plan))


def test_what_is_drawn_of_the_first_stage_makes_one_for_every_point():
    vary = {
        "start.run.optim.lr": {"log_uniform": [1e-3, 1e-2]},
        "start.run.data.split_seed": {"choice": [1, 2]},
    }
    plan = plan_of(vary=tree_of()["vary"] | vary)
    assert [(trial.arm, trial.point) for trial in firsts(plan)] == [("p", 0), ("c", 0), ("p", 1), ("c", 1)]
    assert [set(trial.values) for trial in firsts(plan)] == [set(vary)] * 4
    assert set(plan.infos) == {Digits(), Digits(split_seed=1), Digits(split_seed=2)}
    order = [trial.id for trial in plan.trials]
    assert all(not trial.after or order.index(trial.after) < order.index(trial.id) for trial in plan.trials)
    interval = {"start.run.data.split_seed": {"int_range": [1, 2]}}
    with pytest.raises(SweepError, match="a parameter of the data must be a choice or an ordinal"):
        plan_of(vary=tree_of()["vary"] | interval)


def test_a_first_stage_may_start_from_another():
    stem = {"parts": "stem", "run": FIRST | {"model": TINY | {"stem": "conv", "depth": 3}}}
    arms = tree_of()["arms"]
    arms["c"]["start.run.start"] = stem
    plan = plan_of(arms=arms)
    assert [(trial.arm, trial.replicate) for trial in firsts(plan)] == [("c", 1), ("p", 0), ("c", 0)]
    deep, _, middle = firsts(plan)
    assert (deep.after, middle.after) == ("", deep.id)
    assert (deep.config.model.depth, middle.config.start.run) == (3, deep.config)
    assert name_of(middle) == "c/all/0/first_stage/r0"
    assert find_trial(plan, "c/all/0").role == "sweep"
    assert find_trial(plan, name_of(deep)) == deep


def test_a_plan_counts_the_time_and_the_weights_of_first_stages():
    plan = plan_of()
    nodes = [Node(cpus=2, gpus=0)]
    params = {trial.arm: plan.cost(trial).model.params for trial in firsts(plan)}
    stored = {keep: estimate.storage(plan_of(resources={"keep": keep}), nodes) for keep in ("none", "last")}
    assert stored["none"].kept_gib * 2**30 == pytest.approx(4 * sum(params.values()), rel=0.05)
    assert stored["last"].kept_gib * 2**30 == pytest.approx(4 * 3 * sum(params.values()), rel=0.05)
    # Shapes of fine-tuning do not differ by what it starts from.
    assert len({shapes.shape_of(trial) for trial in plan.trials}) == 4


@pytest.mark.parametrize("lanes_at_once", [1, 2, 3])
def test_the_end_is_found_as_by_a_clock_that_ticks(lanes_at_once):
    seconds, waits = [4, 7, 1, 2, 3, 5], {2: 0, 3: 1, 4: 0, 5: 4}
    left, ended, clock, busy = dict(enumerate(seconds)), set(), 0, set()
    while left:
        for job in list(left):
            if len(busy) < lanes_at_once and job not in busy and waits.get(job, -1) in {-1, *ended}:
                busy.add(job)
        clock += 1
        for job in list(busy):
            left[job] -= 1
            if not left[job]:
                del left[job]
                busy.remove(job)
                ended.add(job)
    assert estimate.makespan(seconds, lanes_at_once, waits) == clock


def test_weights_that_will_not_fit_are_told_before_anything_is_trained():
    plan = plan_of(arms={"p": {"start.run.model.stem": "patchify"}, "c": {"model.stem": "conv"}})
    faults = [_build_fault(plan, subject, {}) for subject in subjects(plan, plan.trials)]
    [fault] = [fault for fault in faults if fault]
    assert fault.setting == "start"
    assert "the weights to start from are of another model" in fault.rule


# ------------------------------------------------------------------------------------- one lane, without Ray


class Lane:
    """A clerk and one worker that takes trials from it until there are none, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, keep: str = "none") -> None:
        monkeypatch.setattr(worker.ray, "get", lambda value: value)
        monkeypatch.setattr(worker.ray, "wait", lambda values, timeout: (values, []))
        monkeypatch.setattr("trainables.training.checkpoint.BACKOFF_SECONDS", (0.0,))
        self.folder, self.keep = folder, keep

    def run(self, plan: Plan, before: Any = None) -> dict[str, Record]:
        """`vitc-sweep run` without all that is not the clerk's or the worker's."""
        save_question(self.folder, plan)
        records = open_folder(self.folder).records
        todo = unique_trials(plan.remaining(key for key, record in records.items() if record.settled))
        with asyncio.Runner() as loop:
            clerk = Coordinator(str(self.folder), keep=self.keep)
            remote = SimpleNamespace()
            for name in ("take", "uses", "beat", "row", "keeps", "end", "log"):
                method = getattr(clerk, name)
                call = lambda *rest, method=method: loop.run(method(*rest))  # noqa: E731
                setattr(remote, name, SimpleNamespace(remote=call))
            settings = {"clerk": remote, "lane": "x", "folder": str(self.folder), "hang_seconds": 600}
            settings["key"] = "small-1"
            loop.run(clerk.note(SessionBegan(time=time.time(), began=time.time())))
            loop.run(clerk.add(*run.jobs_of(todo, records, retries=0)))
            loop.run(clerk.open_slot("x"))
            number = loop.run(clerk.enter("x", "node"))
            while loop.run(clerk.left()):
                loop.run(clerk.open_slot("x"))
                number, job = loop.run(clerk.take("x", number))
                if before is not None:
                    before(job)
                worker._run_job(job, number, settings | {"checkpoints": None}, Context())
        return fold(read_journal(self.folder).events)


@pytest.mark.parametrize("keep", ["none", "best"])
def test_a_sweep_in_two_stages_is_both_runs_one_after_the_other_to_the_bit(keep, tmp_path, monkeypatch):
    plan = plan_of()
    records = Lane(monkeypatch, tmp_path, keep).run(plan)
    assert outcomes_of(records) == by_hand(plan.trials)
    # What others start from stays, and is nobody's rival.
    kept = {kept.trial for kept in WeightStore(tmp_path).kept()}
    assert {trial.id for trial in firsts(plan)} <= kept
    assert len(kept) == 2 + (2 if keep == "best" else 0)
    summaries = summarise(results_of(plan, records))
    assert [(s.arm, s.num_trials, s.other_states) for s in summaries] == [
        (arm, 2, {"first_stage": {"finished": 1}}) for arm in ("p", "c")
    ]
    [caveat] = stage_caveats(results_of(plan, records))
    assert "start from the same first stage" in caveat


def test_weights_that_are_gone_are_told_with_what_makes_them_again(tmp_path, monkeypatch):
    plan, lane = plan_of(arms={"c": tree_of()["arms"]["c"]}), Lane(monkeypatch, tmp_path)
    [first] = firsts(plan)

    def lose(job: dict[str, Any]) -> None:
        if job["start"]:
            (tmp_path / "trials" / first.id / "final.pt").unlink(missing_ok=True)

    records = lane.run(plan, lose)
    told = {records[trial.id].detail for trial in plan.trials if trial.after}
    assert told == {
        f"FileNotFoundError: {tmp_path}/trials has no final weights of {first.id} any more, which this trial "
        f"starts from; `vitc-sweep retry {tmp_path} --trial {first.id}` makes them again"
    }
    wanted = [first.id, *brought_back(results_of(plan, records), [first.id])]
    assert wanted == [trial.id for trial in plan.trials]
    record_retries(tmp_path, wanted)
    assert outcomes_of(lane.run(plan)) == by_hand(plan.trials)


def test_a_first_stage_whose_weights_cannot_be_kept_has_failed(tmp_path, monkeypatch):
    plan = plan_of(arms={"c": tree_of()["arms"]["c"]})
    lane = Lane(monkeypatch, tmp_path)

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WeightStore, "keep", refuse)
    first, *others = (lane.run(plan)[trial.id] for trial in plan.trials)
    assert first.outcome == "failed"
    assert "weights are not kept: [Errno 28] No space left on device" in first.detail
    assert [record.outcome for record in others] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("error", "outcome"), [(Diverged("nan"), "diverged"), (OSError("no disk"), "failed")]
)
def test_what_starts_from_a_run_without_weights_ends_with_it_and_comes_back_with_it(
    error, outcome, tmp_path, monkeypatch, capsys
):
    plan, lane = plan_of(), Lane(monkeypatch, tmp_path)
    first, healthy = firsts(plan)

    def break_down(job: dict[str, Any]) -> None:
        def broken(*rest: Any, **named: Any) -> Any:
            raise error

        monkeypatch.setattr("trainables.training.loop.train", broken if job["trial"] == first.id else train)

    records = lane.run(plan, break_down)
    held_up = [trial for trial in plan.trials if trial.after == first.id]
    detail = records[first.id].detail
    for trial in held_up:
        record = records[trial.id]
        assert (record.outcome, record.attempts, record.settled) == (outcome, 0, True)
        assert record.detail == f"{first.id}, which it starts from, {outcome}: {detail}"
    assert {records[trial.id].outcome for trial in plan.trials if trial.after == healthy.id} == {"finished"}
    told = results_of(plan, records)
    [result] = [result for result in told if result.trial == held_up[0]]
    lines = "\n".join(story(result, attempts_of(result.trial.id, []), "runs/x", 1))
    assert result.record.detail in lines
    assert f"vitc-sweep retry runs/x --trial {first.id}" in advice(result, [], "runs/x")[1]
    # Diverged counts, as it does of any trial, and what was not begun is said to be so.
    assert result.error_pct == (100.0 if outcome == "diverged" else None)
    assert any("never started" in line for line in stage_caveats(told)) == (outcome == "diverged")
    from orchestrator.cli.app import INCOMPLETE
    from orchestrator.cli.conclusion import conclude
    from orchestrator.cli.options import make_console

    assert conclude(make_console(), tmp_path) == INCOMPLETE
    assert "2 trials never started" in capsys.readouterr().out

    # With more points: they come to the same end, though their first stage ended in an earlier run.
    more = plan_of(design={"kind": "sobol", "points": 3})
    records = lane.run(more)
    assert [records[t.id].outcome for t in more.trials if t.after == first.id] == [outcome] * 3
    wanted = brought_back(results_of(more, records), [first.id])
    assert wanted == [trial.id for trial in more.trials if trial.after == first.id]
    record_retries(tmp_path, [first.id, *wanted])
    monkeypatch.setattr("trainables.training.loop.train", train)
    assert outcomes_of(lane.run(more)) == by_hand(more.trials)


# ---------------------------------------------------------------------------------------------- end to end


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_that_is_killed_between_the_stages_goes_on_and_ends_as_one_that_was_not(tmp_path, cluster):
    file, folder = tmp_path / "staged.json", tmp_path / "runs" / "staged"
    # JSON is YAML.
    file.write_text(json.dumps(tree_of()))
    here = ("--no-mlflow", "--address", cluster)
    process = start_cli("run", file, "--out", folder, *here, "--set", "resources.lanes=1")
    while not ends_in(folder):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = ends_in(folder)
    again = start_cli("run", file, "--out", folder, *here, "--no-preflight")
    output = again.communicate(timeout=PATIENCE)[0]
    assert again.returncode == 0, output
    plan = open_folder(folder).plan
    ended = ends_in(folder)
    assert ended[: len(before)] == before
    assert sorted(ended) == sorted(trial.id for trial in plan.trials)
    for trial in plan.trials:
        assert not trial.after or ended.index(trial.after) < ended.index(trial.id)
    assert outcomes_of(records_in(folder)) == by_hand(plan.trials)
    assert [row["role"] for row in results(folder)] == ["first_stage"] * 2 + ["sweep"] * 4
