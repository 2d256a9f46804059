"""Verbs before a run: plan, preflight, schema, models."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.app import ASK, app
from orchestrator.cli.options import (
    Address,
    AsJson,
    Out,
    Points,
    Sets,
    SweepFile,
    Track,
    WaitMinutes,
    asked_file,
    example_files,
    finite,
    make_console,
    say,
    say_reading,
    to_disk,
)
from orchestrator.cli.watchers import Signals, Terminal, lr_notes
from orchestrator.execution.waiting import WAIT_MINUTES

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.trials.trial import Plan, Trial


#: Most trials that `plan` lists; of a larger sweep it lists the first ones of each cell and arm.
_MAX_LISTED, _FIRST_LISTED = 64, 3

#: Columns of the tables of arms and of trials that a narrow terminal does without, the first ones first.
_ARMS_DO_WITHOUT = ("activations M", "multiply-adds to train", "flops G", "runs on", "params M")
_TRIALS_DO_WITHOUT = ("flops_g", "params_m", "steps", "epochs")


@app.command(
    rich_help_panel=ASK, epilog="Example: vitc-sweep plan search_spaces/lr_wd.yaml --points 64 --json"
)
def plan(
    file: SweepFile,
    sets: Sets = None,
    points: Points = None,
    on: Annotated[
        str | None, typer.Option(help="Hardware to plan for: 8xH100, 64xcpu [default: this machine].")
    ] = None,
    past: Annotated[Path, typer.Option(help="Folder of earlier sweeps to take speeds from.")] = Path("runs"),
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Time this CPU for a second if no speed of it is known."),
    ] = True,
    price_per_gpu_hour: Annotated[
        float | None,
        typer.Option(min=0, callback=finite, help="Price, in place of resources.price in the file."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help=f"List every trial, even if there are more than {_MAX_LISTED}.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Lists the trials of a sweep and their expected cost. Starts nothing, writes nothing."""
    say_reading(file)
    from orchestrator.analysis.settles import how_it_grows, what_points_settle
    from orchestrator.cost.devices import described, this_machine
    from orchestrator.cost.estimate import estimate
    from orchestrator.cost.plan_warnings import plan_warnings
    from orchestrator.cost.speed import probe_rates
    from orchestrator.monitor.terminal import cost_table, cost_text
    from orchestrator.store.history import past_samples
    from orchestrator.trials.remarks import remarks

    expected: list[str] = []
    made = asked_file(file, sets, points).plan(expected=expected)
    try:
        machine = described(on) if on else this_machine()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--on") from error
    samples, notices = past_samples(past)
    cost = estimate(made, machine, samples, None, price_per_gpu_hour)
    if cost.hours is None and measure and not machine.has_gpus:
        cost = estimate(made, machine, samples, probe_rates(), price_per_gpu_hour)
    warnings = plan_warnings(made, cost)
    if as_json:
        trials = [_trial_row(made, trial) for trial in made.trials]
        removed = [dataclasses.asdict(removal) for removal in made.removals]
        told = {
            "name": made.sweep.name,
            "cost": {**cost.plain(), "warnings": warnings},
            "settles": [*how_it_grows(made), *what_points_settle(made)],
            "removed": removed,
            "remarks": remarks(made),
            "trials": trials,
        }
        print(json.dumps(told, indent=2))
        return
    console = make_console()
    say(console, f"{made.sweep.name}  {made.sweep.question}\n", "bold")
    _print_arms(console, made)
    for path in expected:
        say(
            console,
            f"{path}: not found; planned with the values under `expects`, so ids are not final",
            "yellow",
        )
    for line in [*lr_notes(made), *_search_notes(made)]:
        say(console, line, "dim")
    for line in remarks(made):
        say(console, f"note: {line}", "yellow")
    console.print()
    _print_trials(console, made, everything)
    console.print()
    console.print(cost_table(cost))
    console.print(cost_text(cost, warnings))
    for line in notices:
        say(console, f"note: {line}", "dim")
    _print_settles(console, made)


def _print_settles(console: "Console", made: "Plan") -> None:
    """Prints what the points can settle: in words, and by measure if there is anything."""
    from orchestrator.analysis.settles import assumptions, how_it_grows, what_points_settle
    from orchestrator.monitor.terminal import rows_table

    console.print()
    for line in [*how_it_grows(made), *what_points_settle(made)]:
        console.print(line, style="bold", markup=False, highlight=False)
    if not (differences := _detectable(made)):
        return
    say(console, "\nSmallest difference that is settled in 80 % of sweeps, by measure:")
    console.print(rows_table(differences))
    console.print(assumptions(), style="dim", markup=False, highlight=False)


def _by_cell_and_arm(made: "Plan") -> "dict[tuple[str, str], list[Trial]]":
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in made.trials:
        groups.setdefault((trial.cell_name, trial.arm_and_stage), []).append(trial)
    return groups


