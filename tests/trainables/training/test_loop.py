import copy
import dataclasses
import io
import itertools
import json
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import dataloader

from tests import workers
from trainables.__main__ import main
from trainables.base import TIMING_FIELDS, DataError, Diverged, Epoch, Invalid
from trainables.config import Seeds, TrainConfig
from trainables.context import Context
from trainables.data.base import drawn_from
from trainables.training import loop
from trainables.training.loop import train
from trainables.transforms.corruptions import corrupt

FULL = {
    "model.stem": "conv",
    "model.drop_path": 0.2,
    "model.depth": 3,
    "mixup": {},
    "ema": {"every_steps": 2},
    "precise_bn_images": 256,
    "clip_grad_norm": 1.0,
    "augment.flip": 0.5,
    "schedule.epochs": 3,
}
#: So small that a step vanishes in single precision and the head stays zero. At 1e-12 it would not: the
#: largest of ten tiny logits is as good an answer as the largest of ten others.
NO_STEP = 1e-46

SGD = {
    "optim": {"name": "sgd", "lr": 0.1, "weight_decay": 1e-4},
    "model.stem": "conv",
    "schedule": {"epochs": 3, "per": "epoch", "warmup": 1},
}


@pytest.fixture
def config_of(run_tree):
    return lambda settings: TrainConfig.model_validate(run_tree(**settings))


def measured(row) -> dict:
    return {name: value for name, value in dataclasses.asdict(row).items() if name not in TIMING_FIELDS}


def run(config, checkpoint=None):
    """Rows without what the clock decides, and a copy of everything the state holds."""
    rows, content = [], None
    for row, state in train(config, Context(), checkpoint):
        rows.append(measured(row))
        content = state.content()
    return rows, content


def assert_equal(one, two):
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_equal(a, b)
    else:
        assert one == two


@pytest.mark.parametrize(
    "settings",
    [
        FULL,
        SGD,
        FULL | {"micro_batch": 50},
        FULL | {"model.attention": "reattention"},
        FULL | {"model.parametrization": "mup", "model.mup_width": 8},
    ],
    ids=["adamw-ema-mixup-precise-bn", "sgd", "parts of a batch", "re-attention", "mup"],
)
def test_a_run_taken_up_from_a_checkpoint_ends_exactly_like_one_left_alone(settings, config_of):
    config = config_of(settings)
    files = []
    rows = []
    for row, state in train(config, Context()):
        rows.append(measured(row))
        files.append(io.BytesIO())
        state.save(files[-1])
        final = state.content()
    for epoch, file in enumerate(files[:-1], start=1):
        file.seek(0)
        # What else happened in this process must not matter.
        torch.manual_seed(12345)
        torch.rand(7)
        later, content = run(config, file)
        assert later == rows[epoch:]
        assert_equal(content, final)


def test_two_runs_of_one_process_are_identical_and_seeds_make_them_differ(config_of):
    settings = FULL | {"schedule.epochs": 2}
    first, second = run(config_of(settings)), run(config_of(settings))
    assert first[0] == second[0]
    assert_equal(first[1], second[1])
    for stream in ("init", "order", "augment"):
        other = run(config_of(settings | {f"seeds.{stream}": 1}))
        assert other[0] != first[0]


def test_a_checkpoint_holds_tensors_and_plain_values_only(config_of):
    file = io.BytesIO()
    for _, state in train(config_of(FULL), Context()):
        state.save(file)
        break
    file.seek(0)
    content = torch.load(file, weights_only=True)
    assert content["epoch"] == 1


def test_rows_say_what_happened(config_of):
    config = config_of({"schedule.epochs": 3, "batch_size": 300})
    rows, _ = run(config)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    # 1199 images in batches of at most 300 are 4 steps.
    assert [row["step"] for row in rows] == [4, 8, 12]
    # The last of 12 steps begins after 2.75 of 3 epochs.
    assert rows[-1]["lr"] == pytest.approx(2e-3 * config.schedule.factor(2.75))
    assert [row["test_error_pct"] is None for row in rows] == [True, True, False]
    for row in rows:
        # 299 images for selection: errors come in steps of 1 / 299.
        assert row["val_error_pct"] * 2.99 == pytest.approx(round(row["val_error_pct"] * 2.99))
        assert row["val_raw_error_pct"] == row["val_error_pct"]


