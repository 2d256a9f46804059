"""Tests the training library on one GPU: whether it runs, gives the same results, and how fast it is.

    python -m benchmarks.device [--cpu] [--json FILE] [--only part,part] [--limit-seconds N]
    python -m benchmarks.device --document benchmarks/data/device-*.json > docs/performance.md

Needs torch, timm and `trainables`; no Ray, no network, no data. Parts run in order of value, in another
process that sends each figure as it is found. A part that fails, hangs or kills its process does not affect
the other parts. The table comes last. Exit code 1 if a requirement does not hold.

--cpu runs small versions of the parts about results on 2 cores. With --only it runs any part, to test that it
works.

Shape suffixes: B batch, C channels, H W image side.
"""

import argparse
import contextlib
import dataclasses
import gc
import io
import itertools
import json
import math
import os
import platform
import queue
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainables.base import DataInfo
    from trainables.config import TrainConfig
    from trainables.context import Context
    from trainables.data.base import Images
    from trainables.training.checkpoint import Checkpointer
    from trainables.training.state import State

ROOT = Path(__file__).parents[1]

#: Dense half precision (TFLOP/s) and memory (GB/s) by NVIDIA's data sheets (SXM). Multiply-adds count twice.
DATA_SHEETS = {"H100": (989.0, 3350.0), "H200": (989.0, 4800.0)}

#: Default of --limit-seconds.
LIMIT_SECONDS = 350.0

#: Seconds reserved for the table and the last write.
RESERVE_SECONDS = 3.0

OK, FAILED, NOT_MEASURED = "ok", "FAILED", "not measured"


# ---------------------------------------------------------------------------------------------------
# Common code of the parts


class Skip(Exception):
    """A part or a figure that cannot be measured here; the message gives the reason."""


@dataclass
class Bench:
    """The argument of a part: its settings, and methods to record figures.

    Attributes:
      small: whether the part takes a few seconds on a CPU, to test that it works.
      send: sends a message to the process that keeps the record.
      ends: deadline of the part, by `time.monotonic`.
    """

    small: bool
    send: Callable[[dict[str, Any]], None]
    ends: float = math.inf

    @property
    def context(self) -> "Context":
        """Context of this process, as in `python -m trainables`."""
        from trainables.context import this_process
        from trainables.gpu import visible_device

        return this_process(threads=1, device=visible_device())

    @property
    def on_gpu(self) -> bool:
        """True if there is a GPU."""
        return self.context.device.type == "cuda"

    def need_gpu(self) -> None:
        """Ends a part that has no meaning without a GPU."""
        if not self.on_gpu:
            raise Skip("needs a GPU")

    def left(self) -> float:
        """Seconds left to the part."""
        return self.ends - time.monotonic()

    def say(
        self,
        figure: str,
        value: Any,
        unit: str = "",
        *,
        most: float | None = None,
        least: float | None = None,
        equals: Any = None,
        goal: float | None = None,
    ) -> None:
        """Records a figure.

        Args:
          figure: name of the figure.
          value: a number, a text or a boolean.
          unit: of the number.
          most, least, equals: requirements.
          goal: a least value to reach; missing it is no failure.
        """
        wanted, holds = [], True
        if least is not None:
            wanted.append(f">= {least:g}")
            holds &= value >= least
        if most is not None:
            wanted.append(f"<= {most:g}")
            # False for nan.
            holds &= value <= most
        if equals is not None:
            wanted.append(shown(equals))
            holds &= value == equals
        status = (OK if holds else FAILED) if wanted else ""
        if goal is not None:
            wanted, status = [f"goal >= {goal:g}"], "reached" if value >= goal else "not reached"
        self.send(
            {"figure": figure, "value": value, "unit": unit, "must": ", ".join(wanted), "status": status}
        )

    def skip(self, figure: str, why: str) -> None:
        """Records that a figure could not be measured."""
        self.send(
            {"figure": figure, "value": None, "unit": "", "must": "", "status": f"{NOT_MEASURED}: {why}"}
        )

    def has_time(self, figure: str, seconds: float) -> bool:
        """Returns whether there is time for a figure. Records the figure as skipped if not."""
        if self.left() > seconds:
            return True
        self.skip(figure, "no time left")
        return False


def shown(value: Any) -> str:
    """Returns a value as text for the table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def one_line(error: BaseException) -> str:
    """Returns the class of an error and the first line of its message."""
    text = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {text[:160]}"


def digits(stem: str, **settings: Any) -> "TrainConfig":
    """Returns the run of `search_spaces/lr_wd.yaml` for one stem.

    `settings` are dotted paths with `__` for the dot. Without a GPU, images have a quarter of the pixels.
    """
    import torch

    from trainables.config import TrainConfig
    from trainables.presets import set_paths

    side = 32 if torch.cuda.is_available() else 16

    tree: dict[str, Any] = {
        "model": {"family": "vit", "size": "nano", "image_size": side, "patch_size": 8, "stem": stem},
        "data": "digits",
        "optim": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.1},
        "schedule": {"epochs": 20, "warmup": "10%"},
        "batch_size": 64,
    }
    set_paths(tree, {path.replace("__", "."): value for path, value in settings.items()})
    return TrainConfig.model_validate(tree)


def synthetic(model: Any, batch_size: int, precision: str = "auto", **settings: Any) -> "TrainConfig":
    """Returns a run for images generated on the device. Its data settings are not used."""
    from trainables.config import TrainConfig
    from trainables.presets import set_paths

    tree: dict[str, Any] = {
        "model": model,
        "data": "digits",
        "augment": "paper",
        "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.24},
        "schedule": {"epochs": 1},
        "batch_size": batch_size,
        "precision": precision,
    }
    set_paths(tree, {path.replace("__", "."): value for path, value in settings.items()})
    return TrainConfig.model_validate(tree)


#: Classes of generated images, as many as ImageNet has.
CLASSES = 1000


class Stepper:
    """The training step of the library on one batch generated on the device."""

    def __init__(self, config: "TrainConfig", context: "Context") -> None:
        import numpy as np
        import torch

        from trainables.data.base import Images
        from trainables.training.loop import TrainingRun

        self.batch_size = config.batch_size
        images = Images(np.zeros(10 * config.batch_size, np.int64), _no_image)
        self.run = TrainingRun(config, context, _made_up_info(config), images)
        self.run.learner.network.train()
        generator = torch.Generator(context.device).manual_seed(0)
        shape = (config.batch_size, 3, config.model.image_size, config.model.image_size)
        self.images_BCHW = torch.randn(shape, device=context.device, generator=generator)
        self.labels_B = torch.randint(CLASSES, shape[:1], device=context.device, generator=generator)
        self.steps = 0

    def replace_model(self, model: "nn.Module") -> None:
        """Replaces the network and keeps the kind of optimizer."""
        model = model.to(self.images_BCHW.device)
        model.train()
        self.run.state.model = model
        config = self.run.config
        outer = config.model.outer_names(model)
        self._use(network=model, optimizer=config.optim.build(model, self.batch_size, outer))

    def fuse_optimizer(self) -> None:
        """Replaces AdamW by its fused kernel."""
        import torch

        optimizer = self.run.state.optimizer
        groups = [
            {"params": group["params"], "weight_decay": group["weight_decay"]}
            for group in optimizer.param_groups
        ]
        first = optimizer.param_groups[0]
        self._use(optimizer=torch.optim.AdamW(groups, first["lr"], first["betas"], fused=True))

    def to_channels_first(self) -> None:
        """Undoes `lay_out`, which makes channels the innermost axis of some convolutions."""
        import torch

        self.run.state.model.to(memory_format=torch.contiguous_format)

    def compile(self) -> None:
        """Compiles the network by torch.compile."""
        import torch

        self._use(network=torch.compile(self.run.state.model))

    def _use(self, **parts: Any) -> None:
        """Replaces parts that a step uses."""
        self.run.state.optimizer = parts.get("optimizer", self.run.state.optimizer)
        self.run.learner = dataclasses.replace(self.run.learner, **parts)

    def __call__(self) -> "Tensor":
        """Runs one step. Returns the sum of its losses."""
        step, self.steps = self.steps, self.steps + 1
        rate = self.run.lr_at(min(step, self.run.total_steps - 1))
        return self.run.train_step((self.images_BCHW, self.labels_B), rate, step, self.batch_size)


def _made_up_info(config: "TrainConfig") -> "DataInfo":
    """Returns the data info for generated images: that of the run's data, with the classes of ImageNet."""
    return dataclasses.replace(config.data.info(), num_classes=CLASSES)


