"""Warnings that `plan` prints: memory, storage, batches, pairing, budget."""

import dataclasses
import math
from typing import Any

from orchestrator.cost.devices import DEVICES
from orchestrator.cost.estimate import GIB, CostEstimate, ShapeCost, Storage, storage_excess
from orchestrator.cost.shapes import ShapeTable, counted
from orchestrator.cost.speed import from_table
from orchestrator.trials.gang import lane_plan
from orchestrator.trials.trial import Plan, Removal
from trainables.config import Seeds

#: Share of a device's memory that programs can use. The context and the allocator take the rest.
_USABLE = 0.9

#: Resident memory in GiB of a worker before training: interpreter, torch, Ray. Measured.
_PROCESS_GIB = 0.8


def plan_warnings(plan: Plan, found: CostEstimate) -> list[str]:
    """Returns warnings about a plan, one line each.

    Args:
      plan: the sweep.
      found: its estimated cost, from `estimate`.
    """
    shapes = ShapeTable(plan)
    return [
        *_room_warnings(shapes, found),
        *_memory_warnings(plan, found),
        *_input_warnings(plan, found),
        *_batch_warnings(plan),
        *_pairing_warnings(plan),
        *_cut_warnings(plan),
        *_selection_warnings(plan),
        *_budget_warnings(plan, found),
        *_storage_warnings(plan, found),
    ]


def _room_warnings(shapes: ShapeTable, found: CostEstimate) -> list[str]:
    # This checks the cluster's room, whatever number of lanes the file sets.
    return [
        f"resources: {len(members)} trial(s) need {gang}, more than there is here; see --on"
        for gang, members, lanes in lane_plan(shapes.trials, found.machine.nodes)
        if not lanes
    ]


def _storage_warnings(plan: Plan, found: CostEstimate) -> list[str]:
    limit = plan.sweep.resources.max_checkpoint_gib
    fault = "" if limit is None else storage_excess(limit, Storage(found.checkpoint_gib, found.kept_gib))
    return [fault] if fault else []


def _memory_warnings(plan: Plan, found: CostEstimate) -> list[str]:
    machine, lines = found.machine, []
    if machine.memory_gib is None:
        return []
    if found.unit == "core-hours":
        largest = max(cost.footprint.peak / GIB + _PROCESS_GIB for cost in found.shapes)
        workers = max(
            (count * cost.shape.gang.workers for count in found.lanes for cost in found.shapes), default=0
        )
        if largest * workers > _USABLE * machine.memory_gib:
            lines.append(
                f"memory: {workers} worker(s) of up to {largest:.1f} GiB each need more than this machine's "
                f"{machine.memory_gib:.1f} GiB; set resources.lanes, or a smaller batch_size"
            )
        return lines
    for cost in found.shapes:
        if (peak := cost.footprint.peak / GIB) > _USABLE * machine.memory_gib:
            (cell, arm), *more = cost.arms
            remedies = [
                f"{words} ({needed / GIB:.1f} GiB)"
                for words, needed in _smaller(plan, cost, _USABLE * machine.memory_gib * GIB)
            ]
            # Weights and optimizer alone may be too large, for which more workers are no remedy.
            advice = ", ".join([*remedies, "or more resources.workers"]) if remedies else "a smaller model"
            lines.append(
                f"memory: {cell} {arm}{' and others' if more else ''} ({cost.shape.name}) needs "
                f"{peak:.1f} GiB of {machine.memory_gib:g} on {machine.device}; set {advice}"
            )
    return lines