def test_the_scores_are_those_of_the_model_on_the_split(config_of):
    config = config_of({})
    *_, (row, state) = train(config, Context())
    for split, error in (("val", row.val_error_pct), ("test", row.test_error_pct)):
        images = config.data.open()[split]
        pipeline = config.augment.pipeline(config.model.image_size, 0, Context())
        [(pixels, labels)] = pipeline.eval_batches(images, 1000)
        with torch.no_grad():
            logits = state.model.eval()(pixels)
        assert error == pytest.approx(100 * (logits.argmax(1) != labels).double().mean().item())
        if split == "val":
            loss = nn.functional.cross_entropy(logits.double(), labels).item()
            assert row.val_loss == pytest.approx(loss, rel=1e-5)


def test_robustness_is_measured_once_at_the_end_on_the_images_it_names(config_of, tmp_path, png_bytes):
    for digit in (3, 8):
        (tmp_path / str(digit)).mkdir()
        for number in range(5):
            pixels = np.random.default_rng(number + digit).integers(0, 256, (16, 16, 3))
            (tmp_path / str(digit) / f"{number}.png").write_bytes(png_bytes(pixels))
    evaluate = {
        "corruptions": {"kinds": ["contrast", "shot_noise"], "severities": [2, 5], "images": 60},
        "shifted": [{"name": "static", "uri": str(tmp_path)}],
    }
    plain = {"model.stem": "conv", "optim.lr": 8e-3, "ema": {"every_steps": 2}, "precise_bn_images": 256}
    config = config_of(plain | {"evaluate": evaluate})
    (first, _), (row, state) = train(config, Context())
    assert first.extra is None
    # It asks, and changes nothing.
    *_, (without, other) = train(config_of(plain), Context())
    assert measured(row) == measured(without) | {"extra": row.extra}
    assert state.weights_digest() == other.weights_digest()

    # By hand: the averaged weights with batch norm statistics taken anew, on 60 images of the final
    # split that keep its share of classes.
    model = copy.deepcopy(state.evaluated)
    pipeline = config.augment.pipeline(16, config.seeds.augment, Context())
    splits = config.data.open()
    order = Seeds.derived(config.seeds.order, "precise_bn").order
    batches = list(pipeline.train_batches(splits["train"], order, 128, 2))[:2]
    torch.optim.swa_utils.update_bn([images for images, _ in batches], model)
    rows = drawn_from(splits["test"].labels, 60, 0)
    pictures = [np.asarray(splits["test"].read(int(row)).resize((16, 16), 2)) for row in rows]

    @torch.no_grad()
    def error(pixels, labels, allowed=range(10)):
        inputs = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        answers = [max(allowed, key=logits.__getitem__) for logits in model.eval()(inputs)]
        return 100 * np.mean([a != b for a, b in zip(answers, labels, strict=True)])

    labels = splits["test"].labels[rows]
    expected = {"clean": error(pictures, labels)}
    for kind in ("contrast", "shot_noise"):
        expected[f"corruption/{kind}"] = np.mean(
            [
                error([corrupt(p, kind, severity, seed=0, index=i) for i, p in enumerate(pictures)], labels)
                for severity in (2, 5)
            ]
        )
    static = [(digit, f"{tmp_path}/{digit}/{number}.png") for digit in (3, 8) for number in range(5)]
    noise = [np.asarray(Image.open(path)) for _, path in static]
    expected["shifted/static"] = error(noise, [digit for digit, _ in static], allowed=(3, 8))
    assert row.extra == pytest.approx(expected)
    assert list(row.extra) == [
        "clean", "corruption/contrast", "corruption/shot_noise", "shifted/static",
    ]  # fmt: skip


