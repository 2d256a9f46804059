"""A report is held to its journal: what is untouched verifies, anywhere; what was changed is named."""

import gzip
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cost.actual import Planned, PlannedShape
from orchestrator.cost.shapes import shape_key, shape_of
from orchestrator.cost.speed import Span
from orchestrator.evidence import bundle as evidence_bundle
from orchestrator.evidence import seal as evidence_seal
from orchestrator.evidence.bundle import bundle, open_bundle
from orchestrator.evidence.compare import comparable, compare
from orchestrator.evidence.seal import fingerprint, seal, source_digest, write_sealed_report
from orchestrator.evidence.verify import verify
from orchestrator.store.folder import Folder, open_folder, save_confirmation, save_planned, save_question
from orchestrator.store.journal import FolderError, Writer, encode, tree_of
from orchestrator.store.provenance import provenance, source_root
from orchestrator.trials.confirm import Confirmation, with_confirmation
from orchestrator.trials.declared import Declaration
from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    DeclarationMade,
    EpochDone,
    Unknown,
    row_of,
)
from orchestrator.trials.trial import Plan
from tests.support.sweeps import base_tree, plan_from

TREE: dict[str, Any] = {
    "name": "small",
    "question": "Which stem is more forgiving?",
    "base": base_tree(),
    "arms": {"vit_p": {"model.stem": "patchify"}, "vit_c": {"model.stem": "conv"}},
    "vary": {"optim.lr": {"log_uniform": [2.5e-4, 8e-3]}},
    "design": {"kind": "sobol", "points": 8, "seed": 0},
}


def plan_of(**changes: Any) -> Plan:
    return plan_from(TREE | changes)


def run_all(folder: Path, plan: Plan) -> Path:
    """A sweep folder whose trials have all finished, at an error that follows from point and arm."""
    save_question(folder, plan, made=0.0)
    writer = Writer(folder)
    for trial in plan.trials:
        final = 10.25 + 1.5 * trial.point + 20.125 * (trial.arm == "vit_p")
        writer.append([AttemptBegan(trial=trial.id, attempt=1, lane="lane", time=0.0)])
        for epoch in (1, 2, 3):
            error = final + 10 * (3 - epoch)
            row = {
                "epoch": epoch, "step": 19 * epoch, "lr": 1e-3, "train_loss": 1.25, "val_loss": 1.5,
                "val_error_pct": error, "val_raw_error_pct": error, "train_seconds": 1.0,
                "val_seconds": 0.1, "test_error_pct": final + 0.5 if epoch == 3 else None,
            }  # fmt: skip
            writer.append([EpochDone(trial=trial.id, attempt=1, row=row_of(row))])
        writer.append(
            [
                AttemptEnded(
                    trial=trial.id,
                    attempt=1,
                    end="finished",
                    detail="",
                    seconds=12.5,
                    time=12.5,
                    final=True,
                    weights="abc",
                )
            ]
        )
    writer.close()
    return folder


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run_all(tmp_path_factory.mktemp("runs") / "small", plan_of())
    write_sealed_report(folder)
    return folder


@pytest.fixture
def copied(untouched: Path, tmp_path: Path) -> Path:
    """A sealed sweep folder of one's own."""
    return Path(shutil.copytree(untouched, tmp_path / "small"))


#: The files of reports by what they follow from.
REPORTS: dict[str, dict[str, bytes]] = {}


