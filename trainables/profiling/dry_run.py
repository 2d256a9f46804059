"""Checks that a run can start: builds it without memory, then tries two steps, a checkpoint and every split.

Faults are found before the first update only. A learning rate that makes a run diverge is a result, not a
fault.

`python -m trainables.profiling.dry_run FOLDER` answers requests, one JSON object per line, until its input
ends. It runs in its own process, so that no other process ends if it is killed for its memory. On a CPU it
may take no more memory than is free, so that the kernel kills no process.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from trainables.base import SPLITS, DataError, DataInfo, Invalid, Split
from trainables.config import ModelConfig, Start, TrainConfig, faults_of
from trainables.context import Context, this_process
from trainables.data.base import Images
from trainables.data.order import epoch_order
from trainables.gpu import DeviceKind, gpu_fault, is_out_of_memory
from trainables.io.code import receive, trusting_code
from trainables.io.storage import holds, inside
from trainables.tasks.base import Task
from trainables.training.checkpoint import Store
from trainables.training.loop import TrainingRun, steps_per_epoch
from trainables.training.transfer import take_over
from trainables.transforms.light_pipeline import COLLECT_BYTES

#: A second step is timed if the first, which includes the warm-up, took less than this.
PATIENCE_SECONDS = 5.0

#: The first words of a message about memory. Callers recognise it and add the planned and free memory.
OUT_OF_MEMORY = "runs out of memory"


class Unfit(Exception):
    """A run that cannot start.

    Attributes:
      setting: the path in `TrainConfig` of the setting that most likely has to change; `--out` for storage.
      rule: the fault, without its place.
    """

    def __init__(self, setting: str, rule: str) -> None:
        super().__init__(rule)
        self.setting, self.rule = setting, rule


@dataclass(frozen=True, slots=True)
class Request:
    """A run to try.

    Attributes:
      config: the run.
      workers: processes that share its batch; one of them is tried.
      threads: CPU threads of a worker.
      planned_bytes: counted peak memory of one worker; 0 if it was not counted.
      together: workers that use the same memory at the same time.
      folder: a folder or URI on the storage of states; a checkpoint is written there and deleted.
      mark: content of the file `mark` in that folder; a machine that reads another does not reach it.
      setting: the setting that names the place of `folder`.
      must_reach: why the machine must reach it; empty if it may write to a disk of its own instead.
      results: the folder of the results, which may hold copies of the user's code.
      code: files of the user by digest, as Latin-1 text, for machines that do not reach them.
      device: where the run computes.
    """

    config: TrainConfig
    workers: int = 1
    threads: int = 1
    planned_bytes: int = 0
    together: int = 1
    folder: str = ""
    mark: str = ""
    setting: str = "--out"
    must_reach: str = ""
    results: str = ""
    code: Mapping[str, str] = dataclasses.field(default_factory=dict)
    device: DeviceKind = "cpu"

    def plain(self) -> dict[str, Any]:
        """Returns the request as plain values for JSON."""
        other = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "config"}
        return {"config": self.config.model_dump(mode="json"), **other}

    @classmethod
    def parse(cls, content: dict[str, Any]) -> "Request":
        """Builds a request from the result of `plain`."""
        receive({digest: text.encode("latin-1") for digest, text in content.get("code", {}).items()})
        with trusting_code(Path(content["results"]) if content["results"] else None):
            return cls(**{**content, "config": TrainConfig.model_validate(content["config"])})


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of a try.

    Attributes:
      setting, rule: those of `Unfit`; both empty if the run can start.
      step_seconds: duration of one training step of one worker; of the second step if there was one.
      peak_bytes: peak of a GPU's memory; None on a CPU.
      reaches: whether the machine reaches the place of states.
    """

    setting: str = ""
    rule: str = ""
    step_seconds: float | None = None
    peak_bytes: int | None = None
    reaches: bool = True


def reply_to(content: dict[str, Any]) -> Reply:
    """Tries the run of a request as `Request.plain` gives it. Every failure becomes a reply."""
    try:
        request = Request.parse(content)
    except ValidationError as error:
        # A valid run may lack something in this process, such as a module that the user's code imports.
        fault = faults_of(error)[0]
        return Reply(fault.path, fault.rule)
    return answer(request)