def test_large_images_are_corrupted_after_cropping(config_of):
    config = config_of({"augment.name": "paper", "evaluate.corruptions": {"kinds": ["contrast"]}})
    pipeline = config.augment.pipeline(16, 0, Context())
    images = config.data.open()["test"]
    seen = []

    def change(pixels, row):
        seen.append((pixels.shape, row))
        return pixels // 2

    [(changed, _)] = pipeline.eval_batches(images, 1000, change)
    [(plain, _)] = pipeline.eval_batches(images, 1000)
    assert seen == [((16, 16, 3), row) for row in range(len(images))]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    bytes_of = [(255 * (x.movedim(1, -1) * std + mean)).round() for x in (changed, plain)]
    assert torch.equal(bytes_of[0], bytes_of[1] // 2)


def test_a_shifted_set_that_is_not_there_ends_the_run_before_it_begins(config_of):
    config = config_of({"evaluate": {"shifted": [{"name": "v2", "uri": "/nowhere"}]}})
    with pytest.raises(DataError, match="/nowhere: there is no such file"):
        next(train(config, Context()))


def test_a_model_learns(config_of):
    settings = {"model.stem": "conv", "schedule.epochs": 3, "model.width": 32, "model.depth": 3}
    rows, _ = run(config_of(settings | {"optim.lr": 8e-3}))
    assert rows[-1]["val_error_pct"] < 45
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_the_first_steps_are_those_of_a_loop_written_out(config_of):
    sgd = {"name": "sgd", "lr": 1, "weight_decay": 0.01}
    config = config_of({"optim": sgd, "schedule.epochs": 3, "batch_size": 1199, "augment.shift": 0})
    torch.manual_seed(config.seeds.init)
    model = config.model.network(10)
    pipeline = config.augment.pipeline(16, config.seeds.augment, Context())
    images = config.data.open()["train"]
    optimizer = config.optim.build(model, 1199, config.model.outer_names(model))
    for epoch, (row, state) in enumerate(itertools.islice(train(config, Context()), 3)):
        [(pixels, labels)] = pipeline.train_batches(images, config.seeds.order, 1199, epoch)
        lr = config.schedule.factor(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = nn.functional.cross_entropy(model(pixels), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert row.train_loss == pytest.approx(loss.item(), rel=1e-5)
        assert row.lr == pytest.approx(lr)
        for expected, parameter in zip(model.parameters(), state.model.parameters(), strict=True):
            assert torch.allclose(expected, parameter, atol=1e-5)


def test_the_average_is_the_weights_themselves_until_the_warm_up_is_over(config_of):
    ema = {"every_steps": 1, "time_constant": 1}
    settings = {"ema": ema, "schedule": {"epochs": 3, "warmup": 1}, "batch_size": 300}
    states = train(config_of(settings), Context())
    _, state = next(states)
    # The last update of the warm-up copied the weights.
    assert_equal(state.ema.module.state_dict(), state.model.state_dict())
    next(states)
    last = dict(state.ema.module.named_parameters())
    assert not all(torch.equal(p, last[name]) for name, p in state.model.named_parameters())


def test_a_short_run_is_not_judged_by_averages_of_weights_it_left_long_ago(config_of):
    # 10 steps in all: fewer than the 32 between two updates in the paper.
    rows, _ = run(config_of({"ema": {}, "model.stem": "conv", "optim.lr": 5e-3}))
    assert abs(rows[-1]["val_error_pct"] - rows[-1]["val_raw_error_pct"]) < 15


def test_precise_bn_evaluates_with_statistics_of_training_images(config_of):
    settings = {"model.stem": "conv", "augment.shift": 0, "batch_size": 1199, "schedule.epochs": 1}
    # One step only: running statistics are still nine tenths of their start, precise ones are not.
    [(row, state)] = list(train(config_of(settings), Context()))
    config = config_of(settings | {"precise_bn_images": 1199})
    assert run(config)[0][0]["val_loss"] != row.val_loss
    runner = loop.TrainingRun(config, Context(), config.data.info(), config.data.open()["train"])
    runner.state.model.load_state_dict(state.model.state_dict())
    with torch.no_grad():
        [precise] = runner._with_precise_bn([runner.state.model])
    images, _ = next(runner.pipeline.train_batches(config.data.open()["train"], 0, 1199, 0))
    first = precise.stem[0](images)
    norm = precise.stem[1]
    assert torch.allclose(norm.running_mean, first.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(norm.running_var, first.var((0, 2, 3)), rtol=1e-3)
    # The model that trains keeps its own.
    assert_equal(runner.state.model.state_dict(), state.model.state_dict())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precisions_train_on_a_cpu(precision, config_of):
    rows, content = run(config_of({"precision": precision, "schedule.epochs": 1}))
    assert len(rows) == 1
    assert all(p.dtype == torch.float32 for p in content["model"].values())


# --- ends ---------------------------------------------------------------------------------------------


def test_a_loss_that_explodes_ends_the_run(config_of):
    config = config_of(SGD | {"optim.lr": 1e6, "schedule.warmup": 0})
    with pytest.raises(Diverged, match=r"loss is (nan|inf)"):
        run(config)


def test_a_run_that_learns_nothing_ends_when_its_window_is_over(config_of):
    config = config_of({"optim.lr": NO_STEP, "schedule.epochs": 8, "divergence.window": "25%"})
    rows = []
    with pytest.raises(Diverged, match="learnt nothing for 2 epochs, until epoch 2"):
        rows.extend(row for row, _ in train(config, Context()))
    config = config_of({"optim.lr": NO_STEP, "schedule.epochs": 8, "divergence.window": 3})
    with pytest.raises(Diverged, match="until epoch 3"):
        run(config)


def test_a_run_at_chance_at_its_end_has_diverged_after_its_last_row(config_of):
    config = config_of({"optim.lr": NO_STEP, "divergence.window": 100})
    states = train(config, Context())
    rows = [next(states)[0], next(states)[0]]
    assert rows[-1].test_error_pct is not None
    with pytest.raises(Diverged, match=r"ended at \d+\.\d % error, where chance is 90\.0 %"):
        next(states)


def test_a_run_that_only_learns_which_class_is_the_largest_has_diverged(config_of, write_parquet, png_bytes):
    images = [png_bytes(np.full((8, 8, 3), 5 + i)) for i in range(100)]
    # Nine of ten are of one class: the error of 10 % is no merit.
    path = write_parquet("uneven.parquet", images, [int(i % 10 == 0) for i in range(100)], ["a", "b"])
    config = config_of({"data": str(path), "batch_size": 16, "optim.lr": 1e-3, "divergence.window": 100})
    with pytest.raises(Diverged, match=r"ended at \d+\.\d % error, where chance is 1\d\.\d %"):
        run(config)


@pytest.mark.parametrize("window", [100, 2])
def test_a_dead_run_stays_dead_when_it_is_taken_up_from_its_last_checkpoint(window, config_of):
    config = config_of({"optim.lr": NO_STEP, "divergence.window": window})
    states = train(config, Context())
    next(states)
    _, state = next(states)
    file = io.BytesIO()
    state.save(file)
    file.seek(0)
    with pytest.raises(Diverged):
        next(train(config, Context(), file))


def test_batches_too_small_for_the_workers_are_refused(config_of):
    with pytest.raises(Invalid, match="1199 training images in batches of 1 on 1 workers"):
        next(train(config_of({"batch_size": 1}), Context()))


# --- loader processes ---------------------------------------------------------------------------------


def test_loader_processes_start_once_for_a_run_and_change_nothing(config_of, monkeypatch):
    starts = 0
    begin = dataloader._MultiProcessingDataLoaderIter.__init__

    def counted(self, loader):
        nonlocal starts
        starts += 1
        begin(self, loader)

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "__init__", counted)
    # Weights and their average, both with stochastic depth in the pass that computes statistics.
    settings = FULL | {
        "augment": {"name": "paper"},
        "batch_size": 300,
        "divergence": {"margin_pct": 0, "window": 9},
    }
    del settings["augment.flip"]
    config = config_of(settings)
    before = set(multiprocessing.active_children())
    alone, helped = (
        [measured(row) for row, _ in train(config, Context(loader_workers=count))] for count in (0, 2)
    )
    assert helped == alone
    assert starts == 1
    assert set(multiprocessing.active_children()) <= before


def test_networks_side_by_side_draw_as_each_would_alone_whatever_was_drawn_before():
    batches = torch.randn(5, 32, 4).unbind()
    networks = [nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)) for _ in range(2)]
    together = loop._SideBySide(networks, seed=3)
    torch.rand(7)
    with torch.no_grad():
        update_bn(iter(batches), together)
        alone = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4))
        torch.manual_seed(3)
        update_bn(iter(batches), alone)
    for network in networks:
        assert torch.equal(network[1].running_mean, alone[1].running_mean)


