"""The training loop: a generator of (Epoch, State) that trains one epoch each time its caller advances it.

Shape suffixes: B batch, C channels, H W image side, K classes.
"""

import contextlib
import copy
import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

from trainables.base import (
    CLEAN,
    CORRUPTION,
    SHIFTED,
    DataInfo,
    Diverged,
    Epoch,
    Invalid,
    Preempted,
    Split,
    derive_seed,
)
from trainables.config import Seeds, TrainConfig
from trainables.context import Context
from trainables.data.base import Images, drawn_from
from trainables.data.order import num_steps
from trainables.data.shifted import Shifted
from trainables.identity import identity
from trainables.optim import in_epochs
from trainables.tasks.base import Score
from trainables.training.checkpoint import Checkpointer
from trainables.training.device import autocast_dtype, lay_out
from trainables.training.state import State
from trainables.training.step import Learner, num_parts, training_step
from trainables.training.transfer import final_weights, take_over
from trainables.transforms.base import Batch, Change
from trainables.transforms.imagenet_pipeline import PaperPipeline
from trainables.transforms.light_pipeline import LightPipeline

#: Most steps between two looks. A look waits for the device and for the other ranks, so it does not
#: follow every step.
LOOK_STEPS = 20

#: Target time between two looks. If steps are slow, fewer of them are taken between two looks.
LOOK_SECONDS = 1.0


def train(
    config: TrainConfig,
    context: Context,
    checkpoint: BinaryIO | None = None,
    keeper: Checkpointer | None = None,
    start: BinaryIO | None = None,
) -> Iterator[tuple[Epoch, State]]:
    """Trains one model. Every rank runs this and gets the same rows.

    Args:
      config: the run.
      context: the device and rank of this process.
      checkpoint: a file of `State.save` from which to continue.
      keeper: provides the last checkpoint, takes new ones at any step, and decides when to stop.
        Either every rank has one, or none.
      start: a file of `State.save` from the end of the run that `config.start` names; not needed with a
        checkpoint.

    Yields:
      After each epoch its row and the state. The state is live: the next epoch changes it in place.

    Raises:
      Invalid: the batch is too small for the data and the workers; the checkpoint is of another run; or
        `start` is missing, not expected, or of another model.
      Diverged: see `Divergence`; all ranks raise it together.
      Preempted: `keeper` stopped the run on one rank; all ranks raise it together, once the state is written.
      DataError: an image does not decode.
    """
    splits, info = config.data.open(), config.data.info()
    # Opened now, so that an unreadable set ends the run before any training.
    shifted = {
        one.name: one.open(info.class_names) for one in (config.evaluate.shifted if config.evaluate else ())
    }
    weights = final_weights(start) if start is not None and checkpoint is None else None
    if checkpoint is None and (config.start is None) != (start is None):
        wanted = "from the beginning" if config.start is None else "from the weights of another run"
        raise Invalid(f"the run starts {wanted}, and was given {'weights' if start else 'none'}")
    run = TrainingRun(config, context, info, splits["train"], keeper, weights)
    run.state.run = _identity(config, info.fingerprint)
    if checkpoint is not None:
        run.state.load(checkpoint)
    elif keeper is not None and (content := keeper.read(context)) is not None:
        if info.earlier_fingerprint and content.get("run") == _identity(config, info.earlier_fingerprint):
            # Written by a version that knew the same data by another fingerprint.
            content["run"] = run.state.run
        run.state.restore(content)
    run.pipeline.expect([*splits.values(), *(one.images for one in shifted.values())])
    with contextlib.closing(run.pipeline):
        yield from _epochs(run, splits, shifted)


