"""Memory and work of one training step, counted without training.

The step of `trainables.training.step` runs on fake tensors, which have shapes and lifetimes but no content.
A dispatch mode observes every operation: the storages alive after it, its multiply-adds, and the bytes it
reads and writes. So the counts are those of autograd, the optimizer and mixed precision at this batch size,
without any fitted factor.

Not included, because no operation shows it: scratch memory inside a kernel (oneDNN, cuDNN, cuBLAS), rounding
and fragmentation of an allocator, the interpreter and its libraries, a CUDA context.

Shape suffixes: B batch, C channels, H W image side.
"""

import functools
import math
import statistics
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from trainables.config import Divergence, Ema, Seeds, TrainConfig
from trainables.data.order import num_steps
from trainables.optim import Cosine
from trainables.training.step import Autocast, Learner, num_parts, training_step
from trainables.transforms.mixup import Mixup


@dataclass(frozen=True, slots=True)
class Work:
    """An amount of work, in the three quantities that take time.

    Attributes:
      flops: multiply-adds of matrix products and convolutions.
      moved_bytes: bytes read and written by all operations, without caches.
      kernels: number of operations; the host needs time to start each.
    """

    flops: float = 0.0
    moved_bytes: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flops + other.flops, self.moved_bytes + other.moved_bytes, self.kernels + other.kernels
        )

    def __mul__(self, times: float) -> "Work":
        return Work(self.flops * times, self.moved_bytes * times, self.kernels * times)

    def __sub__(self, other: "Work") -> "Work":
        return self + other * -1


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of one worker, and its work for a training step and for an evaluated image.

    Attributes:
      params, gradients, optimizer, ema: bytes that stay between steps; BN buffers count as parameters. With
        several workers the gradients lie in the buckets of DDP.
      images: bytes of decoded images of all splits that stay in memory; 0 if they are read each time.
      activations: bytes held at the end of the forward pass beyond all of these: tensors that autograd saved,
        the batch, copies of weights in half precision.
      peak: largest number of bytes during a step or an evaluation. It is not the sum of the above, because
        activations are freed while gradients are made.
      state: bytes of a checkpoint: model, optimizer and average.
      batch: images of one worker in one step.
      has_buffers: whether there is batch normalisation.
      step: work of one training step of one worker.
      evaluated: work per image of one evaluation of one network.
    """

    params: int
    gradients: int
    optimizer: int
    ema: int
    images: int
    activations: int
    peak: int
    state: int
    batch: int
    has_buffers: bool
    step: Work
    evaluated: Work


def footprint(
    config: TrainConfig,
    num_classes: int,
    num_train: int,
    num_images: int,
    workers: int = 1,
    on_gpu: bool = False,
) -> Footprint:
    """Counts the footprint of a run on fake tensors, in about a second.

    Runs of equal `shape_config` are counted once.

    Args:
      config: the run.
      num_classes: classes of the head.
      num_train: images of the training split.
      num_images: images of all splits.
      workers: processes that share a batch.
      on_gpu: whether `precision: auto` means half precision, and optimizers update all tensors at once.
    """
    return _counted(shape_config(config), num_classes, num_train, num_images, workers, on_gpu)


def shape_config(config: TrainConfig) -> TrainConfig:
    """Returns a run with defaults for settings that do not affect its cost: rates, lengths, seeds, `start`.

    For a strength of regularisation it matters only whether it is zero, so all others are made equal.
    """
    return config.model_copy(
        update={
            "optim": config.optim.model_copy(
                update={"lr": 1e-3, "weight_decay": 0.1 if config.optim.weight_decay else 0.0}
            ),
            "model": config.model.model_copy(update={"drop_path": 0.1 if config.model.drop_path else 0.0}),
            "ema": Ema() if config.ema else None,
            "mixup": Mixup() if config.mixup else None,
            "clip_grad_norm": 1.0 if config.clip_grad_norm is not None else None,
            "label_smoothing": 0.1,
            "schedule": Cosine(epochs=1),
            "divergence": Divergence(),
            "seeds": Seeds(),
            "start": None,
        }
    )


@functools.lru_cache(maxsize=4096)
def _counted(
    config: TrainConfig, num_classes: int, num_train: int, num_images: int, workers: int, on_gpu: bool
) -> Footprint:
    light = config.augment.name == "light"
    half = config.precision in ("bf16", "fp16") or (config.precision == "auto" and on_gpu)
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=half)
    # The largest share of a worker. It may be below its part of batch_size, because steps are equal.
    batch = math.ceil(math.ceil(num_train / num_steps(num_train, config.batch_size)) / workers)
    with torch.device("meta"):
        shapes = config.model.network(num_classes)
    watch = _Watch()
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), watch:
        warnings.simplefilter("ignore")
        kept = torch.empty(num_images if light else 0, *config.model.input_shape, dtype=torch.uint8)
        images, before = watch.live, watch.live
        model = _placed(shapes)
        params, before = watch.live - before, watch.live
        ema = ModelEmaV3(model, 0.9) if config.ema else None
        average = watch.live - before
        optimizer = _optimizer(config, model, on_gpu)
        gradients = sum(p.numel() * p.element_size() for p in model.parameters())
        # Two steps, because the second is like all later ones: the optimizer has its state.
        for _ in range(2):
            activations, step = _step(watch, config, model, optimizer, autocast, batch, num_classes)
        state = watch.live - images - gradients
        if ema is not None:
            ema.update(model, 1)
        rows = min(config.micro_batch or config.batch_size, num_train)
        evaluated = _evaluation(watch, config, model, autocast, rows, num_classes)
        has_buffers = any(True for _ in model.buffers())
        copies = params if config.precise_bn_images and has_buffers else 0
        del kept, optimizer
    return Footprint(
        params=params,
        gradients=gradients,
        optimizer=state - params - average,
        ema=average,
        images=images,
        activations=activations,
        peak=max(watch.peak, watch.live + copies),
        state=state,
        batch=batch,
        has_buffers=has_buffers,
        step=step,
        evaluated=evaluated,
    )


def _optimizer(config: TrainConfig, model: nn.Module, on_gpu: bool) -> Optimizer:
    """Builds the optimizer as it works on the device; fake tensors would get the choices of a CPU."""
    optimizer = config.optim.build(model, config.batch_size, config.model.outer_names(model))
    for group in optimizer.param_groups:
        group["foreach"] = on_gpu
        for parameter in group["params"] if group.get("use_fallback") else ():
            # timm's AdamW next to Muon reads the value of its step count, so this must be a constant here.
            optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def _step(
    watch: "_Watch",
    config: TrainConfig,
    model: nn.Module,
    optimizer: Optimizer,
    autocast: Autocast,
    rows: int,
    num_classes: int,
) -> tuple[int, Work]:
    """Takes a training step. Returns the bytes held at the end of its forward pass, and its work."""
    # As the step begins.
    optimizer.zero_grad(set_to_none=True)
    held, began, activations = watch.live, watch.work, 0

    def loss_sum(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal activations
        loss = config.data.task.loss_sum(outputs, targets, config.label_smoothing)
        # Of the first part of a batch, because later ones begin with gradients.
        activations = activations or watch.live - held
        return loss

    learner = Learner(
        model,
        optimizer,
        torch.amp.GradScaler("cpu", enabled=False),
        loss_sum,
        autocast,
        config.clip_grad_norm,
    )
    # `beside` keeps the tensors alive that the pipeline holds while its batch is used.
    beside, inputs, targets = _batch(config, rows, num_classes)
    parts = num_parts(rows, config.micro_batch)
    training_step(learner, inputs, targets, config.optim.lr, 1 / rows, parts)
    del beside
    return activations, watch.work - began


def _evaluation(
    watch: "_Watch", config: TrainConfig, model: nn.Module, autocast: Autocast, rows: int, num_classes: int
) -> Work:
    """Evaluates a whole batch, as every worker does. Returns the work per image."""
    began = watch.work
    model.eval()
    with torch.no_grad(), autocast():
        model(_batch(config, rows, num_classes)[1]).float().argmax(1)
    return (watch.work - began) * (1 / rows)


def probe(seconds: float = 0.4) -> tuple[float, float, float]:
    """Measures seconds per multiply-add, per byte moved and per operation of one thread of this CPU.

    Args:
      seconds: time spent on each of the three measurements; each is a median over bursts.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        square, column, tiny = torch.rand(512, 512), torch.rand(2**22), torch.rand(1)
        flop = _per_call(lambda: square @ square, seconds) / 512**3
        byte = _per_call(lambda: column + column, seconds) / (3 * 4 * 2**22)
        kernel = _per_call(lambda: tiny + tiny, seconds)
    finally:
        torch.set_num_threads(threads)
    return flop, byte, kernel


