"""Remarks on a plan: parts of it that can run, and that their user probably did not mean."""

import json
from collections.abc import Iterator, Mapping

from orchestrator.sweep.config import Sweep
from orchestrator.sweep.space import Cell
from orchestrator.trials.trial import Plan, Trial
from trainables.config import setting
from trainables.optim import in_epochs


def remarks(plan: Plan) -> list[str]:
    """Returns sentences about the data, settings without effect, and comparisons that can say nothing."""
    return [
        *_of_data(plan),
        *_of_drawn_settings(plan.sweep),
        *_of_schedules(plan),
        *_of_batches(plan),
        *_of_first_stages(plan),
        *_of_repeats(plan),
    ]


def _of_data(plan: Plan) -> Iterator[str]:
    for info in plan.infos.values():
        for notice in info.notices:
            yield f"data {info.name}: {notice}"


def _of_drawn_settings(sweep: Sweep) -> Iterator[str]:
    """Yields settings of the base, a level or an arm that are drawn anew wherever they would count."""
    pairs = [(arm, cell) for arm in sweep.arms for cell in sweep.all_cells()]
    layers: list[tuple[str, Mapping[str, object], list[tuple[str, Cell]]]] = [("base", sweep.base, pairs)]
    for factor, levels in sweep.cells.items():
        for level, own in levels.items():
            there = [(arm, cell) for arm, cell in pairs if (factor, level) in cell]
            layers.append((f"cells.{factor}.{level}", own, there))
    layers += [
        (f"arms.{arm}", own, [pair for pair in pairs if pair[0] == arm]) for arm, own in sweep.arms.items()
    ]
    for place, settings, where in layers:
        for path, window in sweep.vary.items():
            if window.when or not all(path in sweep.windows(arm, cell) for arm, cell in where):
                continue
            try:
                value = setting(settings, path) if _is_set(settings, path) else None
            except KeyError:
                value = None
            if value is not None:
                yield f"`{place}` sets {path} to {value}, and `vary` draws it: the value has no effect"


def _is_set(tree: Mapping[str, object], path: str) -> bool:
    if path in tree:
        return True
    first, _, rest = path.partition(".")
    inner = tree.get(first)
    return isinstance(inner, Mapping) and bool(rest) and _is_set(inner, rest)


def _of_schedules(plan: Plan) -> Iterator[str]:
    """Yields arms with runs that end before their warm-up does."""
    for arm, trials in _by_arm(plan).items():
        schedules = [trial.config.schedule for trial in trials]
        lengths = [(in_epochs(schedule.warmup, schedule.epochs), schedule.epochs) for schedule in schedules]
        if rising := [(warmup, epochs) for warmup, epochs in lengths if warmup >= epochs]:
            warmup, epochs = max(rising)
            yield (
                f"{arm}: the learning rate only rises: {warmup:g} epochs of warm-up in a run of {epochs}"
                + ("" if len(rising) == len(trials) else f", and so in {len(rising)} of {len(trials)} trials")
            )


def _of_batches(plan: Plan) -> Iterator[str]:
    """Yields arms whose batches are larger than the data, so that some of their batch sizes are the same."""
    for arm, trials in _by_arm(plan).items():
        sizes = {trial.id: plan.infos[trial.config.data].sizes["train"] for trial in trials}
        if large := [trial for trial in trials if trial.config.batch_size > sizes[trial.id]]:
            worst = max(large, key=lambda trial: trial.config.batch_size)
            yield (
                f"{arm}: an epoch is one step of all {sizes[worst.id]:,} training images, as batch_size is "
                f"{worst.config.batch_size:,}"
                + ("" if len(large) == len(trials) else f" in {len(large)} trials")
            )


def _of_first_stages(plan: Plan) -> Iterator[str]:
    """Yields arms that take over a classifier of as many, but other classes."""
    for arm, trials in _by_arm(plan).items():
        starts = {
            (trial.config.start.run.data, trial.config.data)
            for trial in trials
            if trial.config.start is not None and trial.config.start.parts == "all"
        }
        for first, own in starts:
            infos = [plan.infos[data] for data in (first, own) if data in plan.infos]
            # The names of classes of data that are only expected are not known.
            if len(infos) < 2 or any(info.fingerprint.startswith("expected") for info in infos):
                continue
            before, after = (info.class_names for info in infos)
            if len(before) == len(after) and before != after:
                one, other = next(pair for pair in zip(before, after, strict=True) if pair[0] != pair[1])
                yield (
                    f"{arm}: starts with the classifier of a run on other classes, which are taken by their "
                    f"numbers: {one!r} there is {other!r} here"
                )


def _of_repeats(plan: Plan) -> Iterator[str]:
    """Yields arms without another, points that coincide, and arms that are the same."""
    if len(plan.sweep.arms) == 1:
        yield "there is one arm, so nothing is compared"
    for arm, trials in _by_arm(plan).items():
        drawn = [
            json.dumps(trial.values, sort_keys=True, default=str)
            for trial in trials
            if trial.role == "sweep" and not trial.replicate
        ]
        if repeated := len(drawn) - len(set(drawn)):
            yield f"{arm}: {repeated} of {len(drawn)} points repeat an earlier one with another seed"
    cells: dict[str, dict[frozenset[str], str]] = {}
    for (cell, arm), ids in _ids(plan).items():
        if (other := cells.setdefault(cell, {}).setdefault(frozenset(ids), arm)) != arm:
            yield f"{arm} is the same as {other} in {cell}: both are trained once, and differ in nothing"


def _by_arm(plan: Plan) -> dict[str, list[Trial]]:
    """Groups the trials by cell and arm, under a name for both."""
    several = len({trial.cell_name for trial in plan.trials}) > 1
    groups: dict[str, list[Trial]] = {}
    for trial in plan.trials:
        name = f"{trial.arm} in {trial.cell_name}" if several else trial.arm
        groups.setdefault(name, []).append(trial)
    return groups


def _ids(plan: Plan) -> dict[tuple[str, str], list[str]]:
    ids: dict[tuple[str, str], list[str]] = {}
    for trial in plan.trials:
        ids.setdefault((trial.cell_name, trial.arm), []).append(trial.id)
    return ids
