"""A second task, defined here: which pixels of a digit are ink. It trains like any task, by its own error."""

import dataclasses
import io
import json
import math
import os
import subprocess
import sys
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from orchestrator.analysis.basin import landscapes
from orchestrator.monitor.tracking import metrics_of
from orchestrator.sweep.document import SweepError
from orchestrator.sweep.load import build_sweep
from orchestrator.trials.events import EpochDone, from_json, to_json
from orchestrator.trials.plan import data_configs, make_plan
from orchestrator.trials.records import Record, results_of
from trainables.base import TIMING_FIELDS, DataInfo, Diverged, Epoch, Frozen
from trainables.config import TrainConfig, faults_of
from trainables.context import Context
from trainables.data.base import Images, with_chance
from trainables.data.digits import Digits
from trainables.models.base import ModelFamily
from trainables.models.vit import ViTConfig
from trainables.profiling import dry_run
from trainables.profiling.footprint import footprint
from trainables.tasks.base import Objective, Score, Task
from trainables.tasks.classification import Classification
from trainables.training.loop import train


class Segmentation:
    """A class for every pixel; totals are the loss and its count, and the confusion matrix."""

    name = "segmentation"
    objective = Objective("miou_error", "100 - mIoU", "mIoU")

    def output_shape(
        self, num_inputs: int, input_shape: tuple[int, int, int], num_classes: int
    ) -> torch.Size:
        return torch.Size((num_inputs, num_classes, *input_shape[1:]))

    def loss_sum(self, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        losses_BHW = cross_entropy(outputs.float(), targets, reduction="none", label_smoothing=smoothing)
        return losses_BHW.mean((1, 2)).sum()

    def new_totals(self, info: DataInfo, device: torch.device) -> Tensor:
        return torch.zeros(2 + info.num_classes**2, device=device, dtype=torch.float64)

    def add(self, totals: Tensor, outputs: Tensor, targets: Tensor) -> None:
        num_classes = outputs.shape[1]
        totals[0] += self.loss_sum(outputs, targets, 0.0).double()
        totals[1] += len(targets)
        pairs = targets * num_classes + outputs.argmax(1)
        totals[2:] += torch.bincount(pairs.flatten(), minlength=num_classes**2)

    def score(self, totals: Tensor) -> Score:
        side = math.isqrt(len(totals) - 2)
        confusion = totals[2:].view(side, side)
        hits = confusion.diag()
        iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
        loss = (totals[0] / totals[1]).item()
        return Score(loss, 100 - 100 * iou.mean().item(), {"iou/ink": 100 * iou[1].item()})

    def chance_error_pct(self, info: DataInfo) -> float:
        return 60.0

    def guessing_loss(self, info: DataInfo) -> float:
        return math.log(info.num_classes)


TASK: Task = Segmentation()


class Strokes(Frozen):
    """The digits with a map of where there is ink, which is brighter than half."""

    task: ClassVar[Task] = TASK
    name: Literal["strokes"] = "strokes"

    def info(self) -> DataInfo:
        info = dataclasses.replace(
            Digits().info(), name="strokes", num_classes=2, class_names=("paper", "ink")
        )
        return with_chance(info, self.task)

    def open(self) -> dict[str, Images]:
        return {split: ink(images) for split, images in Digits().open().items()}


def ink(images: Images) -> Images:
    pixels = np.stack([np.asarray(images.read(row))[:, :, 0] for row in range(len(images))])
    return Images((pixels > 127).astype(np.int64), images.read)


class Pixelwise(ModelFamily):
    """One convolution from colours to classes, that begins with all classes alike."""

    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    head: ClassVar[tuple[str, ...]] = ("weight", "bias")
    family: Literal["pixelwise"] = "pixelwise"
    image_size: int = 8
    drop_path: float = 0.0

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (3, self.image_size, self.image_size)

    def network(self, num_classes: int) -> nn.Module:
        layer = nn.Conv2d(3, num_classes, 1)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer


def config_of(lr: float = 0.1, epochs: int = 3, batch_size: int = 300, **changes) -> TrainConfig:
    """A run on strokes; their data set and network are in no union, and so are put in afterwards."""
    tree = {
        "model": {"family": "vit", "image_size": 8, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}
        | {"mlp_ratio": 2},
        "data": "digits",
        "augment": {"name": "light", "shift": 0},
        "optim": {"name": "adamw", "lr": lr, "weight_decay": 0},
        "schedule": {"epochs": epochs},
        "batch_size": batch_size,
        "label_smoothing": 0,
    }
    config = TrainConfig.model_validate(tree | changes)
    return config.model_copy(update={"model": Pixelwise(), "data": Strokes()})


def measured(row: Epoch) -> dict:
    return {name: value for name, value in dataclasses.asdict(row).items() if name not in TIMING_FIELDS}


def iou_by_hand(model: nn.Module, split: str) -> list[float]:
    """Shares of agreement in all that either side calls paper or ink."""
    images = Strokes().open()[split]
    pixels = np.stack([np.asarray(images.read(row)) for row in range(len(images))])
    inputs = torch.tensor(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    with torch.no_grad():
        answers = model(inputs).argmax(1).numpy()
    return [
        float(((answers == label) & (images.labels == label)).sum())
        / float(((answers == label) | (images.labels == label)).sum())
        for label in (0, 1)
    ]


def test_another_task_trains_and_its_error_arrives_in_the_row():
    rows, state = [], None
    for row, live in train(config_of(), Context()):
        rows.append(row)
        state = live
    assert rows[-1].train_loss < rows[0].train_loss < math.log(2)
    paper, inked = iou_by_hand(state.model, "val")
    assert rows[-1].val_error_pct == pytest.approx(100 - 50 * (paper + inked))
    assert rows[-1].val_error_pct < 60
    assert rows[-1].extra == pytest.approx({"iou/ink": 100 * inked})
    assert rows[-1].test_error_pct == pytest.approx(100 - 50 * sum(iou_by_hand(state.model, "test")))
    # By journal and tracker, too.
    event = EpochDone(trial="t", attempt=1, row=rows[-1])
    assert from_json(json.loads(json.dumps(to_json(event)))) == event
    metrics = metrics_of(rows[-1], TASK.objective)
    assert metrics["val_miou_error_pct"] == rows[-1].val_error_pct
    assert metrics["iou/ink"] == rows[-1].extra["iou/ink"]


def test_it_goes_on_from_a_checkpoint_exactly():
    rows, file = [], io.BytesIO()
    for row, state in train(config_of(), Context()):
        rows.append(measured(row))
        if row.epoch == 1:
            state.save(file)
    file.seek(0)
    assert [measured(row) for row, _ in train(config_of(), Context(), file)] == rows[1:]


def test_chance_is_that_of_the_task():
    # At first every pixel is called paper. That is 100 - 50 x the share of paper, over 60 - 1.
    with pytest.raises(Diverged, match="learnt nothing for 2 epochs"):
        list(train(config_of(lr=1e-46, epochs=4), Context()))
    with pytest.raises(Diverged, match=r"ended at 6\d\.\d % error, where chance is 60\.0 %"):
        list(train(config_of(lr=1e-46, epochs=2, divergence={"window": 9}), Context()))


def test_it_is_tried_and_counted_before_it_runs():
    config = config_of()
    dry_run.check_model(config.model, TASK, 2)
    reply = dry_run.check(config, Context())
    assert reply.rule == ""
    with pytest.raises(dry_run.Unfit, match="2 images"):
        dry_run.check_model(config.model, Classification(), 2)
    info = config.data.info()
    found = footprint(config, 2, info.sizes["train"], sum(info.sizes.values()))
    # Per image: its 3 x 64 bytes and their floats, a class per pixel, two logits and two probabilities.
    per_image = 64 * (3 + 3 * 4 + 8 + 2 * 4 + 2 * 4)
    assert found.activations == pytest.approx(found.batch * per_image, rel=0.2)


def test_a_model_that_does_not_answer_the_task_is_a_fault_at_the_data(monkeypatch, run_tree):
    monkeypatch.setattr(Digits, "task", TASK)
    with pytest.raises(ValidationError) as error:
        TrainConfig.model_validate(run_tree())
    [fault] = faults_of(error.value)
    assert str(fault) == "data: is for segmentation, and a model of family vit is for classification"
    monkeypatch.setattr(ViTConfig, "tasks", frozenset({"classification", "segmentation"}))
    assert TrainConfig.model_validate(run_tree()).data == Digits()


def tree_of() -> dict:
    return {
        "name": "inked",
        "base": {
            "model": {"family": "vit", "size": "nano"},
            "data": "digits",
            "schedule": {"epochs": 1},
            "optim": {"name": "adamw", "weight_decay": 0.1},
        },
        "arms": {"p": {}},
        "vary": {"optim.lr": {"log_uniform": [1e-3, 1e-2]}},
        "design": {"kind": "random", "points": 4},
    }


def test_a_sweep_says_where_the_mismatch_is(monkeypatch):
    monkeypatch.setattr(Digits, "task", TASK)
    with pytest.raises(SweepError, match="data: is for segmentation, and a model of family vit"):
        build_sweep(tree_of(), "inked.yaml")


def test_a_landscape_ends_at_the_chance_of_the_task(monkeypatch):
    monkeypatch.setattr(Digits, "task", TASK)
    monkeypatch.setattr(ViTConfig, "tasks", frozenset({"segmentation"}))
    sweep = build_sweep(tree_of(), "inked.yaml")
    plan = make_plan(sweep, {config: config.info() for config in data_configs(sweep)})
    row = Epoch(1, 10, 1e-3, 1.0, 1.0, 30.0, 30.0, 1.0, 0.1, None)
    records = {trial.id: Record("finished", "", 1, {1: row}) for trial in plan.trials}
    [landscape] = landscapes(plan, results_of(plan, records))
    assert landscape.chance_pct == 60.0


def worker(rank: int, meeting: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for row, state in train(config_of(batch_size=299), Context(rank=rank, world_size=2)):
        last = row, state
    print(json.dumps([measured(last[0]), iou_by_hand(last[1].model, "val")]))
    torch.distributed.destroy_process_group()


def test_ranks_add_their_totals_up(tmp_path):
    # 299 images for selection are 150 for one rank and 149 for the other: means of means would be wrong.
    assert Strokes().info().sizes["val"] == 299
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(rank), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=250)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert outputs[0] == outputs[1]
    row, (paper, inked) = json.loads(outputs[0])
    assert row["val_error_pct"] == pytest.approx(100 - 50 * (paper + inked))
    assert row["extra"] == {"iou/ink": pytest.approx(100 * inked)}


def test_classification_scores_by_hand():
    task, info = Classification(), Digits().info()
    assert (info.chance_error_pct, task.guessing_loss(info)) == (90.0, pytest.approx(2.302585093))
    totals = task.new_totals(info, torch.device("cpu"))
    # Two of three are right; each of two classes with probability 3/4 or 1/4.
    logits = torch.log(torch.tensor([[3.0, 1.0], [3.0, 1.0], [1.0, 3.0]]))
    task.add(totals, logits[:2], torch.tensor([0, 1]))
    task.add(totals, logits[2:], torch.tensor([1]))
    score = task.score(totals)
    assert score.error_pct == pytest.approx(100 / 3)
    assert score.loss == pytest.approx((2 * math.log(4 / 3) + math.log(4)) / 3)
    assert not score.extra


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
