import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.sweep.document import Override
from orchestrator.sweep.load import build_sweep, load_sweep
from orchestrator.trials.confirm import Confirmation, with_confirmation
from orchestrator.trials.gang import Crew, Gang, Node, by_gang, lane_plan, num_lanes
from orchestrator.trials.plan import data_configs
from orchestrator.trials.trial import unique_trials
from tests.support.sweeps import base_tree, plan_with_data, sweep_tree
from trainables.base import derive_seed
from trainables.config import Seeds, TrainConfig
from trainables.data.digits import Digits
from trainables.data.parquet import Parquet
from trainables.identity import identity

LR_WD = Path(__file__).parents[3] / "search_spaces" / "lr_wd.yaml"


def plan_of(*overrides: str, points: int | None = None, tree: dict | None = None):
    settings = [Override.parse(text) for text in overrides]
    if tree is not None:
        sweep = build_sweep(tree, "t.yaml", settings, points)
    else:
        sweep = load_sweep(LR_WD, settings, points)
    return plan_with_data(sweep)


def small(**changes) -> dict:
    base = base_tree(optim={"name": "adamw", "lr": 1e-3, "weight_decay": 0.1})
    tree = sweep_tree(base=base, design={"kind": "random", "points": 2})
    del tree["vary"]
    return tree | changes


# --- trials -------------------------------------------------------------------------------------------


def test_the_default_sweep_has_32_trials():
    trials = plan_of().trials
    # 8 points x 2 optimizers x 2 arms.
    assert len(trials) == len({trial.id for trial in trials}) == 32
    assert {(trial.point, trial.cell_name, trial.arm) for trial in trials} == set(
        itertools.product(range(8), ("adamw", "sgd"), ("vit_p", "vit_c"))
    )


def test_arms_are_paired_they_share_values_and_seeds_at_every_point():
    trials = plan_of("replicates=2").trials
    pairs = {}
    for trial in trials:
        pairs.setdefault((trial.point, trial.cell, trial.replicate), []).append(trial)
    assert len(pairs) == 32
    for p, c in pairs.values():
        assert (p.arm, c.arm) == ("vit_p", "vit_c")
        assert p.values == c.values
        assert p.config.seeds == c.config.seeds
        assert p.config.optim == c.config.optim
    seeds = {trial.config.seeds for trial in trials}
    assert len(seeds) == 16


def test_every_run_of_a_point_knows_the_block_that_the_point_is_in():
    plan = plan_of("design.points=8", "design.scrambles=3", "replicates=2", "noise={points: 2, seeds: 2}")
    longer = with_confirmation(plan, Confirmation({("adamw", "vit_p"): (7, 4)}, seeds=2))
    assert {trial.role for trial in longer.trials} >= {"sweep", "confirm", "noise_init"}
    assert all(trial.block == trial.point % 3 for trial in longer.trials)
    assert {trial.block for trial in plan_of().trials} == {0}


def test_cells_share_the_quantile_of_a_point_and_each_has_its_own_window():
    trials = plan_of().trials
    for adamw, sgd in zip(trials[0::4], trials[2::4], strict=True):
        u = math.log(adamw.values["optim.lr"] / 2.5e-4) / math.log(8e-3 / 2.5e-4)
        v = math.log(sgd.values["optim.lr"] / 0.1) / math.log(3.2 / 0.1)
        assert u == pytest.approx(v)


def test_points_come_first_so_that_a_sweep_cut_off_has_its_arms_paired():
    trials = plan_of().trials
    for done in range(4, 33, 4):
        arms = [(trial.point, trial.cell, trial.arm) for trial in trials[:done]]
        assert len({point for point, _, _ in arms}) == done // 4


def test_a_longer_sweep_begins_with_the_shorter_one():
    few, many = plan_of().trials, plan_of(points=16).trials
    assert [trial.id for trial in many[: len(few)]] == [trial.id for trial in few]
    assert len(many) == 64


def test_what_is_left_to_do_is_intended_minus_done():
    plan = plan_of()
    done = [trial.id for trial in plan.trials[::3]]
    left = plan.remaining(done)
    assert len(left) == 32 - 11
    assert [trial for trial in plan.trials if trial.id not in done] == left


def test_seeds_that_a_file_sets_are_kept():
    trials = plan_of("seeds={init: 3, order: 4, augment: 5}").trials
    assert {trial.config.seeds for trial in trials} == {Seeds(init=3, order=4, augment=5)}


def test_the_cost_of_a_trial_is_three_forward_passes_of_every_image():
    plan = plan_of()
    trial = plan.trials[0]
    cost = plan.cost(trial)
    # 1797 digits less two sixths are 1199; in batches of 64 that is 19 steps; 20 epochs.
    assert Digits().info().sizes["train"] == 1199
    assert (cost.epochs, cost.steps) == (20, 380)
    assert cost.train_flops == 3 * cost.model.flops * 1199 * 20
    assert cost.model == trial.config.model.cost(10)


