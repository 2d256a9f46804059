"""Searches: rounds that follow from results alone, samplers, halving, and what a report may say of them."""

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from orchestrator.analysis.findings import gather
from orchestrator.analysis.summary import summarise
from orchestrator.execution.asha import EarlyStopping
from orchestrator.execution.coordinator import Coordinator
from orchestrator.execution.dispatch import Job
from orchestrator.execution.samplers import SAMPLERS, propose
from orchestrator.report.answer import answer
from orchestrator.report.page import tables_of
from orchestrator.stats.measures import MEASURES
from orchestrator.store.folder import load_suggestions, open_folder, save_question, save_suggestions
from orchestrator.store.journal import FolderError
from orchestrator.sweep.config import Halving
from orchestrator.sweep.document import SweepError
from orchestrator.sweep.load import build_sweep
from orchestrator.sweep.space import Choice, IntRange, LogUniform
from orchestrator.trials.events import EpochDone
from orchestrator.trials.records import Record, Result
from orchestrator.trials.search import Tried, next_round, num_rounds, searched
from orchestrator.trials.trial import Plan, Trial
from tests.support.sweeps import base_tree, epoch_row, plan_from, sweep_tree
from trainables.base import Epoch


def tree(**changes: Any) -> dict[str, Any]:
    tree = sweep_tree(
        base=base_tree(optim={"name": "adamw"}, schedule={"epochs": 9}),
        vary={
            "optim.lr": {"log_uniform": [1e-4, 1e-2]},
            "optim.weight_decay": {"log_uniform": [1e-2, 1.0]},
        },
        design={"kind": "sobol", "points": 20},
        search={"sampler": "tpe", "round": 8},
    )
    return tree | changes


def plan_of(suggestions: Any = (), **changes: Any) -> Plan:
    return plan_from(tree(**changes), suggestions)


def row(epoch: int, error_pct: float) -> Epoch:
    return epoch_row(epoch, error_pct, test_pct=error_pct)


def bowl(trial: Trial) -> float:
    """An error that has its least at lr 1e-3 and weight decay 0.1."""
    lr, decay = trial.values["optim.lr"], trial.values["optim.weight_decay"]
    return 5 + 10 * abs(np.log10(lr) + 3) + 5 * abs(np.log10(decay) + 1)


def finished(plan: Plan) -> dict[str, Record]:
    return {trial.id: Record(outcome="finished", rows={9: row(9, bowl(trial))}) for trial in plan.trials}


def results(plan: Plan, records: Mapping[str, Record]) -> list[Result]:
    return [Result(trial, records.get(trial.id, Record())) for trial in plan.trials]


def search_to_the_end(**changes: Any) -> list[Plan]:
    """The plan after each round, everything finished at once."""
    plans = [plan_of(**changes)]
    while chosen := next_round(plans[-1], results(plans[-1], finished(plans[-1])), propose):
        plans.append(plan_of([*plans[-1].suggestions, *chosen], **changes))
    return plans


# --- rounds


def test_every_arm_has_as_many_points_and_the_last_round_is_what_is_left():
    plans = search_to_the_end()
    assert [len(plan.trials) for plan in plans] == [16, 32, 40]
    assert num_rounds(plans[0].sweep) == 3
    for arm in ("p", "c"):
        mine = [trial for trial in plans[-1].trials if trial.arm == arm]
        assert [trial.point for trial in mine] == list(range(20))
        assert [trial.role for trial in mine] == ["sweep"] * 8 + ["search"] * 12
    # Trials of earlier rounds stay what they were.
    assert {trial.id for trial in plans[0].trials} < {trial.id for trial in plans[-1].trials}


def test_the_first_round_is_the_designs_and_paired():
    drawn = plan_of(search=None, design={"kind": "sobol", "points": 8})
    assert [trial.id for trial in plan_of().trials] == [trial.id for trial in drawn.trials]


def test_what_is_chosen_follows_from_the_results_and_not_from_their_order():
    plan = plan_of()
    records = finished(plan)
    shuffled = dict(sorted(records.items()))
    once = next_round(plan, results(plan, records), propose)
    again = next_round(plan, reversed(results(plan, shuffled)), propose)
    assert once == again
    other = plan_of(design={"kind": "sobol", "points": 20, "seed": 1})
    assert next_round(other, results(other, finished(other)), propose) != once


