"""Further test sets, whose distribution is shifted from that of the training images."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import pyarrow.fs
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from trainables.base import DataError, Frozen
from trainables.data.base import Images, digest_of
from trainables.data.decode import decode
from trainables.data.kinds import image_extensions, is_raw, is_readable
from trainables.data.parquet_table import MAX_CLASSES, read_table
from trainables.data.tree import is_hidden
from trainables.io.storage import Place, open_filesystem


class ShiftedSet(Frozen):
    """Other images of all or some training classes, for a test at the end of a run.

    Examples are ImageNet-V2, -R, -A and -Sketch. A set is Parquet files in the Hugging Face image layout, or
    a folder of images per class, on any storage that pyarrow can open. Its classes are matched with the
    training classes by name. If it has only some of them (200 in -R and -A), only those can be predicted.
    """

    name: str = Field(pattern="^[a-z][a-z0-9_]*$", description="Name of its error in the results.")
    uri: Place = Field(min_length=1, description="A Parquet file, a folder of them, or of class folders.")
    image_column: str = Field("image", description="Column of structs with `bytes`.")
    label_column: str = Field("label", description="Column of class numbers.")
    training_names: Literal["own", "imagenet_wnids"] = Field(
        "own",
        description="own: its class names are those of the training data. imagenet_wnids: they are WordNet "
        "ids (n01440764), and the training labels number these as ImageNet-1k does.",
    )

    def open(self, class_names: Sequence[str]) -> "Shifted":
        """Reads the images of the set, with the labels of the training data.

        Args:
          class_names: the classes of the training data, in the order of its labels.

        Raises:
          DataError: there are no images, no class names, or a class that the training data lack.
        """
        if self.training_names == "imagenet_wnids":
            from timm.data import ImageNetInfo  # type: ignore[attr-defined]

            wnids: list[str] = ImageNetInfo().label_names()  # type: ignore[no-untyped-call]
            if len(class_names) != len(wnids):
                raise DataError(
                    f"{self.uri}: imagenet_wnids needs training data of the {len(wnids)} classes of "
                    f"ImageNet-1k, these have {len(class_names)}"
                )
            class_names = wnids
        rows = self._read()
        labels, names = rows.labels, rows.names
        present = np.unique(labels)
        index = {name: number for number, name in enumerate(class_names)}
        if unknown := [names[label] for label in present if names[label] not in index]:
            raise DataError(
                f"{self.uri}: {len(unknown)} of {len(present)} classes are not among the training classes: "
                f"{', '.join(unknown[:5])}" + (", ..." if len(unknown) > 5 else "")
            )
        numbers = np.array([index.get(name, -1) for name in names], dtype=np.int64)
        return Shifted(Images(numbers[labels], rows.read), np.unique(numbers[present]))

    def fingerprint(self) -> str:
        """Returns a digest of every image's bytes, of the labels and of the class names. Reads every image.

        Raises:
          DataError: the set cannot be read from here.
        """
        rows = self._read()
        return digest_of(repr(tuple(rows.names)).encode(), rows.labels.tobytes(), rows.digest())

    def _read(self) -> "_Rows":
        filesystem, inner = open_filesystem(self.uri)
        try:
            kind = filesystem.get_file_info(inner).type
            if kind == pyarrow.fs.FileType.NotFound:
                raise DataError(f"{self.uri}: there is no such file or folder")
            files = [inner]
            if kind == pyarrow.fs.FileType.Directory:
                found = filesystem.get_file_info(pyarrow.fs.FileSelector(inner, recursive=True))
                files = sorted(
                    entry.path
                    for entry in found
                    if entry.type == pyarrow.fs.FileType.File
                    and not any(map(is_hidden, _parts_below(inner, entry.path)))
                )
        except OSError as error:
            raise DataError(f"{self.uri}: {error}") from error
        if tables := [path for path in files if path.endswith(".parquet")]:
            table = read_table(filesystem, tables, self.image_column, self.label_column)
            smallest, largest = int(table.labels.min()), int(table.labels.max())
            if smallest < 0 or largest >= MAX_CLASSES:
                label = smallest if smallest < 0 else largest
                raise DataError(f"{self.uri}: holds the label {label}, which is no class")
            names = table.class_names or [str(label) for label in range(largest + 1)]
            return _Rows(table.labels, names, table.read, lambda: table.digests().tobytes())
        # With a folder per class, files directly in the top folder have no class and are ignored.
        inside = [(path, parts[0]) for path in files if len(parts := _parts_below(inner, path)) > 1]
        images = [(path, name) for path, name in inside if _is_image(filesystem, path)]
        if not images:
            raise DataError(f"{self.uri}: holds no Parquet files and no images in folders of classes")
        names = sorted({name for _, name in images})
        number = {name: label for label, name in enumerate(names)}
        labels = np.array([number[name] for _, name in images], dtype=np.int64)

        def read(row: int) -> Image.Image:
            path, _ = images[row]
            try:
                return decode(_content(filesystem, path))
            except (DataError, OSError) as error:
                raise DataError(f"{path} {error}") from error

        def digest() -> bytes:
            try:
                return b"".join(hashlib.sha256(_content(filesystem, path)).digest() for path, _ in images)
            except OSError as error:
                raise DataError(f"{self.uri}: {error}") from error

        return _Rows(labels, names, read, digest)


@dataclass(frozen=True)
class _Rows:
    """Labels as the files number them, class names, and functions that decode a row and digest all rows."""

    labels: NDArray[np.int64]
    names: Sequence[str]
    read: Callable[[int], Image.Image]
    digest: Callable[[], bytes]


@dataclass(frozen=True)
class Shifted:
    """A shifted set that is ready for evaluation.

    Attributes:
      images: the images, labelled with the numbers of the training classes.
      classes: the training classes in the set, ascending; only these may be predicted.
    """

    images: Images
    classes: NDArray[np.int64]


def _content(filesystem: pyarrow.fs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as stream:
        content: bytes = stream.read()
        return content


def _parts_below(folder: str, path: str) -> list[str]:
    return path.removeprefix(folder).strip("/").split("/")


def _is_image(filesystem: pyarrow.fs.FileSystem, path: str) -> bool:
    """Returns whether a file is an image by its name, or by its content if its name does not say so."""
    if is_raw(path):
        return False
    if PurePosixPath(path).suffix.lower() in image_extensions():
        return True
    try:
        with filesystem.open_input_file(path) as file:
            return is_readable(file)
    except OSError as error:
        raise DataError(f"{path}: {error}") from error