# --- parts of a batch ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"mixup": {}}, {"clip_grad_norm": 0.1}, {"label_smoothing": 0}], ids=str
)
def test_a_batch_in_parts_takes_the_step_of_the_whole(changes, config_of):
    settings = {"optim": {"name": "sgd", "lr": 0.5, "weight_decay": 1e-4}, "batch_size": 64, **changes}
    whole, parts = (
        loop.TrainingRun(config, Context(), config.data.info(), config.data.open()["train"])
        for config in (config_of(settings), config_of(settings | {"micro_batch": 16}))
    )
    images = whole.config.data.open()["train"]
    batches = list(itertools.islice(whole.pipeline.train_batches(images, 0, 64, 0), 5))
    sizes = []
    parts.state.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for step, batch in enumerate(batches):
        parts.state.restore(copy.deepcopy(whole.state.content()))
        losses = [run.train_step(batch, 0.5, step, len(batch[0])).item() for run in (whole, parts)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)
        ours, theirs = (
            torch.cat([p.flatten() for p in run.state.model.parameters()]) for run in (parts, whole)
        )
        assert torch.linalg.norm(ours - theirs) <= 1e-6 * torch.linalg.norm(theirs)
    # 63 or 64 images in equal parts.
    assert len(sizes) == 20
    assert set(sizes) <= {15, 16}


