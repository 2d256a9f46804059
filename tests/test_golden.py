"""What was recorded once stays: the report of one sweep, and the ids of its trials.

`python -m tests.test_golden` records anew what is meant to be different now.
"""

import csv
import hashlib
import io
import json
import math
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.evidence.seal import write_sealed_report
from orchestrator.report import page
from orchestrator.store.folder import save_confirmation, save_question
from orchestrator.trials.confirm import Confirmation, with_confirmation
from orchestrator.trials.trial import Plan, Trial
from tests.support.sweeps import base_tree, plan_from

DIGEST = Path(__file__).parent / "golden" / "report_digest.json"

TREE: dict[str, Any] = {
    "name": "golden",
    "question": "Which stem is more forgiving?",
    "base": base_tree(
        optim=None,
        evaluate={"corruptions": {"kinds": ["fog", "snow"], "severities": [1, 5], "images": 50}},
    ),
    "arms": {
        "vit_p": {"model.stem": "patchify"},
        "vit_c": {"model.stem": "conv"},
        "wide": {"model.stem": "conv", "model.mlp_ratio": 4},
    },
    "cells": {
        "optimizer": {
            "adamw": {"optim.name": "adamw"},
            "sgd": {"optim.name": "sgd", "optim.lr_batch_size": 2048},
        }
    },
    "vary": {
        "optim.lr": {"adamw": {"log_uniform": [2.5e-4, 8e-3]}, "sgd": {"log_uniform": [0.1, 3.2]}},
        "optim.weight_decay": {"uniform": [0.0, 0.1]},
    },
    "design": {"kind": "sobol", "points": 16, "seed": 0},
    "noise": {"points": 2, "seeds": 2},
    "primary": {"measure": "area_common", "cell": "adamw"},
}
#: How trials of (arm, cell, point) ended that did not finish.
ENDS = {
    ("vit_p", "adamw", 3): ("diverged", "loss is nan at step 7"),
    ("vit_p", "sgd", 5): ("diverged", "no better than chance"),
    ("wide", "sgd", 2): ("stopped", "second of two at epoch 1"),
    ("vit_c", "adamw", 6): ("failed", "RuntimeError: it broke"),
    ("vit_c", "sgd", 9): ("out_of_memory", "CUDA out of memory"),
}
CONFIRMED = Confirmation({("adamw", arm): (0, 1) for arm in ("vit_p", "vit_c", "wide")}, seeds=3)


def golden_plan() -> Plan:
    return with_confirmation(plan_from(TREE), CONFIRMED)


def error_of(trial: Trial) -> float:
    """A bowl over both parameters, an offset per arm and cell, and a little that is the seed's."""
    octaves = math.log2(trial.values["optim.lr"] / {"adamw": 1.4e-3, "sgd": 0.6}[trial.cell_name])
    hollow = 2 * octaves**2 + 2000 * (trial.values["optim.weight_decay"] - 0.04) ** 2
    seed = zlib.crc32(f"{trial.point} {trial.role} {trial.replicate} {trial.arm}".encode()) % 1000
    offset = {"vit_p": 9.0, "vit_c": 2.0, "wide": 0.0}[trial.arm] + 3.0 * (trial.cell_name == "sgd")
    return 12 + hollow + offset + seed / 500


def events_of(trial: Trial, began: float) -> Iterator[dict[str, Any]]:
    """The journal of one trial, as files of the first format hold it."""
    end, detail = ENDS.get((trial.arm, trial.cell_name, trial.point), ("finished", ""))
    if trial.role != "sweep":
        end, detail = "finished", ""
    final, epochs = error_of(trial), 3 if end == "finished" else 1
    yield {"kind": "attempt", "trial": trial.id, "attempt": 1, "lane": "a", "node": "n", "time": began}
    for epoch in range(1, epochs + 1):
        error = final + 10 * (3 - epoch)
        row: dict[str, Any] = {
            "epoch": epoch, "step": 19 * epoch, "lr": 1e-3, "train_loss": 3.0 - epoch / 2,
            "val_loss": 3.5 - epoch / 2, "val_top1_error_pct": error, "val_raw_top1_error_pct": error + 1,
            "train_seconds": 1.0 + trial.point / 64, "val_seconds": 0.125, "peak_memory_gib": None,
            "test_top1_error_pct": final + 0.5 if epoch == 3 else None, "shift_top1_error_pct": None,
        }  # fmt: skip
        if epoch == 3:
            row["shift_top1_error_pct"] = {"clean": final, "fog": final + 8.5, "snow": final + 21.25}
        yield {"kind": "epoch", "trial": trial.id, "attempt": 1, "row": row}
    yield {
        "kind": "end", "trial": trial.id, "attempt": 1, "end": end, "detail": detail, "seconds": 12.5,
        "time": began + 12.5, "final": True, "weights": "", "from_step": 0, "step": 19 * epochs,
        "heard": began + 12.0, "epochs": epochs if end == "finished" else 0,
    }  # fmt: skip


def write_folder(folder: Path, plan: Plan) -> None:
    # It declares the question in the first file of the journal.
    save_question(folder, plan, made=0.0)
    save_confirmation(folder, CONFIRMED)
    events: list[dict[str, Any]] = [{"kind": "session", "lanes": [2], "time": 0.0}]
    for number, trial in enumerate({trial.id: trial for trial in plan.trials}.values()):
        events += events_of(trial, 12.5 * number)
    with (folder / "journal" / "000002.jsonl").open("wb") as file:
        for event in events:
            text = json.dumps(event, separators=(",", ":")).encode()
            file.write(f"{zlib.crc32(text):08x} ".encode() + text + b"\n")


def rounded(value: Any) -> Any:
    """Numbers to six digits: another processor may compute the last ones otherwise."""
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.6g}") + 0.0
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def number_or_text(cell: str) -> Any:
    """A cell of a CSV file as what it says: a number, JSON, or a text."""
    try:
        return float(cell)
    except ValueError:
        pass
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def digest(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(rounded(value), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digests(folder: Path) -> dict[str, str]:
    """Of every part of a report that is numbers or words, the page and its figures left out."""
    found = {}
    # Versions, machine and time stand in `details` alone.
    document = json.loads((folder / "summary.json").read_text())
    for key, value in document.items():
        if key != "details":
            found[f"summary.json {key}"] = digest(value)
    for path in sorted((folder / "tables").iterdir()):
        text = path.read_text()
        if path.suffix == ".csv":
            rows = [[number_or_text(cell) for cell in row] for row in csv.reader(io.StringIO(text))]
            found[path.name] = digest(rows)
        else:
            found[path.name] = digest(text)
    return found


def content(folder: Path) -> dict[str, Any]:
    plan = golden_plan()
    write_folder(folder, plan)
    write_sealed_report(folder)
    return {
        "ids": digest([trial.id for trial in plan.trials]),
        "report": digests(folder / "report"),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "MAX_PDFS", 0)
        return content(tmp_path_factory.mktemp("golden") / "sweep")


def test_the_ids_of_trials_are_as_recorded(found):
    expected = json.loads(DIGEST.read_text())
    assert found["ids"] == expected["ids"]


def test_the_numbers_and_tables_of_a_report_are_as_recorded(found):
    expected = json.loads(DIGEST.read_text())["report"]
    assert len(expected) > 40
    assert found["report"] == expected


if __name__ == "__main__":
    page.MAX_PDFS = 0
    with tempfile.TemporaryDirectory() as place:
        DIGEST.write_text(json.dumps(content(Path(place) / "sweep"), indent=1) + "\n")