def _no_image(row: int) -> Any:
    raise AssertionError("made-up images have no files")


def wait_for(device: Any) -> None:
    """Waits until the device has finished all work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(device: Any, call: Callable[[], Any], count: int = 1) -> float:
    """Returns the mean seconds of `count` calls in a row, by the device's clock if it has one."""
    import torch

    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - began) / count
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(count):
        call()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1000 / count


def interleaved(
    device: Any, calls: Mapping[str, Callable[[], Any]], rounds: int, count: int, left: Callable[[], float]
) -> dict[str, list[float]]:
    """Returns seconds per call by name, one value per round. Rounds end early if time runs out."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        if number and left() < 5:
            break
        for name, call in calls.items():
            taken[name].append(seconds_of(device, call, count))
    return taken


def free_memory() -> None:
    """Frees unused memory."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Allows only deterministic kernels; an operation without one raises an error."""
    import torch

    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Turns TF32 off, in convolutions, too."""
    import torch

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def trained(
    config: "TrainConfig", context: "Context", keeper: "Checkpointer | None" = None
) -> tuple[list[Any], "State"]:
    """Trains a run. Returns all its rows and its last state."""
    from trainables.training.loop import train

    rows: list[Any] = []
    last: State | None = None
    for row, state in train(config, context, keeper=keeper):
        rows.append(row)
        last = state
    assert last is not None
    return rows, last


def one_epoch(config: "TrainConfig", context: "Context") -> tuple["State", float]:
    """Trains one epoch without evaluation. Returns the state and the mean loss."""
    from trainables.training.loop import TrainingRun

    info, splits = config.data.info(), config.data.open()
    run = TrainingRun(config, context, info, splits["train"])
    loss, _ = run.train_epoch(splits["train"])
    return run.state, loss


def _first_state(config: "TrainConfig", context: "Context") -> "State":
    """Returns the initial state of training."""
    from trainables.training.loop import TrainingRun

    return TrainingRun(config, context, config.data.info(), config.data.open()["train"]).state


def weights_of(state: "State") -> "Tensor":
    """Returns all parameters as one vector, in double precision on the CPU."""
    import torch

    parts = [parameter.detach().double().cpu().flatten() for parameter in state.model.parameters()]
    return torch.cat(parts)


def apart(one: "Tensor", other: "Tensor") -> float:
    """Returns the norm of the difference over the norm of the first."""
    return float((one - other).norm() / one.norm())


@contextlib.contextmanager
def child(*arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """Runs another process of this file within a block."""
    command = [sys.executable, "-m", "benchmarks.device", "--child", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, encoding="utf-8", cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# ---------------------------------------------------------------------------------------------------
# The parts


def environment(bench: Bench) -> None:
    """Measures the limits of the machine, and the host's cost of starting an operation."""
    import torch

    device = bench.context.device
    side, dtype = (512, torch.float32) if bench.small else (8192, torch.bfloat16)
    name = f"matrix product {side}^3 {str(dtype).removeprefix('torch.')}"
    bench.say(name, 2 * side**3 / _product_seconds(device, side, dtype) / 1e12, "TFLOP/s")
    num_bytes = 2**24 if bench.small else 2**31
    bench.say(
        "copy on the device, read and written", 2 * num_bytes / _copy_seconds(device, num_bytes) / 1e9, "GB/s"
    )
    if bench.on_gpu:
        there = torch.empty(2**26, device=device)
        for kind, here in (
            ("pinned", torch.randn(2**26).pin_memory()),
            ("pageable", torch.randn(2**26)),
        ):
            there.copy_(here, non_blocking=True)

            def copy(here: "Tensor" = here) -> None:
                there.copy_(here, non_blocking=True)

            seconds = statistics.median(seconds_of(device, copy) for _ in range(5))
            bench.say(f"host to device, {kind}", here.nbytes / seconds / 1e9, "GB/s")
        del there, here
    tiny = torch.rand(1, device=device)
    for _ in range(100):
        tiny + tiny
    wait_for(device)
    began = time.perf_counter()
    for _ in range(5000):
        tiny + tiny
    bench.say("host time to start an operation", (time.perf_counter() - began) / 5000 * 1e6, "µs")
    wait_for(device)
    free_memory()


def _product_seconds(device: Any, side: int, dtype: Any) -> float:
    """Returns seconds of a product of two square random matrices. Zeros would be faster."""
    import torch

    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds_of(device, lambda: one @ other, 3)
    return statistics.median(seconds_of(device, lambda: one @ other) for _ in range(10))