def test_batch_norm_normalises_each_part_by_itself(config_of):
    config = config_of({"model.stem": "conv", "batch_size": 64, "micro_batch": 16})
    run_in_parts = loop.TrainingRun(config, Context(), config.data.info(), config.data.open()["train"])
    inputs = []
    norm = run_in_parts.state.model.stem[1]
    norm.register_forward_hook(lambda module, given, _: inputs.append(given[0].detach()))
    batch = next(run_in_parts.pipeline.train_batches(config.data.open()["train"], 0, 64, 0))
    run_in_parts.train_step(batch, 0.1, 0, len(batch[0]))
    expected = torch.zeros_like(norm.running_mean)
    for part in inputs:
        expected = 0.9 * expected + 0.1 * part.mean((0, 2, 3))
    assert len(inputs) == 4
    assert torch.allclose(norm.running_mean, expected, atol=1e-6)


def test_a_run_in_parts_has_other_statistics(config_of):
    assert run(config_of(FULL | {"micro_batch": 50}))[0] != run(config_of(FULL))[0]


@pytest.mark.parametrize("attention", ["softmax", "talking_heads"])
def test_activations_that_are_computed_again_change_no_bit(attention, config_of):
    def forwards(settings):
        config = config_of(settings)
        training = loop.TrainingRun(config, Context(), config.data.info(), config.data.open()["train"])
        calls = []
        training.state.model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(None))
        batch = next(training.pipeline.train_batches(config.data.open()["train"], 0, config.batch_size, 0))
        training.train_step(batch, 0.1, 0, len(batch[0]))
        return len(calls)

    settings = FULL | {"model.attention": attention}
    again = settings | {"model.recompute": True}
    assert (forwards(settings), forwards(again)) == (1, 2)
    (rows, content), (plain_rows, plain_content) = run(config_of(again)), run(config_of(settings))
    assert rows == plain_rows
    del content["run"], plain_content["run"]
    assert_equal(content, plain_content)


# --- several workers ----------------------------------------------------------------------------------


def said_by_two(tmp_path, function, *arguments) -> list:
    """Runs a function of `workers` as two ranks, and returns what both have printed, parsed."""
    said = [tmp_path / f"rank-{rank}.txt" for rank in range(2)]
    ranks = [workers.start(said[rank], function, rank, tmp_path / "meeting", *arguments) for rank in range(2)]
    for process in ranks:
        process.join(timeout=250)
    outputs = [path.read_text() for path in said]
    assert [process.exitcode for process in ranks] == [0, 0], outputs
    assert outputs[0] == outputs[1]
    return [json.loads(line) for line in outputs[0].splitlines()]


