"""What was declared before the results is on record; a later edit is refused, or allowed and shown."""

import copy
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orchestrator.analysis.contrasts import contrasts_of
from orchestrator.analysis.summary import summarise
from orchestrator.evidence.declarations import chain_faults, declaration_faults
from orchestrator.report.changes import NOT_EXEMPT, NOT_RECORDED, change_sentences
from orchestrator.stats.looks import Looks
from orchestrator.stats.schedule import look_points
from orchestrator.store.folder import Folder, merge_points, open_folder, save_question
from orchestrator.store.journal import FolderError, Writer, encode, read_journal
from orchestrator.sweep.load import build_sweep
from orchestrator.trials.declared import Declared
from orchestrator.trials.events import AttemptBegan, AttemptEnded, DeclarationMade, EpochDone
from orchestrator.trials.records import results_of
from orchestrator.trials.trial import Plan
from tests.support.sweeps import epoch_row, plan_with_data, sweep_tree

TREE = sweep_tree(
    cells={"length": {"short": {"schedule.epochs": 3}}},
    primary={"measure": "area_common"},
    where=["optim.lr < 1"],
)

DAY = 86_400.0


def session(folder: Path, tree: dict[str, Any], made: float = 0.0) -> list[str]:
    """What `run` does with a file before its first trial; returns what it says of changes."""
    sweep = build_sweep(copy.deepcopy(tree), "test")
    sweep = merge_points(folder, sweep) if (folder / "sweep.yaml").is_file() else sweep
    return save_question(folder, plan_with_data(sweep), made=made)


def run_all(folder: Path, plan: Plan, at: float = 10.0, num_epochs: int = 1) -> None:
    """Records a result of every trial that has none."""
    known = open_folder(folder).records
    writer = Writer(folder)
    for trial in plan.trials:
        if trial.id in known:
            continue
        error = 10.25 + 1.5 * trial.point + 20.125 * (trial.arm == "p")
        row = epoch_row(num_epochs, error, test_pct=error)
        writer.append([AttemptBegan(trial=trial.id, attempt=1, lane="lane", time=at)])
        writer.append([EpochDone(trial=trial.id, attempt=1, row=row)])
        end = AttemptEnded(
            trial=trial.id, attempt=1, end="finished", detail="", seconds=1.0, time=at + 1, final=True
        )
        writer.append([end])
    writer.close()


def finished(folder: Path, tree: dict[str, Any] = TREE) -> Folder:
    """A folder of which every trial has a result."""
    session(folder, tree)
    run_all(folder, open_folder(folder).plan)
    return open_folder(folder)


def declared(folder: Path) -> Declared:
    found = open_folder(folder).declared
    assert found is not None
    return found


def faults(folder: Path) -> list[str]:
    notes: list[str] = []
    return [" ".join(fault) for fault in [*chain_faults(folder, notes), *declaration_faults(folder)]] + notes


class Edit(NamedTuple):
    """An edit of the file of a finished sweep, and what happens: a refusal, or sentences.

    `exempt` is whether the primary contrast still counts as declared beforehand.
    """

    key: str
    value: Any
    refused: str = ""
    shown: tuple[str, ...] = ()
    exempt: bool = True


AT_LOOKS = "verdicts are taken at 4, 8, 16 points, as declared"
TWICE = {"short": {"schedule.epochs": 3}, "long": {"schedule.epochs": 4}}