def _copy_seconds(device: Any, num_bytes: int) -> float:
    """Returns seconds of a copy that is too large for any cache."""
    import torch

    source = torch.randn(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds_of(device, lambda: target.copy_(source), 3)
    return statistics.median(seconds_of(device, lambda: target.copy_(source)) for _ in range(10))


def trial(bench: Bench) -> None:
    """Checks that `python -m trainables` trains, and its results."""
    from trainables.__main__ import main as train_file

    epochs = 4 if bench.small else 20
    stems = ("patchify", "conv")
    precisions = ("fp32",) if bench.small else ("fp32", "auto")
    with tempfile.TemporaryDirectory() as folder:
        for stem, precision in itertools.product(stems, precisions):
            config = digits(stem, precision=precision, schedule__epochs=epochs)
            file = Path(folder, "run.yaml")
            file.write_text(json.dumps(config.model_dump(mode="json")), "utf-8")
            printed, began = io.StringIO(), time.perf_counter()
            with contextlib.redirect_stdout(printed):
                code = train_file([str(file)])
            seconds = time.perf_counter() - began
            name = f"{stem}, {precision}"
            bench.say(f"{name}: exit code", code, equals=0)
            rows = [json.loads(line) for line in printed.getvalue().splitlines()]
            rows = [row for row in rows if "epoch" in row]
            # Guessing has an error of 90 %.
            bench.say(
                f"{name}: error after {epochs} epochs",
                rows[-1]["val_error_pct"],
                "%",
                most=85 if bench.small else 30,
            )
            bench.say(f"{name}: loss of the last epoch", rows[-1]["train_loss"], "nats", most=math.log(10))
            each = statistics.median(row["train_seconds"] for row in rows[1:])
            bench.say(f"{name}: an epoch of 19 steps", each, "s")
            bench.say(
                f"{name}: evaluation after it", statistics.median(r["val_seconds"] for r in rows[1:]), "s"
            )
            bench.say(f"{name}: whole trial", seconds, "s")


def agree(bench: Bench) -> None:
    """Compares 20 steps from the same seed on CPU and GPU.

    The difference has a bound for SGD only, because Adam makes a full step along a gradient that is only
    rounding, such as that of the keys' biases. Without a GPU, operations without oneDNN replace it.
    """
    import torch

    from trainables.context import Context

    host, there = Context(), bench.context
    other = "GPU" if bench.on_gpu else "CPU without oneDNN"

    def run_there(config: "TrainConfig") -> tuple["State", float]:
        if bench.on_gpu:
            return one_epoch(config, there)
        with torch.backends.mkldnn.flags(enabled=False):
            return one_epoch(config, there)

    for stem in ("patchify", "conv"):
        # 1,198 images by 60 are 20 steps. At four times this rate rounding grows to 2 % of the path.
        sgd = {"optim": {"name": "sgd", "lr": 0.005, "weight_decay": 1e-4}}
        common: dict[str, Any] = {"batch_size": 60, "precision": "fp32", "schedule__epochs": 1}
        config = digits(stem, **common, **sgd)
        start = weights_of(_first_state(config, host))
        state, loss = one_epoch(config, host)
        expected = weights_of(state)
        with without_tf32():
            state, loss_there = run_there(config)
        found = weights_of(state)
        way = float((expected - start).norm())
        name = f"{stem}, CPU against {other}"
        bench.say(f"{name}: weights", apart(expected, found), "relative", most=1e-4)
        bench.say(f"{name}: weights", float((expected - found).norm()) / way, "of the way", most=1e-2)
        bench.say(f"{name}: loss", abs(loss - loss_there) / loss, "relative", most=1e-5)
        half, half_loss = one_epoch(config.model_copy(update={"precision": "bf16"}), there)
        name = f"{stem}, bf16 against fp32"
        bench.say(f"{name}: weights", apart(found, weights_of(half)), "relative", most=2e-2)
        bench.say(f"{name}: weights", float((found - weights_of(half)).norm()) / way, "of the way", most=0.2)
        bench.say(f"{name}: loss", abs(loss_there - half_loss) / loss_there, "relative", most=2e-2)
        if bench.on_gpu:
            default, _ = one_epoch(config, there)
            bench.say(f"{stem}, TF32 as by default: weights", apart(found, weights_of(default)), "relative")
            adam = digits(stem, **common)
            with without_tf32():
                one, two = weights_of(one_epoch(adam, host)[0]), weights_of(one_epoch(adam, there)[0])
            bench.say(f"{stem}, CPU against GPU: weights under AdamW", apart(one, two), "relative")


def repeat(bench: Bench) -> None:
    """Checks that a run repeated is bit-identical, with and without torch's deterministic algorithms."""
    context = bench.context

    def at_224() -> "State":
        model = "vit_c_1gf" if not bench.small else {"family": "vit", "size": "nano", "stem": "conv"}
        settings: dict[str, Any] = (
            {} if not bench.small else {"model__image_size": 32, "model__patch_size": 8}
        )
        step = Stepper(synthetic(model, 4 if bench.small else 64, **settings), context)
        for _ in range(5):
            step()
        return step.run.state

    def of_digits(stem: str, precision: str) -> Callable[[], "State"]:
        return lambda: one_epoch(digits(stem, precision=precision), context)[0]

    runs: dict[str, Callable[[], State]] = {
        f"{stem}, {precision}": of_digits(stem, precision)
        for stem in ("patchify", "conv")
        for precision in ("fp32", "auto")
        if not bench.small or (stem, precision) == ("conv", "fp32")
    }
    runs["conv 1gf, 224 px"] = at_224
    for name, run in runs.items():
        one, other = run(), run()
        bench.say(f"{name}: as it is, equal", one.weights_digest() == other.weights_digest())
        bench.say(f"{name}: as it is, weights", apart(weights_of(one), weights_of(other)), "relative")
        try:
            with deterministic():
                one, other = run(), run()
        except RuntimeError as error:
            bench.say(f"{name}: deterministic, equal", one_line(error), equals=True)
            continue
        bench.say(
            f"{name}: deterministic, equal", one.weights_digest() == other.weights_digest(), equals=True
        )
    free_memory()


def _kept_run() -> "TrainConfig":
    """Returns a run with all state: an average, batch norm, stochastic depth, mixing; 20 steps an epoch."""
    return digits(
        "conv",
        batch_size=60,
        schedule__epochs=4,
        model__drop_path=0.1,
        mixup={},
        ema={},
        precise_bn_images=120,
        divergence__margin_pct=0,
    )


def resume(bench: Bench) -> None:
    """Checks that a killed run goes on from its checkpoint and ends like an undisturbed one."""
    import torch

    from trainables.training.checkpoint import Checkpointer, Store
    from trainables.training.loop import train

    context = bench.context
    # The other process starts while this one trains.
    with tempfile.TemporaryDirectory() as folder, child("killed", folder) as killed, deterministic():
        _, state = trained(_kept_run(), context)
        undisturbed = state.weights_digest()
        killed.communicate(timeout=max(5.0, bench.left()))
        bench.say("exit code of the run that was killed", killed.returncode, equals=-signal.SIGKILL)
        content, notices = Store(folder).read()
        assert content is not None, notices
        step = content["epoch"] * 20 + content["step"]
        bench.say("goes on from step, of 80", step, least=1, most=79)
        with Checkpointer(Store(folder)) as keeper:
            rows, state = trained(_kept_run(), context, keeper)
        bench.say("epochs that were left", len(rows), most=3)
        bench.say("resumed and undisturbed are equal", state.weights_digest() == undisturbed, equals=True)
    if not bench.on_gpu:
        bench.skip("fp16: scale in and out of a checkpoint", "needs a GPU")
        return
    config = digits("patchify", precision="fp16", schedule__epochs=2, divergence__margin_pct=0)
    with deterministic():
        run = train(config, context)
        row, state = next(run)
        saved, scale = io.BytesIO(), state.scaler.get_scale()
        state.save(saved)
        saved.seek(0)
        held = torch.load(saved, map_location="cpu", weights_only=True)["scaler"]["scale"]
        saved.seek(0)
        bench.say("fp16: loss of the first epoch", row.train_loss, "nats", most=math.log(10))
        bench.say("fp16: scale", scale)
        bench.say("fp16: scale in the checkpoint is the same", held == scale, equals=True)
        for _, last in run:
            state = last
        digest = state.weights_digest()
        for _, last in train(config, context, checkpoint=saved):
            state = last
        bench.say("fp16: resumed and undisturbed are equal", state.weights_digest() == digest, equals=True)


def _killed(folder: str) -> None:
    """Trains until it kills its own process, in the middle of an epoch and perhaps of a write."""
    from trainables.context import this_process
    from trainables.gpu import visible_device
    from trainables.training import loop
    from trainables.training.checkpoint import Checkpointer, Store

    # More frequent looks than a fast device would take, so that one is in mid-epoch.
    loop.LOOK_STEPS = 3

    def on_look(step: int) -> None:
        if step >= 47 and keeper.written:
            os.kill(os.getpid(), signal.SIGKILL)

    keeper = Checkpointer(Store(folder), share=1.0, least_seconds=0.0, on_look=on_look)
    with keeper, deterministic():
        trained(_kept_run(), this_process(threads=1, device=visible_device()), keeper)


def memory(bench: Bench) -> None:
    """Compares the peak memory of a step with what `plan` counts for the shape."""
    import torch

    from trainables.profiling.footprint import footprint

    nano = {"family": "vit", "size": "nano", "image_size": 32, "patch_size": 8}
    vit_c_4gf = {"family": "vit", "size": "4gf", "stem": "conv"}
    shapes: list[tuple[str, Any, int, str]] = [
        ("ViT_P 1GF", "vit_p_1gf", 256, "bf16"),
        ("ViT_C 1GF", "vit_c_1gf", 256, "bf16"),
        ("ViT_P 4GF", "vit_p_4gf", 256, "bf16"),
        ("ViT_C 4GF", "vit_c_4gf", 256, "bf16"),
        ("ViT_C 4GF, recompute", {**vit_c_4gf, "recompute": True}, 256, "bf16"),
        ("ViT_P 4GF", "vit_p_4gf", 128, "fp32"),
        ("ViT_C 1GF", "vit_c_1gf", 64, "fp32"),
        ("ResNet-50", "resnet_50", 128, "bf16"),
        ("ViT_C nano 32 px", {**nano, "stem": "conv"}, 64, "bf16"),
    ]
    if bench.small:
        shapes = shapes[-1:]
    for label, model, batch_size, precision in shapes:
        name = f"{label}, batch {batch_size}, {precision}"
        if not bench.has_time(name, 4):
            continue
        config = synthetic(model, batch_size, precision)
        counted = footprint(config, CLASSES, 10 * batch_size, 0, on_gpu=True).peak
        bench.say(f"{name}: counted", counted / 2**30, "GiB")
        free_memory()
        before = torch.cuda.memory_allocated() if bench.on_gpu else 0
        try:
            step = Stepper(config, bench.context)
            for _ in range(3):
                step()
            wait_for(bench.context.device)
            if not bench.on_gpu:
                bench.skip(f"{name}: allocated over counted", "needs a GPU")
                continue
            allocated = torch.cuda.max_memory_allocated() - before
            reserved = torch.cuda.max_memory_reserved()
            bench.say(f"{name}: allocated at most", allocated / 2**30, "GiB")
            # Allows 64 MiB of scratch memory, because some shapes take only megabytes.
            slack = 2**26 / counted
            bench.say(
                f"{name}: allocated over counted", allocated / counted, "", least=0.85, most=1.15 + slack
            )
            bench.say(f"{name}: reserved over counted", reserved / counted)
        finally:
            step = None  # type: ignore[assignment]
            free_memory()


def _timm_model(config: "TrainConfig") -> "nn.Module":
    """Returns timm's vision transformer in the shape of a patchify model."""
    from timm.models.vision_transformer import VisionTransformer

    model: Any = config.model
    return VisionTransformer(
        img_size=model.image_size,
        patch_size=model.patch_size,
        num_classes=CLASSES,
        embed_dim=model.width,
        depth=model.depth,
        num_heads=model.heads,
        mlp_ratio=model.mlp_ratio,
    )


def _say_speed(bench: Bench, name: str, taken: list[float], config: "TrainConfig") -> float:
    """Records images per second of one variant, its share of the device's speed, and the spread of rounds."""
    import torch

    from trainables.profiling.footprint import footprint

    seconds = statistics.median(taken)
    bench.say(f"{name}: speed", config.batch_size / seconds, "img/s")
    bench.say(f"{name}: step, spread over rounds", 100 * (max(taken) - min(taken)) / seconds, "%")
    card = torch.cuda.get_device_name() if bench.on_gpu else ""
    for key, (tflops, gb_s) in DATA_SHEETS.items():
        if key in card:
            work = footprint(config, CLASSES, 10 * config.batch_size, 0, on_gpu=True).step
            bench.say(f"{name}: MFU", 100 * 2 * work.flops / seconds / tflops / 1e12, "%")
            ideal = 2 * work.flops / tflops / 1e12 + work.moved_bytes / gb_s / 1e9
            bench.say(f"{name}: share of the data sheet, as `plan` has it", ideal / seconds)
    return config.batch_size / seconds


def _speed_shape(bench: Bench, size: str, letter: str) -> "TrainConfig":
    stem = {"p": "patchify", "c": "conv"}[letter]
    if bench.small:
        return synthetic(
            {"family": "vit", "size": "nano", "image_size": 32, "patch_size": 8, "stem": stem}, 16, "bf16"
        )
    return synthetic(f"vit_{letter}_{size}", 256, "bf16")


def speed(bench: Bench) -> None:
    """Compares a step at 224 px, batch 256, bf16 with timm's network, and then with single changes."""
    context = bench.context
    for size in ("4gf",) if bench.small else ("4gf", "1gf"):
        if not bench.has_time(f"{size}: speed", 15):
            continue
        configs = {letter: _speed_shape(bench, size, letter) for letter in "pc"}
        steps: dict[str, Stepper] = {}
        for letter, config in configs.items():
            name = f"ViT_{letter.upper()} {size}"
            steps[name] = Stepper(config, context)
            steps[f"{name} fused AdamW"] = Stepper(config, context)
            steps[f"{name} fused AdamW"].fuse_optimizer()
            if letter == "c":
                steps[f"{name} channels first"] = Stepper(config, context)
                steps[f"{name} channels first"].to_channels_first()
        timm_name = f"timm {size}"
        steps[timm_name] = Stepper(configs["p"], context)
        steps[timm_name].replace_model(_timm_model(configs["p"]))
        for step in steps.values():
            seconds_of(context.device, step, 3)
        taken = interleaved(context.device, steps, rounds=4, count=6, left=bench.left)
        speeds = {
            name: _say_speed(bench, name, taken[name], configs["c" if "_C" in name else "p"])
            for name in (f"ViT_P {size}", f"ViT_C {size}", timm_name)
        }
        plain_p, plain_c = speeds[f"ViT_P {size}"], speeds[f"ViT_C {size}"]
        bench.say(f"{size}: ViT_P over timm, both eager", plain_p / speeds[timm_name], goal=1.0)
        bench.say(f"{size}: ViT_C over ViT_P", plain_c / plain_p, goal=0.97)
        for name, change in (
            (f"ViT_P {size}", "fused AdamW"),
            (f"ViT_C {size}", "fused AdamW"),
            (f"ViT_C {size}", "channels first"),
        ):
            gains = [a / b for a, b in zip(taken[name], taken[f"{name} {change}"], strict=True)]
            bench.say(f"{name}: {change} over as it is", statistics.median(gains))
        del steps, step
        free_memory()


def compiled(bench: Bench) -> None:
    """Compares timm's network compiled, ours eager and ours compiled, interleaved. Variants join in turn."""
    context = bench.context
    configs = {letter: _speed_shape(bench, "4gf", letter) for letter in "pc"}
    steps = {"ViT_P 4gf": Stepper(configs["p"], context)}
    seconds_of(context.device, steps["ViT_P 4gf"], 3)
    speeds: dict[str, float] = {}
    longest = 20.0
    for name, letter in (
        ("timm 4gf compiled", "p"),
        ("ViT_P 4gf compiled", "p"),
        ("ViT_C 4gf compiled", "c"),
    ):
        if not bench.has_time(name, 1.3 * longest):
            continue
        step = Stepper(configs[letter], context)
        if name.startswith("timm"):
            step.replace_model(_timm_model(configs[letter]))
        step.compile()
        began = time.perf_counter()
        seconds_of(context.device, step, 2)
        longest = max(longest, time.perf_counter() - began)
        bench.say(f"{name}: first two steps", time.perf_counter() - began, "s")
        seconds_of(context.device, step, 3)
        steps[name] = step
        taken = interleaved(context.device, steps, rounds=3, count=6, left=bench.left)
        speeds[name] = _say_speed(bench, name, taken[name], configs[letter])
        speeds["ViT_P 4gf"] = configs["p"].batch_size / statistics.median(taken["ViT_P 4gf"])
        bench.say(f"{name} over ViT_P eager", speeds[name] / speeds["ViT_P 4gf"])
    timm = speeds.get("timm 4gf compiled")
    if timm:
        bench.say("ViT_P as it is over timm compiled", speeds["ViT_P 4gf"] / timm, goal=1.3)
        if "ViT_P 4gf compiled" in speeds:
            bench.say("ViT_P compiled over timm compiled", speeds["ViT_P 4gf compiled"] / timm, goal=1.0)
    if {"ViT_P 4gf compiled", "ViT_C 4gf compiled"} <= speeds.keys():
        ratio = speeds["ViT_C 4gf compiled"] / speeds["ViT_P 4gf compiled"]
        bench.say("ViT_C over ViT_P, both compiled", ratio, goal=0.97)
    free_memory()


def small(bench: Bench) -> None:
    """Measures time, kernel starts and waits of a step for small shapes."""
    tiny = {"family": "vit", "size": "1gf", "image_size": 32, "patch_size": 4}
    shapes: dict[str, TrainConfig] = {
        "digits ViT_P light": digits("patchify"),
        "digits ViT_C light": digits("conv"),
        "digits ViT_C light, mirrored": digits("conv", augment={"name": "light", "flip": 0.5}),
        "digits ViT_C paper": digits("conv", augment="paper"),
        "ViT-Ti/4 32 px batch 128 light": digits("patchify", model=tiny, batch_size=128),
    }
    for name, config in itertools.islice(shapes.items(), 2 if bench.small else None):
        if bench.has_time(name, 4):
            _small_shape(bench, name, config)
    free_memory()


def _small_shape(bench: Bench, name: str, config: "TrainConfig") -> None:
    from torch.profiler import ProfilerActivity, profile

    from trainables.training.loop import TrainingRun

    context, count = bench.context, 8
    info, splits = config.data.info(), config.data.open()
    run = TrainingRun(config, context, info, splits["train"])
    seconds = []
    for _ in range(2 if config.augment.name == "paper" else 4):
        began = time.perf_counter()
        run.train_epoch(splits["train"])
        wait_for(context.device)
        seconds.append((time.perf_counter() - began) / run.steps_per_epoch)
        run.state.epoch, run.state.step, run.state.loss_sums, run.state.train_seconds = (
            run.state.epoch + 1,
            0,
            (),
            0.0,
        )
    step_seconds = statistics.median(seconds[1:])
    bench.say(f"{name}: a step with its batch", 1000 * step_seconds, "ms")
    batches = run.pipeline.train_batches(splits["train"], 0, config.batch_size, run.state.epoch)
    rate, at = config.optim.lr, run.state.epoch * run.steps_per_epoch

    def take(number: int) -> None:
        for batch in itertools.islice(batches, number):
            run.train_step(batch, rate, at, len(batch[1]))

    take(2)
    if not bench.on_gpu:
        bench.skip(f"{name}: kernels and waits", "needs a GPU")
        return
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        take(count)
        wait_for(context.device)
    launched, waited, copies, busy_us = 0, 0, 0, 0.0
    for event in profiled.events() or ():
        if "CUDA" in str(event.device_type):
            copies += "HtoD" in event.name
            # Excluded, because a range named by a library covers kernels and the gaps between them.
            if not getattr(event, "is_user_annotation", False) and not event.name.startswith(
                ("Optimizer.", "Profiler")
            ):
                busy_us += event.time_range.elapsed_us()
        launched += event.name.startswith(("cudaLaunchKernel", "cuLaunchKernel"))
        # Device-wide waits are not counted, because this function makes the only one.
        waited += event.name in ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
    bench.say(f"{name}: kernels of a step", launched / count, "a step")
    bench.say(f"{name}: waits for the stream", waited / count, "a step")
    bench.say(f"{name}: copies to the device", copies / count, "a step")
    bench.say(f"{name}: GPU busy", 100 * busy_us / 1e6 / count / step_seconds, "%")


def _write_images(file: Path, count: int, distinct: int) -> float:
    """Writes JPEGs of 500 x 375 pixels in the Hugging Face layout, each repeated. Returns bytes per image."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(distinct):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + rng.normal(0, 18, smooth.shape).astype(np.int16)
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        encoded.append({"bytes": buffer.getvalue(), "path": ""})
    features = {"image": {"_type": "Image"}, "label": {"names": list("0123456789"), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, count, 256):
            rows = range(start, min(start + 256, count))
            columns = [
                pa.array([encoded[row % distinct] for row in rows], schema.field(0).type),
                pa.array([row % 10 for row in rows], pa.int64()),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return statistics.mean(len(one["bytes"]) for one in encoded)


def _tiled(images: "Images", count: int) -> "Images":
    """Returns `count` images by repeating the given ones."""
    import numpy as np

    from trainables.data.base import Images

    return Images(np.resize(images.labels, count), lambda row: images.read(row % len(images)))


def loader(bench: Bench) -> None:
    """Measures loading of JPEGs from Parquet with the paper's augmentation, and an epoch of a small model."""
    import torch

    from trainables.config import TrainConfig
    from trainables.training.loop import TrainingRun

    context = bench.context
    number, distinct = (96, 8) if bench.small else (2048, 256)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        num_bytes = _write_images(Path(folder, "train.parquet"), number, distinct)
        _write_images(Path(folder, "val.parquet"), 128, 8)
        bench.say("bytes of an image", num_bytes / 1000, "kB")
        bench.say("writing them", time.perf_counter() - began, "s")
        batch_size = 16 if bench.small else 128
        side = 32 if bench.small else 224
        tree = synthetic("vit_p_1gf", batch_size).model_dump(mode="json") | {
            "data": {"name": "parquet", "path": folder, "selection": "final"},
            "model": {"family": "vit", "size": "1gf", "image_size": side, "patch_size": side // 14 or 2},
        }
        if bench.small:
            tree["model"]["patch_size"] = 8
        config = TrainConfig.model_validate(tree)
        images = config.data.open()["train"]
        rates: dict[int, float] = {}
        for workers in (1, 2) if bench.small else (1, 4, 8, 15):
            name = f"{workers} loader processes"
            if not bench.has_time(name, 8):
                continue
            here = dataclasses.replace(context, loader_workers=workers)
            pipeline = config.augment.pipeline(side, 0, here)
            count = 96 if bench.small else 1024 * workers
            began = time.perf_counter()
            batches = pipeline.train_batches(_tiled(images, count), 0, batch_size, 0)
            seen, first = 0, 0.0
            for _, labels in batches:
                if not first:
                    # By now each loader process works on a batch of its own.
                    first = time.perf_counter()
                seen += len(labels)
            wait_for(context.device)
            ended = time.perf_counter()
            rates[workers] = seen / (ended - began)
            bench.say(f"{name}: rate with their start", rates[workers], "img/s")
            bench.say(f"{name}: rate after the first batch", (seen - batch_size) / (ended - first), "img/s")
            bench.say(f"{name}: first batch after", first - began, "s")
        device = context.device
        step = Stepper(config, context)
        seconds_of(device, step, 3)
        step_seconds = seconds_of(device, step, 3 if bench.small else 20)
        bench.say("ViT_P 1GF batch 128, step without loading", 1000 * step_seconds, "ms")
        del step
        for workers in (0,) if bench.small else (15, 0):
            name = f"real epoch, {workers} loader processes"
            if not bench.has_time(name, 8):
                continue
            here = dataclasses.replace(context, loader_workers=workers)
            count = 96 if bench.small else 1024 * max(1, workers)
            seen_images = _tiled(images, count)
            run = TrainingRun(config, here, _made_up_info(config), seen_images)
            began = time.perf_counter()
            run.train_epoch(seen_images)
            wait_for(device)
            taken = time.perf_counter() - began
            bench.say(f"{name}: rate", count / taken, "img/s")
            bench.say(f"{name}: GPU busy", 100 * run.steps_per_epoch * step_seconds / taken, "%")
            run.pipeline.close()
            del run
    torch.set_num_threads(1)
    free_memory()


def faults(bench: Bench) -> None:
    """Checks a batch that is too large, a normal run after it, and an error that ruins its process."""
    import torch

    from trainables.profiling.dry_run import OUT_OF_MEMORY, Request, answer
    from trainables.transforms import light_pipeline

    bench.need_gpu()
    context = bench.context
    normal = digits("conv", schedule__epochs=3)
    # 3,137 tokens each: hundreds of GiB of activations, while weights and images are small.
    huge = {"family": "vit", "size": "36gf", "image_size": 224, "patch_size": 4}
    far_too_large = digits("patchify", model=huge, batch_size=1198)
    with deterministic():
        expected = trained(normal, context)[1].weights_digest()
    light_pipeline._collected_light.cache_clear()
    free_memory()
    before = torch.cuda.memory_allocated()
    name, is_memory = _error_of(far_too_large, context)
    bench.say("batch far too large: error", name)
    bench.say("it is torch.OutOfMemoryError", is_memory, equals=True)
    light_pipeline._collected_light.cache_clear()
    free_memory()
    bench.say(
        "memory that did not come back", (torch.cuda.memory_allocated() - before) / 2**20, "MiB", most=64
    )
    rule = answer(Request(far_too_large)).rule
    bench.say("preflight says so", rule.startswith(OUT_OF_MEMORY), equals=True)
    bench.say("preflight's words", rule[:100])
    light_pipeline._collected_light.cache_clear()
    free_memory()
    with deterministic():
        after = trained(normal, context)[1].weights_digest()
    bench.say("a normal run after it is equal", after == expected, equals=True)
    with child("assert") as asserting:
        out, _ = asserting.communicate(timeout=max(5.0, bench.left()))
    told = json.loads(out.splitlines()[-1])
    bench.say("label out of range: error", told["error"])
    bench.say("its classes", " < ".join(told["classes"]))
    bench.say("it is told apart from memory", told["is_memory"], equals=False)
    bench.say("the next operation of that process", told["after"])
    bench.say("this process is well", float(torch.ones(4, device=context.device).sum()), equals=4.0)


def _error_of(config: "TrainConfig", context: "Context") -> tuple[str, bool]:
    """Returns the class of the error that training raises, and whether it is torch's OutOfMemoryError."""
    import torch

    try:
        trained(config, context)
    except Exception as error:
        return one_line(error), isinstance(error, torch.OutOfMemoryError)
    return "none", False


def _assert() -> None:
    """Gives the loss a class out of range, and prints the consequences as JSON."""
    import torch

    device = torch.device("cuda")
    told: dict[str, Any] = {"error": "none", "classes": [], "is_memory": False, "after": "works"}
    try:
        logits = torch.randn(4, 10, device=device)
        torch.nn.functional.cross_entropy(logits, torch.full((4,), 99, device=device))
        torch.cuda.synchronize()
    except Exception as error:
        told |= {
            "error": one_line(error),
            "classes": [kind.__name__ for kind in type(error).__mro__[:4]],
            "is_memory": isinstance(error, torch.OutOfMemoryError),
        }
    try:
        torch.ones(4, device=device).sum().item()
    except Exception as error:
        told["after"] = one_line(error)
    print(json.dumps(told), flush=True)
    # Exits without cleanup, because nothing can be freed any more.
    os._exit(0)


def quarters(bench: Bench) -> None:
    """Compares digits trials in processes that share the GPU, all at once and one after the other."""
    import torch

    count = 2 if bench.small else 4
    epochs = 2 if bench.small else 20
    configs = [digits("conv", seeds__init=seed, schedule__epochs=epochs) for seed in range(count)]
    free_memory()
    free = torch.cuda.mem_get_info()[0] if bench.on_gpu else 0
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(child("quarter")) for _ in configs]
        for process in processes:
            _hear(process)
        if bench.on_gpu:
            held = (free - torch.cuda.mem_get_info()[0]) / count / 2**30
            bench.say("memory that a process holds when idle", held, "GiB")
        began = time.perf_counter()
        alone = []
        for process, config in zip(processes, configs, strict=True):
            _tell(process, config)
            alone.append(_hear(process))
        in_turn = time.perf_counter() - began
        began = time.perf_counter()
        for process, config in zip(processes, configs, strict=True):
            _tell(process, config)
        together = [_hear(process) for process in processes]
        at_once = time.perf_counter() - began
    bench.say(f"{count} trials, one after the other", in_turn, "s")
    bench.say(f"{count} trials at once", at_once, "s")
    bench.say("gain", in_turn / at_once, goal=1.0)
    bench.say("results are equal", alone == together, equals=True)


def _tell(process: "subprocess.Popen[str]", config: "TrainConfig") -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(config.model_dump(mode="json")) + "\n")
    process.stdin.flush()


