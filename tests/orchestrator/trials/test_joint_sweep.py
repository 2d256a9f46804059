"""Arms of several sweeps as the arms of one: equal to the one sweep, or refused with every reason."""

import dataclasses
import json
from typing import Any

import pytest

from orchestrator.analysis.contrasts import contrasts
from orchestrator.analysis.summary import summarise
from orchestrator.report.page import write_report
from orchestrator.trials.confirm import Confirmation, with_confirmation
from orchestrator.trials.joint_sweep import Merged, MergeError, Part, merge
from orchestrator.trials.plan import make_plan
from orchestrator.trials.records import results_of
from orchestrator.trials.trial import Plan
from tests.support.sweeps import base_tree, ended, epoch_row, plan_from
from trainables.base import DataInfo
from trainables.presets import set_paths

VIT_P, VIT_C = {"model.stem": "patchify"}, {"model.stem": "conv"}
TREE: dict[str, Any] = {
    "name": "test",
    "question": "Which stem is more forgiving?",
    "base": base_tree(schedule={"epochs": 2}, optim=None),
    "arms": {"vit_p": VIT_P, "vit_c": VIT_C},
    "cells": {"optimizer": {"adamw": {"optim.name": "adamw"}, "sgd": {"optim.name": "sgd"}}},
    "vary": {
        "optim.lr": {"adamw": {"log_uniform": [2.5e-4, 8e-3]}, "sgd": {"log_uniform": [0.1, 3.2]}},
        "optim.weight_decay": {"uniform": [0.0, 0.1]},
    },
    "design": {"kind": "sobol", "points": 4, "seed": 0},
    "primary": {"measure": "error", "cell": "adamw"},
}


def plan_of(**changes: Any) -> Plan:
    """The plan of TREE with top-level keys replaced, or paths below them (`design__points=8`)."""
    tree = json.loads(json.dumps(TREE))
    whole = {key: value for key, value in changes.items() if "__" not in key}
    set_paths(tree, {key.replace("__", "."): value for key, value in changes.items() if "__" in key})
    return plan_from(tree | whole)


def part(plan: Plan, shift: float = 0.0) -> Part:
    """Every trial finished, at an error that follows from its id."""
    records = {}
    for trial in plan.trials:
        error = 10 + int(trial.id[:2], 16) / 10 + shift
        row = epoch_row(2, error, step=38, test_pct=error + 0.5)
        records[trial.id] = ended([row], busy_seconds=12.5)
    return Part(plan, records)


def reasons(**parts: Plan) -> str:
    with pytest.raises(MergeError) as raised:
        merge({name: part(plan) for name, plan in parts.items()})
    assert raised.value.reasons
    return str(raised.value)


def test_sweeps_that_were_tested_on_other_images_of_one_name_are_not_compared():
    one, other = plan_of(), plan_of(name="other", arms={"third": {"model.stem": "conv"}})

    def merged(first: list[str] | None, second: list[str] | None) -> Merged:
        marks = ({"noise": mark} if mark else {} for mark in (first, second))
        parts = (
            dataclasses.replace(part(plan), shifted=m) for plan, m in zip((one, other), marks, strict=True)
        )
        return merge(dict(zip(("one", "other"), parts, strict=True)))

    with pytest.raises(MergeError, match="shifted set noise: fingerprint: a in one, b in other"):
        merged(["a"], ["b"])
    assert merged(["a"], ["a"]).notices == merged(["a"], None).notices


def runs(plan: Plan) -> dict[Any, str]:
    return {(t.arm, t.cell_name, t.point, t.role, t.replicate): t.id for t in plan.trials}


def summary_of(merged: Merged) -> Any:
    summaries = summarise(results_of(merged.plan, merged.records))
    return summaries, contrasts(summaries, merged.plan.sweep.primary)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"replicates": 2, "noise": {"points": 1, "seeds": 2}},
        {"design": {"kind": "random", "points": 3, "seed": 5}},
        {"design": {"kind": "sobol", "points": 12, "scrambles": 6}},
        {"cells": {}, "vary": {"optim.lr": {"uniform": [0.1, 0.2]}}, "primary": None,
         "base": {**TREE["base"], "optim": {"name": "sgd", "weight_decay": 0.1}}},
        {"vary": {"optim.lr": {"uniform": [0.1, 0.2]}, "optim.weight_decay": {"uniform": [0.0, 0.1]},
                  "batch_size": {"choice": [32, 64]}}},
    ],
    ids=["cells", "replicates and noise", "random", "scrambles", "one cell", "windows for all"],
)  # fmt: skip
def test_two_sweeps_with_the_arms_split_equal_the_one_that_has_both(changes):
    one = part(plan_of(**changes))
    a = part(plan_of(**changes, name="a", arms={"vit_p": VIT_P}))
    b = part(plan_of(**changes, name="b", arms={"vit_c": VIT_C}))
    merged = merge({"a": a, "b": b})
    assert [t.id for t in merged.plan.trials] == [t.id for t in one.plan.trials]
    assert runs(merged.plan) == runs(one.plan)
    assert merged.records == one.records
    assert merged.notices == []
    assert summary_of(merged) == summary_of(Merged(one.plan, dict(one.records), {}, []))
    assert {merged.origin[t.id] for t in merged.plan.trials if t.arm == "vit_p"} == {"a"}


