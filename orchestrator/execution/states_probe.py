"""Probes of storage before the first trial: of the results, and of the place of states."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs

from orchestrator.backends.base import Clock
from orchestrator.trials.trial import Plan
from trainables.base import DataError
from trainables.io.faults import Fault
from trainables.io.storage import inside, open_filesystem, redacted, write_durably
from trainables.training.checkpoint import Store


@contextlib.contextmanager
def storage(folder: Path) -> Iterator[tuple[Path | None, list[Fault], list[Clock]]]:
    """Tests the storage of a folder with the operations of the journal and of checkpoints.

    Yields:
      A new folder there, deleted afterwards, or None if there is a fault; the faults; the storage's clock.
    """
    # Absolute, because workers on other machines run in other folders.
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    probe, faults, clocks = None, [], []
    try:
        probe = Path(tempfile.mkdtemp(prefix=".preflight-", dir=there))
        asked = time.time()
        _write_durably(probe)
        clocks.append(Clock(f"the storage of {there}", asked, (probe / "b").stat().st_mtime, time.time()))
    except OSError as error:
        faults.append(Fault("--out", f"cannot write to {there}: {error.strerror or error}"))
    try:
        yield (None if faults else probe), faults, clocks
    finally:
        if probe is not None:
            shutil.rmtree(probe, ignore_errors=True)


#: The setting that names a place of states.
STATES = "resources.checkpoints"

#: Said once, before the start, if machines do not reach the place of states.
ALONE = (
    "not all machines reach the place of states: a trial whose machine goes starts over, unless "
    "resources.checkpoints names a folder or bucket that all reach"
)


def must_reach(plan: Plan, folder: Path) -> str:
    """Returns why all machines must reach the place of states, as a fault. Empty if they need not."""
    resources = plan.sweep.resources
    if resources.checkpoints is not None:
        return f"not all machines of the cluster reach {redacted(resources.checkpoints)}"
    reason = ""
    if resources.keep != "none":
        reason = f"keep: {resources.keep} needs a place"
    elif any(trial.role == "first_stage" for trial in plan.trials):
        reason = "trials that start from the weights of others need a place"
    if not reason:
        return ""
    return (
        f"{reason} that all machines reach, and not all see {folder}: name a folder or bucket that all reach"
    )


class StatesProbe(contextlib.ExitStack):
    """A new folder with a mark in it, at the place of states, deleted afterwards.

    Attributes:
      address: of the folder; empty if there is a fault.
      mark: content of the file `mark` in it.
      must_reach: see there.
      faults: none or one; see `unreached`, too.
    """

    def __init__(self, checkpoints: str | None, probe: Path | None, reason: str) -> None:
        super().__init__()
        self.address, self.mark, self.must_reach = str(probe or ""), os.urandom(16).hex(), reason
        self.faults: list[Fault] = []
        try:
            if checkpoints is not None:
                self._open(checkpoints)
            if self.address:
                filesystem, path = open_filesystem(self.mark_address)
                write_durably(filesystem, path, lambda file: file.write(self.mark.encode()))
        except (DataError, OSError) as error:
            self.address = ""
            self.faults.append(Fault(STATES, f"cannot write there: {redacted(str(error))}"))

    @property
    def mark_address(self) -> str:
        """The address of the mark."""
        return inside(self.address, "mark")

    def unreached(self, machines_without: Callable[[str, str], list[str]]) -> list[str]:
        """Returns the machines that do not read the mark, and takes them as a fault if all must."""
        names = machines_without(self.mark_address, self.mark) if self.address else []
        if names and self.must_reach:
            self.faults.append(Fault(STATES, f"{self.must_reach} (not on {', '.join(names)})"))
        return names

    def _open(self, checkpoints: str) -> None:
        filesystem, path = open_filesystem(checkpoints)
        if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
            probe, faults, _ = self.enter_context(storage(Path(path)))
            self.address = str(probe or "")
            self.faults += [Fault(STATES, fault.rule) for fault in faults]
            return
        name = f".preflight-{os.urandom(4).hex()}"
        self.address = inside(checkpoints, name)
        self.callback(Store(self.address).delete)


def _write_durably(folder: Path) -> None:
    """Writes, syncs, appends, renames and reads a file, and checks that its content comes back."""
    content = os.urandom(2**16)
    with (folder / "a").open("wb") as file:
        file.write(content[:100])
        file.flush()
        os.fsync(file.fileno())
    with (folder / "a").open("ab") as file:
        file.write(content[100:])
        file.flush()
        os.fsync(file.fileno())
    os.replace(folder / "a", folder / "b")
    if (folder / "b").read_bytes() != content:
        raise OSError("what was written is not what is read")