def _hear(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise RuntimeError(f"a process of a share ended with exit code {process.wait()}")
    return line.strip()


def _quarter() -> None:
    """Trains the run of each input line and prints its digest. Warms up before the first."""
    from trainables.config import TrainConfig
    from trainables.context import this_process
    from trainables.gpu import visible_device

    with deterministic():
        context = this_process(threads=1, device=visible_device())
        one_epoch(digits("conv"), context)
        print("ready", flush=True)
        for line in sys.stdin:
            _, state = trained(TrainConfig.model_validate(json.loads(line)), context)
            print(state.weights_digest(), flush=True)


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
      run: the function; its name is the part's name.
      expected: seconds on an H100; the part is skipped if less than half of them are left.
      limit: seconds after which the part is stopped.
      cpu: whether --cpu without --only runs it.
    """

    run: Callable[[Bench], None]
    expected: float
    limit: float
    cpu: bool = False

    @property
    def name(self) -> str:
        """Name of the part, as --only takes it."""
        return self.run.__name__

    def seconds(self, small: bool) -> float:
        """Returns the limit in seconds. `small` gets more, because other work shares the cores."""
        return 4 * self.limit if small else self.limit


#: In the order in which they run.
PARTS = {
    part.name: part
    for part in (
        Part(environment, 4, 25, cpu=True),
        Part(trial, 15, 60, cpu=True),
        Part(agree, 12, 60, cpu=True),
        Part(repeat, 12, 60, cpu=True),
        Part(resume, 18, 60, cpu=True),
        Part(memory, 32, 60),
        Part(speed, 40, 90),
        # The compiler's time is unknown, so the expected time is close to the limit.
        Part(compiled, 80, 85),
        Part(small, 15, 45),
        Part(loader, 40, 75),
        Part(faults, 18, 50),
        Part(quarters, 25, 60, cpu=True),
    )
}


# ---------------------------------------------------------------------------------------------------
# The process that runs parts


def work(names: list[str], small: bool, seconds: float) -> None:
    """Runs parts one after the other and prints figures, one JSON object per line."""
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Output of libraries goes to standard error, so that it does not mix with the messages.
    os.dup2(2, 1)
    ends = time.monotonic() + seconds

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=messages, flush=True)

    send({"machine": machine()})
    for name in names:
        part = PARTS[name]
        left = ends - time.monotonic()
        send({"begin": name})
        if left < part.expected / 2 and not small:
            send({"end": name, "status": f"{NOT_MEASURED}: no time left"})
            continue
        bench = Bench(small, send, time.monotonic() + min(left, part.seconds(small)))
        try:
            part.run(bench)
            send({"end": name, "status": ""})
        except Skip as why:
            send({"end": name, "status": f"{NOT_MEASURED}: {why}"})
        except Exception as error:
            import traceback

            traceback.print_exc()
            send({"end": name, "status": f"{FAILED}: {one_line(error)}"})
            if _is_ruined():
                # A fresh process runs the rest.
                messages.flush()
                os._exit(1)


def _is_ruined() -> bool:
    """Returns whether the device no longer works for this process."""
    import torch

    try:
        free_memory()
        if torch.cuda.is_available():
            torch.ones(1, device="cuda").item()
    except Exception:
        return True
    return False


def machine() -> dict[str, Any]:
    """Returns the machine and the versions that the figures belong to."""
    import numpy
    import PIL
    import pydantic
    import timm
    import torch
    import torchvision

    import trainables.training.loop  # noqa: F401

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "pydantic": pydantic.VERSION,
        "cores": len(os.sched_getaffinity(0)),
        "shared_memory_gib": _shared_memory_gib(),
        "processor": _processor(),
        "card": None,
        "driver": _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "card_memory_gib": round(properties.total_memory / 2**30, 2),
            "capability": f"{properties.major}.{properties.minor}",
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "bf16": torch.cuda.is_bf16_supported(),
            "conv_tf32": torch.backends.cudnn.allow_tf32,
            "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        }
    return found


def _shared_memory_gib() -> float | None:
    """Returns the size of shared memory, which loader processes pass batches through. None if unknown."""
    with contextlib.suppress(OSError):
        return round(shutil.disk_usage("/dev/shm").total / 2**30, 1)
    return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=20)
        return done.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


# ---------------------------------------------------------------------------------------------------
# The process that keeps the record


@dataclass
class Record:
    """The results so far.

    Attributes:
      limit_seconds: for all parts.
      machine: card, driver and versions; empty until a process has reported them.
      parts: status, seconds and figures by name, in order.
      file: JSON file that the record is written to.
    """

    limit_seconds: float
    machine: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    file: Path | None = None
    seconds: float = 0.0

    def write(self) -> None:
        """Writes the record to the file, atomically."""
        if self.file is None:
            return
        content = {
            "machine": self.machine,
            "limit_seconds": self.limit_seconds,
            "seconds": round(self.seconds, 1),
            "parts": [{"part": name, **part} for name, part in self.parts.items()],
        }
        partial = self.file.with_name(f"{self.file.name}.part")
        # JSON has no nan or infinity.
        partial.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", "utf-8")
        os.replace(partial, self.file)

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the table: part, figure, value, unit, requirement, and whether it holds."""
        rows: list[tuple[str, ...]] = []
        for name, part in self.parts.items():
            rows += [
                (name, one["figure"], shown(one["value"]), one["unit"], one["must"], one["status"])
                for one in part["figures"]
            ]
            seconds = f"{part['seconds']:.0f}" if part["seconds"] is not None else ""
            rows.append((name, "(the part)", seconds, "s" if seconds else "", "", part["status"] or "done"))
        return rows

    def failures(self) -> list[str]:
        """Returns the requirements that do not hold."""
        return [
            f"{name}: {figure['figure']}"
            for name, part in self.parts.items()
            for figure in part["figures"]
            if figure["status"] == FAILED
        ] + [
            f"{name}: {part['status']}"
            for name, part in self.parts.items()
            if part["status"].startswith(FAILED)
        ]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: list[tuple[str, ...]]) -> str:
    """Returns rows with a header as text, columns aligned."""
    rows = [("part", "figure", "value", "unit", "must hold", "status"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


class NoGpu(Exception):
    """The error that a GPU is required and torch finds none."""


def supervise(names: list[str], record: Record, small: bool, log: IO[str]) -> None:
    """Runs parts until all are done or time is up. Replaces a process that a part has broken."""
    began = time.monotonic()
    ends = began + record.limit_seconds - RESERVE_SECONDS
    record.parts = {
        name: {"status": f"{NOT_MEASURED}: no time left", "seconds": None, "figures": []} for name in names
    }
    waiting = list(names)
    while waiting and ends - time.monotonic() > 1:
        _run_worker(waiting, record, small, log, ends, began)
    record.seconds = time.monotonic() - began
    record.write()


def _run_worker(
    waiting: list[str], record: Record, small: bool, log: IO[str], ends: float, began: float
) -> None:
    """Runs a process until it ends or is stopped. Removes the parts that it began from the list."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        # torch's own default on Hopper, but deterministic algorithms require it to be set.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        **({"CUDA_VISIBLE_DEVICES": ""} if small else {}),
    }
    left = ends - time.monotonic()
    command = [sys.executable, "-m", "benchmarks.device", "--worker", ",".join(waiting)]
    command += ["--limit-seconds", str(left), *(["--cpu"] if small else [])]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        encoding="utf-8",
        env=environment,
        cwd=ROOT,
        # A process group, so that the processes of a part end with it.
        process_group=0,
    )
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pass_on, args=(process.stdout, lines), daemon=True).start()
    part, part_began, stop_at, why = "", time.monotonic(), ends, "no time left"
    has_begun = False
    try:
        while True:
            try:
                line = lines.get(timeout=max(0.0, min(stop_at, ends) - time.monotonic()))
            except queue.Empty:
                line = ""
            if line == "":
                if part:
                    _close(record, part, part_began, f"{NOT_MEASURED}: {why}")
                elif waiting:
                    # No part has begun, so torch does not start.
                    _close(record, waiting.pop(0), part_began, f"{NOT_MEASURED}: {why}")
                return
            if line is None:
                code = process.wait()
                if part:
                    _close(record, part, part_began, f"{FAILED}: its process ended with exit code {code}")
                elif not has_begun:
                    # If the libraries do not load, the next process would fail, too, so all parts are closed.
                    for name in list(waiting) if not record.machine else waiting[:1]:
                        waiting.remove(name)
                        _close(record, name, part_began, f"{FAILED}: no process comes up, exit code {code}")
                return
            message = json.loads(line)
            if "machine" in message:
                record.machine = message["machine"]
                print(" ".join(f"{key}={value}" for key, value in record.machine.items()), flush=True)
                if not small and not record.machine["card"]:
                    raise NoGpu
            elif "begin" in message:
                part, part_began = message["begin"], time.monotonic()
                waiting.remove(part)
                has_begun = True
                # A little more than the part's own limit.
                limit = PARTS[part].seconds(small) + 5
                stop_at, why = part_began + limit, f"stopped after {limit:.0f} s"
                if stop_at > ends:
                    why = "no time left"
            elif "end" in message:
                _close(record, part, part_began, message["status"])
                status = message["status"] or "done"
                print(f"{time.monotonic() - began:6.0f} s  {part}: {status}", flush=True)
                part, stop_at, why = "", ends, "no time left"
            else:
                record.parts[part]["figures"].append(message)
            record.seconds = time.monotonic() - began
            record.write()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _close(record: Record, part: str, began: float, status: str) -> None:
    record.parts[part] |= {"status": status, "seconds": round(time.monotonic() - began, 1)}
    record.write()


def _pass_on(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


CHILDREN: dict[str, Callable[..., None]] = {"killed": _killed, "assert": _assert, "quarter": _quarter}


#: Figures of a document: what is compared, and not what led to it.
_DOCUMENTED = (
    *("product", "read and written", "pinned", "pageable", "start an operation"),
    *("equal", "relative", "allocated over counted", "speed", "MFU", "share of the data sheet", " over "),
    *("a step", "busy", "rate", "error after", "memory that", "told apart"),
)


def document(files: list[Path]) -> str:
    """Returns docs/performance.md: for each record of a device its machine, and a table of its figures."""
    lines = [
        "# Performance on a device",
        "",
        "Written by `python -m benchmarks.device --document`; what has not run",
    ]
    lines[-1] += " on a device is not in it."
    for file in files:
        content = json.loads(file.read_text("utf-8"))
        machine = content["machine"]
        lines += ["", f"## {machine['card']}", ""]
        lines.append(
            f"Driver {machine['driver']}, torch {machine['torch']}, timm {machine['timm']}, Python "
            f"{machine['python']}, {machine['cores']} cores. One run of {content['seconds']:.0f} s."
        )
        lines += ["", "| part | figure | value | must hold | |", "|---|---|---|---|---|"]
        for part in content["parts"]:
            for row in part["figures"]:
                value = row["value"]
                said = f"{row['figure']} {row['unit']}"
                if value is None or not any(word in said for word in _DOCUMENTED):
                    continue
                text = (
                    f"{value:.4g}"
                    if isinstance(value, float)
                    else {True: "yes", False: "no"}.get(value, value)
                )
                cells = (
                    part["part"],
                    row["figure"],
                    f"{text} {row['unit']}".strip(),
                    row["must"],
                    row["status"],
                )
                lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 if something that must hold does not, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="small, on a CPU; the parts about results")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write what is found here, after every figure"
    )
    parser.add_argument("--only", metavar="PART,PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--limit-seconds", type=float, default=LIMIT_SECONDS, help="for the whole (default %(default)g)"
    )
    parser.add_argument(
        "--document", nargs="+", type=Path, metavar="FILE", help="print a document of such records, and stop"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.document:
        print(document(options.document))
        return 0
    if options.child:
        CHILDREN[options.child[0]](*options.child[1:])
        return 0
    if options.worker:
        work(options.worker.split(","), options.cpu, options.limit_seconds)
        return 0
    names = [name for name, part in PARTS.items() if part.cpu or not options.cpu]
    if options.only:
        wanted = options.only.split(",")
        if unknown := [name for name in wanted if name not in PARTS]:
            parser.error(f"no part is called {', '.join(unknown)} (these are: {', '.join(PARTS)})")
        names = [name for name in PARTS if name in wanted]
    # SIGTERM, too, ends the child processes and prints the table.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    record = Record(options.limit_seconds, file=options.json)
    log_file = options.json.with_suffix(".log") if options.json else Path(tempfile.mkdtemp(), "device.log")
    try:
        with log_file.open("w", encoding="utf-8") as log, contextlib.suppress(KeyboardInterrupt):
            supervise(names, record, options.cpu, log)
    except NoGpu:
        print(f"torch sees no GPU (driver {record.machine['driver']}); --cpu does without", file=sys.stderr)
        return 2
    record.write()
    failures = record.failures()
    if failures:
        print(f"\nThe end of {log_file}:", *log_file.read_text("utf-8").splitlines()[-15:], sep="\n")
    print("\n" + table(record.rows()))
    print("\nall that must hold does" if not failures else f"\ndoes not hold: {'; '.join(failures)}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