def answer(request: Request) -> Reply:
    """Tries a run in this process. Every failure becomes a reply."""
    if request.device == "cuda" and (fault := gpu_fault()):
        return Reply("resources", fault)
    context = this_process(threads=request.threads, device=request.device)
    try:
        _check_room(request, context.device)
        reaches = not (request.folder and request.mark) or holds(inside(request.folder, "mark"), request.mark)
        if not reaches and request.must_reach:
            raise Unfit(request.setting, request.must_reach)
        own = contextlib.nullcontext("") if reaches else tempfile.TemporaryDirectory(prefix="vitc-sweep-")
        with _limited(context.device), own as folder:
            reply = check(
                request.config,
                dataclasses.replace(context, loader_workers=0),
                request.workers,
                folder or request.folder,
                request.setting,
            )
        return dataclasses.replace(reply, reaches=reaches)
    except Unfit as error:
        rule = error.rule
        if rule.startswith(OUT_OF_MEMORY):
            rule += "; " + _room(request, free_bytes(context.device))
        return Reply(error.setting, rule)
    finally:
        if context.device.type == "cuda":
            torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------------
# Without memory


def check_sizes(config: TrainConfig, info: DataInfo, workers: int) -> None:
    """Checks sizes of splits, shares of the batch and decoded images, without reading images.

    Raises:
      Unfit: a split is empty, a share is too small, or the images are too many for memory.
    """
    for split in SPLITS:
        if not info.sizes[split]:
            raise Unfit("data", f"the {split} split of {info.name} is empty")
    try:
        steps_per_epoch(info.sizes["train"], config.batch_size, workers)
    except Invalid as error:
        raise Unfit("batch_size", str(error)) from error
    if config.augment.name == "light":
        largest = max(info.sizes.values()) * math.prod(config.model.input_shape)
        if largest > COLLECT_BYTES:
            raise Unfit(
                "augment",
                f"light keeps all decoded images in memory, {largest / 2**30:.1f} GiB here, and "
                f"{COLLECT_BYTES / 2**30:g} GiB are allowed; use paper",
            )


def check_model(model: ModelConfig, task: Task, num_classes: int) -> None:
    """Builds a network on the `meta` device, and runs two images through it.

    Raises:
      Unfit: the network cannot be built, fails on the images, or gives outputs of a wrong shape.
    """
    with _blaming("model", "cannot be built"), torch.device("meta"):
        network: nn.Module = model.network(num_classes)
    rule = f"takes no images of {model.image_size} pixels"
    with _blaming("model", rule), torch.device("meta"), torch.no_grad():
        shape = network(torch.empty(2, *model.input_shape)).shape
    if shape != task.output_shape(2, model.input_shape, num_classes):
        raise Unfit("model", f"gives {list(shape)} for 2 images, and there are {num_classes} classes")


def check_start(start: Start, model: ModelConfig, num_classes: int, first_classes: int) -> None:
    """Copies initial weights on the `meta` device, so that a mismatch is found before days of pre-training.

    Args:
      start: the run that weights are taken from, and which parts.
      model, num_classes: the model that takes them, and its number of classes.
      first_classes: number of classes in the data of the run in `start`.

    Raises:
      Unfit: the weights will not fit the model.
    """
    with _blaming("model", "cannot be built"), torch.device("meta"):
        first, network = start.run.model.network(first_classes), model.network(num_classes)
    try:
        take_over(network, first.state_dict(), start.parts, model.head_names(network))
    except Invalid as error:
        raise Unfit("start", str(error)) from error


# ---------------------------------------------------------------------------------------------------
# On the device


def check(
    config: TrainConfig, context: Context, workers: int = 1, folder: str = "", setting: str = "--out"
) -> Reply:
    """Performs each operation of training once or twice, with the first images of the run.

    Args:
      config: the run.
      context: the device and rank of this process.
      workers: processes that will share the batch; this one tries the share of one of them.
      folder: the folder or URI for a trial checkpoint; if empty, no checkpoint is tried.
      setting: the setting that names its place.

    Raises:
      Unfit: an operation failed, or the first loss or its gradient is not finite.
    """
    try:
        with _blaming("data", "cannot be read"):
            splits, info = config.data.open(), config.data.info()
            steps = steps_per_epoch(len(splits["train"]), config.batch_size, workers)
            share = math.ceil(math.ceil(len(splits["train"]) / steps) / workers)
            images = _first(splits, share, config.seeds.order)
        with _blaming("model", "cannot be built"):
            run = TrainingRun(config.model_copy(update={"batch_size": share}), context, info, images["train"])
        run.state.run = "preflight"
        _evaluate(run, images)
        _evaluate_elsewhere(run, images["test"], info)
        step_seconds = _train(run, images["train"], share)
        if folder:
            _checkpoint(run, folder, setting)
    except DataError as error:
        raise Unfit("data", str(error)) from error
    except Invalid as error:
        raise Unfit("batch_size", str(error)) from error
    peak = torch.cuda.max_memory_allocated(context.device) if context.device.type == "cuda" else None
    return Reply(step_seconds=step_seconds, peak_bytes=peak)


