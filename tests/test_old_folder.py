"""A folder that an early version wrote is read, reported, verified, exported and gone on with."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

#: A sweep of 12 trials on digits that ran for real, but for the one that failed, as commit 723e0f7 wrote it.
FOLDER = Path(__file__).parent / "fixtures" / "folder_v0" / "small"
GOLDEN = json.loads((FOLDER.parent / "expected.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "small"))


def errors_of(path: Path) -> list[dict[str, Any]]:
    """What the report says of each cell and arm, by the names of that time."""
    arms = json.loads(path.read_text())["arms"]
    return [{key: arm[key] for key in GOLDEN["arms"][0]} for arm in arms]


def test_it_holds_nothing_of_the_machine_that_wrote_it():
    record = json.loads((FOLDER / "record.json").read_text())
    machine = {"system": "Linux", "cpus": 1, "processor": "a processor", "gpus": []}
    assert record["machine"] == machine


def test_its_state_is_told(shell, folder):
    code, said = shell("status", folder, "--json")
    assert code == 0
    states: Counter[str] = Counter()
    for cell in json.loads(said)["cells"]:
        states.update(cell["states"])
    assert states == GOLDEN["states"]


def test_it_verifies(shell, folder):
    code, said = shell("verify", folder)
    assert (code, "fault" in said) == (0, False), said
    assert "verified: " in said


def test_its_report_written_anew_has_the_same_numbers(shell, folder):
    shutil.rmtree(folder / "report")
    code, said = shell("report", folder)
    # One trial failed.
    assert code == 1, said
    assert errors_of(folder / "report" / "summary.json") == GOLDEN["arms"]
    document = json.loads((folder / "report" / "summary.json").read_text())
    assert document["states"] == GOLDEN["states"]
    assert shell("verify", folder)[0] == 0


def test_its_table_of_results_is_as_it_was(shell, folder):
    code, said = shell("export", folder, "--format", "csv")
    assert code == 0, said
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [
        [
            row["trial"],
            row["arm"],
            row["cell"],
            int(row["point"]),
            row["state"],
            float(row["error_pct"] or "nan"),
        ]
        for row in rows
    ]
    names = ("trial", "arm", "cell", "point", "state")
    assert [row[:5] for row in found] == [[row[name] for name in names] for row in GOLDEN["results"]]
    expected = [float("nan") if row["error_pct"] is None else row["error_pct"] for row in GOLDEN["results"]]
    assert [row[5] for row in found] == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_going_on_with_it_finds_nothing_to_do_and_leaves_the_record(shell, folder):
    before = {path.name: path.read_bytes() for path in (folder / "journal").iterdir()}
    code, said = shell("run", folder / "sweep.yaml", "--out", folder, "--no-mlflow", "--no-preflight")
    assert "nothing to do, all 12 trials have ended" in said
    assert code in (0, 1), said
    assert {path.name: path.read_bytes() for path in (folder / "journal").iterdir()} == before