@pytest.mark.usefixtures("no_pdfs")
def test_the_report_of_a_merged_plan_is_that_of_the_one_sweep_but_for_its_name(tmp_path):
    small = {"design__points": 2, "vary": {**TREE["vary"], "optim.weight_decay": {"choice": [0.1]}}}
    one = part(plan_of(**small))
    a = part(plan_of(**small, arms={"vit_p": VIT_P}))
    b = part(plan_of(**small, arms={"vit_c": VIT_C}))
    merged = merge({"a": a, "b": b})
    write_report(merged.plan, merged.records, tmp_path / "merged", {})
    write_report(one.plan, one.records, tmp_path / "one", {})
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file() and path.name not in ("summary.json", "report.html"):
            assert (
                tmp_path / "merged" / path.relative_to(tmp_path / "one")
            ).read_bytes() == path.read_bytes()
    one_json, both = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "merged"))
    assert both | {"name": "test"} == one_json


def test_models_of_another_family_are_compared_though_each_base_names_its_own():
    regnet = {"family": "regnety", "size": "1gf", "image_size": 32}
    a = part(plan_of(name="a", arms={"vit_p": VIT_P}))
    b = part(plan_of(name="b", base={**TREE["base"], "model": regnet}, arms={"regnet": {}}))
    merged = merge({"a": a, "b": b})
    assert {k: v for k, v in runs(merged.plan).items() if k[0] == "regnet"} == runs(b.plan)
    assert {k: v for k, v in runs(merged.plan).items() if k[0] == "vit_p"} == runs(a.plan)
    families = {trial.arm: trial.config.model.family for trial in merged.plan.trials}
    assert families == {"vit_p": "vit", "regnet": "regnety"}


def test_cells_of_model_sizes_stay_the_same_runs():
    cells = {"size": {"small": {"model.width": 32}, "wide": {"model.width": 64}}}
    base = {**TREE["base"], "optim": {"name": "adamw", "weight_decay": 0.1}}
    base["model"] = {"family": "vit", "image_size": 32, "patch_size": 8, "depth": 2, "heads": 2,
                     "mlp_ratio": 2}  # fmt: skip
    same = {"cells": cells, "vary": {"optim.lr": {"uniform": [0.001, 0.01]}}, "primary": None}
    a = part(plan_of(**same, base=base, arms={"two": {}}))
    b = part(plan_of(**same, base={**base, "model": {**base["model"], "depth": 3}}, arms={"three": {}}))
    merged = merge({"a": a, "b": b})
    assert runs(merged.plan) == {**runs(a.plan), **runs(b.plan)}


def test_an_arm_may_have_settings_and_windows_of_its_own():
    def vary(arm: str, low: float) -> dict[str, Any]:
        return {**TREE["vary"], "optim.lr": {arm: {"log_uniform": [low, 0.1]}}}

    long = {**VIT_C, "label_smoothing": 0.0, "batch_size": 32}
    a = part(plan_of(vary=vary("vit_p", 0.001), arms={"vit_p": VIT_P}))
    b = part(plan_of(vary=vary("vit_c", 0.01), arms={"vit_c": long}))
    merged = merge({"a": a, "b": b})
    assert runs(merged.plan) == {**runs(a.plan), **runs(b.plan)}


def test_arms_of_one_name_and_other_settings_are_renamed_with_their_windows():
    def vary(*arms: str) -> dict[str, Any]:
        windows = {arm: {"log_uniform": [0.001, 0.1 * n]} for n, arm in enumerate(arms, 1)}
        return {**TREE["vary"], "optim.lr": windows}

    deep = {"vit_p": {**VIT_P, "model.depth": 3}, "deep": {**VIT_P, "model.depth": 2}}
    a = part(plan_of(vary=vary("vit_p", "vit_c")))
    b = part(plan_of(vary=vary("deep", "vit_p"), arms=deep))
    merged = merge({"a": a, "b": b})
    assert list(merged.plan.sweep.arms) == ["vit_p.a", "vit_c", "vit_p.b", "deep"]
    assert runs(merged.plan)["vit_p.b", "sgd", 1, "sweep", 0] == runs(b.plan)["vit_p", "sgd", 1, "sweep", 0]
    assert merged.notices == [
        "vit_p of a is called vit_p.a: other sweeps have an arm of that name, too",
        "vit_p of b is called vit_p.b: other sweeps have an arm of that name, too",
    ]


