"""Where the states of trials lie: checkpoints while they run, final weights of those that are kept.

<place>/<id>/checkpoint/   of a trial that has not ended; the clerk deletes it with the end
<place>/<id>/final.pt      weights that the error was taken with; what starts from the trial reads them
<place>/<id>/final.json    written last: which trial, in which contest, with which error

The place is `trials` in the sweep's folder, or a folder of the sweep's name below `resources.checkpoints`.
Nothing heavy is imported here, since the clerk deletes.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from trainables.io.storage import open_filesystem, write_durably


@dataclass(frozen=True, slots=True)
class KeptWeights:
    """Weights that are kept.

    Attributes:
      trial: its id.
      group: cell and arm among whose trials it is compared; empty of a first stage, which stays.
      val_error_pct: after the last epoch, on the selection split.
    """

    trial: str
    group: str
    val_error_pct: float

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "KeptWeights":
        """Reads what `States.keep` wrote, today or in an earlier version.

        Raises:
          TypeError: it makes no sense.
        """
        return cls(**{"val_error_pct" if key == "val_top1_error_pct" else key: tree[key] for key in tree})


class WeightStore:
    """The states of one sweep's trials, on any file system that pyarrow knows."""

    def __init__(self, folder: Path, place: str | None = None) -> None:
        """
        Args:
          folder: the sweep's.
          place: folder or URI for the states of several sweeps; in the sweep's own folder if left out.

        Raises:
          DataError: no file system has such paths.
        """
        self._folder = folder
        self.place = f"{place.rstrip('/')}/{folder.resolve().name}" if place else str(folder / "trials")
        self._filesystem, self._root = open_filesystem(self.place)

    def checkpoint(self, trial_id: str) -> str:
        """The place of a trial's checkpoints."""
        return f"{self.place}/{trial_id}/checkpoint"

    def delete_checkpoint(self, trial_id: str) -> None:
        """Deletes them; one too many is only bytes, so what the storage refuses is let be."""
        with contextlib.suppress(OSError):
            self._filesystem.delete_dir(f"{self._root}/{trial_id}/checkpoint")

    def keep(self, kept: KeptWeights, write: Callable[[IO[bytes]], object]) -> None:
        """Makes final weights durable, then the word of it.

        Raises:
          OSError: the storage refuses.
        """
        folder = f"{self._root}/{kept.trial}"
        write_durably(self._filesystem, f"{folder}/final.pt", write)
        text = json.dumps(asdict(kept), indent=2) + "\n"
        write_durably(self._filesystem, f"{folder}/final.json", lambda file: file.write(text.encode()))

    def open_kept(self, trial_id: str) -> BinaryIO:
        """A trial's final weights, for another to start from.

        Raises:
          FileNotFoundError: they are gone, with what to do about it.
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
        # The word of them last: a deletion that was cut short is seen and can be gone on with.
        for name in ("final.pt", "final.json"):
            with contextlib.suppress(OSError):
                self._filesystem.delete_file(f"{self._root}/{trial_id}/{name}")

    def kept(self) -> list[KeptWeights]:
        """All final weights there are.

        Raises:
          OSError: the storage does not answer.
        """
        import pyarrow.fs

        selector = pyarrow.fs.FileSelector(self._root, recursive=True, allow_not_found=True)
        paths = {entry.path for entry in self._filesystem.get_file_info(selector) if entry.is_file}
        found = []
        for path in sorted(path for path in paths if path.endswith("/final.json")):
            # A damaged word of weights is none.
            with contextlib.suppress(ValueError, TypeError, OSError):
                with self._filesystem.open_input_stream(path) as stream:
                    kept = KeptWeights.from_json(json.loads(stream.read()))
                if path.replace("final.json", "final.pt") in paths:
                    found.append(kept)
        return found


class BestKept:
    """Whose weights are kept where only the best trial of each group keeps them."""

    def __init__(self) -> None:
        self._best: dict[str, KeptWeights] = {}

    def wants(self, kept: KeptWeights) -> bool:
        """Whether these weights would be the best of their group; of equal ones the first stay."""
        best = self._best.get(kept.group)
        if not kept.group or best is None:
            return True
        return best.trial == kept.trial or kept.val_error_pct < best.val_error_pct

    def take(self, kept: KeptWeights) -> str | None:
        """Takes in weights that are durable.

        Returns:
          The trial whose weights are to go for it, which may be these; None if none are.
        """
        if not kept.group:
            return None
        if not self.wants(kept):
            return kept.trial
        best, self._best[kept.group] = self._best.get(kept.group), kept
        return best.trial if best is not None and best.trial != kept.trial else None
