"""What a sweep file can say beyond plain windows: when, zip, where, structures, files that extend others."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from scipy import stats

from orchestrator.store.folder import merge_points, open_folder, save_question
from orchestrator.store.journal import FolderError
from orchestrator.sweep.constraints import ConstraintError
from orchestrator.sweep.design import LatinDesign
from orchestrator.sweep.document import Override, SweepError
from orchestrator.sweep.load import build_sweep, load_sweep
from tests.support.sweeps import plan_with_data, sweep_tree
from trainables.config import TrainConfig, setting
from trainables.profiling.footprint import footprint

LR_WD = Path(__file__).parents[3] / "search_spaces" / "lr_wd.yaml"
LR = {"log_uniform": [1e-4, 1e-2]}


def tree(**changes) -> dict:
    return sweep_tree(**{"design": {"kind": "random", "points": 40}} | changes)


def plan_of(points: int | None = None, **changes):
    sweep = build_sweep(tree(**changes), "small.yaml", points=points)
    return plan_with_data(sweep)


def fault_of(**changes) -> str:
    with pytest.raises(SweepError) as caught:
        build_sweep(tree(**changes), "small.yaml")
    [fault] = caught.value.faults
    return str(fault)


def values(plan, arm: str, path: str) -> dict[int, object]:
    return {t.point: t.values[path] for t in plan.trials if t.arm == arm and path in t.values}


def test_the_ids_of_the_sweep_that_ships_are_what_they_were():
    # From the commit before conditional parameters came in: 64 points, 256 trials.
    sweep = load_sweep(LR_WD, points=64)
    plan = plan_with_data(sweep)
    digest = hashlib.sha256("".join(trial.id for trial in plan.trials).encode()).hexdigest()
    assert digest.startswith("998f27918669638a")


# --- when ---------------------------------------------------------------------------------------------

BY_OPTIMIZER = {
    "optim.lr": LR,
    "optim.name": {"choice": ["adamw", "sgd"]},
    "optim.weight_decay": {"uniform": [0, 0.1]},
    "optim.momentum": {"uniform": [0, 0.99], "when": {"optim.name": "sgd"}},
    "optim.beta1": {"uniform": [0.8, 0.95], "when": {"optim.name": ["adamw"]}},
}


def test_a_conditional_parameter_is_drawn_exactly_where_its_condition_holds():
    plan = plan_of(vary=BY_OPTIMIZER)
    seen = set()
    for trial in plan.trials:
        name = trial.values["optim.name"]
        seen.add(name)
        assert ("optim.momentum" in trial.values) == (name == "sgd")
        assert ("optim.beta1" in trial.values) == (name == "adamw")
        assert trial.config.optim.name == name
    assert seen == {"adamw", "sgd"}


def test_what_is_not_drawn_shifts_nothing_that_is():
    plain = {path: domain for path, domain in BY_OPTIMIZER.items() if "when" not in domain}
    with_it, without = plan_of(vary=BY_OPTIMIZER), plan_of(vary=plain)
    for path in plain:
        assert values(with_it, "p", path) == values(without, "p", path)
    # The quantiles of a conditional parameter are those it would have unconditionally.
    always = plan_of(vary=plain | {"label_smoothing": {"uniform": [0, 0.5]}})
    some = plan_of(vary=plain | {"label_smoothing": {"uniform": [0, 0.5], "when": {"optim.name": "sgd"}}})
    found = values(some, "p", "label_smoothing")
    assert 0 < len(found) < 40
    assert found.items() <= values(always, "p", "label_smoothing").items()


def test_arms_share_what_both_draw_where_one_draws_more():
    vary = {"optim.lr": LR, "model.drop_path": {"uniform": [0, 0.3], "when": {"model.stem": "conv"}}}
    plan = plan_of(vary=vary)
    assert values(plan, "p", "optim.lr") == values(plan, "c", "optim.lr")
    assert len(values(plan, "c", "model.drop_path")) == 40
    assert values(plan, "p", "model.drop_path") == {}
    [cell] = plan.sweep.all_cells()
    assert list(plan.sweep.domains("p", cell)) == ["optim.lr"]
    assert list(plan.sweep.domains("c", cell)) == ["optim.lr", "model.drop_path"]


def test_a_condition_may_wait_for_a_parameter_that_waits_itself():
    vary = BY_OPTIMIZER | {
        "optim.nesterov": {"choice": [True, False], "when": {"optim.name": "sgd"}},
        "label_smoothing": {"uniform": [0, 0.2], "when": {"optim.nesterov": False}},
    }
    for trial in plan_of(vary=vary).trials:
        assert ("label_smoothing" in trial.values) == (trial.values.get("optim.nesterov") is False)


def test_a_condition_looks_at_defaults_and_at_what_a_size_stands_for():
    run = {
        "model": {"family": "vit", "size": "nano", "image_size": 32, "patch_size": 8},
        "optim": {"name": "sgd"},
    }
    assert setting(run, "model.width") == 64
    assert setting(run, "model.stem") == "patchify"
    assert setting(run, "optim.name") == "sgd"
    assert setting(run | {"recipe": "paper"}, "batch_size") == 2048
    assert setting(run, "label_smoothing") == TrainConfig.model_fields["label_smoothing"].default
    for path in ("optim.beta1", "optim.lr", "nonsense", "ema.time_constant", "model.stem.norm"):
        with pytest.raises(KeyError):
            setting(run, path)


@pytest.mark.parametrize(
    ("when", "fault"),
    [
        (
            {"optim.nam": "sgd"},
            "vary.x.when.optim.nam: names no setting of a run; did you mean `optim.name`?",
        ),
        ({"optim.name": "sdg"}, "vary.x.when: holds in no arm, cell or point: nowhere optim.name is 'sdg'"),
        ({"label_smoothing": 0.1}, "vary.x.when.label_smoothing: a parameter cannot wait for itself"),
    ],
)
def test_a_condition_that_cannot_hold_is_a_fault(when, fault):
    vary = {"optim.lr": LR, "label_smoothing": {"uniform": [0, 0.2], "when": when}}
    assert fault_of(vary=vary) == fault.replace("vary.x", "vary.label_smoothing")


def test_parameters_that_wait_for_each_other_are_a_fault():
    vary = {
        "optim.lr": LR,
        "label_smoothing": {"choice": [0, 0.1], "when": {"precise_bn_images": 5}},
        "precise_bn_images": {"choice": [0, 5], "when": {"label_smoothing": 0.1}},
    }
    assert "wait for each other" in fault_of(vary=vary)


# --- zip and structures -------------------------------------------------------------------------------


def test_tied_parameters_move_together():
    vary = {
        "optim.lr": LR,
        "optim.weight_decay": {"log_uniform": [1e-3, 1e-1], "zip": "optim.lr"},
        "model.width": {"ordinal": [32, 64, 128]},
        "model.heads": {"ordinal": [2, 4, 8], "zip": "model.width"},
    }
    plan = plan_of(vary=vary)
    pairs = {(t.values["model.width"], t.values["model.heads"]) for t in plan.trials}
    assert pairs == {(32, 2), (64, 4), (128, 8)}
    # Both windows span two decades, one ten times the other.
    for trial in plan.trials:
        assert trial.values["optim.weight_decay"] == pytest.approx(10 * trial.values["optim.lr"])
    assert plan.sweep.levels() == {"optim.lr": None, "model.width": 3}


def test_tied_values_are_tried_together_and_count_once_in_a_grid():
    # 8 heads do not divide a width of 36: only the pairs that are drawn have to be valid.
    vary = {
        "optim.lr": {"choice": [1e-3]},
        "model.width": {"choice": [36, 64]},
        "model.heads": {"choice": [6, 8], "zip": "model.width"},
    }
    assert len(plan_of(vary=vary, design={"kind": "grid"}).trials) == 2 * 2


@pytest.mark.parametrize(
    ("tied", "fault"),
    [
        (
            {"choice": [1, 2], "zip": "optim.lr"},
            "vary.x: must have an interval, as optim.lr, to which it is tied",
        ),
        (
            {"choice": [1, 2], "zip": "model.width"},
            "vary.x: must have 3 values, as many as model.width, to which it is tied",
        ),
        (
            {"choice": [1, 2], "zip": "model.witdh"},
            "vary.x.zip: must be another path under vary, one that is drawn itself (got model.witdh); "
            "did you mean `model.width`?",
        ),
    ],
)
def test_a_tie_that_cannot_be_is_a_fault(tied, fault):
    vary = {"optim.lr": LR, "model.width": {"choice": [32, 64, 128]}, "model.heads": tied}
    assert fault_of(vary=vary) == fault.replace("vary.x", "vary.model.heads")


def test_a_choice_may_list_whole_structures():
    vary = {
        "optim.lr": LR,
        "model": {"choice": ["vit_p_1gf", {"family": "resnet", "layers": 50}]},
        "optim": {"choice": [{"name": "adamw", "weight_decay": 0.2}, {"name": "sgd", "weight_decay": 0}]},
    }
    found = {
        (t.config.model.family, t.config.optim.name, t.config.optim.weight_decay)
        for t in plan_of(vary=vary, arms={"only": {}}).trials
    }
    assert found == set(itertools.product(["vit", "resnet"], ["adamw", "sgd"], [0.2, 0])) - {
        (family, *wrong) for family in ("vit", "resnet") for wrong in (("adamw", 0), ("sgd", 0.2))
    }


def test_data_may_be_drawn_from_a_list_and_nothing_else():
    plan = plan_of(vary={"optim.lr": LR, "data.split_seed": {"choice": [1, 2]}})
    assert {data.split_seed for data in plan.infos} == {1, 2}
    vary = {"optim.lr": LR, "data.val_share": {"uniform": [0.1, 0.2]}}
    assert (
        fault_of(vary=vary) == "vary.data.val_share: a parameter of the data must be a choice or an ordinal"
    )


# --- where --------------------------------------------------------------------------------------------

SHAPES = {
    "optim.lr": LR,
    "model.width": {"choice": [32, 64, 96]},
    "label_smoothing": {"p": {"uniform": [0, 0.1]}, "c": {"uniform": [0, 0.2]}},
}


def test_a_point_that_breaks_a_constraint_is_missing_in_every_arm_and_no_other_moves():
    before = plan_of(vary=SHAPES)
    after = plan_of(vary=SHAPES, where=["label_smoothing <= 0.1", "optim.lr < 5e-3"])
    # By brute force over the unconstrained plan.
    broken = {
        t.point for t in before.trials if t.config.label_smoothing > 0.1 or not t.config.optim.lr < 5e-3
    }
    assert 0 < len(broken) < 40
    assert [t.id for t in after.trials] == [t.id for t in before.trials if t.point not in broken]
    assert {t.point for t in after.trials if t.arm == "p"} == {t.point for t in after.trials if t.arm == "c"}


def test_what_each_constraint_removes_is_counted_per_arm():
    before = plan_of(vary=SHAPES)
    plan = plan_of(vary=SHAPES, where=["label_smoothing <= 0.1", "optim.lr < 5e-3"])
    for removal in plan.removals:
        mine = [t for t in before.trials if t.arm == removal.arm]
        smooth = removal.constraint.startswith("label")
        wanted = sum(t.config.label_smoothing > 0.1 if smooth else t.config.optim.lr >= 5e-3 for t in mine)
        assert (removal.removed, removal.drawn, removal.cell_name) == (wanted, 40, "all")
    assert {(r.arm, r.constraint[:5]) for r in plan.removals} == set(
        itertools.product(["p", "c"], ["label", "optim"])
    )
    assert next(r.removed for r in plan.removals if (r.arm, r.constraint[:5]) == ("p", "label")) == 0


def test_cost_can_be_constrained():
    before = plan_of(vary=SHAPES)
    limit = sorted(before.cost(t).model.flops_g for t in before.trials)[len(before.trials) // 2]
    after = plan_of(vary=SHAPES, where=[f"flops_g <= {limit}", "params_m < 10 and activations_m > 0"])
    costs = {t.point: [] for t in before.trials}
    for trial in before.trials:
        costs[trial.point].append(before.cost(trial).model.flops_g)
    assert {t.point for t in after.trials} == {p for p, found in costs.items() if max(found) <= limit}


@pytest.mark.parametrize(("resources", "on_gpu"), [({"workers": 2}, True), ({"gpus_per_worker": 0}, False)])
def test_memory_can_be_constrained(resources, on_gpu):
    before = plan_of(vary=SHAPES, resources=resources)
    peaks = {t.point: [] for t in before.trials}
    for trial in before.trials:
        # 1797 digits, of which 1199 are trained on.
        found = footprint(trial.config, 10, 1199, 1797, trial.gang.workers, on_gpu)
        peaks[trial.point].append(found.peak / 2**30)
    limit = sorted(max(found) for found in peaks.values())[len(peaks) // 2]
    after = plan_of(vary=SHAPES, resources=resources, where=[f"memory_gib < {limit!r}"])
    wanted = {point for point, found in peaks.items() if max(found) < limit}
    assert 0 < len(wanted) < len(peaks)
    assert {t.point for t in after.trials} == wanted


def test_settings_that_are_no_run_may_be_removed_by_a_constraint():
    vary = {"optim.lr": LR, "model.width": {"choice": [48, 64]}, "model.heads": {"choice": [4, 6]}}
    with pytest.raises(ValidationError, match="heads must divide width, got heads=6, width=64"):
        plan_of(vary=vary)
    plan = plan_of(vary=vary, where=["model.width % model.heads == 0"])
    drawn = {(t.values["model.width"], t.values["model.heads"]) for t in plan.trials}
    assert drawn == {(48, 4), (48, 6), (64, 4)}


def test_a_longer_constrained_sweep_begins_with_the_shorter_one():
    where = ["optim.lr < 2e-3", "label_smoothing < 0.15"]
    few = plan_of(vary=SHAPES, where=where, design={"kind": "sobol", "points": 16}, noise={"points": 2})
    many = plan_of(
        points=64, vary=SHAPES, where=where, design={"kind": "sobol", "points": 16}, noise={"points": 2}
    )
    assert [t.id for t in few.trials] == [t.id for t in many.trials][: len(few.trials)]
    assert len(many.trials) > len(few.trials)
    # Noise runs go to the first points that are left.
    left = list(dict.fromkeys(t.point for t in many.trials))
    assert {t.point for t in many.trials if t.role != "sweep"} == set(left[:2])


def test_a_constraint_that_leaves_nothing_is_an_error():
    with pytest.raises(ConstraintError, match="leaves none of 40 points in cell all"):
        plan_of(vary=SHAPES, where=["batch_size < 64"])


# --- latin --------------------------------------------------------------------------------------------

LEVELS = {"optim.lr": None, "model.depth": 4, "a.b": None}


@pytest.mark.parametrize("points", [1, 7, 32])
def test_a_latin_hypercube_has_one_point_in_every_interval_of_every_parameter(points):
    for column in LatinDesign(points=points, seed=2).quantiles(LEVELS).values():
        assert sorted((column * points).astype(int)) == list(range(points))


def test_the_columns_of_a_latin_hypercube_are_independent():
    columns = list(LatinDesign(points=4000).quantiles(LEVELS).values())
    for a, b in itertools.combinations(columns, 2):
        # The rank correlation of independent columns has standard error 1 / sqrt(n): 0.016; five of them.
        assert abs(stats.spearmanr(a, b).statistic) < 0.08


def test_another_parameter_keeps_the_columns_of_the_others():
    before, after = (LatinDesign(points=16).quantiles(levels) for levels in (LEVELS, {"z": 3, **LEVELS}))
    for name, column in before.items():
        assert np.array_equal(column, after[name])


def test_a_folder_with_a_latin_design_refuses_another_number_of_points(tmp_path):
    def latin(points):
        return plan_of(design={"kind": "latin", "points": points})

    save_question(tmp_path, latin(8))
    assert merge_points(tmp_path, latin(8).sweep) == latin(8).sweep
    for points in (4, 16):
        with pytest.raises(FolderError, match="a latin design cannot be extended"):
            merge_points(tmp_path, latin(points).sweep)


# --- extends ------------------------------------------------------------------------------------------


def write(folder: Path, **files: dict) -> None:
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def test_a_file_laid_over_another_changes_what_it_names_and_nothing_else(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path, below=tree(question="?", resources={"lanes": 2}))
    write(
        tmp_path / "deep",
        above={
            "extends": "../below.yaml",
            "base": {"schedule.epochs": 7, "optim": {"name": "sgd", "weight_decay": 0}},
            "arms": {"c": None, "d": {"model.depth": 5}},
            "vary": {"optim.lr": {"uniform": [1, 2]}},
            "design": {"points": 3},
            "resources": {"workers": 2},
        },
    )
    sweep, before = load_sweep(tmp_path / "deep" / "above.yaml"), load_sweep(tmp_path / "below.yaml")
    assert (sweep.name, before.name) == ("above", "small")
    assert list(sweep.arms) == ["p", "d"]
    assert (sweep.question, sweep.resources.lanes, sweep.resources.workers) == ("?", 2, 2)
    assert (sweep.design.kind, sweep.design.points, before.design.points) == ("random", 3, 40)
    [cell] = sweep.all_cells()
    config, _ = sweep.settings("d", cell, {"optim.lr": 1})
    assert (config.schedule.epochs, config.optim.name, config.model.depth) == (7, "sgd", 5)
    assert (config.model.width, config.batch_size) == (64, 64)
    assert sweep.domains("p", cell)["optim.lr"].ends == (1, 2)


def test_a_design_of_another_kind_keeps_nothing_of_the_old_one(tmp_path):
    write(tmp_path, a=tree(), b={"extends": "a.yaml", "design": {"kind": "grid", "levels": 2}})
    assert load_sweep(tmp_path / "b.yaml").design.kind == "grid"


def test_of_several_files_the_later_ones_win_and_the_file_itself_last(tmp_path):
    write(
        tmp_path,
        a=tree(),
        b={"base": {"batch_size": 16, "label_smoothing": 0.3}},
        c={"extends": ["a.yaml", "b.yaml"], "base": {"label_smoothing": 0.2}},
    )
    sweep = load_sweep(tmp_path / "c.yaml", [Override.parse("vary.optim.lr={uniform: [1, 2]}")])
    assert (sweep.base["batch_size"], sweep.base["label_smoothing"]) == (16, 0.2)
    assert sweep.vary["optim.lr"].everywhere.ends == (1, 2)


def test_a_fault_names_the_file_it_comes_from(tmp_path):
    write(
        tmp_path,
        a=tree(base=tree()["base"] | {"bach_size": 3}),
        b={"extends": "a.yaml", "base": {"schedule": {"epochs": 0}}},
    )
    with pytest.raises(SweepError) as caught:
        load_sweep(tmp_path / "b.yaml", [Override.parse("label_smoothing=2")])
    head, *lines = str(caught.value).splitlines()
    assert head == f"{tmp_path}/b.yaml: 3 faults"
    starts = sorted(line.strip() for line in lines)
    assert starts[0].startswith("--set label_smoothing=2: base.label_smoothing: must be less than 1")
    line = 1 + [text.strip() for text in (tmp_path / "a.yaml").read_text().splitlines()].index("bach_size: 3")
    assert starts[1].startswith(f"{tmp_path}/a.yaml:{line}:3: base.bach_size: unknown key")
    assert starts[2].startswith(f"{tmp_path}/b.yaml:4:5: base.schedule.epochs: must be greater than 0")


def test_files_that_extend_each_other_or_too_many_are_refused(tmp_path):
    write(tmp_path, a={"extends": "b.yaml"}, b={"extends": ["a.yaml"]})
    with pytest.raises(SweepError, match=r"a\.yaml extends .*b\.yaml extends .*a\.yaml"):
        load_sweep(tmp_path / "a.yaml")
    many = {f"f{i}": {"extends": [f"f{i + 1}.yaml"] * 9} for i in range(9)}
    write(tmp_path, f9={}, **many)
    with pytest.raises(SweepError, match="leads to more than 100 files"):
        load_sweep(tmp_path / "f0.yaml")


def test_the_folder_of_a_sweep_needs_none_of_the_files_it_was_written_in(tmp_path):
    vary = BY_OPTIMIZER | {
        "model.width": {"ordinal": [32, 64]},
        "model.heads": {"p": {"choice": [2, 4]}, "c": {"choice": [4, 8]}, "zip": "model.width"},
    }
    where = ["optim.lr * optim.weight_decay < 1e-4", "params_m < 100"]
    write(tmp_path, a=tree(), b={"extends": "a.yaml", "vary": vary, "where": where, "design": {"points": 6}})
    sweep = load_sweep(tmp_path / "b.yaml")
    plan = plan_with_data(sweep)
    save_question(tmp_path / "run", plan)
    for file in tmp_path.glob("*.yaml"):
        file.unlink()
    opened = open_folder(tmp_path / "run").plan
    assert [trial.id for trial in opened.trials] == [trial.id for trial in plan.trials]
    assert opened.removals == plan.removals
    assert "extends" not in (tmp_path / "run" / "sweep.yaml").read_text()