@pytest.fixture
def sealed(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same; a report is computed only from a question, a record and a journal that have not been so.

    Most tests change the report alone, and that the same input gives the same bytes has tests of its own.
    """
    honest = evidence_seal.write_report_into

    def write(opened: Folder, copy: Path) -> None:
        sources = contents(copy)
        key = hashlib.sha256(repr(sources).encode()).hexdigest()
        if key not in REPORTS:
            honest(opened, copy)
            written = contents(copy)
            REPORTS[key] = {name: written[name] for name in written.keys() - sources.keys()}
        for name, data in REPORTS[key].items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(data)

    monkeypatch.setattr(evidence_seal, "write_report_into", write)
    return copied


@pytest.mark.usefixtures("no_pdfs")
def test_the_plan_made_before_is_sealed_and_stands_beside_what_came(tmp_path: Path) -> None:
    plan = plan_of()
    folder = run_all(tmp_path / "small", plan)
    shape = shape_of(plan.trials[0])
    planned = Planned(
        made="2026-01-01T00:00:00Z", device="a processor", unit="core-hours", trials=16,
        hours=Span(0.01, 0.02, 0.04), wall_hours=Span(0.01, 0.02, 0.04), checkpoint_gib=0.5,
        shapes={
            shape_key(shape): PlannedShape(
                name=shape.name, seconds=Span(0.5, 1.0, 1.05), basis="preflight", peak_gib=0.1, devices=2
            )
        },
    )  # fmt: skip
    save_planned(folder, planned)
    write_sealed_report(folder)
    assert verify(folder).ok
    first, second = json.loads((folder / "report" / "summary.json").read_text())["planned"]
    # Eight trials of three epochs of 1.1 s, each 12.5 s with all that is around them, on two cores.
    assert (first["cells_and_arms"], first["trials_run"], first["trials"]) == ("all vit_p", 8, 8)
    assert first["seconds_per_epoch"] == pytest.approx(1.1)
    assert first["planned_hours"] == pytest.approx(8 * 3 * 1.0 * 2 / 3600)
    assert first["hours"] == pytest.approx(8 * 12.5 * 2 / 3600)
    assert (second["cells_and_arms"], second["planned_hours"]) == ("all vit_c", None)
    text = (folder / "report" / "tables" / "planned.md").read_text()
    assert "1.10 (out of range)" in text
    assert "Shapes without a plan were added by a later run" in text
    assert "Planned and actual" in (folder / "report" / "report.html").read_text()
    change(folder / "planned.json", '"high": 1.05', '"high": 2.05')
    assert {fault.file for fault in verify(folder).faults} >= {"planned.json"}
    (folder / "planned.json").write_text("{")
    with pytest.raises(FolderError, match=r"planned\.json is damaged"):
        open_folder(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) >= 1
    path.write_text(text.replace(before, after, 1))


def reseal(folder: Path, name: str) -> None:
    """Makes the hash of a file fit, as one who covers up a change would."""
    path = folder / "report" / "manifest.json"
    manifest = json.loads(path.read_text())
    data = (folder / name).read_bytes()
    manifest["files"][name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if "lines" in manifest["files"][name]:
        digests = [hashlib.sha256(line).hexdigest()[:8] for line in data.splitlines(keepends=True)]
        manifest["files"][name]["lines"] = "".join(digests)
    path.write_text(json.dumps(manifest))


def edit_event(folder: Path, edit: Callable[[dict[str, Any]], bool]) -> tuple[int, dict[str, Any]]:
    """Changes the first event that `edit` changes, with its checksum; gives its line and the event."""
    path = folder / "journal" / "000002.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        event = tree_of(line)
        assert event is not None
        if edit(event):
            # As it is, whatever it says.
            lines[number - 1] = encode(Unknown(event)).encode()
            path.write_bytes(b"".join(lines))
            return number, event
    raise AssertionError("no event was changed")


def last_error_plus_one(event: dict[str, Any]) -> bool:
    if event["kind"] == "epoch" and event["row"]["epoch"] == 3:
        event["row"]["val_error_pct"] += 1
        return True
    return False


def test_a_change_of_our_code_shows_in_its_digest_at_any_depth(tmp_path: Path) -> None:
    files = ("orchestrator/a.py", "orchestrator/sub/b.py", "orchestrator/sub/c.j2", "trainables/x/y/d.py")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    seen = [source_digest(tmp_path)]
    for name in files:
        (tmp_path / name).write_text("changed")
        seen.append(source_digest(tmp_path))
    (tmp_path / "orchestrator/sub/b.py").rename(tmp_path / "orchestrator/b.py")
    seen.append(source_digest(tmp_path))
    assert len(set(seen)) == len(files) + 2
    # What Python writes beside its sources is no part of them, nor is what belongs to no package.
    for name in ("orchestrator/sub/__pycache__/b.pyc", "trainables/notes.txt", "tests/e.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert source_digest(tmp_path) == seen[-1]


def test_the_code_on_record_is_the_tree_that_runs(sealed: Path) -> None:
    root = Path(__file__).parents[3]
    assert source_root() == root
    written_with = json.loads((sealed / "report" / "manifest.json").read_text())["written_with"]
    assert written_with["source"] == source_digest(root)
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert provenance()["code"]["commit"] == head.stdout.strip()


def test_an_untouched_sweep_verifies_and_nothing_is_written(copied):
    before = contents(copied)
    found = verify(copied)
    assert (found.faults, found.ok) == ((), True)
    assert contents(copied) == before
    # What was declared, the head of the next file, and 16 trials of an attempt, three epochs and an end.
    assert found.counts["journal lines"] == 1 + 2 + 80
    assert found.counts["trials"] == 16
    # 16 rows and a head, of more than 30 columns each, are in results.csv alone.
    assert found.counts["table and summary values"] > 17 * 30
    assert found.fingerprint == hashlib.sha256(before["report/manifest.json"]).hexdigest()
    assert found.lines()[-2].startswith("verified: ")


def test_the_manifest_names_every_file_with_its_length_and_hash(sealed):
    manifest = json.loads((sealed / "report" / "manifest.json").read_text())
    files = {name for name in contents(sealed) if name != "report/manifest.json"}
    assert set(manifest["files"]) == files
    for name in files:
        data = (sealed / name).read_bytes()
        assert manifest["files"][name]["bytes"] == len(data)
        assert manifest["files"][name]["sha256"] == hashlib.sha256(data).hexdigest()
    record = json.loads((sealed / "record.json").read_text())
    assert manifest["ran_with"] == {key: record[key] for key in ("code", "python", "versions")}


def test_writing_the_report_again_gives_the_same_seal(copied):
    before = contents(copied)
    write_sealed_report(copied)
    assert contents(copied) == before
    seal(copied)
    assert contents(copied) == before


def test_a_changed_digit_in_the_journal_fails_its_checksum_and_the_line_is_named(sealed):
    path = sealed / "journal" / "000002.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if '"epoch":3' in line)
    trial = json.loads(lines[at][9:])["trial"]
    lines[at] = re.sub(r'("val_error_pct":\d+\.)(\d)', lambda m: f"{m[1]}{9 - int(m[2])}", lines[at])
    path.write_text("".join(lines))
    faults = [str(fault) for fault in verify(sealed).faults]
    expected = f"its checksum does not match (epoch of trial {trial}, epoch 3)"
    assert faults[0] == f"journal/000002.jsonl, line {at + 1}: {expected}"
    # And it shows where it counted.
    assert any(f.startswith(f"report/tables/results.csv, trial {trial}") for f in faults)


def test_a_changed_digit_with_a_checksum_that_fits_fails_the_seal_and_the_line_is_named(sealed):
    number, event = edit_event(sealed, last_error_plus_one)
    faults = [str(fault) for fault in verify(sealed).faults]
    assert faults[0] == (
        f"journal/000002.jsonl, line {number}: is not what was sealed "
        f"(epoch of trial {event['trial']}, epoch 3)"
    )


def test_a_changed_digit_with_checksum_and_seal_that_fit_shows_in_the_row_it_made(sealed):
    _, event = edit_event(sealed, last_error_plus_one)
    reseal(sealed, "journal/000002.jsonl")
    found = verify(sealed)
    [fault] = [f for f in found.faults if f.file.endswith("results.csv") and "column error_pct" in f.place]
    assert fault.place == f"trial {event['trial']}, cell all, arm vit_p, column error_pct"
    # 10.25 + 20.125 at point 0 of vit_p; the journal says one more now.
    assert (fault.found, fault.expected) == ("30.375", "31.375")


def test_a_changed_number_that_no_table_shows_is_found_by_the_seal_alone(sealed):
    def edit(event: dict[str, Any]) -> bool:
        if event["kind"] == "epoch" and event["row"]["epoch"] == 2:
            event["row"]["val_loss"] = 1.6
            return True
        return False

    number, _ = edit_event(sealed, edit)
    assert any(fault.place == f"line {number}" for fault in verify(sealed).faults)


@pytest.mark.parametrize("cover_up", [False, True], ids=["as it is", "with a hash that fits"])
def test_a_changed_digit_in_a_table_is_named_by_row_and_column(sealed, cover_up):
    path = sealed / "report" / "tables" / "results.csv"
    trial = path.read_text().splitlines()[2].split(",")[0]
    # vit_c at point 0.
    change(path, ",10.25,", ",10.15,")
    if cover_up:
        reseal(sealed, "report/tables/results.csv")
    faults = verify(sealed).faults
    rows = [fault for fault in faults if fault.place]
    assert len(faults) == (1 if cover_up else 2)
    assert [(fault.file, fault.place) for fault in rows] == [
        ("report/tables/results.csv", f"trial {trial}, cell all, arm vit_c, column val_error_pct")
    ]
    assert (rows[0].found, rows[0].expected) == ("10.15", "10.25")


@pytest.mark.parametrize("cover_up", [False, True], ids=["as it is", "with a hash that fits"])
def test_a_changed_digit_in_the_summary_is_named_by_its_key(sealed, cover_up):
    change(sealed / "report" / "summary.json", '"median_error_pct": 35.625', '"median_error_pct": 35.635')
    if cover_up:
        reseal(sealed, "report/summary.json")
    [fault] = [fault for fault in verify(sealed).faults if fault.place]
    assert str(fault) == (
        "report/summary.json, arms[all, vit_p].median_error_pct: is not what the journal gives "
        "(found 35.635, recomputed 35.625)"
    )


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("report/report.html", "35.6", "35.7"),
        ("report/figures/edf~all.svg", "<path", "<path "),
        ("report/tables/summary.csv", "vit_c", "vit_d"),
        ("report/tables/contrasts.csv", "False", "True"),
    ],
)
def test_every_file_of_the_report_is_compared(sealed, name, before, after):
    change(sealed / name, before, after)
    reseal(sealed, name)
    assert {fault.file for fault in verify(sealed).faults} == {name}


def test_a_figure_for_print_is_compared_by_its_bytes(sealed):
    name = "report/figures/edf~all.pdf"
    path = sealed / name
    path.write_bytes(path.read_bytes().replace(b"/Page ", b"/Page  ", 1))
    reseal(sealed, name)
    assert [str(fault) for fault in verify(sealed).faults] == [
        f"{name}: differs from what the journal gives, in its bytes only"
    ]


def test_a_changed_digit_in_the_question_is_named_by_its_line(sealed):
    path = sealed / "sweep.yaml"
    lines = path.read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if "batch_size: 64" in line)
    change(path, "batch_size: 64", "batch_size: 65")
    fault = verify(sealed).faults[0]
    assert (fault.file, fault.place) == ("sweep.yaml", f"line {number}")
    assert "batch_size: 65" in fault.rule


def test_a_changed_question_with_a_hash_that_fits_shows_in_every_row(sealed):
    change(sealed / "sweep.yaml", "batch_size: 64", "batch_size: 65")
    reseal(sealed, "sweep.yaml")
    faults = [str(fault) for fault in verify(sealed).faults]
    assert any(fault.startswith("report/tables/results.csv, trial ") for fault in faults)
    # No file drowns the others: at most 20 of each, and how many more there are.
    assert sum(fault.startswith("report/tables/results.csv") for fault in faults) == 21


def test_a_question_that_cannot_be_read_is_a_fault_that_says_why(sealed):
    change(sealed / "sweep.yaml", "batch_size: 64", "batch_size: many")
    faults = [str(fault) for fault in verify(sealed).faults]
    assert any("cannot be computed" in fault and "base.batch_size" in fault for fault in faults)
    assert str(sealed) in faults[-1]


def test_a_changed_record_is_named_by_its_line(sealed):
    change(sealed / "record.json", '"sizes"', '"sizes" ')
    assert [(f.file, f.place[:5]) for f in verify(sealed).faults] == [("record.json", "line ")]


def test_lines_that_came_later_are_said_and_do_not_count(sealed):
    writer = Writer(sealed)
    writer.append([AttemptBegan(trial="0" * 16, attempt=1, lane="lane", time=0.0)])
    writer.close()
    with (sealed / "journal" / "000002.jsonl").open("ab") as file:
        file.write(encode(AttemptBegan(trial="1" * 16, attempt=1, lane="lane", time=0.0)).encode())
    found = verify(sealed)
    assert found.ok
    assert any("000002.jsonl: 1 line(s) were appended" in note for note in found.notes)
    assert any("000003.jsonl: was begun after" in note for note in found.notes)


@pytest.mark.usefixtures("no_pdfs")
def test_a_tail_torn_by_a_crash_is_no_fault(tmp_path):
    folder = run_all(tmp_path / "torn", plan_of(design={"kind": "sobol", "points": 1}))
    path = folder / "journal" / "000002.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    write_sealed_report(folder)
    found = verify(folder)
    assert found.ok
    assert any("was cut off by a crash" in note for note in found.notes)


@pytest.mark.usefixtures("no_pdfs")
def test_a_change_of_what_was_declared_is_in_the_report_and_a_back_dated_one_is_a_fault(tmp_path):
    folder = run_all(tmp_path / "small", plan_of(primary={"measure": "error"}))
    other = plan_of(primary={"measure": "area_common"})
    save_question(folder, other, made=12.5)
    write_sealed_report(folder)
    assert verify(folder).ok
    document = json.loads((folder / "report" / "summary.json").read_text())
    assert document["caveats"][0] == (
        "Changed after 16 results: primary was error in all cells, now area_common in all cells."
    )
    assert not any(contrast["primary"] for contrast in document["contrasts"])
    assert document["caveats"][0] in html.unescape((folder / "report" / "report.html").read_text())
    # The first declaration is written anew as if it had been the second one, and all is sealed again.
    path = folder / "journal" / "000001.jsonl"
    forged = DeclarationMade(made=0.0, results=0, declaration=Declaration.of(other.sweep).to_json())
    path.write_bytes(encode(forged).encode())
    write_sealed_report(folder)
    faults = [str(fault) for fault in verify(folder).faults]
    assert any("the files of the journal before this one were changed" in fault for fault in faults)


def test_what_is_missing_or_was_added_is_named(sealed):
    (sealed / "report" / "figures" / "edf~all.svg").unlink()
    (sealed / "report" / "tables" / "mine.csv").write_text("a\n1\n")
    faults = [str(fault) for fault in verify(sealed).faults]
    assert faults == [
        "report/figures/edf~all.svg: is missing",
        "report/tables/mine.csv: is not in the manifest",
        "report/tables/mine.csv: is no part of the report that the journal gives",
    ]


def test_a_lost_line_and_a_lost_journal_are_named(sealed):
    path = sealed / "journal" / "000002.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6] + lines[7:]))
    faults = [str(fault) for fault in verify(sealed).faults]
    assert "journal/000002.jsonl: has 81 lines, 82 were sealed" in faults
    assert any(fault.startswith("journal/000002.jsonl, line 7: ") for fault in faults)
    path.unlink()
    assert "journal/000002.jsonl: is missing" in [str(fault) for fault in verify(sealed).faults]


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "epoch", "trial": "x"},
        {"kind": "epoch", "trial": "x", "attempt": 1, "row": {"epoch": 1}},
        {"kind": "end", "trial": 3, "final": True},
    ],
)
def test_an_event_that_makes_no_sense_is_a_fault_and_no_traceback(sealed, event):
    (sealed / "report" / "manifest.json").unlink()
    with (sealed / "journal" / "000002.jsonl").open("ab") as file:
        file.write(encode(Unknown(event)).encode())
    assert any("cannot be computed from the journal" in str(fault) for fault in verify(sealed).faults)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 2}', '{"files": {"../../etc/passwd": {"bytes": 1, "sha256": "0"}},'
     '"ran_with": {}, "written_with": {}}'],
)  # fmt: skip
def test_a_manifest_that_is_damaged_or_leads_outside_is_a_fault(sealed, content):
    (sealed / "report" / "manifest.json").write_text(content)
    [fault] = verify(sealed).faults
    assert fault.file == "report/manifest.json"


def test_without_a_manifest_numbers_are_still_compared(sealed):
    (sealed / "report" / "manifest.json").unlink()
    change(sealed / "report" / "tables" / "results.csv", ",10.25,", ",10.15,")
    faults = [str(fault) for fault in verify(sealed).faults]
    assert len(faults) == 2
    assert faults[0].startswith("report/manifest.json: is missing")
    assert "column val_error_pct" in faults[1]


def test_without_a_report_there_is_nothing_to_verify(tmp_path):
    folder = run_all(tmp_path / "bare", plan_of(design={"kind": "sobol", "points": 1}))
    assert not verify(folder).ok
    with pytest.raises(FolderError, match="no sealed report"):
        bundle(folder, tmp_path / "bare.tar.gz")
    with pytest.raises(FolderError, match="holds no report"):
        seal(folder)
    with pytest.raises(FolderError, match="holds no sweep"):
        verify(tmp_path)


def test_other_code_is_a_note_and_what_only_it_writes_is_not_compared(sealed, monkeypatch):
    path = sealed / "report" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["written_with"] |= {"source": "of another day", "code": {"commit": "c0ffee" * 6, "changed": ""}}
    path.write_text(json.dumps(manifest))
    # As if today's code wrote one more key and one more file.
    summary = json.loads((sealed / "report" / "summary.json").read_text())
    del summary["arms"][0]["median_error_pct"]
    (sealed / "report" / "summary.json").write_text(json.dumps(summary))
    reseal(sealed, "report/summary.json")
    found = verify(sealed)
    assert found.ok
    assert any("other code (commit c0ffeec0ffee" in note for note in found.notes)
    change(sealed / "report" / "tables" / "results.csv", ",10.25,", ",10.15,")
    assert not verify(sealed).ok


def test_another_processor_may_differ_in_the_last_digit_but_a_change_may_not(sealed):
    path = sealed / "report" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["written_with"] |= {"processor": "another"}
    path.write_text(json.dumps(manifest))
    change(sealed / "report" / "tables" / "results.csv", ",10.25,", ",10.250000000000002,")
    # The hash says that someone changed it since it was sealed: then every digit counts.
    assert [fault.place for fault in verify(sealed).faults if fault.place]
    reseal(sealed, "report/tables/results.csv")
    found = verify(sealed)
    assert found.ok
    assert any("results.csv: is as sealed" in note for note in found.notes)
    change(sealed / "report" / "tables" / "results.csv", ",10.250000000000002,", ",10.26,")
    reseal(sealed, "report/tables/results.csv")
    assert not verify(sealed).ok


def test_a_report_without_a_figure_of_before_loses_that_file_and_strangers_stay(sealed):
    old = sealed / "report" / "figures" / "old.svg"
    old.write_text("<svg/>")
    seal(sealed)
    mine = sealed / "report" / "notes.txt"
    mine.write_text("mine")
    write_sealed_report(sealed)
    assert not old.exists()
    assert mine.read_text() == "mine"


# ---------------------------------------------------------------------------------------------- bundles


def test_a_bundle_verifies_elsewhere_and_holds_nothing_else(sealed, tmp_path):
    (sealed / "trials" / "x").mkdir(parents=True)
    (sealed / "trials" / "x" / "checkpoint.pt").write_bytes(b"0" * 1000)
    for name in ("lock", "mlflow.json"):
        (sealed / name).write_text("{}")
    path = bundle(sealed, tmp_path / "out" / "small.tar.gz")
    expected = fingerprint(sealed)
    shutil.rmtree(sealed)
    found = verify(path)
    assert found.ok
    assert found.fingerprint == expected
    folder = open_bundle(path, tmp_path / "elsewhere")
    assert folder == tmp_path / "elsewhere" / "small"
    assert verify(folder).ok
    assert {p.name for p in folder.iterdir()} == {"sweep.yaml", "record.json", "journal", "report"}
    assert list((tmp_path / "out").iterdir()) == [path]
    with pytest.raises(FolderError, match="exists already"):
        open_bundle(path, tmp_path / "elsewhere")


def test_two_bundles_of_a_folder_are_the_same_bytes_whenever_it_was_copied(sealed, tmp_path):
    first = bundle(sealed, tmp_path / "first.tar.gz")
    copy = tmp_path / "copy" / "small"
    shutil.copytree(sealed, copy, copy_function=shutil.copyfile)
    (copy / "sweep.yaml").chmod(0o600)
    second = bundle(copy, tmp_path / "copy")
    assert second == tmp_path / "copy" / "small.tar.gz"
    assert first.read_bytes() == second.read_bytes()


def test_a_change_inside_a_bundle_is_named(sealed, tmp_path):
    change(sealed / "report" / "tables" / "results.csv", ",10.25,", ",10.15,")
    faults = verify(bundle(sealed, tmp_path / "b.tar.gz")).faults
    assert any("column val_error_pct" in fault.place for fault in faults)


def archive(path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, data in members:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b"x"


HOSTILE = {
    "an absolute path": [member("/etc/sweep.yaml")],
    "a way up": [member("small/../../sweep.yaml")],
    "a way up at the start": [member("../small/sweep.yaml")],
    "a link": [member("small/sweep.yaml", tarfile.SYMTYPE, "/etc/passwd")],
    "a hard link": [member("small/sweep.yaml", tarfile.LNKTYPE, "/etc/passwd")],
    "a folder that is a link": [member("a/report", tarfile.SYMTYPE, "/tmp"), member("a/report/a.csv")],
    "a device": [member("small/sweep.yaml", tarfile.CHRTYPE)],
    "another file": [member("small/.bashrc")],
    "a file at the top": [member("sweep.yaml")],
    "two folders": [member("a/sweep.yaml"), member("b/record.json")],
    "a file twice": [member("a/sweep.yaml"), member("a/sweep.yaml")],
    "nothing": [],
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_holds_what_it_should_not_is_refused_and_nothing_is_written(tmp_path, name):
    path = archive(tmp_path / "evil.tar.gz", HOSTILE[name])
    with pytest.raises(FolderError, match=r"evil\.tar\.gz: "):
        open_bundle(path, tmp_path / "into")
    with pytest.raises(FolderError):
        verify(path)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.tar.gz"]


def test_all_that_is_wrong_with_an_archive_is_told_at_once(tmp_path):
    path = archive(tmp_path / "evil.tar.gz", [*HOSTILE["a way up"], *HOSTILE["a link"]])
    with pytest.raises(FolderError, match=r"'small/\.\./\.\./sweep\.yaml'.*; .*is no plain file"):
        open_bundle(path, tmp_path / "into")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = archive(tmp_path / "bomb.tar.gz", [(tarfile.TarInfo("a/sweep.yaml"), b"0" * 2_000_000)])
    assert path.stat().st_size < 10_000
    with pytest.raises(FolderError, match="more than the 1000000 bytes"):
        open_bundle(path, tmp_path / "into", max_bytes=1_000_000)
    # Zeros without end after a short archive.
    path.write_bytes(path.read_bytes() + gzip.compress(b"\0" * 5_000_000))
    with pytest.raises(FolderError, match="more than the 3000000 bytes"):
        open_bundle(path, tmp_path / "into", max_bytes=3_000_000)
    # A header of a gigabyte, which would be read in one piece.
    info = tarfile.TarInfo("a/sweep.yaml")
    info.type, info.size = tarfile.XHDTYPE, 2**30
    path.write_bytes(gzip.compress(info.tobuf() + b"0" * 10_000))
    with pytest.raises(FolderError, match="a header that asks for 1073741824 bytes"):
        open_bundle(path, tmp_path / "into")
    monkeypatch.setattr(evidence_bundle, "MAX_BUNDLE_FILES", 2)
    path = archive(tmp_path / "many.tar.gz", [member(f"a/report/{n}.csv") for n in range(3)])
    with pytest.raises(FolderError, match="more than the 2 files"):
        open_bundle(path, tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_an_archive_that_is_cut_or_none_is_refused(sealed, tmp_path):
    path = bundle(sealed, tmp_path / "b.tar.gz")
    data = path.read_bytes()
    for content in (data[: len(data) // 2], data[:-4], b"", b"hello", gzip.compress(b"hello" * 500)):
        path.write_bytes(content)
        with pytest.raises(FolderError, match=r"b\.tar\.gz: "):
            open_bundle(path, tmp_path / "into")


def test_links_are_not_packed_and_other_names_are_refused(sealed, tmp_path):
    with pytest.raises(FolderError, match=r"must end in \.tar\.gz"):
        bundle(sealed, tmp_path / "b.zip")
    (sealed / "report" / "tables" / "link.csv").symlink_to("/etc/hostname")
    with pytest.raises(FolderError, match=r"links are not packed: report/tables/link\.csv"):
        bundle(sealed, tmp_path / "b.tar.gz")


# ---------------------------------------------------------------------------------------------- comparisons


@pytest.mark.usefixtures("no_pdfs")
def test_a_comparison_is_a_folder_that_verifies_and_says_as_much_as_one_sweep(tmp_path, untouched):
    for arm, settings in TREE["arms"].items():
        folder = run_all(tmp_path / arm, plan_of(name=arm, arms={arm: settings}))
        write_sealed_report(folder)
    opened = [open_folder(tmp_path / arm) for arm in TREE["arms"]]
    assert fingerprint(tmp_path / "vit_p") != fingerprint(tmp_path / "vit_c")
    assert comparable(opened)
    # One sweep alone is nothing to compare.
    assert not comparable([opened[0]])
    report, notices = compare(opened, tmp_path / "both")
    assert notices == []
    assert report == tmp_path / "both" / "report" / "report.html"
    assert verify(tmp_path / "both").ok
    one, both = (
        json.loads((f / "report" / "summary.json").read_text()) for f in (untouched, tmp_path / "both")
    )
    for key in one.keys() - {"name", "details"}:
        assert both[key] == one[key]
    # Its record names where it is from, seals included.
    sources = both["details"]["sources"]
    assert {name: source["fingerprint"] for name, source in sources.items()} == {
        arm: fingerprint(tmp_path / arm) for arm in TREE["arms"]
    }
    # Made anew in its place; another folder is not overwritten.
    compare(opened, tmp_path / "both")
    before = contents(tmp_path / "vit_p")
    with pytest.raises(FolderError, match="something else than a comparison"):
        compare(opened, tmp_path / "vit_p")
    assert contents(tmp_path / "vit_p") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["both", "vit_c", "vit_p"]


@pytest.mark.usefixtures("no_pdfs")
def test_what_was_chosen_to_be_confirmed_is_sealed_packed_and_compared(tmp_path):
    choice = Confirmation({("all", "vit_p"): (1,)}, seeds=2)
    for name, arm in (("first", "vit_p"), ("second", "vit_c")):
        plan = plan_of(name=name, arms={arm: TREE["arms"][arm]}, design={"kind": "sobol", "points": 2})
        run_all(tmp_path / name, with_confirmation(plan, choice) if name == "first" else plan)
    save_confirmation(tmp_path / "first", choice)
    write_sealed_report(tmp_path / "first")
    assert verify(bundle(tmp_path / "first", tmp_path / "first.tar.gz")).counts["trials"] == 4
    compare([open_folder(tmp_path / "first"), open_folder(tmp_path / "second")], tmp_path / "both")
    found = verify(tmp_path / "both")
    assert (found.ok, found.counts["trials"]) == (True, 6)
    (tmp_path / "first" / "confirm.json").unlink()
    assert any(str(fault) == "confirm.json: is missing" for fault in verify(tmp_path / "first").faults)