def test_nothing_is_chosen_while_a_trial_of_the_round_has_not_ended():
    plan = plan_of()
    records = finished(plan)
    records[plan.trials[3].id] = Record(running=True)
    assert next_round(plan, results(plan, records), propose) == ()
    # One that has failed has ended.
    records[plan.trials[3].id] = Record(outcome="failed")
    assert len(next_round(plan, results(plan, records), propose)) == 16


def test_more_points_go_on_where_the_search_was():
    plans = search_to_the_end(design={"kind": "sobol", "points": 16})
    longer = plan_of(plans[-1].suggestions)
    assert longer.trials == plans[-1].trials
    chosen = next_round(longer, results(longer, finished(longer)), propose)
    assert {suggestion.point for suggestion in chosen} == {16, 17, 18, 19}


def test_before_it_begins_a_search_is_planned_at_its_full_size():
    plan = plan_of(None)
    assert len(plan.trials) == 40
    assert sum(trial.role == "search" for trial in plan.trials) == 24


def test_no_point_breaks_a_constraint():
    plans = search_to_the_end(where=["optim.lr * optim.weight_decay < 1e-4"])
    assert len(plans) == 3
    assert all(
        t.values["optim.lr"] * t.values["optim.weight_decay"] < 1e-4 for plan in plans for t in plan.trials
    )


# --- samplers


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_beats_as_many_draws_of_the_design(sampler):
    """Over planted bowls of another seed each: the best of the search is mostly below the design's."""
    wins = 0
    for seed in range(5):
        design = {"kind": "sobol", "points": 32, "seed": seed}
        found = search_to_the_end(search={"sampler": sampler, "round": 8}, design=design)[-1]
        drawn = plan_of(search=None, design=design)
        wins += min(map(bowl, found.trials)) < min(map(bowl, drawn.trials))
    assert wins >= 4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_keeps_to_its_axes_and_repeats_itself(sampler):
    domains = {
        "lr": LogUniform(log_uniform=(1e-4, 1e-2)),
        "depth": IntRange(int_range=(2, 5)),
        "stem": Choice(choice=("p", "c", "s1")),
    }
    rng = np.random.default_rng(0)
    tried = [
        Tried(dict(zip(domains, map(float, rng.random(3)), strict=True)), "ended", float(rng.random()), 9)
        for _ in range(9)
    ]
    tried += [Tried(tried[0].quantiles, "stopped", 50.0, 3), Tried(tried[1].quantiles, "failed", None, 0)]
    points = propose(sampler, domains, tried, 6, 1, lambda _: True)
    assert len(points) == 6
    assert all(0 <= point["lr"] <= 1 for point in points)
    # Whole steps sit in their middle: no rounding leads to the next value.
    assert all(
        point["depth"] * 4 % 1 == 0.5 and 2 <= domains["depth"].at(point["depth"]) <= 5 for point in points
    )
    assert all(domains["stem"].at(point["stem"]) in ("p", "c", "s1") for point in points)
    assert propose(sampler, domains, tried, 6, 1, lambda _: True) == points
    assert propose(sampler, domains, tried, 6, 2, lambda _: True) != points


def test_a_sampler_gives_up_where_nothing_fits():
    assert propose("tpe", {"lr": LogUniform(log_uniform=(1e-4, 1e-2))}, [], 2, 0, lambda _: False) == []


# --- halving


def judge(epochs: int = 9, **rule: Any) -> tuple[EarlyStopping, list[Trial]]:
    plan = plan_of(
        search={"sampler": "design", "halving": {"grace_epochs": 1, **rule}},
        base=tree()["base"] | {"schedule": {"epochs": epochs}},
        arms={"p": {}},
    )
    return EarlyStopping(Halving(grace_epochs=1, **rule), plan.trials), list(plan.trials)