def _print_arms(console: "Console", made: "Plan") -> None:
    """Prints the models of each cell and arm, and the points that constraints remove."""
    from orchestrator.monitor.terminal import large, removal_rows, rows_table

    rows = []
    for (cell, arm), members in _by_cell_and_arm(made).items():
        costs = [made.cost(trial) for trial in members]
        info = made.infos[members[0].config.data]
        rows.append(
            {
                **({"cell": cell} if made.sweep.cells else {}),
                "arm": arm,
                "data": f"{info.name} {info.sizes['train']}/{info.sizes['val']}/{info.sizes['test']}",
                "trials": len(members),
                "epochs": _span([cost.epochs for cost in costs]),
                "params M": _span([round(cost.model.params_m, 3) for cost in costs]),
                "flops G": _span([round(cost.model.flops_g, 4) for cost in costs]),
                "activations M": _span([round(cost.model.activations_m, 3) for cost in costs]),
                "multiply-adds to train": large(sum(cost.train_flops for cost in costs)),
                "runs on": str(members[0].gang),
            }
        )
    console.print(rows_table(rows, _ARMS_DO_WITHOUT))
    if made.removals:
        say(console, "\nShare of the drawn points that each constraint removes:", "bold")
        console.print(rows_table(removal_rows(made)))
        say(
            console,
            "a point that violates a constraint in one arm is left out in every arm of the cell",
            "dim",
        )


def _print_trials(console: "Console", made: "Plan", everything: bool) -> None:
    """Prints the trials; of a large sweep only the first of each cell and arm, unless `everything`."""
    from orchestrator.monitor.terminal import rows_table

    listed = list(made.trials)
    if len(listed) > _MAX_LISTED and not everything:
        listed = [trial for group in _by_cell_and_arm(made).values() for trial in group[:_FIRST_LISTED]]
    console.print(rows_table(_short_rows(made, listed), _TRIALS_DO_WITHOUT))
    if more := len(made.trials) - len(listed):
        say(
            console,
            f"the first {_FIRST_LISTED} of each cell and arm; {more} more trials with --all, or --json",
            "dim",
        )


def _search_notes(plan: "Plan") -> list[str]:
    """Returns remarks on the parts of a plan that are unknown before a search starts."""
    from orchestrator.trials.search import num_rounds

    if (search := plan.sweep.search) is None:
        return []
    notes = []
    if (rounds := num_rounds(plan.sweep)) > 1:
        notes.append(
            f"search: {rounds} rounds of up to {search.round} points per arm and cell; {search.sampler} will "
            "choose the settings after the first round, so they will differ from those listed here"
        )
    if search.halving is not None:
        notes.append(
            f"search: trials that fall behind are ended from epoch {search.halving.grace_epochs} on, so the "
            "sweep will cost less than planned here"
        )
    return notes


def _detectable(made: "Plan") -> list[dict[str, Any]]:
    """Returns the detectable differences per cell and pair of arms. Empty if there are none."""
    from orchestrator.analysis.power import detectable
    from orchestrator.stats.measures import MEASURES

    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    differences = detectable(made)
    if all(found.simulated is None for found in differences if MEASURES[found.measure].decides):
        return []
    for found in differences:
        info = MEASURES[found.measure]
        if info.decides:
            row = rows.setdefault(
                (found.cell, found.base_arm, found.arm),
                {
                    **({"cell": found.cell} if made.sweep.cells else {}),
                    "arms": f"{found.arm} against {found.base_arm}",
                    "points": found.num_points,
                },
            )
            row[info.symbol] = "none" if found.simulated is None else f"{found.simulated:.2g}"
    return list(rows.values())


def _span(values: "list[Any]") -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


def _trial_row(made: "Plan", trial: "Trial") -> dict[str, Any]:
    cost = made.cost(trial)
    return {
        "id": trial.id,
        "arm": trial.arm,
        "cell": trial.cell_name,
        "point": trial.point,
        "replicate": trial.replicate,
        "role": trial.role,
        "after": trial.after,
        "values": trial.values,
        "params_m": cost.model.params_m,
        "flops_g": cost.model.flops_g,
        "activations_m": cost.model.activations_m,
        "epochs": cost.epochs,
        "steps": cost.steps,
        "train_flops": cost.train_flops,
        "workers": trial.gang.workers,
        "config": trial.config.model_dump(mode="json"),
    }


def _short_rows(made: "Plan", trials: "list[Trial]") -> list[dict[str, Any]]:
    left_out = {"values", "config", "train_flops", "workers", "activations_m"}
    if not made.sweep.cells:
        left_out.add("cell")
    if not any(trial.replicate for trial in made.trials):
        left_out.add("replicate")
    if all(trial.role == "sweep" for trial in made.trials):
        left_out.add("role")
    if not any(trial.after for trial in made.trials):
        left_out.add("after")
    return [
        {key: value for key, value in _trial_row(made, trial).items() if key not in left_out}
        | {path: trial.values.get(path) for path in made.sweep.vary}
        for trial in trials
    ]


