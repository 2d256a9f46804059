from pathlib import Path

import pytest

from orchestrator.sweep.config import Sweep
from orchestrator.sweep.design import SobolDesign
from orchestrator.sweep.document import Override, SweepError
from orchestrator.sweep.load import build_sweep, load_sweep
from orchestrator.sweep.space import Window
from tests.support.sweeps import sweep_tree
from trainables.data.parquet import Parquet
from trainables.models.cnn import ResNetConfig

LR_WD = Path(__file__).parents[3] / "search_spaces" / "lr_wd.yaml"


def tree(**changes) -> dict:
    return sweep_tree(**{"design": {"kind": "random", "points": 4}} | changes)


def sweep_of(*overrides: str, **changes) -> Sweep:
    return build_sweep(tree(**changes), "small.yaml", [Override.parse(text) for text in overrides])


def faults_of(*overrides: str, **changes) -> list[str]:
    with pytest.raises(SweepError) as caught:
        sweep_of(*overrides, **changes)
    head, *lines = str(caught.value).splitlines()
    assert head == f"small.yaml: {len(lines)} fault{'s' if len(lines) > 1 else ''}"
    return [line.strip() for line in lines]


def config_of(sweep: Sweep, arm: str = "p", **values):
    [cell] = sweep.all_cells()
    return sweep.settings(arm, cell, {"optim.lr": 1e-3} | values)[0]


# --- the file that ships ------------------------------------------------------------------------------


def test_the_default_sweep_asks_what_its_question_says():
    sweep = load_sweep(LR_WD)
    assert sweep.name == "lr_wd"
    assert list(sweep.arms) == ["vit_p", "vit_c"]
    assert sweep.cell_names() == ["adamw", "sgd"]
    # The paper's table 4, right: the windows of the ViT family.
    windows = {
        (level, path): domain.ends
        for cell, level in zip(sweep.all_cells(), ("adamw", "sgd"), strict=True)
        for path, domain in sweep.domains("vit_p", cell).items()
    }
    assert windows == {
        ("adamw", "optim.lr"): (2.5e-4, 8e-3),
        ("adamw", "optim.weight_decay"): (0.02, 0.8),
        ("sgd", "optim.lr"): (0.1, 3.2),
        ("sgd", "optim.weight_decay"): (4e-6, 1.2e-4),
    }
    assert isinstance(sweep.design, SobolDesign)


def test_arms_differ_in_the_stem_and_in_nothing_else():
    sweep = load_sweep(LR_WD)
    values = {"optim.lr": 1e-3, "optim.weight_decay": 0.1}
    for cell in sweep.all_cells():
        (p, _), (c, _) = (sweep.settings(arm, cell, values) for arm in sweep.arms)
        assert (p.model.stem, c.model.stem) == ("patchify", "conv")
        assert p.model.num_blocks == c.model.num_blocks + 1
        assert p.model_copy(update={"model": c.model}) == c


def test_the_sgd_cell_scales_lr_from_the_papers_batch():
    sweep = load_sweep(LR_WD)
    sgd = sweep.all_cells()[1]
    config, _ = sweep.settings("vit_p", sgd, {"optim.lr": 3.2, "optim.weight_decay": 1e-5})
    # 3.2 x 64 / 2048.
    assert config.optim.peak_lr(config.batch_size) == pytest.approx(0.1)


# --- settings on top ----------------------------------------------------------------------------------


