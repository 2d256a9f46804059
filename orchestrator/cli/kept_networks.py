"""The networks whose weights a sweep has kept: which of its trials have them, and what their maps are."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.analysis.collapse import Collapse, TrialMaps, block_similarity
from orchestrator.cli.options import show
from orchestrator.store.folder import Folder
from orchestrator.store.journal import FolderError
from orchestrator.store.weights import WeightStore
from orchestrator.trials.names import UnknownTrial, find_trial, name_of
from orchestrator.trials.trial import Trial, unique_trials
from trainables.base import DataError, Invalid
from trainables.config import DataConfig

if TYPE_CHECKING:
    from trainables.data.base import Images

#: The families whose attention maps can be observed.
_WITH_MAPS = ("vit",)

#: Images that are read at a time.
_BATCH_IMAGES = 64

#: Seconds until the first line of progress, and between two lines.
_LINE_SECONDS = 3.0


def chosen_trials(opened: Folder, names: Sequence[str]) -> list[Trial]:
    """Returns the trials with kept weights and attention maps: those named, or all, each once.

    Raises:
      FolderError: there are none, or a named one is unknown, has no weights, or has no maps. The message
        names all faults and what to do about them.
    """
    path, plan = opened.path, opened.plan
    kept = {one.trial for one in WeightStore(path, plan.sweep.resources.checkpoints).kept()}
    if not names:
        with_weights = [trial for trial in unique_trials(plan.trials) if trial.id in kept]
        found = [trial for trial in with_weights if _has_maps(trial)]
        if found:
            names = [trial.id for trial in found]
        elif with_weights:
            raise FolderError(f"{path}: no kept network has attention maps; {_ONLY_VIT}")
        else:
            raise FolderError(f"{path}: no weights were kept. {_keep(path, opened)}")
    faults: list[str] = []
    chosen: dict[str, Trial] = {}
    for name in names:
        try:
            trial = find_trial(plan, name)
        except UnknownTrial as error:
            faults.append(str(error))
            continue
        chosen[trial.id] = trial
    for trial in chosen.values():
        name, record = name_of(trial), opened.records.get(trial.id)
        if not _has_maps(trial):
            faults.append(f"{name}: family {trial.config.model.family} has no attention maps; {_ONLY_VIT}")
        elif record is None or record.outcome != "finished":
            faults.append(f"{name}: has not finished; see  vitc-sweep why {path} {name}")
        elif trial.id not in kept:
            faults.append(f"{name}: its weights were not kept. {_keep(path, opened)}")
    if faults:
        raise FolderError("\n".join(dict.fromkeys(faults)))
    return list(chosen.values())


#: Part of messages about networks without maps.
_ONLY_VIT = f"only networks of family {' or '.join(_WITH_MAPS)} do"


def _has_maps(trial: Trial) -> bool:
    return trial.config.model.family in _WITH_MAPS


def _keep(path: Path, opened: Folder) -> str:
    if opened.plan.sweep.resources.keep == "best":
        return "`resources: {keep: best}` keeps the best of each cell and arm; {keep: last} keeps all"
    return (
        "Set `resources: {keep: best}` (the best of each cell and arm) or {keep: last} (all) in the sweep "
        f"file, and run trials again: another sweep, or  vitc-sweep retry {path} --trial TRIAL"
    )


def look_at_maps(opened: Folder, chosen: Sequence[Trial], num_images: int, threshold: float) -> Collapse:
    """Returns the attention maps of trials, computed from their kept weights.

    Args:
      opened: the sweep, opened to run.
      chosen: from `chosen_trials`.
      num_images: most images of the selection split, in proportion to its classes.
      threshold: see `Collapse`.

    Raises:
      FolderError: data or weights are not those of the sweep, or cannot be read. The message names all
        faults.
    """
    _check_data(opened, chosen)
    looks = _Looks(opened, num_images, threshold)
    faults, measured = [], {}
    for number, trial in enumerate(chosen, 1):
        try:
            measured[trial.id] = looks.maps_of(trial, f"{number} of {len(chosen)}")
        except (Invalid, DataError, OSError) as error:
            faults.append(f"{name_of(trial)}: {error}")
    if faults:
        raise FolderError("\n".join(faults))
    # Arms that coincide in a cell share a trial.
    planned = [trial for trial in opened.plan.trials if trial.id in measured]
    return Collapse(
        threshold=threshold,
        trials=tuple(
            measured[trial.id].model_copy(
                update={"name": name_of(trial), "cell": trial.cell_name, "arm": trial.arm_and_stage}
                | {"point": trial.point, "replicate": trial.replicate, "role": trial.role}
            )
            for trial in planned
        ),
    )


def _check_data(opened: Folder, chosen: Sequence[Trial]) -> None:
    faults = []
    for config in dict.fromkeys(trial.config.data for trial in chosen):
        info = opened.plan.infos[config]
        try:
            if not config.info().is_known_as(info.fingerprint):
                faults.append(f"{opened.path}: the data {info.name} have changed since the sweep ran")
        except DataError as error:
            faults.append(f"{opened.path}: the data {info.name}: {error}")
    if faults:
        raise FolderError("\n".join(faults))


class _Looks:
    """Looks at one trial after the other, with the same images of each data set."""

    def __init__(self, opened: Folder, num_images: int, threshold: float) -> None:
        # They import torch, which messages about wrong input do not need.
        from trainables.context import this_process
        from trainables.data.base import Images
        from trainables.gpu import visible_device

        self._opened, self._num_images, self._threshold = opened, num_images, threshold
        self._states = WeightStore(opened.path, opened.plan.sweep.resources.checkpoints)
        self._context = this_process(threads=None, device=visible_device())
        self._data: dict[DataConfig, tuple[Images, Images]] = {}
        self._told = time.monotonic()

    def maps_of(self, trial: Trial, which: str) -> TrialMaps:
        """Returns the maps of a trial; `which` counts it in lines of progress.

        Raises:
          Invalid: the weights are not those of the journal.
          DataError, OSError: data or weights cannot be read.
        """
        from trainables.profiling.attention import attention_similarity
        from trainables.training.loop import finished_run
        from trainables.training.transfer import final_weights

        config, plan = trial.config, self._opened.plan
        with self._states.open_kept(trial.id) as file:
            weights = final_weights(file)
        train, images = self._images(config.data)
        run = finished_run(config, self._context, plan.infos[config.data], train, weights)
        digest = run.state.weights_digest()
        if digest != self._opened.records[trial.id].weights:
            raise Invalid(
                "its kept weights are not those of the journal; "
                f"`vitc-sweep retry {self._opened.path} --trial {name_of(trial)}` makes them again"
            )

        def tell(done: int) -> None:
            if time.monotonic() - self._told > _LINE_SECONDS:
                self._told = time.monotonic()
                show(f"{name_of(trial)} ({which}): {done:,} of {len(images):,} images", sys.stderr)

        try:
            batches = (batch for batch, _ in run.pipeline.eval_batches(images, _BATCH_IMAGES))
            found = attention_similarity(run.judged_network(), batches, self._threshold, tell)
        finally:
            run.pipeline.close()
        num_heads, num_blocks = found[0].matrix_HLL.shape[:2]
        return TrialMaps(
            trial=trial.id,
            name=name_of(trial),
            cell=trial.cell_name,
            arm=trial.arm,
            point=trial.point,
            replicate=trial.replicate,
            role=trial.role,
            weights=digest,
            num_images=len(images),
            num_blocks=num_blocks,
            num_heads=num_heads,
            found=tuple(
                block_similarity(
                    one.maps, one.tokens, one.num_tokens, one.matrix_HLL, one.share_HK, one.entropy_HL
                )
                for one in found
            ),
        )

    def _images(self, data: DataConfig) -> "tuple[Images, Images]":
        """Returns the training split, and the images of the selection split to look at."""
        from trainables.data.base import Images, drawn_from

        if data not in self._data:
            splits = data.open()
            whole = splits["val"]
            images = whole
            if self._num_images < len(whole):
                rows = drawn_from(whole.labels, self._num_images, seed=0)
                images = Images(whole.labels[rows], lambda row: whole.read(int(rows[row])))
            self._data[data] = splits["train"], images
        return self._data[data]
