"""Verbs of `analyse`, which look into the networks that a sweep has trained, or into their shapes."""

import json
import sys
from typing import Annotated, Literal

import typer

from orchestrator.cli.app import ANSWER, app
from orchestrator.cli.options import (
    AsJson,
    SweepFolder,
    finite,
    make_console,
    say,
    say_reading,
    show,
    trial_ids,
)

analyse_app = typer.Typer(no_args_is_help=True, help="Look into the networks that a sweep has trained.")
app.add_typer(analyse_app, name="analyse", rich_help_panel=ANSWER)

Trials = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TRIAL]...",
        help="Trials as in `logs`, such as vit_c/adamw/3; without any, all whose weights are kept.",
        show_default=False,
        autocompletion=trial_ids,
    ),
]


def _threshold(number: float) -> float:
    """Returns what `--threshold` was given. Raises `BadParameter` for what no similarity can be above."""
    finite(number)
    if not 0 < number < 1:
        raise typer.BadParameter(f"must be above 0 and below 1, is {number:g}")
    return number


def _ahead(number: float) -> float:
    """Returns what `--ahead` was given. Raises `BadParameter` for what is no factor."""
    finite(number)
    if not 0 < number <= 1e6:
        raise typer.BadParameter(f"must be above 0 and at most 1,000,000, is {number:g}")
    return number


@analyse_app.command("collapse", epilog="Example: vitc-sweep analyse collapse runs/lr_wd")
def analyse_collapse(
    folder: SweepFolder,
    trials: Trials = None,
    images: Annotated[
        int, typer.Option(min=1, help="Images of the selection split; all of them if it has fewer.")
    ] = 256,
    threshold: Annotated[
        float, typer.Option(callback=_threshold, help="Similarity from which on two maps count as alike.")
    ] = 0.9,
    as_json: AsJson = False,
) -> None:
    """Measures how alike the attention maps of successive blocks are, in trials whose weights were kept.

    Needs `resources: {keep: best}` (or last) in the sweep file, and the data. Writes tables and a figure to
    analysis/collapse in the folder, from where `report` takes them.
    """
    from orchestrator.analysis.collapse import arm_maps
    from orchestrator.cli.kept_networks import chosen_trials, look_at_maps
    from orchestrator.evidence.analyses import collapse_document, save_collapse
    from orchestrator.monitor.terminal import rows_table
    from orchestrator.report.tables_attention import terminal_rows
    from orchestrator.store.folder import open_folder

    opened = open_folder(folder, to_run=True)
    chosen = chosen_trials(opened, trials or [])
    say_reading(folder)
    found = look_at_maps(opened, chosen, images, threshold)
    written = list(save_collapse(folder, found))
    if as_json:
        print(json.dumps(collapse_document(found), allow_nan=False))
        return
    console, arms = make_console(), arm_maps(found)
    console.print(rows_table(terminal_rows(arms, threshold), ("trials",)))
    counts = {trial.num_images for trial in found.trials}
    say(
        console,
        f"similarity of each block's maps to those of the block before, over "
        f"{' or '.join(map(str, sorted(counts)))} images",
    )
    say(
        console,
        "uniform, flat, peaky: what uniform and independent maps have, at as many tokens",
    )
    for path in written:
        say(console, f"written: {path}")
    say(console, f"next: vitc-sweep report {folder}   (adds the section Attention maps)")


@analyse_app.command("shape", epilog="Example: vitc-sweep analyse shape runs/sovit --ahead 10")
def analyse_shape(
    folder: SweepFolder,
    ahead: Annotated[
        float,
        typer.Option(callback=_ahead, help="For how many times the largest compute the best shape is asked."),
    ] = 4.0,
    as_json: AsJson = False,
) -> None:
    """Fits the scaling law of SoViT to the shapes of each arm: how the best width, depth and MLP grow.

    Needs at least 4 sizes of each dimension that varies and 3 lengths of training (schedule.epochs), as cells
    or under vary. An exponent whose interval is wider than a factor of 2 is not told.
    """
    from orchestrator.analysis.shape import shapes
    from orchestrator.monitor.terminal import rows_table
    from orchestrator.report.document import plain
    from orchestrator.report.tables_shape import terminal_rows, told_lines
    from orchestrator.store.folder import open_folder
    from orchestrator.trials.records import results_of

    opened = open_folder(folder)
    plan = opened.plan
    say_reading(folder)
    show("fitting the law of each arm, which takes up to a few minutes", sys.stderr)
    found = shapes(
        results_of(plan, opened.records),
        plan.cost,
        lambda trial: plan.infos[trial.config.data].sizes["train"],
        ahead,
    )
    if as_json:
        print(json.dumps(plain(found), allow_nan=False))
        return
    console = make_console()
    if rows := terminal_rows(found):
        console.print(rows_table(rows, ("runs",)))
    for line in told_lines(found):
        say(console, line)


@analyse_app.command("lr", epilog="Example: vitc-sweep analyse lr runs/lr_transfer")
def analyse_lr(
    folder: SweepFolder,
    of: Annotated[
        Literal["width", "depth"], typer.Option("--of", help="What grows from size to size.")
    ] = "width",
    as_json: AsJson = False,
) -> None:
    """Measures whether the best learning rate carries over from size to size: its shift per doubling, by arm.

    Needs 3 sizes (cells, or under vary) with at least 4 learning rates each. A shift of 0 carries over; -1
    halves the best lr whenever the size doubles.
    """
    from orchestrator.analysis.lr_shift import lr_shifts
    from orchestrator.monitor.terminal import rows_table
    from orchestrator.report.document import plain
    from orchestrator.report.tables_shape import shift_lines, shift_rows
    from orchestrator.store.folder import open_folder
    from orchestrator.trials.records import results_of

    opened = open_folder(folder)
    say_reading(folder)
    found = lr_shifts(results_of(opened.plan, opened.records), of)
    if as_json:
        print(json.dumps(plain(found), allow_nan=False))
        return
    console = make_console()
    console.print(rows_table(shift_rows(found, of)))
    for line in shift_lines(found, of):
        say(console, line)


@analyse_app.command("scale", epilog="Example: vitc-sweep analyse scale runs/my")
def analyse_scale(folder: SweepFolder, as_json: AsJson = False) -> None:
    """Tells whether the difference between arms survives scale: its change per doubling, and the next size.

    Needs cells with networks of 4 sizes or more. Differences are means over points at which both arms have
    finished.
    """
    from orchestrator.analysis.scale import ladders
    from orchestrator.monitor.terminal import rows_table
    from orchestrator.report.document import plain
    from orchestrator.report.tables_shape import ladder_lines, ladder_rows
    from orchestrator.store.folder import open_folder
    from orchestrator.trials.records import results_of

    opened = open_folder(folder)
    say_reading(folder)
    found = ladders(results_of(opened.plan, opened.records), opened.plan.cost)
    if as_json:
        print(json.dumps(plain(found), allow_nan=False))
        return
    console = make_console()
    if rows := ladder_rows(found):
        console.print(rows_table(rows, ("points",)))
    for line in ladder_lines(found) or ["there is one arm, so there is no difference"]:
        say(console, line)