def _first(splits: dict[Split, Images], count: int, order_seed: int) -> dict[Split, Images]:
    """Returns the images of the first batch of every split; training images are in the order of epoch 0."""

    def some(images: Images, rows: list[int]) -> Images:
        return Images(images.labels[rows], lambda i: images.read(rows[i]))

    orders = {split: range(len(images)) for split, images in splits.items()}
    orders |= {"train": epoch_order(len(splits["train"]), order_seed, 0).tolist()}
    return {split: some(images, list(orders[split][:count])) for split, images in splits.items()}


def _evaluate(run: TrainingRun, images: dict[Split, Images]) -> None:
    """Evaluates one batch of `val` and `test` before any update, so the learning rate has no influence."""
    run.state.model.eval()
    for split in ("val", "test"):
        with _blaming("data", f"the first batch of {split} cannot be read"):
            batch = next(iter(run.pipeline.eval_batches(images[split], len(images[split]))))
        with _blaming("model", "cannot be evaluated"), torch.no_grad(), run.autocast():
            shape = run.state.model(batch[0]).shape
        wanted = run.task.output_shape(len(batch[0]), run.config.model.input_shape, run.info.num_classes)
        if shape != wanted:
            raise Unfit("model", f"gives {list(shape)} for {len(batch[0])} images")


def _evaluate_elsewhere(run: TrainingRun, images: Images, info: DataInfo) -> None:
    """Tries the tests after the last epoch: an image under each corruption, a batch of each shifted set."""
    if (evaluation := run.config.evaluate) is None:
        return
    with _blaming("evaluate", "cannot be evaluated"):
        if (corruptions := evaluation.corruptions) is not None:
            one = Images(images.labels[:1], images.read)
            for kind in corruptions.kinds:
                change = corruptions.change(kind, corruptions.severities[-1])
                run.evaluate_as_is(run.state.model, one, change=change)
        for wanted in evaluation.shifted:
            try:
                other = wanted.open(info.class_names)
                first = Images(other.images.labels[: len(images)], other.images.read)
                run.evaluate_as_is(run.state.model, first, classes=other.classes)
            except DataError as error:
                raise Unfit("evaluate", f"{wanted.name}: {error}") from error


def _train(run: TrainingRun, images: Images, share: int) -> float:
    """Takes one or two training steps. Returns the seconds of the last."""
    run.learner.network.train()
    with _blaming("data", "the first batch of train cannot be read"):
        batch = next(iter(run.pipeline.train_batches(images, run.config.seeds.order, share, 0)))
    half = run.autocast_dtype is not None
    blamed = "precision" if half else "model"
    with _blaming("model", "cannot be trained"):
        seconds, loss = _timed(lambda: float(run.train_step(batch, run.lr_at(0), 0, share)))
        if not math.isfinite(loss):
            raise Unfit(blamed, f"the loss is {loss} at step 0, before any update")
        gradients = [p.grad for p in run.state.model.parameters() if p.grad is not None]
        # Infinite gradients with a scaler are no fault: the first steps lower a scale too large for fp16.
        if not run.state.scaler.is_enabled() and not all(bool(g.isfinite().all()) for g in gradients):
            raise Unfit(blamed, "the gradient is not finite at step 0, before any update")
        if seconds < PATIENCE_SECONDS:
            seconds, _ = _timed(lambda: float(run.train_step(batch, run.lr_at(1), 1, share)))
    return seconds


def _timed(step: Callable[[], float]) -> tuple[float, float]:
    """Returns seconds and loss of a step. Reading the loss waits for the device."""
    began = time.perf_counter()
    loss = step()
    return time.perf_counter() - began, loss


def _checkpoint(run: TrainingRun, folder: str, setting: str) -> None:
    """Writes the state as training does, restores it, and checks that it is unchanged."""
    store = Store(inside(folder, "checkpoint"))
    try:
        try:
            store.write(run.state.content())
        except OSError as error:
            raise Unfit(setting, f"no checkpoint can be written there: {error}") from error
        content, notices = store.read()
        if content is None:
            raise Unfit("model", f"its checkpoint does not load: {_reason(notices)}")
        is_same = _same(content, run.state.content())
        with _blaming("model", "its checkpoint does not load"):
            run.state.restore(content)
        if not is_same or not _same(content, run.state.content()):
            raise Unfit("model", "its state is another after a checkpoint was written and loaded")
    except Invalid as error:
        raise Unfit("model", str(error)) from error
    finally:
        store.delete()