#: docs/statistics.md has the same edits in words.
EDITS = {
    "primary": Edit(
        "primary",
        {"measure": "error"},
        shown=("primary was area_common in all cells, now error in all cells",),
        exempt=False,
    ),
    "primary taken out": Edit(
        "primary", None, shown=("primary was area_common in all cells, now none",), exempt=False
    ),
    "margin": Edit(
        "primary.margin",
        0.2,
        shown=("primary was area_common in all cells, now area_common in all cells, margin 0.2",),
        exempt=False,
    ),
    "window": Edit(
        "vary",
        {"optim.lr": {"log_uniform": [1e-4, 2e-2]}},
        refused=r"vary.optim.lr.everywhere.log_uniform: .* -> \[0.0001, 0.02\]",
    ),
    "constraint that points break": Edit("where", ["optim.lr < 1e-3"], refused="where"),
    "constraint that none breaks": Edit(
        "where", [], shown=("where was optim.lr < 1, now none",), exempt=False
    ),
    "arm dropped": Edit("arms", {"p": TREE["arms"]["p"]}, refused="arms.c.model.stem"),
    "arm added": Edit(
        "arms", {**TREE["arms"], "s": {"model.stem": "hmlp"}}, shown=("arm s was added",), exempt=True
    ),
    "arms in another order": Edit(
        "arms",
        {arm: TREE["arms"][arm] for arm in ("c", "p")},
        shown=("the order of arms was p, c, now c, p; the first is the one compared with",),
        exempt=False,
    ),
    "arms that swap their settings": Edit(
        "arms",
        {"p": TREE["arms"]["c"], "c": TREE["arms"]["p"]},
        shown=(
            "arms.p.model.stem was patchify, now conv",
            "arms.c.model.stem was conv, now patchify",
        ),
        exempt=False,
    ),
    "cell added": Edit("cells.length", TWICE, shown=("level length.long was added",)),
    "points cut": Edit("design.points", 2),
    "points added": Edit("design.points", 16),
    "points beyond the last look": Edit(
        "design.points",
        32,
        shown=(f"design.points was 4, now 32; {AT_LOOKS}, and the points beyond describe only",),
    ),
    "max_points raised": Edit(
        "design.max_points", 64, shown=(f"design.max_points was left out, now 64; {AT_LOOKS}",)
    ),
    "max_points said as it is": Edit("design.max_points", 16),
    "max_points below the points": Edit(
        "design", {"kind": "sobol", "points": 2, "max_points": 2}, refused="has 4 points already"
    ),
    "seed": Edit("design.seed", 1, refused="design.seed: 0 -> 1"),
    "error definition": Edit(
        "error", "best_epoch", shown=("error was last_epoch, now best_epoch",), exempt=False
    ),
    "replicates": Edit("replicates", 2, shown=("replicates was 1, now 2",), exempt=False),
    "question": Edit("question", "Which?"),
}


def edited(edit: Edit) -> dict[str, Any]:
    tree = copy.deepcopy(TREE)
    *path, last = edit.key.split(".")
    below = tree
    for key in path:
        below = below[key]
    below[last] = edit.value
    return {key: value for key, value in tree.items() if value is not None}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edit_after_the_results_is_refused_or_allowed_and_shown(tmp_path: Path, edit: Edit) -> None:
    before = finished(tmp_path)
    assert len(before.plan.trials) == 8
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if edit.refused:
        with pytest.raises(FolderError, match=edit.refused):
            session(tmp_path, edited(edit), made=DAY)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
        return
    said = session(tmp_path, edited(edit), made=DAY)
    expected = [f"changed after 8 results: {text}" for text in edit.shown]
    assert said == expected
    now = declared(tmp_path)
    assert [change.sentence for change in now.changes] == expected
    assert all((change.results, change.made) == (8, DAY) for change in now.changes)
    assert now.primary_was_declared == edit.exempt
    # Neither an edit nor an extension moves the declared looks.
    assert now.looks == (4, 8, 16)
    lines = change_sentences(now)
    assert lines[: len(expected)] == [f"C{text[1:]}." for text in expected]
    has_primary = now.now.primary is not None
    assert (NOT_EXEMPT in lines) == (not edit.exempt and has_primary)
    # What was recorded before stays, the record bears it out, and running again records nothing more.
    assert all(path.read_bytes() == data for path, data in files.items() if path.suffix == ".jsonl")
    assert faults(tmp_path) == []
    recorded = read_journal(tmp_path).events
    assert session(tmp_path, edited(edit), made=DAY + 1) == []
    assert read_journal(tmp_path).events == recorded