def test_an_arm_that_both_have_is_one_arm_with_the_first_record_that_is_there():
    a = part(plan_of())
    b = part(plan_of(arms={"vit_p": VIT_P, "deep": {**VIT_P, "model.depth": 2}}), shift=5.0)
    missing = a.plan.trials[0].id
    a = dataclasses.replace(a, records={k: v for k, v in a.records.items() if k != missing})
    merged = merge({"a": a, "b": b})
    assert list(merged.plan.sweep.arms) == ["vit_p", "vit_c", "deep"]
    assert len(merged.notices) == 1
    for trial in merged.plan.trials:
        source = b if trial.id == missing or trial.arm == "deep" else a
        assert merged.records[trial.id] == source.records[trial.id]


def test_arms_that_are_the_same_runs_under_two_names_share_their_records_and_that_is_said():
    a, b = part(plan_of(arms={"vit_p": VIT_P})), part(plan_of(arms={"same": VIT_P}), shift=5.0)
    merged = merge({"a": a, "b": b})
    assert merged.records == a.records
    assert merged.notices == ["same of b is the same runs as vit_p of a: both have the records of a"]


def confirmed(plan: Plan, seeds: int = 2) -> Plan:
    (arm,) = plan.sweep.arms
    return with_confirmation(plan, Confirmation({("adamw", arm): (3, 1)}, seeds))


def test_confirmations_come_along():
    a, b = confirmed(plan_of(arms={"vit_p": VIT_P})), plan_of(arms={"vit_p": VIT_C})
    merged = merge({"a": part(a), "b": part(b)})
    again = [t for t in merged.plan.trials if t.role == "confirm"]
    assert [t.id for t in again] == [t.id for t in a.trials if t.role == "confirm"]
    assert {t.arm for t in again} == {"vit_p.a"}
    assert merged.confirmation == Confirmation({("adamw", "vit_p.a"): (1, 3)}, 2)
    assert all(merged.origin[t.id] == "a" for t in again)
    both = merge({"a": part(a), "b": part(confirmed(b))})
    assert sum(t.role == "confirm" for t in both.plan.trials) == 2 * len(again) == 8
    assert "seeds of confirm: 2 in a, 3 in b" in reasons(a=a, b=confirmed(b, seeds=3))


def test_three_sweeps_with_names_no_file_allows_are_joined():
    arms = ({"x": VIT_P}, {"x": VIT_C}, {"x": {**VIT_P, "model.depth": 2}})
    names = ("my sweep", "s" * 60, "ü")
    merged = merge({name: part(plan_of(arms=arm)) for name, arm in zip(names, arms, strict=True)})
    assert list(merged.plan.sweep.arms) == ["x.my-sweep", "x.2", "x.-"]
    assert len({trial.id for trial in merged.plan.trials}) == 3 * len(plan_of(arms=arms[0]).trials)


def other_data(plan: Plan, **changes: Any) -> Plan:
    infos: dict[Any, DataInfo] = {c: dataclasses.replace(i, **changes) for c, i in plan.infos.items()}
    return make_plan(plan.sweep, infos)