def _per_call(call: Callable[[], Any], seconds: float) -> float:
    call()
    taken, deadline = [], time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        began = time.perf_counter()
        for _ in range(10):
            call()
        taken.append((time.perf_counter() - began) / 10)
    return statistics.median(taken)


def _placed(model: nn.Module) -> nn.Module:
    """Gives a network new tensors, made under the active mode. `Module.to` would swap tensors instead."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            module.register_parameter(name, nn.Parameter(empty, parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return model


def _batch(config: TrainConfig, rows: int, num_classes: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Returns the tensors that a pipeline holds while its batch is used, the images, and the targets."""
    shape = (rows, *config.model.input_shape)
    images_BCHW = torch.empty(shape)
    output_shape = config.data.task.output_shape(rows, config.model.input_shape, num_classes)
    if config.mixup is None:
        targets = torch.empty(output_shape[:1] + output_shape[2:], dtype=torch.int64)
        unmixed = []
    else:
        # The loop still holds the batch from which the mixed one was made.
        targets, unmixed = torch.empty(output_shape), [torch.empty(shape)]
    pixels = [torch.empty(shape, dtype=torch.uint8)] if config.augment.name == "light" else []
    return [*pixels, *unmixed], images_BCHW, targets


class _Watch(TorchDispatchMode):
    """Tracks the storages that operations create, and counts the work of the operations.

    Attributes:
      live, peak: bytes of storages alive now, and the largest number so far.
      work: work of all operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.work = Work()
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._follow(tensor)
        storages = {tensor.untyped_storage()._cdata for tensor in given}
        is_view = not func._schema.is_mutable and all(t.untyped_storage()._cdata in storages for t in made)
        if not is_view:
            flops = (
                flop_count(*args, **kwargs, out_val=out)
                if (flop_count := _FLOPS.get(func.overloadpacket))
                else 0
            )
            # Tensors written in place are already counted as read.
            written = [tensor for tensor in made if tensor.untyped_storage()._cdata not in storages]
            moved = sum(t.numel() * t.element_size() for t in (*given, *written))
            # Halved, because torch counts a multiply and an add as two, and the paper as one.
            self.work += Work(flops / 2, moved, 1)
        return out

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.live -= size


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _attention_backward_flops(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    count = sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)  # type: ignore[no-untyped-call]
    return int(count)


#: Functions that count multiplies and adds of an operation: torch's own, and attention on a CPU, which torch
#: leaves out.
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