def test_points_and_settings_on_the_command_line_come_on_top_of_the_file():
    texts = ("schedule.epochs=7", "resources.workers=2", "design.seed=5")
    sweep = load_sweep(LR_WD, [Override.parse(text) for text in texts], points=16)
    assert (sweep.design.points, sweep.design.seed, sweep.resources.workers) == (16, 5, 2)
    config, resources = sweep.settings(
        "vit_c", sweep.all_cells()[0], {"optim.lr": 1e-3, "optim.weight_decay": 0}
    )
    assert config.schedule.epochs == 7
    assert resources.workers == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("batch_size=32", lambda config: config.batch_size == 32),
        ("label_smoothing=1e-2", lambda config: config.label_smoothing == 0.01),
        ("model.size=1gf", lambda config: (config.model.width, config.model.depth) == (192, 12)),
        ("model={family: vit, size: 4gf, image_size: 64}", lambda config: config.model.width == 384),
        ("model=resnet_50", lambda config: config.model == ResNetConfig(layers=50)),
        ("model=vit_p_1gf", lambda config: (config.model.width, config.model.image_size) == (192, 224)),
        ("data=/some/where", lambda config: config.data == Parquet(path="/some/where")),
        ("data.split_seed=4", lambda config: config.data.split_seed == 4),
        ("optim.weight_decay=0", lambda config: config.optim.weight_decay == 0),
        ("mixup={}", lambda config: config.mixup is not None),
        ("ema.time_constant=0.2", lambda config: config.ema.time_constant == 0.2),
        ("recipe=paper", lambda config: (config.augment.name, config.ema is None) == ("paper", False)),
        ("seeds.init=9", lambda config: config.seeds.init == 9),
        ("schedule.warmup=5%", lambda config: config.schedule.warmup.share == 0.05),
        ("arms.p.batch_size=16", lambda config: config.batch_size == 16),
    ],
)
def test_one_setting_reaches_the_field_it_names(text, value):
    # An arm that sets the stem has no ResNet.
    arms = {"p": {}} if "resnet" in text else tree()["arms"]
    assert value(config_of(sweep_of(text, arms=arms)))


def test_a_size_set_on_top_of_a_named_model_counts():
    base = tree()["base"] | {"model": "vit_c_1gf"}
    assert config_of(sweep_of("model.size=4gf", base=base)).model.width == 384
    cells = {"size": {"small": {"model.size": "1gf"}, "large": {"model.size": "4gf"}}}
    sweep = sweep_of(base=base, cells=cells)
    widths = [sweep.settings("p", cell, {"optim.lr": 1})[0].model.width for cell in sweep.all_cells()]
    assert widths == [192, 384]


def test_a_whole_and_its_parts_can_be_set_in_any_order():
    for arm in (
        {"model.stem": "conv", "model": "vit_p_1gf"},
        {"model": "vit_p_1gf", "model.stem": "conv"},
    ):
        assert config_of(sweep_of(arms={"p": arm})).model.stem == "conv"


def test_dotted_and_nested_keys_mean_the_same():
    dotted = tree()["base"] | {"schedule.per": "epoch"}
    nested = tree()["base"] | {"schedule": {"epochs": 3, "per": "epoch"}}
    assert config_of(sweep_of(base=dotted)) == config_of(sweep_of(base=nested))
    assert config_of(sweep_of("schedule.epochs=5", base=dotted)).schedule.epochs == 5
    assert config_of(sweep_of("schedule.epochs=5", base=nested)).schedule.epochs == 5


def test_another_optimizer_leaves_nothing_of_the_old_one_behind():
    base = tree()["base"] | {"optim": {"name": "adamw", "beta1": 0.8, "weight_decay": 0.1}}
    cells = {"optimizer": {"sgd": {"optim.name": "sgd", "optim.weight_decay": 0}}}
    sweep = sweep_of(base=base, cells=cells)
    assert sweep.settings("p", sweep.all_cells()[0], {"optim.lr": 1})[0].optim.name == "sgd"


def test_layers_are_base_then_cells_then_arms_then_what_is_drawn():
    cells = {"batch": {"b": {"batch_size": 32, "label_smoothing": 0.2, "optim.lr": 7}}}
    arms = {"p": {"label_smoothing": 0.3, "optim.lr": 8}}
    config = config_of(sweep_of(cells=cells, arms=arms))
    assert (config.batch_size, config.label_smoothing, config.optim.lr) == (32, 0.3, 1e-3)


