"""The paper's experiments as files: they load and plan, and are what the paper did.

Numbers of runs, minutes per epoch and V100-hours are the paper's (tables 1, 2 and 4 of Xiao et al. 2021), not
those of the files.
"""

import functools
import re
from pathlib import Path

import pytest

from orchestrator.sweep.document import SweepError
from orchestrator.sweep.load import build_sweep, load_sweep
from orchestrator.trials.plan import data_configs, make_plan
from orchestrator.trials.trial import Plan
from trainables.base import DataError
from trainables.config import NAMED_MODELS, ModelConfig
from trainables.data.digits import Digits
from trainables.data.parquet import Parquet
from trainables.models.stems import Stem
from trainables.profiling.dry_run import check_model, check_sizes, check_start
from trainables.tasks.classification import Classification

ROOT = Path(__file__).parents[3] / "search_spaces"
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml"))
#: Runs as the paper did them: 24 + 12 of section 5.1, 48 + 24 of 5.2, 9 models x 2 optimizers x 64 of 5.3;
#: then models x lengths of table 2 (8 ViT, the 12 CNNs whose shapes are known), rows of tables 3 and 5.
RUNS = {
    "paper/training_length_vit.yaml": 24,
    "paper/training_length_regnety.yaml": 12,
    "paper/optimizer_gap_vit.yaml": 48,
    "paper/optimizer_gap_regnety.yaml": 24,
    "paper/edf_vit.yaml": 6 * 2 * 64,
    "paper/edf_regnety.yaml": 3 * 2 * 64,
    "paper/peak_vit.yaml": 8 * 3,
    "paper/peak_cnn.yaml": 12 * 3,
    "paper/imagenet_v2.yaml": 8 + 12,
    "paper/shift.yaml": 8,
    "paper/stems.yaml": 6 * 2 * 64,
    "paper/normalisation.yaml": 4 * 64,
    "paper/normalisation_100ep.yaml": 4,
    "paper/deep.yaml": 2 * 64,
    "paper/recipe.yaml": 6 * 2 * 2,
    "paper/in21k_pretrain_vit.yaml": 3 * 2,
    "paper/in21k_pretrain_cnn.yaml": 7,
    "paper/in21k_finetune_vit.yaml": 3 * 2 * 4,
    "paper/in21k_72gf.yaml": 2 * 4,
}

#: Runs that those start from: pre-training of every model, and for ViT_C-72GF its stem's.
FIRST_STAGES = {
    "paper/in21k_finetune_vit.yaml": 3 * 2,
    "paper/in21k_72gf.yaml": 2 + 1,
    "twins/pretrain_finetune.yaml": 2,
}

#: The paper's tables 1 and 2: minutes per epoch of ImageNet-1k on 8 V100.
MINUTES = {
    "vit_p_1gf": 2.6, "vit_p_4gf": 3.8, "vit_p_18gf": 11.5, "vit_p_36gf": 18.8,
    "vit_c_1gf": 2.7, "vit_c_4gf": 3.9, "vit_c_18gf": 11.4, "vit_c_36gf": 18.6,
    "resnet_50": 3.4, "resnet_101": 5.5, "resnet_152": 7.7, "resnet_200": 10.7,
    "regnety_1gf": 3.1, "regnety_4gf": 7.6, "regnety_16gf": 17.9, "regnety_32gf": 35.1, "regnetz_4gf": 12.9,
    "efficientnet_b2": 5.9, "efficientnet_b4": 19.4, "efficientnet_b5": 41.7,
}  # fmt: skip


@functools.cache
def planned(name: str) -> Plan:
    sweep = load_sweep(ROOT / name)
    infos = {
        config: config.info() if isinstance(config, Digits) else config.expected_info()
        for config in data_configs(sweep)
    }
    return make_plan(sweep, infos)


def v100_hours(plan: Plan) -> float:
    minutes = {model: MINUTES[name] for name, model in NAMED_MODELS.items() if name in MINUTES}
    hours = 0.0
    for trial in plan.trials:
        config = trial.config
        named = minutes[config.model.model_copy(update={"drop_path": 0.0})]
        assert isinstance(config.data, Parquet)
        assert config.data.expects is not None
        hours += named * config.data.expects.train / 1_281_167 * config.schedule.epochs * 8 / 60
    return hours


@pytest.mark.parametrize("name", FILES)
def test_every_file_plans_where_its_data_are_not(name):
    plan = planned(name)
    assert len({trial.id for trial in plan.trials}) == len(plan.trials)
    first_stages = sum(trial.role == "first_stage" for trial in plan.trials)
    assert first_stages == FIRST_STAGES.get(name, 0)
    if name.startswith("paper/"):
        assert len(plan.trials) - first_stages == RUNS[name]


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_what_a_file_starts_from_fits(name):
    plan = planned(name)
    starts = {
        (trial.config.start.parts, trial.config.start.run.model, trial.config.model): trial.config
        for trial in plan.trials
        if trial.config.start is not None
    }
    for config in starts.values():
        classes = [plan.infos[data].num_classes for data in (config.data, config.start.run.data)]
        check_start(config.start, config.model, *classes)


