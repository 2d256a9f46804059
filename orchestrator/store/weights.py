"""Storage of trial states: checkpoints while trials run, and final weights that are kept.

<place>/<id>/checkpoint/   of a trial that has not ended; the Coordinator deletes it when the trial ends
<place>/<id>/final.pt      weights that the error was measured with; trials that start from this one read them
<place>/<id>/final.json    written last: the trial, its group and its error

The place is `trials` in the sweep's folder, or a folder of the sweep's name below `resources.checkpoints`.
This module must not import torch, because the Coordinator's process imports it to delete states.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from trainables.io.json import parse_json
from trainables.io.storage import holds, inside, open_filesystem, write_durably


@dataclass(frozen=True, slots=True)
class KeptWeights:
    """The name and error of kept final weights.

    Attributes:
      trial: id of the trial.
      group: cell and arm whose trials compete to be kept; empty for a first stage, which is always kept.
      val_error_pct: after the last epoch, on the selection split.
    """

    trial: str
    group: str
    val_error_pct: float

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "KeptWeights":
        """Reads what `WeightStore.keep` wrote, in this or an earlier version.

        Raises:
          TypeError: the fields are not those of `KeptWeights`.
        """
        return cls(**{"val_error_pct" if key == "val_top1_error_pct" else key: tree[key] for key in tree})


class WeightStore:
    """The states of one sweep's trials, on any file system that pyarrow knows."""

    def __init__(self, folder: Path, place: str | None = None) -> None:
        """
        Args:
          folder: the sweep's.
          place: folder or URI for the states of several sweeps; the sweep's own folder if None.

        Raises:
          DataError: no file system handles such a place.
        """
        self._folder = folder
        self.place = inside(place, folder.resolve().name) if place else str(folder / "trials")
        self._filesystem, self._root = open_filesystem(self.place)

    def checkpoint(self, trial_id: str) -> str:
        """Returns the folder or URI of a trial's checkpoints."""
        return inside(self.place, trial_id, "checkpoint")

    def set_mark(self, content: str) -> None:
        """Writes a mark by which machines tell whether they reach this place. A bucket needs none.

        Raises:
          OSError: the storage refuses.
        """
        if self._is_local:
            write_durably(self._filesystem, self._mark(content), lambda file: file.write(content.encode()))

    def has_mark(self, content: str) -> bool:
        """Returns whether this machine reaches the place where `set_mark` was called."""
        return not self._is_local or holds(self._mark(content), content)

    def delete_mark(self, content: str) -> None:
        """Deletes the mark, if there is one."""
        with contextlib.suppress(OSError):
            self._filesystem.delete_file(self._mark(content))

    @property
    def _is_local(self) -> bool:
        return str(self._filesystem.type_name) == "local"

    def _mark(self, content: str) -> str:
        # A name of its own for each run, which no cache of a network file system can know.
        return f"{self._root}/.run-{content[:16]}"

    def delete_checkpoint(self, trial_id: str) -> None:
        """Deletes a trial's checkpoints. Errors are ignored, because a leftover only takes space."""
        with contextlib.suppress(OSError):
            self._filesystem.delete_dir(f"{self._root}/{trial_id}/checkpoint")

    def keep(self, kept: KeptWeights, write: Callable[[IO[bytes]], object]) -> None:
        """Writes final weights durably, then final.json, which marks them as complete.

        Raises:
          OSError: the storage refuses.
        """
        folder = f"{self._root}/{kept.trial}"
        write_durably(self._filesystem, f"{folder}/final.pt", write)
        text = json.dumps(asdict(kept), indent=2) + "\n"
        write_durably(self._filesystem, f"{folder}/final.json", lambda file: file.write(text.encode()))

    def open_kept(self, trial_id: str) -> BinaryIO:
        """Opens a trial's final weights, for another trial to start from.

        Raises:
          FileNotFoundError: the weights are gone; the message names the command that makes them again.
          OSError: the storage does not answer.
        """
        try:
            return cast(BinaryIO, self._filesystem.open_input_file(f"{self._root}/{trial_id}/final.pt"))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.place} has no final weights of {trial_id} any more, which this trial starts from; "
                f"`vitc-sweep retry {self._folder} --trial {trial_id}` makes them again"
            ) from error

    def delete_kept(self, trial_id: str) -> None:
        """Deletes a trial's final weights, if it has any."""
        # final.json goes last, so that an interrupted deletion is visible and can be completed.
        for name in ("final.pt", "final.json"):
            with contextlib.suppress(OSError):
                self._filesystem.delete_file(f"{self._root}/{trial_id}/{name}")

    def kept(self) -> list[KeptWeights]:
        """Returns all kept final weights.

        Raises:
          OSError: the storage does not answer.
        """
        import pyarrow.fs

        selector = pyarrow.fs.FileSelector(self._root, recursive=True, allow_not_found=True)
        paths = {entry.path for entry in self._filesystem.get_file_info(selector) if entry.is_file}
        found = []
        for path in sorted(path for path in paths if path.endswith("/final.json")):
            # Weights whose final.json is damaged do not count.
            with contextlib.suppress(ValueError, TypeError, OSError):
                with self._filesystem.open_input_stream(path) as stream:
                    kept = KeptWeights.from_json(parse_json(stream.read()))
                if path.replace("final.json", "final.pt") in paths:
                    found.append(kept)
        return found


class BestKept:
    """The best trial of each group so far, when only its weights are kept."""

    def __init__(self) -> None:
        self._best: dict[str, KeptWeights] = {}

    def wants(self, kept: KeptWeights) -> bool:
        """Returns whether these weights are the best of their group so far. A tie keeps the first."""
        best = self._best.get(kept.group)
        if not kept.group or best is None:
            return True
        return best.trial == kept.trial or kept.val_error_pct < best.val_error_pct

    def take(self, kept: KeptWeights) -> str | None:
        """Registers weights that are durable.

        Returns:
          The trial whose weights are to be deleted, which may be this one. None if there is none.
        """
        if not kept.group:
            return None
        if not self.wants(kept):
            return kept.trial
        best, self._best[kept.group] = self._best.get(kept.group), kept
        return best.trial if best is not None and best.trial != kept.trial else None