def test_the_first_record_holds_all_that_decides_a_verdict(tmp_path: Path) -> None:
    opened = finished(tmp_path, TREE | {"replicates": 2, "design": {"kind": "sobol", "points": 4}})
    event = opened.events[0]
    assert isinstance(event, DeclarationMade)
    assert (event.results, event.made) == (0, 0.0)
    assert event.declaration == {
        "primary": {"measure": "area_common", "cell": None, "margin": None},
        "arms": {"p": {"model.stem": "patchify"}, "c": {"model.stem": "conv"}},
        "cells": {"length": {"short": {"schedule.epochs": 3}}},
        "vary": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}},
        "where": ["optim.lr < 1"],
        "design": {"kind": "sobol", "seed": 0, "scrambles": 1},
        "points": 4,
        "max_points": None,
        "looks": [4, 8, 16],
        "error": "last_epoch",
        "replicates": 2,
    }


@pytest.mark.parametrize(
    ("points", "max_points"), [(16, 64), (16, 16), (12, 100), (8, None), (5, 11), (1, None)]
)
def test_recorded_looks_are_those_at_which_verdicts_are_taken(points: int, max_points: int | None) -> None:
    assert look_points(points, max_points) == Looks.of(points, max_points).points


def test_before_the_first_result_a_file_may_say_anything_else(tmp_path: Path) -> None:
    session(tmp_path, TREE)
    other = TREE | {
        "primary": {"measure": "error"},
        "design": {"kind": "random", "points": 8, "max_points": 16},
    }
    assert session(tmp_path, other, made=5.0) == []
    run_all(tmp_path, open_folder(tmp_path).plan)
    now = declared(tmp_path)
    assert (now.primary_was_declared, now.in_time, now.changes, now.looks) == (True, True, (), (8, 16))
    assert faults(tmp_path) == []


def test_one_epoch_of_one_trial_is_a_result(tmp_path: Path) -> None:
    session(tmp_path, TREE)
    writer = Writer(tmp_path)
    trial = open_folder(tmp_path).plan.trials[0].id
    writer.append([EpochDone(trial=trial, attempt=1, row=epoch_row(1))] * 2)
    writer.close()
    [said] = session(tmp_path, TREE | {"primary": {"measure": "error"}}, made=DAY)
    assert said.startswith("changed after 1 result: primary was")


def test_a_change_that_is_taken_back_is_shown_and_counts_for_nothing(tmp_path: Path) -> None:
    finished(tmp_path)
    session(tmp_path, edited(EDITS["primary"]), made=DAY)
    session(tmp_path, TREE, made=2 * DAY)
    now = declared(tmp_path)
    assert [change.made for change in now.changes] == [DAY, 2 * DAY]
    assert now.primary_was_declared
    assert NOT_EXEMPT not in change_sentences(now)


def families(folder: Path) -> dict[tuple[str, str, str], tuple[bool, int]]:
    """Whether each contrast was declared, and the size of its family, by measure, cell and arm."""
    opened = open_folder(folder)
    summaries = summarise(results_of(opened.plan, opened.records))
    found = contrasts_of(summaries, opened.plan.sweep, opened.declared)
    return {(c.measure, c.cell, c.arm): (c.primary, c.num_in_family) for c in found}


def test_a_changed_primary_is_tested_in_the_family_of_its_measure(tmp_path: Path) -> None:
    tree = TREE | {
        "cells": {"length": TWICE},
        "design": {"kind": "sobol", "points": 8},
        "primary": {"measure": "error", "cell": "short"},
    }
    finished(tmp_path, tree)
    assert families(tmp_path)["error", "short", "c"] == (True, 1)
    assert families(tmp_path)["error", "long", "c"] == (False, 1)
    session(tmp_path, tree | {"primary": {"measure": "error", "cell": "long"}}, made=DAY)
    assert families(tmp_path)["error", "long", "c"] == (False, 2)
    assert families(tmp_path)["error", "short", "c"] == (False, 2)