def test_two_workers_train_as_one_and_agree_and_resume_exactly(run_tree, config_of, tmp_path):
    short = {"schedule.epochs": 2, "batch_size": 300, "divergence.window": 9}
    # SGD, as Adam does not notice a gradient of another size.
    plain = short | {"optim": {"name": "sgd", "lr": 1, "weight_decay": 0}, "precision": "fp32"}
    # Batch norm with and without statistics averaged over the workers.
    running = FULL | {"batch_size": 150, "precise_bn_images": 0, "optim.lr": 8e-3, "divergence.window": 9}
    # The share of a worker is up to 150 images.
    settings = [plain, FULL | short, running, plain | {"micro_batch": 40}, running | {"micro_batch": 30}]
    trees = [run_tree(**each) for each in settings]
    results = said_by_two(tmp_path, workers.train_and_go_on, trees)
    assert len(results) == 5
    for rows, later in results:
        assert later == rows[1:]
    alone = [measured(row) for row, _ in itertools.islice(train(config_of(plain), Context()), 2)]
    # Without batch norm or mixing the two halves of a batch do not know of each other; only the order
    # of summing differs, in single precision, over 8 steps.
    for together, single in zip(results[0][0], alone, strict=True):
        assert together["train_loss"] == pytest.approx(single["train_loss"], rel=1e-4)
        assert together["val_loss"] == pytest.approx(single["val_loss"], rel=1e-4)
        assert (together["step"], together["lr"]) == (single["step"], single["lr"])
    for together, in_parts in zip(results[0][0], results[3][0], strict=True):
        assert in_parts["train_loss"] == pytest.approx(together["train_loss"], rel=1e-4)
        assert in_parts["val_loss"] == pytest.approx(together["val_loss"], rel=1e-4)


def test_two_workers_send_gradients_only_in_a_step_and_get_the_weights_of_plain_ddp(run_tree, tmp_path):
    tree = run_tree(**{"model.stem": "conv", "batch_size": 300})
    (weights, collectives), (plain_weights, plain_collectives) = said_by_two(
        tmp_path, workers.compare_with_plain_ddp, tree
    )
    assert weights == plain_weights
    # Batch norm's statistics and counts are not sent in every step.
    assert (collectives, plain_collectives) == (1, 3)


# --- python -m trainables -----------------------------------------------------------------------------


@pytest.fixture
def config_file(run_tree, tmp_path):
    def write(content=None, **settings):
        path = tmp_path / "run.yaml"
        path.write_text(content if content is not None else yaml.safe_dump(run_tree(**settings)))
        return str(path)

    return write


def test_a_run_from_a_file_prints_its_rows_and_saves_its_end(config_file, config_of, capsys, tmp_path):
    saved = tmp_path / "end.pt"
    assert main([config_file(), "--save", str(saved)]) == 0
    *printed, end = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row in printed:
        for name in TIMING_FIELDS:
            del row[name]
    rows, content = run(config_of({}))
    assert printed == rows
    assert list(end) == ["weights"]
    with saved.open("rb") as file:
        assert_equal(torch.load(file, weights_only=True)["model"], content["model"])


def test_a_run_in_a_process_of_its_own_is_the_same(config_file, config_of):
    ran = subprocess.run(
        [sys.executable, "-m", "trainables", config_file()], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0
    *printed, end = [json.loads(line) for line in ran.stdout.splitlines()]
    *_, (row, state) = train(config_of({}), Context())
    assert measured(Epoch(**printed[-1])) == measured(row)
    assert end == {"weights": state.weights_digest()}


def test_a_diverged_run_ends_with_1_and_says_why(config_file, capsys):
    assert main([config_file(**{"optim.lr": NO_STEP, "divergence.window": 1})]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("diverged: learnt nothing for 1 epochs")
    assert len(captured.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "settings", "words"),
    [
        ("a: 1\na: 2\n", {}, "run.yaml:2:1: the key 'a' stands here twice"),
        ("- 1\n", {}, "file: must be a mapping of keys to values (got [1])"),
        (None, {"batch_size": 0, "nonsense": 1}, "batch_size: must be greater than 0 (got 0)"),
        (None, {"data": "/nowhere"}, "data: /nowhere: there is no such file or folder"),
        (None, {"batch_size": 1}, "leave fewer than 2 images"),
    ],
)
def test_what_cannot_be_run_ends_with_2_and_one_message(content, settings, words, config_file, capsys):
    assert main([config_file(content, **settings)]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert "run.yaml" in captured.err
    assert captured.out == ""


def test_a_missing_file_ends_with_2(capsys, tmp_path):
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: No such file" in capsys.readouterr().err


def test_an_image_that_does_not_decode_ends_with_2_and_its_row(config_file, write_parquet, png_bytes, capsys):
    images = [png_bytes([[[i, 0, 0]]]) for i in range(60)]
    images[31] = b"nonsense"
    path = write_parquet("set.parquet", images, [0, 1] * 30)
    assert main([config_file(data=str(path))]) == 2
    assert "set.parquet: row 31 does not decode" in capsys.readouterr().err
