"""Files of what `analyse` found out about kept weights."""

import json
from collections.abc import Iterator
from pathlib import Path

from orchestrator.analysis.collapse import Collapse, arm_maps
from orchestrator.report import figures_attention, plotting
from orchestrator.report.document import Row, csv_text, plain
from orchestrator.report.tables_attention import collapse_rows
from orchestrator.store.folder import COLLAPSE, parsed
from trainables.io.files import write_atomically


def load_collapse(folder: Path) -> Collapse | None:
    """Returns the attention maps that were looked at in a sweep folder. None if none were.

    Raises:
      FolderError: the file is damaged.
    """
    # Its `arms` follow from its trials.
    return parsed(
        folder, COLLAPSE, lambda tree: Collapse(**{key: tree[key] for key in Collapse.model_fields})
    )


def collapse_document(collapse: Collapse) -> Row:
    """Returns the contents of collapse.json."""
    return collapse.model_dump(mode="json") | {"arms": [plain(one) for one in arm_maps(collapse)]}


def save_collapse(folder: Path, collapse: Collapse) -> Iterator[Path]:
    """Writes figures and collapse.csv, then collapse.json, into a sweep folder. Yields their paths.

    Figures of an earlier call are removed.
    """
    path = folder / COLLAPSE
    for old in path.parent.glob("collapse~*"):
        old.unlink()
    for cell, arms in figures_attention.by_cell(arm_maps(collapse)).items():
        figure = figures_attention.block_similarity(arms, collapse.threshold)
        name = f"collapse~{cell.replace('/', '~')}"
        for suffix, content in (("svg", plotting.to_svg(figure)), ("pdf", plotting.to_pdf(figure))):
            write_atomically(path.parent / f"{name}.{suffix}", content)
            yield path.parent / f"{name}.{suffix}"
    write_atomically(path.with_suffix(".csv"), csv_text(collapse_rows(collapse)))
    yield path.with_suffix(".csv")
    # Not indented, because a number per line would make it twice as long.
    write_atomically(path, json.dumps(collapse_document(collapse), allow_nan=False) + "\n")
    yield path
