"""Parts of a plan that their user probably did not mean."""

from typing import Any

import pytest
import yaml

from orchestrator.sweep.document import Override, SweepError
from orchestrator.sweep.load import load_sweep
from orchestrator.trials.remarks import remarks
from tests.support.sweeps import base_tree, plan_of, sweep_tree


def adamw(**settings: Any) -> dict[str, Any]:
    return {"name": "adamw", "weight_decay": 0.1} | settings


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"base": base_tree(optim=adamw(lr=0.5))}, "`base` sets optim.lr to 0.5, and `vary` draws it"),
        (
            {"arms": {"p": {"model.stem": "patchify"}, "c": {"model.stem": "conv", "optim.lr": 0.5}}},
            "`arms.c` sets optim.lr to 0.5, and `vary` draws it",
        ),
        (
            {"cells": {"rate": {"low": {"optim": {"lr": 0.5}}, "high": {}}}},
            "`cells.rate.low` sets optim.lr to 0.5, and `vary` draws it",
        ),
        (
            {
                "base": base_tree(optim=adamw(lr=0.1), schedule={"epochs": 3}),
                "vary": {"schedule.warmup": {"choice": [1, 2, 3, 4]}},
            },
            "p: the learning rate only rises: 4 epochs of warm-up in a run of 3, and so in 2 of 4 trials",
        ),
        (
            {"base": base_tree(schedule={"epochs": 3, "warmup": 5})},
            "p: the learning rate only rises: 5 epochs of warm-up in a run of 3",
        ),
        (
            {"base": base_tree(batch_size=1200)},
            "p: an epoch is one step of all 1,199 training images, as batch_size is 1,200",
        ),
        (
            {
                "base": base_tree(optim=adamw(lr=0.1)),
                "vary": {"batch_size": {"choice": [64, 128, 2000, 4000]}},
            },
            "p: an epoch is one step of all 1,199 training images, as batch_size is 4,000 in 2 trials",
        ),
        ({"arms": {"a": {"model.stem": "conv"}, "b": {"model.stem": "conv"}}}, "b is the same as a in all"),
        ({"arms": {"a": {"model.stem": "conv"}}}, "there is one arm, so nothing is compared"),
        (
            {"vary": {"optim.lr": {"choice": [1e-3, 1e-2]}}},
            "p: 2 of 4 points repeat an earlier one with another seed",
        ),
    ],
)
def test_a_setting_without_effect_is_told(changes, remark):
    assert any(text.startswith(remark) for text in remarks(plan_of(**changes)))


@pytest.mark.parametrize(
    ("names", "parts", "is_told"),
    [
        (["dog", "cat"], "all", True),
        (["dog", "cat"], "stem", False),
        (["cat", "dog"], "all", False),
        # A classifier of another size is made anew.
        (["dog", "cat", "eel"], "all", False),
    ],
)
def test_a_classifier_that_is_taken_over_by_other_classes_is_told(
    write_parquet, png_bytes, names, parts, is_told
):
    images = [png_bytes([[i] * 8] * 8) for i in range(36)]
    first = write_parquet("first.parquet", images, [0, 1] * 18, ["cat", "dog"])
    own = write_parquet("own.parquet", images, [i % len(names) for i in range(36)], names)
    run = base_tree(data=str(first), optim=adamw(lr=0.1))
    plan = plan_of(base=base_tree(data=str(own), batch_size=8) | {"start": {"run": run, "parts": parts}})
    told = [text for text in remarks(plan) if "starts with the classifier" in text]
    assert len(told) == 2 * is_told
    assert all(text.endswith("by their numbers: 'cat' there is 'dog' here") for text in told)


def test_a_plan_that_says_what_it_means_has_no_remarks():
    assert remarks(plan_of()) == []
    # Not drawn in every cell, so `base` counts in the other one.
    cells = {"optimizer": {name: {"optim.name": name, "optim.weight_decay": 0} for name in ("adamw", "sgd")}}
    vary = {"optim.lr": {"adamw": {"log_uniform": [1e-4, 1e-2]}, "sgd": {"log_uniform": [0.1, 1]}}}
    assert remarks(plan_of(cells=cells, vary=vary)) == []

    # An arm that is drawn in one of its cells only.
    arms = {"p": {"model.stem": "patchify", "optim.lr": 0.5}, "c": {"model.stem": "conv"}}
    vary = {"optim.lr": {"adamw": {"log_uniform": [1e-4, 1e-2]}}, "label_smoothing": {"uniform": [0, 0.1]}}
    cells["optimizer"]["sgd"]["optim.lr"] = 0.1
    assert remarks(plan_of(cells=cells, vary=vary, arms=arms)) == []


@pytest.mark.parametrize("key", ["optim.lr", "base.optim.lr", "arms.p.optim.lr"])
def test_to_set_what_is_drawn_is_refused(tmp_path, key):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(sweep_tree()))
    with pytest.raises(SweepError) as caught:
        load_sweep(path, [Override.parse(f"{key}=0.5")])
    [fault] = caught.value.faults
    assert fault.place == f"--set {key}=0.5"
    assert "`vary` draws it" in fault.rule
    drawn = load_sweep(path, [Override.parse("vary.optim.lr={uniform: [0.1, 0.2]}")])
    assert "optim.lr" in drawn.vary


@pytest.mark.parametrize("path", ["batch_size", "optim.weight_decay", "schedule.epochs", "label_smoothing"])
@pytest.mark.parametrize("value", ["true", "no"])
def test_true_is_no_number(tmp_path, path, value):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(sweep_tree()))
    with pytest.raises(SweepError, match=r"must be a (whole )?number"):
        load_sweep(file, [Override.parse(f"{path}={value}")])