def test_the_frozen_stem_of_72gf_is_that_of_36gf_but_for_its_projection():
    pre_training, fine_tuning = (
        next(t for t in planned("paper/in21k_72gf.yaml").trials if (t.arm, t.role, t.replicate) == key)
        for key in (("vit_c", "first_stage", 0), ("vit_c", "sweep", 0))
    )
    assert pre_training.config.optim.weight_decay == 0.15
    assert pre_training.config.start.run.optim.weight_decay == 0.28
    model = pre_training.config.model
    # The text: as many blocks as ViT_P has, and the stem beside them.
    assert (model.num_blocks, model.freeze_stem) == (22, "convolutions")
    assert model.layers == pre_training.config.start.run.model.layers
    assert not fine_tuning.config.model.freeze_stem
    assert fine_tuning.config.start.run == pre_training.config


@pytest.mark.parametrize(
    ("names", "hours"),
    [
        (("paper/edf_vit.yaml", "paper/edf_regnety.yaml"), 55_040),
        (("paper/edf_vit.yaml",), 30_635),
        (("paper/optimizer_gap_vit.yaml", "paper/optimizer_gap_regnety.yaml"), 12_900),
    ],
)
def test_the_cost_is_the_papers(names, hours):
    assert sum(v100_hours(planned(name)) for name in names) == pytest.approx(hours, rel=1e-3)


@pytest.mark.parametrize(
    "name",
    [name for name in FILES if "V100-hours by the paper" in (ROOT / name).read_text()],
)
def test_the_hours_in_a_files_head_are_those_of_its_runs(name):
    said = re.search(r"([\d,]+)\s+(?:#\s+)?V100-hours by the paper", (ROOT / name).read_text())
    assert said is not None
    assert v100_hours(planned(name)) == pytest.approx(float(said[1].replace(",", "")), rel=1e-3)


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        ("paper/training_length_vit.yaml", "paper/optimizer_gap_vit.yaml"),
        ("paper/training_length_regnety.yaml", "paper/optimizer_gap_regnety.yaml"),
        ("lr_wd.yaml", "twins/optimizer_gap.yaml"),
    ],
)
def test_what_one_file_is_said_to_hold_of_another_are_the_same_trials(part, whole):
    assert {t.id for t in planned(part).trials} < {t.id for t in planned(whole).trials}


#: The paper's table 4, left: lr and weight decay of AdamW, then of SGD.
OPTIMA = {
    ("vit_p", "1gf"): (2.0e-3, 0.20, 1.9, 1.3e-5),
    ("vit_p", "4gf"): (2.0e-3, 0.20, 1.9, 1.3e-5),
    ("vit_p", "18gf"): (1.0e-3, 0.24, 1.1, 1.2e-5),
    ("vit_c", "1gf"): (2.5e-3, 0.19, 1.9, 1.3e-5),
    ("vit_c", "4gf"): (1.0e-3, 0.24, 1.3, 2.2e-5),
    ("vit_c", "18gf"): (1.0e-3, 0.24, 1.1, 2.7e-5),
}


def test_the_optimizer_gap_has_each_models_own_optimum():
    for trial in planned("paper/optimizer_gap_vit.yaml").trials:
        size, optimizer, _ = (level for _, level in trial.cell)
        optimum = OPTIMA[trial.arm, size]
        wanted = optimum[:2] if optimizer == "adamw" else optimum[2:]
        optim = trial.config.optim
        assert (optim.name, optim.lr, optim.weight_decay) == (optimizer, *wanted)


def test_imagenet_runs_have_the_papers_recipe():
    for name in RUNS:
        for trial in planned(name).trials:
            config = trial.config
            assert config.schedule.warmup == 5
            assert config.label_smoothing == 0.1
            assert config.mixup is not None
            assert (config.ema is not None) or name == "paper/recipe.yaml"
            assert config.clip_grad_norm is None
            # Linear scaling: 2.54 of SGD and 1e-3 of AdamW are quoted for 2048.
            assert config.batch_size in (2048, 4096) or config.optim.lr_batch_size == 2048


def test_the_scaled_stems_cost_about_the_block_they_replace():
    plan = planned("twins/stem_order.yaml")
    models = {trial.arm: trial.config.model for trial in plan.trials}
    with_blocks = [models["vit_p"].model_copy(update={"depth": depth}).cost(10).flops for depth in (3, 4)]
    block = with_blocks[1] - with_blocks[0]
    for arm in ("s1", "s2", "s3", "s4"):
        stem = models[arm].stem
        assert isinstance(stem, Stem)
        assert stem.patch_size == 16
        assert 0.7 < stem.cost(64, 128).flops / block < 1.5