def _reason(notices: list[str]) -> str:
    """Extracts the reason from a store's notices, without the name of the deleted file and torch's advice."""
    if not notices:
        return "there is none"
    text = notices[0].partition(".ckpt: ")[2]
    if found := re.search(r"WeightsUnpickler error: (.*?)( was not| by default|\n|$)", text):
        return f"{found[1]} (only tensors and plain values can be in it)"
    return text.strip().splitlines()[0]


def _same(one: Any, other: Any) -> bool:
    """Returns whether two states are equal to the last bit, even on different devices."""
    leaves, form = tree_flatten(one)
    others, other_form = tree_flatten(other)
    return form == other_form and all(map(_equal, leaves, others))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        # Compares bytes, because NaN is not equal to itself.
        return one.dtype == other.dtype and torch.equal(_bytes(one), _bytes(other))
    return bool(one == other)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)


# ---------------------------------------------------------------------------------------------------
# Errors


@contextlib.contextmanager
def _blaming(setting: str, rule: str) -> Iterator[None]:
    """Converts exceptions of the block to `Unfit`. `Unfit`, `DataError` and `Invalid` pass unchanged."""
    try:
        yield
    except (Unfit, DataError, Invalid):
        raise
    except Exception as error:
        if (wanted := _wanted_bytes(error)) is not None:
            more = f": {_gib(wanted)} wanted" if wanted else ""
            raise Unfit("batch_size", OUT_OF_MEMORY + more) from error
        first = (str(error).strip() or "no message").splitlines()[0]
        raise Unfit(setting, f"{rule}: {type(error).__name__}: {first}") from error


def _wanted_bytes(error: Exception) -> int | None:
    """Bytes that a failed allocation requested, 0 if unknown. None if the error is of another kind."""
    text = str(error)
    if found := re.search(r"tried to allocate ([\d.]+) (bytes|[KMG]iB)", text, re.IGNORECASE):
        units = {"bytes": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
        return int(float(found[1].rstrip(".")) * units.get(found[2].upper(), 1))
    return 0 if is_out_of_memory(error) else None


# ---------------------------------------------------------------------------------------------------
# Memory of this machine


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a GPU, or for a CPU of the machine and its container. None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return min(int(available.split()[1]) * 2**10, _group_free_bytes())
    return None


def _group_free_bytes() -> int:
    """Bytes left below the container's memory limit. `sys.maxsize` if there is no limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text("utf-8").strip()
        if limit == "max":
            return sys.maxsize
        used = int((folder / "memory.current").read_text("utf-8"))
        # Not counted as used, because the kernel frees the file cache on demand.
        for line in (folder / "memory.stat").read_text("utf-8").splitlines():
            if line.startswith("inactive_file "):
                used -= int(line.split()[1])
        return max(int(limit) - used, 0)
    except (OSError, ValueError):
        return sys.maxsize


def _check_room(request: Request, device: torch.device) -> None:
    """Raises `Unfit` before the try if the planned memory exceeds the free memory."""
    free = free_bytes(device)
    if free is not None and request.planned_bytes * request.together > free:
        raise Unfit("batch_size", OUT_OF_MEMORY)


def _room(request: Request, free: int | None) -> str:
    """Describes the planned and the free memory."""
    parts = []
    if request.planned_bytes:
        parts.append(f"{_gib(request.planned_bytes)} planned for a worker")
    if request.planned_bytes and request.together > 1:
        parts.append(
            f"{_gib(request.planned_bytes * request.together)} for {request.together} workers at a time"
        )
    if free is not None:
        parts.append(f"{_gib(free)} free")
    return ", ".join(parts)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"


@contextlib.contextmanager
def _limited(device: torch.device) -> Iterator[None]:
    """Limits memory on a CPU to the free memory, so that an allocation fails before the kernel kills."""
    free = free_bytes(device)
    if device.type != "cpu" or free is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        used = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text("utf-8"))[1]) * 2**10  # type: ignore[index]
        resource.setrlimit(resource.RLIMIT_DATA, (_least(used + free, *before), before[1]))
    except (OSError, ValueError, TypeError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _least(*limits: int) -> int:
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=resource.RLIM_INFINITY)


def main(folder: str, descriptor: int) -> None:
    """Answers requests from standard input, in a folder, on a file descriptor to which no library prints."""
    os.chdir(folder)
    with open(descriptor, "w", encoding="utf-8") as replies:
        for line in sys.stdin:
            reply = reply_to(json.loads(line))
            print(json.dumps(dataclasses.asdict(reply)), file=replies, flush=True)