def test_halving_ends_what_its_definition_ends():
    """Against ASHA's rule written out: at 1, 3, 9, ... go on only if within the best third so far."""
    judged, trials = judge(epochs=27)
    rng = np.random.default_rng(1)
    errors = {trial.id: np.sort(rng.uniform(5, 90, 27))[::-1] for trial in trials}
    seen: dict[int, list[float]] = {1: [], 3: [], 9: []}
    ended: dict[str, int] = {}
    # All at the same epoch before any goes on; which order, is the test's.
    for epoch in range(1, 28):
        for trial in trials:
            if trial.id in ended:
                continue
            error = float(errors[trial.id][epoch - 1])
            expected = False
            if epoch in seen:
                if seen[epoch]:
                    expected = error > np.percentile(seen[epoch], 100 / 3)
                seen[epoch].append(error)
            assert judged.stops(trial.id, epoch, error) == expected, (trial.point, epoch)
            # Asked again, as after a lost answer: the same.
            assert judged.stops(trial.id, epoch, error) == expected
            if expected:
                ended[trial.id] = epoch
    assert 10 < len(ended) < 20
    assert set(ended.values()) > {1}


def test_arms_are_judged_apart_and_confirmations_not_at_all():
    plan = plan_of(search={"sampler": "design", "halving": {"grace_epochs": 1}})
    judged = EarlyStopping(Halving(grace_epochs=1), plan.trials)
    of = {arm: [trial for trial in plan.trials if trial.arm == arm] for arm in ("p", "c")}
    for trial in of["p"]:
        judged.stops(trial.id, 1, 1.0)
    # Far worse than every run of the other arm, but the first of its own.
    assert not judged.stops(of["c"][0].id, 1, 90.0)
    assert not judged.stops("0" * 16, 1, 99.0)


