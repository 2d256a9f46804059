"""A run on a cluster whose machines come late, or never: the real commands, on a real autoscaler."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store.journal import read_journal
from orchestrator.trials.events import SessionClosed
from tests.orchestrator.execution.test_run import PATIENCE, records_in, start_cli, sweep_file
from tests.support.fake_cloud import cloud

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

RAY = r"; Ray: (1 worker requested; )?the last launch of worker failed \d+ s ago: "
RAY += "InsufficientInstanceCapacity: There is no Spot capacity in zone b"


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a cluster without a machine for trials, and the file that lets one come."""
    with cloud(tmp_path_factory.mktemp("cloud"), second=True) as found:
        yield found


@pytest.mark.slow
@pytest.mark.long
def test_what_a_run_waits_for_is_told_then_given_up_and_a_machine_that_comes_late_ends_it(tmp_path, late):
    (address, opens), folder = late, tmp_path / "tiny"
    run = ("run", sweep_file(tmp_path, 1), "--out", folder, "--no-mlflow", "--address", address)
    run += ("--set", "resources.lanes=1")

    in_preflight = start_cli(*run, "--wait-minutes", "0.2")
    said, _ = in_preflight.communicate(timeout=PATIENCE)
    assert in_preflight.returncode == 1, said
    assert re.search(r"^waiting for a machine with 1 CPU, 5 s", said, re.MULTILINE)
    gave_up = rf"no machine with 1 CPU in 12 s{RAY} \(--wait-minutes\)"
    assert re.search(rf"^gave up: {gave_up}\. Nothing has begun; ", said, re.MULTILINE)
    assert "Traceback" not in said
    assert not folder.exists()

    in_run = start_cli(*run, "--no-preflight", "--wait-minutes", "0.2")
    said, _ = in_run.communicate(timeout=PATIENCE)
    assert in_run.returncode == 1, said
    assert re.search(rf"^waiting for a machine with 1 CPU, 5 s({RAY})?$", said, re.MULTILINE)
    assert re.search(
        rf"^stopped \({gave_up}\); 0 of 2 trials have ended\. To continue, run:  vitc-sweep run \S+ --out "
        rf"\S+ --address \S+ --set resources.lanes=1 --wait-minutes 0.2$",
        said,
        re.MULTILINE,
    )
    assert isinstance(read_journal(folder).events[-1], SessionClosed)
    assert not records_in(folder)

    goes_on = start_cli(*run)
    assert goes_on.stdout is not None
    lines = []
    deadline = time.monotonic() + PATIENCE
    while not any(line.startswith("waiting for a machine") for line in lines) and time.monotonic() < deadline:
        lines.append(goes_on.stdout.readline())
    opens.touch()
    said, _ = goes_on.communicate(timeout=PATIENCE)
    assert goes_on.returncode == 0, "".join(lines) + said
    assert {record.outcome for record in records_in(folder).values()} == {"finished"}