def _smaller(plan: Plan, cost: ShapeCost, room: float) -> list[tuple[str, int]]:
    """Returns settings with which a step fits into so many bytes of a GPU, and the bytes it then needs."""
    from trainables.profiling.footprint import footprint

    config, info = cost.shape.config, plan.infos[cost.shape.config.data]

    def peak(**changes: Any) -> int:
        changed = config.model_copy(update=changes)
        sizes, workers = info.sizes, cost.shape.gang.workers
        return footprint(changed, info.num_classes, sizes["train"], sum(sizes.values()), workers, True).peak

    whole = cost.footprint
    # What does not depend on the number of images in a forward pass.
    fixed = whole.params + whole.gradients + whole.optimizer + whole.ema + whole.images
    wanted = whole.batch * (room - fixed) / (whole.peak - fixed)
    found = []
    for micro_batch in (2 ** int(math.log2(wanted)), 2 ** int(math.log2(wanted)) // 2) if wanted >= 2 else ():
        if micro_batch > 1 and (needed := peak(micro_batch=micro_batch)) <= room:
            found.append((f"micro_batch: {micro_batch}", needed))
            break
    model = config.model.recomputing()
    if model is not None and (needed := peak(model=model)) <= room:
        found.append(("model.recompute: true", needed))
    return found


def _input_warnings(plan: Plan, found: CostEstimate) -> list[str]:
    if found.machine.device not in DEVICES:
        return []
    lines = {}
    for cost in found.shapes:
        if cost.basis != "table" or cost.seconds is None:
            continue
        _, epochs = counted(plan, cost.shape, True)
        computing = from_table(
            cost.shape, dataclasses.replace(epochs, decoded=0.0), DEVICES[found.machine.device]
        )
        if epochs.decoded and cost.seconds.central > 1.5 * computing.central:
            nodes = found.machine.nodes
            cpus = cost.shape.gang.on(nodes).cores_on(nodes)
            share = 100 * computing.central / cost.seconds.central
            lines[cpus] = (
                f"input: {cpus} CPU(s) per worker decode too slowly, so that the GPU would be busy for about "
                f"{share:.0f} % of the time; raise resources.cpus_per_worker"
            )
    return list(lines.values())


def _batch_warnings(plan: Plan) -> list[str]:
    lines = {}
    for trial in plan.trials:
        workers, batch = trial.gang.workers, trial.config.batch_size
        if batch % workers:
            lines[batch, workers] = (
                f"batch: batch_size {batch} is not divisible by {workers} workers; their shares differ by an "
                "image"
            )
    return list(lines.values())


def _pairing_warnings(plan: Plan) -> list[str]:
    sweep, lines = plan.sweep, []
    for path, window in sweep.vary.items():
        named = {part for name in window.by_name for part in name.split("/")}
        if apart := [arm for arm in sweep.arms if arm in named]:
            lines.append(
                f"pairing: vary.{path} has windows by arm ({', '.join(apart)}), so the arms' points share "
                "quantiles and seeds, but not values"
            )
    lines += _unpaired_warnings(plan)
    ids: dict[str, tuple[str, str]] = {}
    same: dict[tuple[tuple[str, str], tuple[str, str]], None] = {}
    for trial in plan.trials:
        if trial.role == "first_stage":  # first stages are meant to be shared
            continue
        first = ids.setdefault(trial.id, (trial.cell_name, trial.arm))
        if first != (trial.cell_name, trial.arm):
            same[first, (trial.cell_name, trial.arm)] = None
    lines += [
        f"pairing: {cell} {arm} has the same trials as {other_cell} {other}; each is trained once"
        for (other_cell, other), (cell, arm) in same
    ]
    return lines


def _unpaired_warnings(plan: Plan) -> list[str]:
    """Warns of parameters that only some arms draw, and of seeds that differ between arms."""
    drawn: dict[str, dict[str, set[str]]] = {}
    seeds: dict[tuple[str, int, int, str], set[Seeds]] = {}
    for trial in plan.trials:
        drawn.setdefault(trial.cell_name, {}).setdefault(trial.arm, set()).update(trial.values)
        run = (trial.cell_name, trial.point, trial.replicate, trial.role)
        seeds.setdefault(run, set()).add(trial.config.seeds)
    lines: dict[str, None] = {}
    for by_arm in drawn.values():
        for path in plan.sweep.vary:
            without = [arm for arm, paths in by_arm.items() if path not in paths]
            if without and len(without) < len(by_arm):
                lines[
                    f"pairing: vary.{path} does not vary in {', '.join(without)}, so that differences to the "
                    "other arms hold its effect"
                ] = None
    if any(len(found) > 1 for found in seeds.values()):
        lines["pairing: arms set seeds of their own, so points are not paired in them"] = None
    return list(lines)


#: Share of an arm's points that a constraint may remove without a warning.
_CUT = 0.2


def _cut_warnings(plan: Plan) -> list[str]:
    """Warns of windows that a constraint cuts in one arm, and thereby in all arms of the cell."""
    groups: dict[tuple[str, str], list[Removal]] = {}
    for removal in plan.removals:
        groups.setdefault((removal.cell_name, removal.constraint), []).append(removal)
    lines = []
    for (cell, constraint), removals in groups.items():
        worst = max(removals, key=lambda removal: removal.removed)
        if worst.removed <= _CUT * worst.drawn:
            continue
        beside = "".join(f", {other.removed} of {other.arm}'s" for other in removals if other is not worst)
        lines.append(
            f"window: where `{constraint}` removes {worst.removed} of {worst.drawn} points of {cell} "
            f"{worst.arm}{beside}; a point that one arm breaks is left out in all, so the comparison covers "
            "the rest of the window only"
        )
    return lines


def _selection_warnings(plan: Plan) -> list[str]:
    lines = [
        f"selection: {info.name} selects on the split of the final errors, so these will be too low"
        for config, info in plan.infos.items()
        if getattr(config, "selection", "held_out") == "final"
    ]
    if plan.sweep.error == "best_epoch":
        lines.append(
            "selection: error: best_epoch takes each trial's luckiest epoch and hides late divergence"
        )
    return lines


def _budget_warnings(plan: Plan, found: CostEstimate) -> list[str]:
    budget = plan.sweep.budget
    cap = None if budget is None else budget.cap(found.unit)
    if cap is None or found.hours is None:
        return []
    if found.hours.central > cap:
        return [
            f"budget: about {found.hours.central:.3g} {found.unit} are expected, and the budget is {cap:g}"
        ]
    if found.hours.high > cap:
        return [f"budget: up to {found.hours.high:.3g} {found.unit} are possible, and the budget is {cap:g}"]
    return []