def test_data_are_named_with_the_key_that_chose_them():
    cells = {"set": {"d": {}, "f": {"data": "/some/where"}}}
    sweep = build_sweep(small(cells=cells), "t.yaml")
    assert data_configs(sweep) == {
        Digits(): "base.data",
        Parquet(path="/some/where"): "cells.set.f.data",
    }


def test_arms_that_coincide_are_trained_once():
    plan = plan_of(tree=small(arms={"a": {}, "b": {"model.stem": "patchify"}, "c": {"model.stem": "conv"}}))
    assert len(plan.trials) == 6
    assert [trial.arm for trial in unique_trials(plan.trials)] == ["a", "c", "a", "c"]


# --- identity -----------------------------------------------------------------------------------------

IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from orchestrator.trials.plan import data_configs, make_plan
from orchestrator.sweep.load import load_sweep
sweep = load_sweep(Path(sys.argv[1]))
plan = make_plan(sweep, {data: data.info() for data in data_configs(sweep)})
print(" ".join(trial.id for trial in plan.trials))
"""


def test_ids_are_the_same_in_another_process():
    here = [trial.id for trial in plan_of().trials]
    ran = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, str(LR_WD)],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == here


def test_an_id_does_not_depend_on_names_order_or_spelling():
    before = {trial.id for trial in plan_of(tree=small()).trials}
    renamed = small(arms={"x": {"model.stem": "conv"}, "y": {"model": {"stem": "patchify"}}}, name="other")
    assert {trial.id for trial in plan_of(tree=renamed).trials} == before
    base = small()["base"]
    written_out = {"width": 64, "depth": 4, "heads": 4, "mlp_ratio": 3}
    shape = {key: value for key, value in base["model"].items() if key != "size"}
    reordered = {key: base[key] for key in reversed(base)} | {"model": shape | written_out}
    assert {trial.id for trial in plan_of(tree=small(base=reordered)).trials} == before
    with_defaults = base | {"label_smoothing": 0.1, "ema": None, "precision": "auto"}
    assert {trial.id for trial in plan_of(tree=small(base=with_defaults)).trials} == before


@pytest.mark.parametrize(
    "setting",
    [
        "optim.lr=2e-3",
        "optim.beta2=0.99",
        "schedule.epochs=4",
        "schedule.warmup=1",
        "model.drop_path=0.1",
        "model.init=torchvision",
        "model.heads=2",
        "augment.flip=0.5",
        "augment=paper",
        "mixup={}",
        "ema={}",
        "ema.every_steps=1",
        "precise_bn_images=100",
        "batch_size=32",
        "clip_grad_norm=1",
        "precision=bf16",
        "divergence.margin_pct=2",
        "seeds.init=1",
        "data.split_seed=1",
        "design.seed=1",
        "resources.workers=2",
        "recipe=paper",
    ],
)
def test_an_id_changes_with_every_setting_that_decides_the_result(setting):
    before = {trial.id for trial in plan_of(tree=small()).trials}
    assert before.isdisjoint(trial.id for trial in plan_of(setting, tree=small()).trials)


@pytest.mark.parametrize("setting", ["resources.lanes=3", "resources.retries=4", "error=best_epoch"])
def test_an_id_stays_where_the_result_does(setting):
    before = [trial.id for trial in plan_of(tree=small()).trials]
    assert [trial.id for trial in plan_of(setting, tree=small()).trials] == before


def test_an_id_changes_with_the_data_and_not_with_their_place(write_parquet, png_bytes):
    images = [png_bytes([[[i, 0, 0]]]) for i in range(40)]

    def ids(name, labels):
        path = write_parquet(name, images, labels)
        return [trial.id for trial in plan_of(f"data={path}", tree=small()).trials]

    labels = [i % 2 for i in range(40)]
    before = ids("a/x.parquet", labels)
    assert ids("b/y.parquet", labels) == before
    assert set(ids("c/x.parquet", labels[::-1])).isdisjoint(before)


def test_the_id_of_one_run_is_pinned(run_tree):
    # Finished runs are found by their id: a change of this one loses all that anyone has run.
    config = TrainConfig.model_validate(run_tree(model__stem="conv", ema={}, schedule__warmup="20%"))
    assert identity(config, "data") == "65c43580ca19a86e"
    # By hand: what is not a default, keys sorted, without spaces.
    content = {
        "batch_size": 128,
        "data": "data",
        "ema": {},
        "model": {
            "depth": 2,
            "family": "vit",
            "heads": 2,
            "image_size": 16,
            "mlp_ratio": 2.0,
            "patch_size": 8,
            "stem": "conv",
            "width": 16,
        },
        "optim": {"lr": 0.002, "name": "adamw", "weight_decay": 0.1},
        "schedule": {"epochs": 2, "warmup": {"share": 0.2}},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert identity(config, "data") == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_seed_depends_on_every_name_and_is_the_same_everywhere():
    assert derive_seed("a", 1) == derive_seed("a", 1)
    assert len({derive_seed("a", 1), derive_seed("a", 2), derive_seed("b", 1), derive_seed("a1")}) == 4
    assert 0 <= derive_seed("x") < 2**63
    # The first eight bytes of the digest of both names, shifted right by one.
    assert derive_seed("a", 1) == int(hashlib.sha256(b"a\x1f1").hexdigest()[:16], 16) >> 1


# --- gangs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gang", "nodes", "num_trials", "lanes"),
    [
        (Gang(1, 1, 0.0), [Node(2, 0)], 100, 2),
        (Gang(1, 1, 0.0), [Node(2, 0)], 1, 1),
        (Gang(2, 1, 0.0), [Node(3, 0)], 100, 1),
        # Two nodes of three cores each hold three gangs of two workers: one of them sits on both.
        (Gang(2, 1, 0.0), [Node(3, 0), Node(3, 0)], 100, 3),
        # A worker of two cores is not split: one fits on each node of three.
        (Gang(1, 2, 0.0), [Node(3, 0), Node(3, 0)], 100, 2),
        (Gang(4, 1, 0.0), [Node(3, 0)], 100, 0),
        (Gang(1, 4, 0.0), [Node(3, 0), Node(3, 0)], 100, 0),
        (Gang(1, 1, 1.0), [Node(64, 8)], 100, 8),
        (Gang(4, 1, 1.0), [Node(64, 8)], 100, 2),
        (Gang(4, 1, 1.0), [Node(64, 6), Node(64, 6)], 100, 3),
        (Gang(1, 16, 1.0), [Node(64, 8)], 100, 4),
        (Gang(1, 1, 0.5), [Node(64, 2)], 100, 4),
        (Gang(1, 1, 0.1), [Node(64, 1)], 100, 10),
        # 0.4 of a GPU fits twice on one; the rest of 0.2 of each GPU is of no use.
        (Gang(1, 1, 0.4), [Node(64, 2)], 100, 4),
        (Gang(1, 1, 0.7), [Node(64, 3)], 100, 3),
        (Gang(1, 1, 2.0), [Node(64, 5)], 100, 2),
        (Gang(1, 1, 1.0), [Node(64, 0)], 100, 0),
        (Gang(1, 1, 0.0), [], 100, 0),
        (Gang(1, 1, 0.0), [Node(0.5, 0)], 100, 0),
    ],
    ids=str,
)
def test_whole_gangs_are_admitted_and_no_worker_is_split(gang, nodes, num_trials, lanes):
    assert num_lanes(gang, nodes, num_trials) == lanes


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("cpus", [1, 2, 3])
def test_as_many_lanes_as_placing_workers_one_by_one_finds(workers, cpus):
    for cores in itertools.product(range(5), repeat=3):
        nodes, free, placed = [Node(core, 0) for core in cores], list(cores), 0
        while any(core >= cpus for core in free):
            at = next(i for i, core in enumerate(free) if core >= cpus)
            free[at] -= cpus
            placed += 1
        assert num_lanes(Gang(workers, cpus, 0.0), nodes, 100) == placed // workers


def test_a_gpu_is_taken_where_there_are_any_unless_the_file_says_otherwise():
    with_gpus, without = [Node(4, 0), Node(4, 2)], [Node(4, 0)]
    assert Gang(2, 1, None).on(with_gpus) == Gang(2, 1, 1.0)
    assert Gang(2, 1, None).on(without) == Gang(2, 1, 0.0)
    assert Gang(2, 1, 0.0).on(with_gpus) == Gang(2, 1, 0.0)
    assert Gang(2, 1, 0.5).on(without) == Gang(2, 1, 0.5)


def test_large_gangs_go_first():
    cells = {
        "size": {
            "s": {},
            "l": {"resources.workers": 4},
            "g": {"resources.workers": 6, "resources.gpus_per_worker": 1},
        }
    }
    groups = by_gang(plan_of(tree=small(cells=cells)).trials)
    assert [gang.workers for gang in groups] == [6, 4, 1]
    assert [len(trials) for trials in groups.values()] == [4, 4, 4]
    assert str(next(iter(groups))) == "6 workers with 1 CPU, 1 GPU each"


def test_a_lane_plan_has_a_crew_per_gang_with_as_many_lanes_as_there_is_room_for():
    cells = {"s": {}, "l": {"resources.workers": 4}}
    trials = plan_of(tree=small(cells={"size": cells})).trials
    large, small_ones = [[t for t in trials if t.gang.workers == workers] for workers in (4, 1)]
    one, two = Gang(1, 1, 0.0), Gang(4, 1, 0.0)
    # Of ten cores four workers each take eight, and one each as many as there are trials.
    assert lane_plan(trials, [Node(10, 0)]) == [Crew(two, large, 2), Crew(one, small_ones, 4)]
    # The file's number counts, whatever there is, but never more than there are trials.
    assert [crew.lanes for crew in lane_plan(trials, [Node(1, 0)], 3)] == [3, 3]
    assert [crew.lanes for crew in lane_plan(trials, [Node(1, 0)], 9)] == [4, 4]
    assert [crew.lanes for crew in lane_plan(trials, [Node(3, 0)])] == [0, 3]
    assert [crew.gang.gpus for crew in lane_plan(trials, [Node(8, 8)])] == [1.0, 1.0]