B: dict[str, Any] = {"arms": {"vit_c": VIT_C}}
INCOMPARABLE = {
    "epochs": (lambda: plan_of(**B, base__schedule__epochs=3), "schedule.epochs: 2 in a, 3 in b"),
    "epochs of the arm's own": (
        lambda: plan_of(arms={"vit_c": {**VIT_C, "schedule.epochs": 3}}),
        "schedule.epochs: 2 in a, 3 in b",
    ),
    "batch size": (lambda: plan_of(**B, base__batch_size=32), "batch_size: 64 in a, 32 in b"),
    "a setting of one cell": (
        lambda: plan_of(**B, cells__optimizer__sgd={"optim.name": "sgd", "batch_size": 32}),
        "batch_size: 64 in a, 32 in b (in sgd)",
    ),
    "seed": (lambda: plan_of(**B, design__seed=1), "design.seed: 0 in a, 1 in b, so the points differ"),
    "design": (
        lambda: plan_of(**B, design={"kind": "random", "points": 4}),
        "design.kind: sobol in a, random in b, so the points differ",
    ),
    "scrambles": (
        lambda: plan_of(**B, design__scrambles=2),
        "design.scrambles: 1 in a, 2 in b, so the points differ",
    ),
    "number of points": (
        lambda: plan_of(**B, design__points=2),
        "design.points: 4 in a, 2 in b; run b with --points 4, its points stay as they are",
    ),
    "windows": (
        lambda: plan_of(**B, vary={**TREE["vary"], "optim.weight_decay": {"uniform": [0, 0.2]}}),
        "vary.optim.weight_decay: uniform [0.0, 0.1] in a, uniform [0.0, 0.2] in b, so the points differ",
    ),
    "windows of a cell": (
        lambda: plan_of(**B, vary={**TREE["vary"], "optim.lr": {"uniform": [0.1, 0.2]}}),
        "vary.optim.lr: adamw: log_uniform [0.00025, 0.008]; sgd: log_uniform [0.1, 3.2] in a, "
        "uniform [0.1, 0.2] in b",
    ),
    "what varies": (
        lambda: plan_of(**B, vary={**TREE["vary"], "batch_size": {"choice": [32, 64]}}),
        "vary.batch_size: not varied in a, choice [32, 64] in b",
    ),
    "cells": (
        lambda: plan_of(**B, cells={}, base__optim__name="sgd", primary=None,
                        vary={"optim.lr": {"uniform": [0.1, 0.2]}, "optim.weight_decay": {"choice": [0.1]}}),
        "cells: adamw, sgd in a, all in b",
    ),
    "replicates": (lambda: plan_of(**B, replicates=2), "replicates: 1 in a, 2 in b"),
    "noise": (lambda: plan_of(**B, noise={"seeds": 2}), "noise: none in a, {'points': 1, 'seeds': 2} in b"),
    "which error": (lambda: plan_of(**B, error="best_epoch"), "error: last_epoch in a, best_epoch in b"),
    "workers": (lambda: plan_of(**B, resources={"workers": 2}), "resources.workers: 1 in a, 2 in b"),
    "data": (
        lambda: other_data(plan_of(**B), fingerprint="other"),
        "in a, other in b",
    ),
    "splits": (
        lambda: other_data(plan_of(**B), sizes={"train": 1199, "val": 299, "test": 298}),
        "data: test split: 299 images, ",
    ),
    "names": (
        lambda: plan_of(arms={"sgd": VIT_C}, cells={"optimizer": {"adamw": {"optim.name": "adamw"},
                        "SGD": {"optim.name": "sgd"}}}, vary={"optim.lr": {"uniform": [0.1, 0.2]},
                        "optim.weight_decay": {"choice": [0.1]}}, primary=None),
        "arms.sgd: an arm of b is called like a level of another sweep",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INCOMPARABLE)
def test_what_is_not_comparable_is_refused_with_its_reason(name):
    make, reason = INCOMPARABLE[name]
    assert reason in reasons(a=plan_of(arms={"vit_p": VIT_P}), b=make())


def test_all_reasons_are_told_at_once():
    other = plan_of(**B, base__schedule__epochs=3, base__batch_size=32, design__seed=1)
    text = reasons(a=plan_of(arms={"vit_p": VIT_P}), b=other)
    assert text.splitlines() == [
        "a, b: cannot be compared, for 3 reason(s)",
        "  design.seed: 0 in a, 1 in b, so the points differ",
        "  schedule.epochs: 2 in a, 3 in b",
        "  batch_size: 64 in a, 32 in b",
    ]


def test_settings_that_one_file_cannot_hold_are_refused_and_not_run_together():
    # The arm of a sets what b leaves at its default: in one file b's arm would get it, too, or not as it ran.
    cells = {"size": {"small": {"model.depth": 2}, "same": {}}}
    same = {"cells": cells, "vary": {"optim.lr": {"uniform": [0.01, 0.1]}}, "primary": None}
    base = {**TREE["base"], "optim": {"name": "adamw", "weight_decay": 0.1}}
    deep = {**base, "model": {**TREE["base"]["model"], "depth": 5}}
    a = plan_of(**same, base=base, arms={"vit_p": VIT_P})
    b = plan_of(**same, base=deep, arms={"vit_c": VIT_C})
    text = reasons(a=a, b=b)
    assert "arms.vit_c of b: 4 of its 8 trials are other runs" in text


def test_one_sweep_is_no_comparison():
    assert "it takes two sweeps" in reasons(a=plan_of())


def test_primary_contrasts_that_differ_are_dropped_and_said():
    a = plan_of(arms={"vit_p": VIT_P})
    b = plan_of(arms={"vit_c": VIT_C}, primary={"measure": "error"})
    merged = merge({"a": part(a), "b": part(b)})
    assert merged.plan.sweep.primary is None
    assert merged.notices == ["the sweeps declare different primary contrasts, so the comparison has none"]