@app.command(rich_help_panel=ASK, epilog="Example: vitc-sweep schema --markdown --out settings.md")
def schema(
    out: Annotated[
        Path | None, typer.Option(callback=to_disk, help="File to write [default: print].")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Every setting with values, default and meaning, for people.")
    ] = False,
) -> None:
    """Prints the JSON Schema of sweep files, which editors use to complete and check them.

    To use it, begin a file with `# yaml-language-server: $schema=sweep.schema.json`.
    """
    from orchestrator.sweep.json_schema import sweep_schema
    from orchestrator.sweep.settings_page import settings_page
    from trainables.io.files import write_atomically

    text = settings_page() if markdown else json.dumps(sweep_schema(), indent=1) + "\n"
    if out is None:
        print(text, end="")
    else:
        write_atomically(out, text)
        print(f"{out}: {'reference of every setting' if markdown else 'JSON Schema of a sweep file'}")


@app.command(rich_help_panel=ASK, epilog="Example: vitc-sweep examples lr_wd")
def examples(
    name: Annotated[
        str | None, typer.Argument(help="An example to copy; left out, all are listed.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(callback=to_disk, help="Folder to copy it to.")] = Path(
        "search_spaces"
    ),
) -> None:
    """Lists the sweep files that come with the program, or copies one here."""
    from orchestrator.monitor.terminal import rows_table
    from trainables.io.files import write_atomically
    from trainables.io.yaml import parse_yaml

    if name is None:
        questions = {key: parse_yaml(text, key)["question"] for key, text in example_files().items()}
        make_console().print(rows_table([{"name": k, "question": v} for k, v in questions.items()]))
        return
    key = name.removeprefix("search_spaces/").removesuffix(".yaml")
    if (text := example_files().get(key)) is None:
        rule = f"no example is called {name!r}; `vitc-sweep examples` lists them"
        raise typer.BadParameter(rule, param_hint="NAME")
    target = out / f"{key}.yaml"
    if target.exists() and target.read_text("utf-8") != text:
        raise typer.BadParameter(f"{target} is there and has been changed", param_hint="--out")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, text)
    print(f"{target}: run it with  vitc-sweep run {target}")


@app.command(rich_help_panel=ASK, epilog="Example: vitc-sweep models --json")
def models(
    as_json: AsJson = False,
    classes: Annotated[int, typer.Option(min=1, help="Number of classes of the head.")] = 1000,
) -> None:
    """Lists the named models with parameters, multiply-adds and activations of one image."""
    from orchestrator.monitor.terminal import rows_table
    from trainables.config import NAMED_MODELS

    rows = []
    for name, config in NAMED_MODELS.items():
        cost = config.cost(classes)
        rows.append(
            {
                "name": name,
                "params_m": round(cost.params_m, 4),
                "flops_g": round(cost.flops_g, 4),
                "activations_m": round(cost.activations_m, 3),
                "image_size": config.image_size,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    make_console().print(rows_table(rows))


@app.command(
    rich_help_panel=ASK,
    epilog="Example: vitc-sweep preflight search_spaces/lr_wd.yaml --set data=/data/fashion-mnist",
)
def preflight(
    file: SweepFile,
    out: Out = None,
    sets: Sets = None,
    points: Points = None,
    address: Address = None,
    wait_minutes: WaitMinutes = WAIT_MINUTES,
    track: Track = True,
    as_json: AsJson = False,
) -> None:
    """Checks a sweep before it runs: builds every shape and trains the largest ones for two steps.

    A shape is a model with its data, batch size, workers, precision and optimizer; learning rates and seeds
    do not matter. It also checks the storage of the results, its free space, clocks and MLflow. It leaves
    nothing behind. Ends with exit code 0 if the sweep can start, or with 2 and a list of all errors.
    """
    say_reading(file)
    from orchestrator.execution.session import try_out
    from orchestrator.monitor.observers import MlflowObserver, NotifyObserver
    from orchestrator.monitor.terminal import rows_table

    asked = asked_file(file, sets, points)
    plan = asked.plan()
    # Standard output has only the JSON.
    console = make_console(stderr=as_json)
    observers = [Terminal(console), NotifyObserver(), *([MlflowObserver()] if track else [])]
    for observer in observers:
        observer.planned(plan, plan.trials)
    with Signals():
        folder = out or Path("runs") / asked.sweep.name
        outcome = try_out(plan, plan.trials, folder, observers, address, wait_minutes)
    if outcome.faults:
        raise asked.error(outcome.faults)
    if as_json:
        content = {"shapes": outcome.shapes, "seconds": outcome.seconds, "plan_seconds": outcome.plan_seconds}
        print(json.dumps(content | {"checked": outcome.rows()}, indent=2))
    else:
        console.print(rows_table(outcome.rows()))
        say(console, f"\n{asked.sweep.name} can start; {outcome.expected or 'how long it takes is unknown'}")