def test_a_contrast_with_an_arm_that_was_added_was_not_declared(tmp_path: Path) -> None:
    tree = TREE | {"design": {"kind": "sobol", "points": 8}}
    finished(tmp_path, tree)
    session(tmp_path, tree | {"arms": EDITS["arm added"].value}, made=DAY)
    run_all(tmp_path, open_folder(tmp_path).plan, at=DAY + 10)
    assert families(tmp_path)["area_common", "short", "c"] == (True, 1)
    assert families(tmp_path)["area_common", "short", "s"] == (False, 1)


def test_more_points_than_the_last_look_give_no_new_verdict(tmp_path: Path) -> None:
    tree = TREE | {"design": {"kind": "sobol", "points": 8, "max_points": 16}}
    finished(tmp_path, tree)
    session(tmp_path, tree | {"design": {"kind": "sobol", "points": 32, "max_points": 32}}, made=DAY)
    run_all(tmp_path, open_folder(tmp_path).plan, at=DAY + 10)
    opened = open_folder(tmp_path)
    summaries = summarise(results_of(opened.plan, opened.records))
    found = contrasts_of(summaries, opened.plan.sweep, opened.declared)
    [primary] = [contrast for contrast in found if contrast.primary]
    assert (primary.num_pairs, primary.look, primary.next_look) == (32, 16, None)


def test_a_folder_of_an_earlier_version_keeps_its_primary_and_says_that_nothing_proves_it(
    tmp_path: Path,
) -> None:
    plan = plan_with_data(build_sweep(copy.deepcopy(TREE), "test"))
    save_question(tmp_path, plan, declare=False)
    assert open_folder(tmp_path).declared is None
    run_all(tmp_path, plan)
    now = declared(tmp_path)
    assert (now.primary_was_declared, now.in_time) == (True, False)
    assert change_sentences(now) == [NOT_RECORDED]
    # What it had asked is recorded by the session that changes it.
    [said] = session(tmp_path, edited(EDITS["error definition"]), made=DAY)
    assert said == "changed after 8 results: error was last_epoch, now best_epoch"
    now = declared(tmp_path)
    assert (now.primary_was_declared, now.in_time) == (False, False)
    assert change_sentences(now) == [NOT_RECORDED, f"C{said[1:]}.", NOT_EXEMPT]
    assert faults(tmp_path) == []
    assert "nothing" in NOT_RECORDED


# ------------------------------------------------------------------------------------------------- forgeries


def line_of(text: str) -> bytes:
    return f"{zlib.crc32(text.encode()):08x} {text}\n".encode()


def changed_declaration(folder: Path) -> None:
    """The first declaration, written anew with another primary contrast and a right checksum."""
    path = folder / "journal" / "000001.jsonl"
    tree = json.loads(path.read_bytes()[9:])
    tree["declaration"]["primary"]["measure"] = "error"
    path.write_bytes(line_of(json.dumps(tree, separators=(",", ":"))))


def changed_result(folder: Path) -> None:
    path = folder / "journal" / "000002.jsonl"
    *most, last = path.read_bytes().splitlines(keepends=True)
    tree = json.loads(last[9:]) | {"seconds": 2.0}
    path.write_bytes(b"".join([*most, line_of(json.dumps(tree, separators=(",", ":")))]))


def inserted_declaration(folder: Path) -> None:
    """The new declaration once more, put in before the results as if it had been made then."""
    path = folder / "journal" / "000001.jsonl"
    last = [e for e in read_journal(folder).events if isinstance(e, DeclarationMade)][-1]
    early = DeclarationMade(made=0.0, results=0, declaration=last.declaration)
    path.write_bytes(path.read_bytes() + encode(early).encode())
    # Beyond the sealed size the line would be left out.
    for later in ("000002.jsonl", "000003.jsonl"):
        first, *rest = (folder / "journal" / later).read_bytes().splitlines(keepends=True)
        tree = json.loads(first[9:])
        tree["sizes"][path.name] = path.stat().st_size
        first = line_of(json.dumps(tree, separators=(",", ":")))
        (folder / "journal" / later).write_bytes(b"".join([first, *rest]))
    assert declared(folder).primary_was_declared