def _epochs(
    run: "TrainingRun", splits: Mapping[Split, Images], shifted: Mapping[str, Shifted]
) -> Iterator[tuple[Epoch, State]]:
    config, context, info = run.config, run.context, run.info
    run.tell_step()
    dead_above_pct = info.chance_error_pct - config.divergence.margin_pct
    guessing_loss = config.data.task.guessing_loss(info)
    window = max(1.0, in_epochs(config.divergence.window, config.schedule.epochs))

    while True:
        # Checked before an epoch, not after it, because a diverged run may be resumed from its checkpoint.
        if run.state.dead_epochs >= window:
            raise Diverged(
                f"learnt nothing for {run.state.dead_epochs} epochs, until epoch {run.state.epoch}"
            )
        if run.state.epoch == config.schedule.epochs:
            break
        if context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(context.device)
        train_loss, lr = run.train_epoch(splits["train"])
        trained = time.perf_counter()
        run.tell_step()
        raw, averaged = run.evaluate(splits["val"])
        if not math.isfinite(averaged.loss):
            raise Diverged(f"the validation loss is {averaged.loss} after epoch {run.state.epoch + 1}")
        train_seconds = run.state.train_seconds
        run.state.epoch += 1
        run.state.step, run.state.loss_sums, run.state.train_seconds = 0, (), 0.0
        is_last = run.state.epoch == config.schedule.epochs
        test_error_pct = run.evaluate(splits["test"])[1].error_pct if is_last else None
        extra = dict(averaged.extra)
        if is_last and config.evaluate:
            extra |= run.shift_errors(splits["test"], shifted)
        learnt_nothing = averaged.error_pct > dead_above_pct and train_loss > 0.995 * guessing_loss
        run.state.dead_epochs = run.state.dead_epochs + 1 if learnt_nothing else 0
        run.state.error_pct = averaged.error_pct
        yield (
            Epoch(
                epoch=run.state.epoch,
                step=run.state.epoch * run.steps_per_epoch,
                lr=lr,
                train_loss=train_loss,
                val_loss=averaged.loss,
                val_error_pct=averaged.error_pct,
                val_raw_error_pct=raw.error_pct,
                train_seconds=train_seconds,
                val_seconds=time.perf_counter() - trained,
                test_error_pct=test_error_pct,
                peak_memory_gib=_peak_gib(context.device),
                extra=extra or None,
            ),
            run.state,
        )
    if run.state.error_pct > dead_above_pct:
        raise Diverged(
            f"ended at {run.state.error_pct:.1f} % error, where chance is {info.chance_error_pct:.1f} %"
        )


def _peak_gib(device: torch.device) -> float | None:
    """Peak of torch's allocations since the epoch began. None on a CPU, where torch does not count them.

    The resident memory of the process would be wrong, because in a lane it includes memory of earlier trials.
    """
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