def test_cells_are_every_combination_of_levels_in_the_order_of_the_file():
    cells = {"size": {"s": {}, "l": {}}, "length": {"5": {}, "10": {}}}
    assert sweep_of(cells=cells).cell_names() == ["s/5", "s/10", "l/5", "l/10"]
    assert sweep_of().cell_names() == ["all"]


def test_resources_can_be_set_per_cell():
    cells = {"size": {"s": {}, "l": {"resources.workers": 4, "resources.gpus_per_worker": 1}}}
    sweep = sweep_of("resources.cpus_per_worker=2", cells=cells)
    small, large = (sweep.settings("p", cell, {"optim.lr": 1})[1] for cell in sweep.all_cells())
    assert (small.workers, small.cpus_per_worker, small.gpus_per_worker) == (1, 2, None)
    assert (large.workers, large.cpus_per_worker, large.gpus_per_worker) == (4, 2, 1.0)


@pytest.mark.parametrize(
    ("workers", "gpus", "rule"),
    [
        (1, 4, "resources.gpus_per_worker: must be at most 1, as a worker computes on one GPU"),
        (
            2,
            0.5,
            "resources.gpus_per_worker: must be 0 or 1 with 2 workers, as NCCL refuses two",
        ),
    ],
)
def test_gpus_that_would_idle_or_be_shared_by_workers_of_a_trial_are_refused(workers, gpus, rule):
    with pytest.raises(SweepError, match=rule):
        sweep_of(f"resources.workers={workers}", f"resources.gpus_per_worker={gpus}")


# --- windows ------------------------------------------------------------------------------------------


def test_a_window_may_go_by_arm_or_by_level():
    uniform = {"uniform": [0, 0.1]}
    sweep = sweep_of(vary={"optim.lr": {"uniform": [1, 2]}, "model.drop_path": {"c": uniform}})
    [cell] = sweep.all_cells()
    assert list(sweep.domains("p", cell)) == ["optim.lr"]
    assert list(sweep.domains("c", cell)) == ["optim.lr", "model.drop_path"]
    assert sweep.levels() == {"optim.lr": None, "model.drop_path": None}


def test_a_window_survives_json():
    for data in ({"uniform": [0, 1]}, {"adamw": {"uniform": [0, 1]}, "sgd": {"choice": [1]}}):
        window = Window.model_validate(data)
        assert Window.model_validate(window.model_dump(mode="json", exclude_none=True)) == window


def test_a_whole_sweep_survives_json():
    sweep = load_sweep(LR_WD)
    assert Sweep.model_validate(sweep.model_dump(mode="json", exclude_none=True)) == sweep


# --- faults -------------------------------------------------------------------------------------------