def test_what_was_decided_is_decided_again_after_a_kill():
    judged, trials = judge()
    order = [(trial, epoch) for epoch in (1, 2, 3, 4) for trial in trials]
    errors = dict(
        zip(
            itertools.product([t.id for t in trials], (1, 2, 3, 4)),
            np.random.default_rng(2).uniform(5, 90, 4 * len(trials)),
            strict=True,
        )
    )
    told, events = {}, []
    for trial, epoch in order[: len(order) * 3 // 4]:
        error = float(errors[trial.id, epoch])
        events.append(EpochDone(trial=trial.id, attempt=1, row=row(epoch, error)))
        told[trial.id, epoch] = judged.stops(trial.id, epoch, error)
    after, _ = judge()
    after.replay(events)
    for (trial_id, epoch), stopped in told.items():
        assert after.stops(trial_id, epoch, float(errors[trial_id, epoch])) == stopped
    for trial, epoch in order[len(order) * 3 // 4 :]:
        error = float(errors[trial.id, epoch])
        assert after.stops(trial.id, epoch, error) == judged.stops(trial.id, epoch, error)


def test_a_diverged_trial_is_the_worst_at_its_next_rung():
    judged, trials = judge(epochs=27)
    for trial in trials[:2]:
        judged.diverged(trial.id, 0)
    # Without them this would be the first at the rung, whom nobody can end; with them it is the best third.
    assert not judged.stops(trials[2].id, 1, 50.0)
    assert judged.stops(trials[3].id, 1, 99.0)


def test_the_last_epoch_ends_nothing():
    judged, trials = judge(epochs=3)
    assert not judged.stops(trials[0].id, 3, 5.0)
    assert not judged.stops(trials[1].id, 3, 90.0)


def test_a_worker_is_told_to_stop_and_its_trial_ends_as_stopped(tmp_path):
    class AlwaysAfterTwo:
        def stops(self, trial_id: str, epoch: int, error_pct: float) -> bool:
            return epoch >= 2

        def diverged(self, trial_id: str, epoch: int) -> None:
            raise AssertionError

    async def one_trial() -> list[str]:
        clerk = Coordinator(str(tmp_path), judge=AlwaysAfterTwo())
        await clerk.add([Job("t", "arm", "{}")])
        await clerk.open_slot("lane")
        last = await clerk.enter("lane", "node")
        taken = await clerk.take("lane", last)
        assert taken is not None
        number, _ = taken
        verdicts = [await clerk.row("lane", number, row(epoch, 50.0)) for epoch in (1, 2)]
        await clerk.end("lane", number, "stopped", "behind")
        verdicts.append(await clerk.row("lane", number, row(3, 50.0)))
        assert await clerk.left() == 0
        return list(verdicts)

    assert asyncio.run(one_trial()) == ["go on", "stop", "drop"]


# --- what a report says


def test_a_search_tells_the_peak_from_all_and_the_rest_from_its_draws():
    plan = search_to_the_end()[-1]
    for summary in summarise(results(plan, finished(plan))):
        mine = [trial for trial in plan.trials if trial.arm == summary.arm]
        assert summary.best is not None
        assert summary.best.val_error_pct == min(map(bowl, mine))
        assert summary.num_trials == 20
        assert summary.errors_pct == {t.point: bowl(t) for t in mine if t.point < 8}


def test_a_halved_search_has_a_peak_and_no_distribution():
    plan = plan_of(search={"sampler": "design", "halving": {"grace_epochs": 1}})
    records = finished(plan)
    for trial in plan.trials[::2]:
        records[trial.id] = Record(outcome="stopped", rows={1: row(1, 60.0)})
    found = gather(plan, records)
    for summary in found.summaries:
        ended = [trial for trial in plan.trials[1::2] if trial.arm == summary.arm]
        assert (summary.best is None) == (not ended)
        assert not summary.errors_pct
        assert set(MEASURES) <= set(summary.refused)
    first, second, _ = answer(found.summaries, found.contrasts, found.peaks)
    assert "no draws from the space" in first
    assert second.startswith("Lowest error: ")


def test_the_table_of_a_search_adds_up():
    plan = search_to_the_end()[-1]
    records = finished(plan)
    for one in searched(plan, results(plan, records)):
        mine = [trial for trial in plan.trials if trial.arm == one.arm]
        assert one.num_points == 20
        assert one.num_epochs == 20
        assert one.best_pct == min(map(bowl, mine))
        assert one.first_round_pct == min(bowl(t) for t in mine if t.point < 8)
        assert one.best_point == min(mine, key=bowl).point
    table = tables_of(gather(plan, records).with_evidence(()))["search"]
    # The only cell has no column.
    assert [line.texts[0].main for line in table.rows] == ["p", "c"]
    assert "search" not in {t.name for t in tables_of(gather(plan_of(search=None), {})).values() if t.rows}


def test_a_best_point_at_the_end_of_its_window_is_told():
    plan = plan_of(arms={"p": {}})
    records = finished(plan)
    lowest = min(plan.trials, key=lambda trial: trial.values["optim.lr"])
    records[lowest.id] = Record(outcome="finished", rows={9: row(9, 1.0)})
    (one,) = searched(plan, results(plan, records))
    # The lowest of eight Sobol points lies in the lowest eighth; at an edge only if within a twentieth.
    share = (np.log10(lowest.values["optim.lr"]) + 4) / 2
    assert ("optim.lr" in one.edges) == (share < 0.05)


# --- on disk


def test_what_was_chosen_is_on_record_before_it_runs(tmp_path):
    plan = plan_of()
    save_question(tmp_path, plan)
    assert load_suggestions(tmp_path) == []
    chosen = next_round(plan, results(plan, finished(plan)), propose)
    save_suggestions(tmp_path, chosen)
    assert open_folder(tmp_path).plan.suggestions == chosen
    assert len(open_folder(tmp_path).plan.trials) == 32
    (tmp_path / "search.json").write_text('{"suggestions": [{"cell": 1}]}')
    with pytest.raises(FolderError, match=r"search\.json is damaged"):
        open_folder(tmp_path)


# --- the file


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"search": {"sampler": "design"}}, "search.sampler"),
        ({"design": {"kind": "grid"}, "vary": {"optim.lr": {"choice": [1e-3, 1e-2]}}}, "design.kind"),
        ({"search": {"halving": {"grace_epochs": 1}}, "replicates": 2}, "replicates"),
        ({"search": {"halving": {"grace_epochs": 1}}, "noise": {}}, "noise"),
        (
            {"search": {"halving": {"grace_epochs": 1}}, "vary": {"schedule.epochs": {"choice": [2, 4]}}},
            "vary.schedule.epochs",
        ),
    ],
)
def test_what_does_not_go_with_a_search_is_refused(changes, path):
    with pytest.raises(SweepError) as caught:
        build_sweep(tree(**changes), "test")
    assert path in str(caught.value)