class TrainingRun:
    """A run in progress: builds everything once, then trains and evaluates an epoch at a time.

    `train` runs it to the end; a dry run takes single steps.

    Attributes:
      config, context, info, keeper: as given.
      task: the task of the data.
      steps_per_epoch, total_steps: optimizer steps.
      pipeline: makes batches of images.
      state: the trained parts and the progress; a checkpoint holds all of it.
      learner: the parts that every optimizer step uses. Its network is the model of the state, or the
        `DistributedDataParallel` around it.
      autocast_dtype: the type of mixed precision; None if everything is fp32.
    """

    def __init__(
        self,
        config: TrainConfig,
        context: Context,
        info: DataInfo,
        images: Images,
        keeper: Checkpointer | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Builds the network, the optimizer and the average, on the device of the context.

        Args:
          config: the run.
          context: the device and rank of this process.
          info: the description of the data.
          images: the training split.
          keeper: takes checkpoints at any step and decides when to stop; none if left out.
          weights: final weights of the run that `config.start` names.

        Raises:
          Invalid: the batch is too small for the data and the workers, or the weights are of another model.
        """
        self.config, self.context, self.info, self.keeper = config, context, info, keeper
        self.task = config.data.task
        self.steps_per_epoch = steps_per_epoch(len(images), config.batch_size, context.world_size)
        self.pipeline: LightPipeline | PaperPipeline = config.augment.pipeline(
            config.model.image_size, config.seeds.augment, context
        )
        model = _build_model(config, info.num_classes)
        if weights is not None and config.start is not None:
            take_over(model, weights, config.start.parts, config.model.head_names(model))
        self.autocast_dtype = autocast_dtype(config, context.device)
        model = model.to(context.device)
        lay_out(model, config.model, context.device, self.autocast_dtype)
        if config.sync_batch_norm and context.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        network: nn.Module = model
        if context.world_size > 1:
            ids = [context.device.index] if context.device.type == "cuda" else None
            network = DistributedDataParallel(
                model,
                device_ids=ids,
                gradient_as_bucket_view=True,
                # Not with parts of a batch, after most of which gradients are not exchanged.
                static_graph=config.micro_batch is None,
            )
            # Ranks agree on them once an epoch, before they are used: `_agree_on_buffers`. Set here, because
            # the argument has another name since torch 2.14.
            network.broadcast_buffers = False
        self.total_steps = config.schedule.epochs * self.steps_per_epoch
        ema = None
        if config.ema:
            warmup_steps = round(
                in_epochs(config.schedule.warmup, config.schedule.epochs) * self.steps_per_epoch
            )
            # Until the end of the warm-up the average equals the weights.
            ema = ModelEmaV3(model, config.ema.decay(self.total_steps), update_after_step=warmup_steps)
        self.state = State(
            model=model,
            optimizer=config.optim.build(model, config.batch_size, config.model.outer_names(model)),
            scaler=torch.amp.GradScaler(context.device.type, enabled=self.autocast_dtype == torch.float16),
            ema=ema,
        )
        self.learner = Learner(
            network,
            self.state.optimizer,
            self.state.scaler,
            functools.partial(self.task.loss_sum, smoothing=config.label_smoothing),
            self.autocast,
            config.clip_grad_norm,
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Enters mixed precision if the configuration and the device call for it."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.context.device.type, self.autocast_dtype)

    def train_epoch(self, images: Images) -> tuple[float, float]:
        """Trains to the end of the epoch. Returns the mean loss over all ranks and the last learning rate.

        Continues from `state.step`. Updates it and `state.train_seconds` to the end of the epoch.
        """
        config, state, context = self.config, self.state, self.context
        self.learner.network.train()
        loss_sum = torch.tensor(self._own_loss_sum(), device=context.device, dtype=torch.float64)
        looked = time.perf_counter()
        started = looked - state.train_seconds
        looked_step, next_look = state.step, state.step + 1
        batches = self.pipeline.train_batches(
            images, config.seeds.order, config.batch_size, state.epoch, state.step
        )
        for batch in batches:
            global_step = state.epoch * self.steps_per_epoch + state.step
            batch_images = self._batch_images(len(images), state.step)
            loss_sum += self.train_step(batch, self.lr_at(global_step), global_step, batch_images)
            state.step += 1
            if state.step < next_look and state.step < self.steps_per_epoch:
                continue
            now = time.perf_counter()
            state.train_seconds = now - started
            pace = self._look(loss_sum, (now - looked) / (state.step - looked_step))
            looked, looked_step = now, state.step
            next_look = state.step + max(1, min(LOOK_STEPS, int(LOOK_SECONDS / pace)))
        self._agree_on_buffers()
        state.train_seconds = time.perf_counter() - started
        return sum(state.loss_sums) / len(images), self.lr_at((state.epoch + 1) * self.steps_per_epoch - 1)

    def _own_loss_sum(self) -> float:
        """Loss sum of this rank in the state. If the number of ranks has changed, rank 0 gets the total."""
        sums, context = self.state.loss_sums, self.context
        if len(sums) == context.world_size:
            return sums[context.rank]
        return sum(sums) if context.rank == 0 else 0.0

    def lr_at(self, global_step: int) -> float:
        """Returns the learning rate of an optimizer step, counted from the beginning of the run."""
        config = self.config
        return config.optim.peak_lr(config.batch_size) * config.schedule.factor(
            global_step / self.steps_per_epoch
        )

    def _look(self, loss_sum: Tensor, seconds: float) -> float:
        """Exchanges losses and requests between ranks, and takes a checkpoint if one is due.

        One all-reduce of a few numbers carries the losses, the requests and the pace, so all ranks decide
        alike. A rank that decided alone would leave the others waiting forever in the next collective.

        Args:
          loss_sum: this rank's sum of losses over the epoch so far.
          seconds: time per step on this rank since the last look.

        Returns:
          Seconds per step, averaged over ranks.
        """
        state, context, keeper = self.state, self.context, self.keeper
        self.tell_step()
        due = keeper is not None and keeper.is_due(state.content)
        stop = keeper is not None and keeper.should_stop()
        message = torch.tensor(
            [seconds, due, stop, *[0.0] * context.world_size], device=context.device, dtype=torch.float64
        )
        message[3 + context.rank] = loss_sum
        seconds, due, stop, *loss_sums = context.sum(message).tolist()
        state.loss_sums = tuple(loss_sums)
        if not math.isfinite(total := sum(loss_sums)):
            raise Diverged(f"the training loss is {total} in epoch {state.epoch + 1}, by step {state.step}")
        if keeper is not None and (due or stop):
            keeper.take(state.content(), wait=bool(stop))
        if stop:
            # Waits for all ranks, because the first one to leave ends the group and the rank that writes.
            context.sum(torch.zeros(1, device=context.device))
            raise Preempted(f"after step {state.step} of epoch {state.epoch + 1}")
        return seconds / context.world_size

    def tell_step(self) -> None:
        """Reports the current step of the run to `keeper.on_look`, as a sign of progress."""
        if self.keeper is not None:
            self.keeper.on_look(self.state.epoch * self.steps_per_epoch + self.state.step)

    def _agree_on_buffers(self) -> None:
        """Gives every rank the BN statistics of rank 0, so that the evaluated weights are the saved ones."""
        if self.context.world_size > 1:
            models = [self.state.model, *([self.state.ema.module] if self.state.ema else [])]
            for buffer in (buffer for model in models for buffer in model.buffers()):
                torch.distributed.broadcast(buffer, src=0)

    def _batch_images(self, num_images: int, step: int) -> int:
        steps = self.steps_per_epoch
        return num_images * (step + 1) // steps - num_images * step // steps

    def train_step(self, batch: Batch, lr: float, global_step: int, batch_images: int) -> Tensor:
        """Takes one optimizer step, and updates the average if an update is due.

        Args:
          batch: this rank's share of the batch.
          lr: the learning rate of this step.
          global_step: steps taken since the beginning of the run; it determines the random numbers.
          batch_images: images of all ranks in this step.

        Returns:
          The sum (not the mean) of this rank's losses.
        """
        config, state, context = self.config, self.state, self.context
        images_BCHW, targets = batch
        seed = derive_seed(config.seeds.augment, "step", global_step, context.rank)
        # Stochastic depth draws from torch's global generator.
        torch.manual_seed(seed)
        if config.mixup:
            images_BCHW, targets = config.mixup.apply(images_BCHW, targets, self.info.num_classes, seed)
        # The factor corrects for DDP, which averages over ranks whose shares may differ by one image.
        scale = context.world_size / batch_images
        # Of the largest share, so that all ranks have as many parts.
        parts = num_parts(math.ceil(batch_images / context.world_size), config.micro_batch)
        loss_sum = training_step(self.learner, images_BCHW, targets, lr, scale, parts)
        if (
            state.ema is not None
            and config.ema is not None
            and (global_step + 1) % config.ema.interval(self.total_steps) == 0
        ):
            state.ema.update(state.model, global_step + 1)
        return loss_sum

    def evaluate(self, images: Images) -> tuple[Score, Score]:
        """Scores the weights and their average. Without an average, both scores are those of the weights."""
        models = [self.state.model, *([self.state.ema.module] if self.state.ema else [])]
        scores = self.evaluate_as_they_are(self._with_precise_bn(models), images)
        return scores[0], scores[-1]

    def judged_network(self) -> nn.Module:
        """Returns the network whose error counts, with the BN statistics that it is evaluated with."""
        return self._with_precise_bn([self.state.evaluated])[0]

    def shift_errors(self, images: Images, shifted: Mapping[str, Shifted]) -> dict[str, float]:
        """Errors in percent of the evaluated network under each kind of corruption and on each shifted set.

        The error of a kind is the mean over its severities. `clean` is the error on the same images without
        corruption.
        """
        evaluation = self.config.evaluate
        assert evaluation is not None
        model = self.judged_network()
        errors = {}
        if (corruptions := evaluation.corruptions) is not None:
            if corruptions.images is not None and corruptions.images < len(images):
                rows, whole = drawn_from(images.labels, corruptions.images, corruptions.seed), images
                images = Images(whole.labels[rows], lambda row: whole.read(int(rows[row])))
            errors[CLEAN] = self.evaluate_as_is(model, images).error_pct
            for kind in corruptions.kinds:
                scores = [
                    self.evaluate_as_is(model, images, change=corruptions.change(kind, severity)).error_pct
                    for severity in corruptions.severities
                ]
                errors[CORRUPTION + kind] = sum(scores) / len(scores)
        for name, other in shifted.items():
            errors[SHIFTED + name] = self.evaluate_as_is(model, other.images, classes=other.classes).error_pct
        return errors

    def evaluate_as_is(
        self,
        model: nn.Module,
        images: Images,
        change: Change | None = None,
        classes: NDArray[np.int64] | None = None,
    ) -> Score:
        """Scores a network with the batch norm statistics that it has. See `evaluate_as_they_are`."""
        return self.evaluate_as_they_are([model], images, change, classes)[0]

    @torch.no_grad()
    def evaluate_as_they_are(
        self,
        models: Sequence[nn.Module],
        images: Images,
        change: Change | None = None,
        classes: NDArray[np.int64] | None = None,
    ) -> list[Score]:
        """Scores networks on the same images, which are made once, with the batch norm statistics they have.

        Args:
          models: the networks; they are put into evaluation mode.
          images: the test images; the scores are over all ranks.
          change: applied to every image after cropping.
          classes: the only classes that the networks may answer; all if left out.
        """
        for model in models:
            model.eval()
        totals = [self.task.new_totals(self.info, self.context.device) for _ in models]
        barred = None
        if classes is not None:
            others = np.setdiff1d(np.arange(self.info.num_classes), classes)
            barred = torch.from_numpy(others).to(self.context.device)
        for images_BCHW, targets in self.pipeline.eval_batches(images, self._forward_images, change):
            for model, total in zip(models, totals, strict=True):
                with self.autocast():
                    outputs = model(images_BCHW).float()
                if barred is not None:
                    outputs = outputs.index_fill(1, barred, -math.inf)
                self.task.add(total, outputs, targets)
        return [self.task.score(self.context.sum(total)) for total in totals]

    @property
    def _forward_images(self) -> int:
        """Images in one forward pass without gradients, which needs no more memory than one of training."""
        return self.config.micro_batch or self.config.batch_size

    @torch.no_grad()
    def _with_precise_bn(self, models: Sequence[nn.Module]) -> list[nn.Module]:
        """Returns copies with BN statistics averaged over training images, each with its own weights."""
        count = self.config.precise_bn_images
        if not count or not any(map(_norms, models)):
            return list(models)
        copies = [copy.deepcopy(model) for model in models]
        images = self.config.data.open()["train"]
        seeds = Seeds.derived(self.config.seeds.order, "precise_bn")
        steps = max(1, round(min(count, len(images)) / self._forward_images))
        batches = self.pipeline.train_batches(
            images, seeds.order, self._forward_images, self.state.epoch, stop_step=steps
        )
        # Stochastic depth is active here as well, and must not depend on earlier random numbers.
        seed = derive_seed(seeds.augment, self.state.epoch, self.context.rank)
        with self.autocast():
            update_bn((images_BCHW for images_BCHW, _ in batches), _SideBySide(copies, seed))
        for norm in (norm for model in copies for norm in _norms(model)):
            for statistic in (norm.running_mean, norm.running_var):
                assert statistic is not None
                statistic.copy_(self.context.sum(statistic) / self.context.world_size)
        return copies


class _SideBySide(nn.Module):
    """Networks that are given the same images, each with the random numbers that it would have alone."""

    def __init__(self, models: Sequence[nn.Module], seed: int) -> None:
        super().__init__()
        self.models, self._seed = nn.ModuleList(models), seed
        self._generators: list[Tensor] = []

    def forward(self, images_BCHW: Tensor) -> None:
        """Runs all networks."""
        on_gpu = images_BCHW.device.type == "cuda"
        get, put = (
            (torch.cuda.get_rng_state, torch.cuda.set_rng_state)
            if on_gpu
            else (torch.get_rng_state, torch.set_rng_state)
        )
        if not self._generators:
            # Not before, because starting loader processes draws a number, and later passes start none.
            torch.manual_seed(self._seed)
            self._generators = [get()] * len(self.models)
        for number, model in enumerate(self.models):
            put(self._generators[number])
            model(images_BCHW)
            self._generators[number] = get()


def finished_run(
    config: TrainConfig, context: Context, info: DataInfo, images: Images, weights: Mapping[str, Tensor]
) -> TrainingRun:
    """Returns a run with its final weights, as it stood when the selection split was evaluated last.

    Args:
      config, context, info, images: see `TrainingRun`.
      weights: from `final_weights`.

    Raises:
      Invalid: the weights are of another model.
    """
    run = TrainingRun(config, context, info, images)
    try:
        for network in (run.state.model, *([run.state.ema.module] if run.state.ema else [])):
            network.load_state_dict(weights)
    except RuntimeError as error:
        raise Invalid(f"the weights are of another model: {str(error).splitlines()[0]}") from error
    # The images that BN statistics are computed from depend on it.
    run.state.epoch = config.schedule.epochs - 1
    return run


def _norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def _identity(config: TrainConfig, fingerprint: str) -> str:
    """Identity of a run among its checkpoints. The first run enters without its data, which may be absent."""
    first = None if config.start is None else _identity(config.start.run, "")
    return identity(config, fingerprint, first)


def steps_per_epoch(num_images: int, batch_size: int, workers: int) -> int:
    """Number of optimizer steps in an epoch.

    Raises:
      Invalid: a worker would get a single image per step, which is too few for batch norm.
    """
    steps = num_steps(num_images, batch_size)
    if num_images // steps // workers < 2:
        raise Invalid(
            f"{num_images} training images in batches of {batch_size} on {workers} workers leave fewer "
            "than 2 images to a worker and step"
        )
    return steps


def _build_model(config: TrainConfig, num_classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seeds.init)
        return config.model.network(num_classes)