def moved_declaration(folder: Path) -> None:
    """The file of the new declaration takes the place of the first one."""
    journal = folder / "journal"
    (journal / "000003.jsonl").replace(journal / "000001.jsonl")


def back_dated(folder: Path) -> None:
    """The new declaration is said to be as old as the first one."""
    path = folder / "journal" / "000003.jsonl"
    *most, last = path.read_bytes().splitlines(keepends=True)
    tree = json.loads(last[9:]) | {"made": 0.0}
    path.write_bytes(b"".join([*most, line_of(json.dumps(tree, separators=(",", ":")))]))


def fewer_results(folder: Path) -> None:
    path = folder / "journal" / "000003.jsonl"
    *most, last = path.read_bytes().splitlines(keepends=True)
    tree = json.loads(last[9:]) | {"results": 0}
    path.write_bytes(b"".join([*most, line_of(json.dumps(tree, separators=(",", ":")))]))


def edited_sweep(folder: Path) -> None:
    """The folder's own sweep file, by hand."""
    path = folder / "sweep.yaml"
    path.write_text(path.read_text().replace("measure: error", "measure: within_common_bar"))


CHAIN = "the files of the journal before this one were changed after it was begun"


@pytest.mark.parametrize(
    ("forge", "fault"),
    [
        (changed_declaration, f"journal/000002.jsonl line 2 {CHAIN}"),
        (changed_result, f"journal/000003.jsonl line 2 {CHAIN}"),
        (inserted_declaration, f"journal/000002.jsonl line 2 {CHAIN}"),
        (moved_declaration, f"journal/000001.jsonl line 2 {CHAIN}"),
        (back_dated, "a declaration is older than records that stand before it 1970-01-01T00:00:00Z"),
        (fewer_results, "counts other results before it than stand before it 0 8"),
        (edited_sweep, "sweep.yaml  is not what the last session declared: primary was error"),
    ],
)
def test_a_back_dated_declaration_is_found(tmp_path: Path, forge: Callable[[Path], None], fault: str) -> None:
    session(tmp_path, TREE)
    run_all(tmp_path, open_folder(tmp_path).plan, at=DAY)
    session(tmp_path, edited(EDITS["primary"]), made=2 * DAY)
    assert faults(tmp_path) == []
    forge(tmp_path)
    assert any(fault in found for found in faults(tmp_path)), faults(tmp_path)


def test_a_digest_that_was_taken_out_is_told(tmp_path: Path) -> None:
    finished(tmp_path)
    path = tmp_path / "journal" / "000002.jsonl"
    first, _, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, *rest]))
    [note] = faults(tmp_path)
    assert note.startswith("journal/000002.jsonl: has no digest of the files before it")


def test_what_a_zombie_appends_to_a_sealed_file_breaks_no_chain(tmp_path: Path) -> None:
    session(tmp_path, TREE)
    zombie = Writer(tmp_path)
    run_all(tmp_path, open_folder(tmp_path).plan)
    zombie.append([AttemptBegan(trial="x", attempt=1, lane="lane", time=10.0)])
    zombie.close()
    session(tmp_path, edited(EDITS["primary"]), made=DAY)
    assert faults(tmp_path) == []


def test_a_sweep_edited_in_its_folder_is_shown_as_changed_by_no_session(tmp_path: Path) -> None:
    finished(tmp_path, TREE | {"primary": {"measure": "error"}})
    edited_sweep(tmp_path)
    now = declared(tmp_path)
    assert not now.primary_was_declared
    [change] = now.changes
    assert change.sentence == (
        "changed after 8 results, which no session recorded: primary was error in all cells, now "
        "within_common_bar in all cells"
    )