def base_with(**changes) -> dict:
    return tree()["base"] | changes


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"desing": {}}, "desing: unknown key (got {})"),
        ({"design": {"kind": "sobol", "points": 0}}, "design.points: must be greater than 0 (got 0)"),
        (
            {"design": {"kind": "halton"}},
            "design.kind: must be one of 'random', 'sobol', 'grid', 'star', 'latin' (got 'halton')",
        ),
        ({"arms": {}}, "arms: must have at least 1 entry, not 0 (got {})"),
        ({"base": base_with(bach_size=3)}, "base.bach_size: unknown key (got 3)"),
        (
            {"base": base_with(batch_size="many")},
            "base.batch_size: must be a whole number (got 'many')",
        ),
        ({"base": base_with(batch_size=0)}, "base.batch_size: must be greater than 0 (got 0)"),
        (
            {"base": base_with(data={"name": "imagenet"})},
            "base.data.name: must be one of 'digits', 'parquet' (got 'imagenet')",
        ),
        (
            {"vary": {"optim.lr": {"log_uniform": [0, 1]}}},
            "vary.optim.lr: a log_uniform domain must be above 0, got [0.0, 1.0]",
        ),
        (
            {"vary": {"optim.lr": {"p": {"log_uniform": [0, 1]}, "c": {"log_uniform": [1, 2]}}}},
            "vary.optim.lr.p: a log_uniform domain must be above 0, got [0.0, 1.0]",
        ),
        (
            {"vary": {"optim.lr": {"uniform": [2, 1]}}},
            "vary.optim.lr: low <= high must hold, got 2.0 and 1.0",
        ),
        (
            {"vary": {"optim.lr": {"uniform": [2, "x"]}}},
            "vary.optim.lr.uniform.1: must be a number (got 'x')",
        ),
        (
            {"vary": {"optim.lr": {}}},
            "vary.optim.lr: a domain is one of {choice, ordinal, uniform, log_uniform, int_range}, as in "
            "{uniform: [0, 1]}",
        ),
        (
            {"vary": {"optim.lr": {"log_uniform": [1e-4, 1e-3]}, "optim.momentum": {"uniform": [0, 0.9]}}},
            "vary.optim.momentum: unknown key here: it belongs to muon and sgd; "
            "did you mean `when: {optim.name: muon}`?",
        ),
        (
            {
                "vary": {
                    "optim.lr": {"log_uniform": [1e-4, 1e-3]},
                    "label_smoothing": {"uniform": [0.1, 1.5]},
                }
            },
            "vary.label_smoothing: must be less than 1 (got 1.5)",
        ),
        (
            {"vary": {"optim.lr": {"uniform": [1, 2]}, "model.width": {"choice": [64, 66]}}},
            # The last block of faults: 66 is not divisible by 4 heads, the conv stem halves it twice.
            "vary.model: heads must divide width, got heads=4, width=66",
        ),
        (
            {"base": base_with(model={"family": "vit", "size": "nano", "image_size": 30, "patch_size": 8})},
            "base.model: patch_size must divide image_size, got patch_size=8, image_size=30",
        ),
        (
            {"arms": {"p": {"model.heads": 5}}},
            "arms.p.model: heads must divide width, got heads=5, width=64",
        ),
        (
            {"arms": {"p": {"model.stem": {"channels": [8, 16]}}}},
            "arms.p.model: the stem's strides must multiply to patch_size, got [2, 2] and a projection of 1 "
            "for patch_size=8",
        ),
        (
            {"arms": {"p": {"model.stem": {"channels": [8, 16], "strides": [2]}}}},
            "arms.p.model.stem: channels, kernels and strides must be equally long, got 2, 2, 1",
        ),
        ({"arms": {"p": {"model.stem": "sonv"}}}, "arms.p.model.stem: must be one of 'patchify', "),
        ({"vary": {}}, "base.optim.lr: is missing"),
        (
            {"primary": {"cell": "lion"}},
            "primary.cell: must be one of ['all'] (got lion)",
        ),
        (
            {"primary": {"measure": "f3"}},
            "primary.measure: must be one of 'area_common', 'within_common_bar', 'error' (got 'f3')",
        ),
        ({"resources": {"workers": 0}}, "resources.workers: must be greater than 0 (got 0)"),
        ({"cells": {"size": {}}}, "cells.size: has no levels"),
        (
            {"cells": {"size": {"none": {"model": None}}}},
            "cells.size.none.model.family: is missing, and has no default",
        ),
        (
            {"cells": {"size": {"p": {}}}},
            "cells: names of arms and levels must all differ (got more than once: ['p'])",
        ),
        (
            {"vary": {"optim.lr": {"lion": {"uniform": [0, 1]}}}},
            "vary.optim.lr: windows go by arm or level, one of p, c (got ['lion'])",
        ),
        (
            {"cells": {"s": {"x": {}}}, "vary": {"optim.lr": {"p": {"choice": [1]}, "x": {"choice": [1]}}}},
            "vary.optim.lr: name arms, or the levels of one factor (got both of ['arms', 'cells.s'])",
        ),
        (
            {
                "design": {"kind": "grid"},
                "vary": {"optim.lr": {"p": {"choice": [1, 2]}, "c": {"choice": [1]}}},
            },
            "vary.optim.lr: a grid needs equally many values in every window",
        ),
        (
            {
                "design": {"kind": "star"},
                "vary": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}, "model.depth": {"choice": [2, 3]}},
            },
            "vary.optim.lr: a star needs listed values: choice or ordinal",
        ),
        (
            {
                "design": {"kind": "star", "cross": ["schedule.epochs"]},
                "vary": {"optim.lr": {"choice": [1e-3]}, "model.depth": {"choice": [2, 3]}},
            },
            "design.cross: names no varied parameter (got schedule.epochs)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_kind_of_bad_input_is_named_with_key_path_rule_and_value(changes, fault):
    assert any(line.startswith(fault) for line in faults_of(**changes)), faults_of(**changes)


def test_all_faults_of_a_file_come_at_once():
    lines = faults_of(
        base=base_with(batch_size=0, label_smoothing=2, nonsense=1),
        arms={"p": {"model.heads": 5}},
    )
    assert [line.split(":")[0] for line in lines] == [
        "arms.p.model",
        "base.batch_size",
        "base.label_smoothing",
        "base.nonsense",
    ]


def test_a_fault_of_the_base_is_told_once_and_not_per_arm():
    assert len(faults_of(base=base_with(batch_size=0))) == 1


def test_a_fault_in_one_level_is_told_of_that_level():
    cells = {"optimizer": {"adamw": {}, "sgd": {"optim.nesterov": True}}}
    assert faults_of(cells=cells) == [
        "cells.optimizer.sgd.optim.nesterov: unknown key here: it belongs to muon and sgd (got True)"
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [("batch_size", "must be key=value"), ("=3", "must be key=value"), ("a=[1", "--set a")],
)
def test_a_setting_that_cannot_be_read_is_named(text, words):
    with pytest.raises(SweepError, match=r"--set: 1 fault\n") as caught:
        Override.parse(text)
    assert words in str(caught.value)


def test_a_setting_of_an_unknown_key_is_a_fault_like_one_in_the_file():
    assert faults_of("bach_size=3") == [
        "--set bach_size=3: base.bach_size: unknown key (got 3); did you mean `batch_size`?"
    ]
    [line] = faults_of("model=vit_x_4gf")
    assert line.startswith(
        "--set model=vit_x_4gf: base.model: no model is called 'vit_x_4gf'; did you mean `vit_"
    )


def test_a_fault_that_the_base_has_without_arms_is_told_of_the_base_alone():
    model = {"family": "vit", "size": "nano", "image_size": 30, "patch_size": 8}
    assert faults_of(base=base_with(model=model)) == [
        "base.model: patch_size must divide image_size, got patch_size=8, image_size=30"
    ]


def test_resources_of_a_cell_are_checked_like_all_else():
    cells = {"size": {"s": {"resources.workers": 0}, "l": {"resources": 3}}}
    small, large = faults_of(cells=cells)
    assert small == "cells.size.s.resources.workers: must be greater than 0 (got 0)"
    assert large.startswith("cells.size.l.resources")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- 1\n", "file: must be a mapping of keys to values (got [1])"),
        ("", "file: is empty"),
        ("a: 1\na: 2\n", ":2:1: the key 'a' stands here twice"),
        ("arms: {}\n", "3 faults"),
    ],
)
def test_a_file_that_is_no_sweep_is_named(content, words, tmp_path):
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(SweepError) as caught:
        load_sweep(tmp_path / "x.yaml")
    assert words in str(caught.value)
    assert str(tmp_path / "x.yaml") in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SweepError, match=r"none\.yaml: No such file"):
        load_sweep(tmp_path / "none.yaml")


def test_names_that_could_leave_the_folder_of_results_are_refused():
    for name in ("../x", "a/b", "", ".hidden", "x" * 61):
        with pytest.raises(SweepError):
            sweep_of(name=name)