# -------------------------------------------------------------------------------- what they need


def tree(**changes):
    base = {
        "name": "t",
        "base": {
            "model": {"family": "vit", "size": "nano", "image_size": 16, "patch_size": 8},
            "data": "digits",
        },
        "arms": {"p": {}, "c": {"model.stem": "conv"}},
        "cells": {"optimizer": {"adamw": {"optim.name": "adamw"}, "sgd": {"optim.name": "sgd"}}},
        "vary": {"optim.lr": {"choice": [0.1]}, "optim.weight_decay": {"choice": [0.1]}},
        "design": {"kind": "random", "points": 1},
    }
    base["base"]["schedule"] = {"epochs": 1}
    return base | changes


def test_a_window_may_go_by_arm_and_level_at_once():
    lr = {
        f"{arm}/{level}": {"choice": [value]}
        for (arm, level), value in zip(
            [("p", "adamw"), ("p", "sgd"), ("c", "adamw"), ("c", "sgd")], [1.0, 2.0, 3.0, 4.0], strict=True
        )
    }
    sweep = build_sweep(tree(vary=tree()["vary"] | {"optim.lr": lr}), "t")
    drawn = [sweep.domains(arm, cell)["optim.lr"].at(0.5) for arm in "pc" for cell in sweep.all_cells()]
    assert drawn == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("names", [("p", "p/sgd"), ("p", "sgd"), ("p/adamw", "sgd")])
def test_a_window_in_which_two_domains_could_be_meant_is_refused(names):
    lr = {name: {"choice": [1.0]} for name in names}
    with pytest.raises(SweepError, match="name arms, or the levels of one factor"):
        build_sweep(tree(vary=tree()["vary"] | {"optim.lr": lr}), "t")


def test_what_the_paper_says_must_be_of_arms_and_cells_that_there_are():
    claims = [{"says": "x", "source": "y", "measure": "error", "better": "c", "than": "q"}]
    values = [{"source": "table 2", "top1_error_pct": {"adamw": {"p": 1.0}, "lion": {"z": 2.0}}}]
    with pytest.raises(SweepError) as error:
        build_sweep(tree(paper={"claims": claims, "values": values}), "t")
    assert {(fault.path, fault.found) for fault in error.value.faults} == {
        ("paper.claims.0.than", "q"),
        ("paper.values.0.top1_error_pct", "lion"),
        ("paper.values.0.top1_error_pct.lion", "z"),
    }


def test_data_that_are_not_those_expected_are_refused(write_parquet, png_bytes):
    picture = png_bytes([[0, 255], [255, 0]])
    path = write_parquet("train.parquet", [picture] * 40, [0, 1] * 20, ["a", "b"])
    expected = {"classes": 2, "train": 41}
    assert Parquet(path=str(path), expects=expected).info().num_classes == 2
    for changed in ({"classes": 3}, {"train": 50}, {"test": 10}):
        with pytest.raises(DataError, match="not the data that `expects` describes"):
            Parquet(path=str(path), expects=expected | changed).info()


@pytest.mark.parametrize("changes", [{}, {"selection": "final"}, {"val_share": 0.25}, {"train_limit": 20}])
def test_expected_sizes_are_those_that_such_data_have(changes, write_parquet, png_bytes):
    picture = png_bytes([[0, 255], [255, 0]])
    path = write_parquet("train.parquet", [picture] * 400, [0, 1] * 200, ["a", "b"])
    config = Parquet(path=str(path), expects={"classes": 2, "train": 400}, **changes)
    assert config.expected_info().sizes == config.info().sizes
    assert config.expected_info().fingerprint != config.info().fingerprint


def test_plan_does_without_data_and_run_does_not(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from orchestrator.cli import app

    monkeypatch.chdir(tmp_path)
    file = str(ROOT / "paper/normalisation_100ep.yaml")
    result = CliRunner().invoke(app, ["plan", file, "--on", "8xV100", "--json"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["run", file, "--no-mlflow"])
    assert isinstance(result.exception, SweepError)
    assert "there is no such file or folder" in str(result.exception)
    assert not list(tmp_path.iterdir())


@functools.cache
def takes_images(model: ModelConfig, num_classes: int) -> None:
    check_model(model, Classification(), num_classes)


@pytest.mark.parametrize("name", FILES)
def test_every_shape_of_a_file_passes_the_preflight_on_meta(name):
    plan = planned(name)
    shapes = {
        (trial.config.model, trial.config.batch_size, trial.config.data, trial.gang.workers): trial.config
        for trial in plan.trials
    }
    for (model, _, data, workers), config in shapes.items():
        check_sizes(config, plan.infos[data], workers)
        takes_images(model, plan.infos[data].num_classes)
