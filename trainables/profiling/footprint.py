"""What one training step holds in memory and has to do, found without training anything.

The step of `trainables.training.loop` runs on fake tensors, which have shapes and lifetimes but no content,
while a dispatch mode sees every operation: which storages are alive after it, how many multiply-adds it
makes, how many bytes it reads and writes. What is counted is what autograd, the optimizer and mixed precision
really do at this batch size; nothing is a factor that was fitted.

Not in it, since no operation shows it: scratch inside a kernel (oneDNN, cuDNN, cuBLAS), an allocator's
rounding and fragmentation, the interpreter and its libraries, a CUDA context.

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
from trainables.training.step import Autocast, Learner, training_step
from trainables.transforms.mixup import Mixup


@dataclass(frozen=True, slots=True)
class Work:
    """What has to be done, in the three things that time goes into.

    Attributes:
      flops: multiply-adds of matrix products and convolutions.
      moved_bytes: read and written by all operations, each as if nothing stayed in a cache.
      kernels: operations; each costs the host the time to start it.
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
    """Of one worker: bytes held, and work of a training step and of an evaluated image.

    Attributes:
      params, gradients, optimizer, ema: bytes that live between steps; BN buffers count as parameters.
      images: bytes of decoded images that stay in memory, of all splits; 0 where they are read each time.
      activations: bytes that the end of the forward pass holds beyond all of these: what autograd saved,
        the batch, copies of weights in half precision.
      buckets: bytes of the flat gradients that DDP keeps beside the gradients; 0 for one worker.
      peak: bytes at the largest moment of a step or of an evaluation; not the sum of the above, since
        activations go while gradients come.
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
    buckets: int
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
    """The footprint of a run, counted on fake tensors in a second or so.

    Runs of equal `shape_config` are counted once.

    Args:
      config: the run.
      num_classes: of the head.
      num_train: images of the training split.
      num_images: of all splits.
      workers: processes that share a batch.
      on_gpu: whether `precision: auto` means half precision, and optimizers take all tensors at once.
    """
    return _counted(shape_config(config), num_classes, num_train, num_images, workers, on_gpu)


def shape_config(config: TrainConfig) -> TrainConfig:
    """A run without what does not matter to its cost: rates, lengths, seeds, what it starts from.

    Of strengths of regularisation only whether there are any matters, so all of them are made equal.
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
    # The largest share that a worker gets: an epoch is cut into equal steps.
    batch = math.ceil(math.ceil(num_train / num_steps(num_train, config.batch_size)) / workers)
    with torch.device("meta"):
        shapes = config.model.build(num_classes)
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
        buckets = torch.empty(params if workers > 1 else 0, dtype=torch.uint8)
        gradients = sum(p.numel() * p.element_size() for p in model.parameters())
        # The second step is like all later ones: the optimizer has its state, and the old gradients are
        # there until the forward pass is over.
        for _ in range(2):
            activations, step = _step(watch, config, model, optimizer, autocast, batch, num_classes)
        state = watch.live - images - buckets.numel() - gradients
        if ema is not None:
            ema.update(model, 1)
        evaluated = _evaluation(
            watch, config, model, autocast, min(config.batch_size, num_train), num_classes
        )
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
        buckets=buckets.numel(),
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
            # timm's AdamW beside Muon reads its count of steps: fake, it must be a constant.
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
    """Takes a step of training; returns what the end of its forward pass holds, in bytes, and its work."""
    held, began, activations = watch.live, watch.work, 0

    def loss_sum(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal activations
        loss = config.data.task.loss_sum(outputs, targets, config.label_smoothing)
        activations = watch.live - held
        return loss

    learner = Learner(
        model,
        optimizer,
        torch.amp.GradScaler("cpu", enabled=False),
        loss_sum,
        autocast,
        config.clip_grad_norm,
    )
    # The name keeps alive what the pipeline holds while its batch is used.
    beside, inputs, targets = _batch(config, rows, num_classes)
    training_step(learner, inputs, targets, config.optim.lr, 1 / rows)
    del beside
    return activations, watch.work - began


def _evaluation(
    watch: "_Watch", config: TrainConfig, model: nn.Module, autocast: Autocast, rows: int, num_classes: int
) -> Work:
    """Evaluates a whole batch, as every worker does; returns the work per image."""
    began = watch.work
    model.eval()
    with torch.no_grad(), autocast():
        model(_batch(config, rows, num_classes)[1]).float().argmax(1)
    return (watch.work - began) * (1 / rows)


def probe(seconds: float = 0.4) -> tuple[float, float, float]:
    """Seconds per multiply-add, per byte moved and per operation of one thread of this CPU.

    Args:
      seconds: spent on each of the three; the median burst counts.
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
    """The network with tensors of the mode that is in force in place of its own; `to` would swap them."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            module.register_parameter(name, nn.Parameter(empty, parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return model


def _batch(config: TrainConfig, rows: int, num_classes: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """What a pipeline holds while its batch is used, the images, and the targets."""
    shape = (rows, *config.model.input_shape)
    images_BCHW = torch.empty(shape)
    output_shape = config.data.task.output_shape(rows, config.model.input_shape, num_classes)
    if config.mixup is None:
        targets = torch.empty(output_shape[:1] + output_shape[2:], dtype=torch.int64)
        unmixed = []
    else:
        # The loop still has the batch that the mixed one was made of.
        targets, unmixed = torch.empty(output_shape), [torch.empty(shape)]
    pixels = [torch.empty(shape, dtype=torch.uint8)] if config.augment.name == "light" else []
    return [*pixels, *unmixed], images_BCHW, targets


class _Watch(TorchDispatchMode):
    """Follows the storages that operations make, and what the operations do.

    Attributes:
      live, peak: bytes of storages alive now, and at most so far.
      work: of all operations so far.
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
            # What is written in place was counted among what is read.
            written = [tensor for tensor in made if tensor.untyped_storage()._cdata not in storages]
            moved = sum(t.numel() * t.element_size() for t in (*given, *written))
            # torch counts a multiply and an add; the paper counts the pair.
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


#: Multiplies and adds of an operation by its name; torch's own, and its formula for the one it leaves out.
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
