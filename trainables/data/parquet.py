"""Data sets of Parquet files: their settings, and how their files become splits with labels."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow.fs
from numpy.typing import NDArray
from pydantic import Field

from trainables.base import SPLITS, DataError, DataInfo, Frozen, Split
from trainables.data.base import Images, digest_of, drawn_from, held_out, with_chance
from trainables.data.content import NO_BYTES, num_contrary, num_repeated, num_shared
from trainables.data.decode import decode, is_nearly_black
from trainables.data.parquet_files import Found, SplitFiles, find_files
from trainables.data.parquet_table import MAX_CLASSES, Table, mapped, read_table
from trainables.data.tree import alike
from trainables.io.storage import Place, last_name, open_filesystem
from trainables.tasks.base import Task
from trainables.tasks.classification import Classification


class Expected(Frozen):
    """Expected sizes of a data set, which allow a sweep to be planned on a machine without the data.

    Numbers of images may differ by up to `EXPECTED_WITHIN`, because copies of a set differ by a few broken
    files.
    """

    classes: int = Field(gt=1, description="Exact number of classes.")
    train: int = Field(gt=0, description="Training images, before any are held out.")
    val: int | None = Field(None, gt=0, description="Images of a validation split; none if left out.")
    test: int | None = Field(None, gt=0, description="Images of a test split; none if left out.")

    def _sizes(self) -> dict[Split, int]:
        sizes: dict[Split, int | None] = {"train": self.train, "val": self.val, "test": self.test}
        return {split: size for split, size in sizes.items() if size is not None}

    def check(self, path: str, num_classes: int, sizes: Mapping[Split, int]) -> None:
        """Raises `DataError` if the data at a path do not have the expected sizes."""
        wrong = [f"{num_classes} classes, not {self.classes}"] if num_classes != self.classes else []
        expected = self._sizes()
        for split in SPLITS:
            found, wanted = sizes.get(split, 0), expected.get(split, 0)
            if abs(found - wanted) > EXPECTED_WITHIN * wanted:
                wrong.append(f"{found:,} {split} images, not {wanted:,}")
        if wrong:
            raise DataError(f"{path}: these are not the data that `expects` describes: {'; '.join(wrong)}")


#: Largest share by which a number of images may differ from the expected one.
EXPECTED_WITHIN = 0.05


class Parquet(Frozen):
    """Parquet files in the Hugging Face image layout, on any storage pyarrow can open.

    A column of structs {bytes, path} holds encoded images, and an integer column their labels. Class names
    come from the `huggingface` metadata. The first word of a file's or folder's name decides the split:
    train, val (also validation, valid, dev) or test (also eval, holdout). A missing split is held out: the
    selection split from train, and the final split too if necessary.
    """

    task: ClassVar[Task] = Classification()
    name: Literal["parquet"] = "parquet"
    path: Place = Field(min_length=1, description="A file, or a folder of files; a local path or a URI.")
    image_column: str = Field("image", description="Column of structs with `bytes`.")
    label_column: str = Field("label", description="Column of class numbers.")
    splits: SplitFiles | None = Field(
        None, description="The files of each split, where their names do not tell it."
    )
    selection: Literal["held_out", "final"] = Field(
        "held_out",
        description="held_out: choose on images that the final number never sees. final: choose on the "
        "final split itself, as the paper does; the report says so.",
    )
    val_share: float = Field(0.1, gt=0, lt=0.5, description="Share of train held out where val is missing.")
    test_share: float = Field(0.1, gt=0, lt=0.5, description="Share of train held out where test is missing.")
    train_limit: int | None = Field(
        None, gt=0, description="Train on this many images only, the classes in proportion; all if left out."
    )
    split_seed: int = Field(
        0, ge=0, lt=2**63, description="Which images are held out; no trial's seed changes it."
    )
    on_bad_image: Literal["error", "skip"] = Field(
        "error", description="error: an image that does not decode ends the trial. skip: leave out and count."
    )
    expects: Expected | None = Field(
        None, description="Expected sizes; with them, a sweep can be planned on a machine without the data."
    )

    def lies_there(self) -> bool:
        """Returns whether the path exists.

        Raises:
          DataError: the storage cannot be read.
        """
        filesystem, inner = open_filesystem(self.path)
        try:
            return bool(filesystem.get_file_info(inner).type != pyarrow.fs.FileType.NotFound)
        except OSError as error:
            raise DataError(f"{self.path}: {error}") from error

    def expected_info(self) -> DataInfo:
        """Derives `info` from `expects`, for plans. Sizes of held-out splits are exact to a few images.

        Raises:
          DataError: `expects` is not set.
        """
        if self.expects is None:
            raise DataError(f"{self.path}: `expects` does not say what they hold")
        sizes = self.expects._sizes()
        if "test" not in sizes and "val" in sizes:
            sizes["test"] = sizes.pop("val")
        if "test" not in sizes:
            sizes["test"] = round(self.test_share * sizes["train"])
            sizes["train"] -= sizes["test"]
        if self.selection == "final":
            sizes["val"] = sizes["test"]
        elif "val" not in sizes:
            sizes["val"] = round(self.val_share * sizes["train"])
            sizes["train"] -= sizes["val"]
        if self.train_limit is not None:
            sizes["train"] = min(sizes["train"], self.train_limit)
        info = DataInfo(
            name=_data_name(self.path),
            num_classes=self.expects.classes,
            class_names=tuple(str(label) for label in range(self.expects.classes)),
            sizes={split: sizes[split] for split in SPLITS},
            splits=dict.fromkeys(SPLITS, "as expected, not looked at"),
            fingerprint="expected " + digest_of(repr(sorted(sizes.items())).encode()),
        )
        return with_chance(info, self.task)

    def info(self) -> DataInfo:
        """Describes the data: sizes, classes and fingerprint. Reads labels, footers and one image per file.

        If bad images are skipped, it decodes all images.

        Raises:
          DataError: no files, not Parquet, columns missing or of another type, labels outside the classes.
        """
        data = _parquet(self).data
        if data.without_bytes and self.on_bad_image == "error":
            raise DataError(data.without_bytes)
        return data.info

    def open(self) -> dict[Split, Images]:
        """Returns the images of every split.

        Reads them into memory. Large or distant files are copied to this machine, once for all processes.

        Raises:
          DataError: see `info`; or there is no room for the copy.
        """
        # Before `info`, which reads all images for their digests unless they are here.
        for table in _parquet(self).tables.values():
            table.load()
        return _parquet(self).data.images


@dataclass(frozen=True)
class _ParquetData:
    """A data set that was looked through.

    Attributes:
      info: its description.
      images: those of every split.
      without_bytes: the fault of images that have no bytes; "" if all have some.
    """

    info: DataInfo
    images: dict[Split, Images]
    without_bytes: str


class _Files:
    """The files of a data set, and what they hold: computed when it is first asked for."""

    def __init__(self, config: Parquet, found: Found, tables: dict[Split, Table]) -> None:
        self._config, self._found, self.tables = config, found, tables

    @functools.cached_property
    def data(self) -> _ParquetData:
        return _data(self._config, self._found, dict(self.tables))


@functools.lru_cache(maxsize=8)
def _parquet(config: Parquet) -> _Files:
    found = find_files(config.path, config.splits)
    tables = {
        split: read_table(found.filesystem, names, config.image_column, config.label_column)
        for split, names in found.files.items()
    }
    return _Files(config, found, tables)


def _data(config: Parquet, found: Found, tables: dict[Split, Table]) -> _ParquetData:
    notices = [*found.notices, *(text for table in tables.values() for text in table.notices)]
    for split in [split for split, table in tables.items() if (table.labels == -1).all()]:
        if split == "train":
            raise DataError(f"{config.path}: all training images have label -1, which is no class")
        notices.append(
            f"left out {tables.pop(split).describe}: its labels are all -1, that is, not published"
        )
    class_names, labels, more = _classes(config.path, tables)
    notices += [*more, *_repeated(tables, labels), *alike(class_names), *_nearly_black(tables)]
    if config.expects is not None:
        config.expects.check(config.path, len(class_names), {split: len(labels[split]) for split in labels})

    rows, skipped = _good_rows(config, tables)
    parts = _parts(config, tables, labels, rows)

    def images(split: Split) -> Images:
        part = parts[split]
        table, kept = tables[part.source], part.rows
        return Images(labels[part.source][kept], lambda i: table.read(int(kept[i])))

    splits = {split: images(split) for split in SPLITS}
    _check_teaches(config.path, splits, parts)
    notices += _missing_classes(class_names, splits)
    sources = [split for split in SPLITS if split in tables]
    kept = [parts[split].rows.tobytes() for split in SPLITS]
    info = DataInfo(
        name=_data_name(config.path),
        num_classes=len(class_names),
        class_names=class_names,
        sizes={split: len(splits[split]) for split in SPLITS},
        splits={split: parts[split].describe for split in SPLITS},
        fingerprint=digest_of(
            b"by content",
            *(
                part
                for split in sources
                for part in (labels[split].tobytes(), tables[split].digests().tobytes())
            ),
            *kept,
        ),
        earlier_fingerprint=digest_of(*(tables[s].earlier_fingerprint().encode() for s in sources), *kept),
        skipped=skipped,
        majority_share=float(np.bincount(splits["val"].labels).max() / len(splits["val"])),
        notices=tuple(notices),
    )
    return _ParquetData(with_chance(info, config.task), splits, _without_bytes(tables))


@dataclass(frozen=True)
class _Part:
    """The rows of a split, and the files that they come from."""

    source: Split
    rows: NDArray[np.int64]
    describe: str


def _parts(
    config: Parquet,
    tables: Mapping[Split, Table],
    labels: Mapping[Split, NDArray[np.int64]],
    rows: Mapping[Split, NDArray[np.int64]],
) -> dict[Split, _Part]:
    """Decides which rows each split has, and holds out those of missing splits."""
    parts = {split: _Part(split, rows[split], table.describe) for split, table in tables.items()}

    def hold_out(target: Split, share: float, seed: int) -> None:
        train = parts["train"]
        stay, out = held_out(labels["train"][train.rows], share, seed)
        parts["train"] = _Part("train", train.rows[stay], train.describe)
        shown = f"{share:.0%} of {tables['train'].describe}, held out by seed"
        parts[target] = _Part("train", train.rows[out], shown)

    if "test" not in parts and "val" in parts:
        # With only one evaluation split, as in ImageNet, that is the final split.
        parts["test"] = parts.pop("val")
    if "test" not in parts:
        hold_out("test", config.test_share, config.split_seed)
    if config.selection == "final":
        parts["val"] = parts["test"]
    elif "val" not in parts:
        hold_out("val", config.val_share, config.split_seed + 1)
    for split in SPLITS:
        if not len(parts[split].rows):
            raise DataError(f"{config.path}: there are too few images to hold any out for {split}")
    train = parts["train"]
    if config.train_limit is not None and config.train_limit < len(train.rows):
        few = drawn_from(labels["train"][train.rows], config.train_limit, config.split_seed + 2)
        parts["train"] = _Part(
            "train", train.rows[few], f"{len(few)} images of {train.describe}, drawn by seed"
        )
    return parts


def _good_rows(config: Parquet, tables: Mapping[Split, Table]) -> tuple[dict[Split, NDArray[np.int64]], int]:
    """Returns the rows of every split whose images are used, and how many are left out as bad."""
    rows = {split: np.arange(len(table.labels)) for split, table in tables.items()}
    skipped = 0
    if config.on_bad_image == "skip":
        for split, table in tables.items():
            good = np.array([_decodes(table, int(row)) for row in rows[split]], dtype=np.bool_)
            skipped += int((~good).sum())
            rows[split] = rows[split][good]
            if not good.any():
                raise DataError(f"{config.path}: not one of {len(good)} {split} images decodes")
    return rows, skipped


def _decodes(table: Table, row: int) -> bool:
    try:
        table.read(row)
    except DataError:
        return False
    return True


def _data_name(path: str) -> str:
    return last_name(path).removesuffix(".parquet") or path


# ---------------------------------------------------------------------------------------------------
# Classes


def _classes(
    path: str, tables: Mapping[Split, Table]
) -> tuple[tuple[str, ...], dict[Split, NDArray[np.int64]], list[str]]:
    """Returns the classes, the labels of every source split in their numbers, and notices.

    Raises:
      DataError: splits have different classes, or numbers without names are no numbering of classes.
    """
    labels = {split: table.labels for split, table in tables.items()}
    names = {split: table.class_names for split, table in tables.items()}
    notices: list[str] = []
    if not any(names.values()):
        return _numbered(path, labels), labels, notices
    if (wanted := names["train"]) is None:
        raise DataError(f"{path}: the training files store no class names, and those of other splits do")
    for split, table in tables.items():
        if table.class_names is None:
            _check_range(table, len(wanted))
            notices.append(f"{split}: its files store no class names; its numbers count as those of train")
        labels[split] = mapped(f"{path} ({split})", table.labels, table.class_names, wanted)
        if not np.array_equal(labels[split], table.labels):
            notices.append(f"{split}: its files number the classes differently; mapped by name")
    return wanted, labels, notices


def _check_range(table: Table, num_classes: int) -> None:
    if (bad := np.flatnonzero((table.labels < 0) | (table.labels >= num_classes))).size:
        raise DataError(
            f"{table.files[0]}: row {bad[0]} has label {table.labels[bad[0]]}, outside the {num_classes} "
            f"classes of the training files"
        )


def _numbered(path: str, labels: Mapping[Split, NDArray[np.int64]]) -> tuple[str, ...]:
    """Returns the numbers 0 to the largest label as names, if most of them are labels of images.

    Raises:
      DataError: a label is below 0, or most numbers are no label.
    """
    there = np.unique(np.concatenate(list(labels.values())))
    if there[0] < 0:
        raise DataError(f"{path}: holds the label {there[0]}, which is no class")
    num_classes = int(there[-1]) + 1
    if 2 * len(there) < num_classes or num_classes > MAX_CLASSES:
        shown = ", ".join(map(str, there[:4])) + (", ..." if len(there) > 4 else "")
        raise DataError(
            f"{path}: the files store no class names, and the labels {shown} are no numbering: {len(there)} "
            f"of the numbers 0 to {num_classes - 1} are used. Number them from 0, or store names"
        )
    return tuple(str(label) for label in range(num_classes))


def _check_teaches(path: str, splits: Mapping[Split, Images], parts: Mapping[Split, _Part]) -> None:
    """Raises `DataError` if a split is of one class: its error says nothing, and chance is no error at all.

    Held-out images are of all classes that have two images or more, so only files of one class are refused.
    """
    if len(np.unique(splits["train"].labels)) == 1:
        raise DataError(f"{path}: all training images are of one class, so there is nothing to learn")
    for split in ("val", "test"):
        if parts[split].source != "train" and len(np.unique(splits[split].labels)) == 1:
            raise DataError(
                f"{path}: all images of {parts[split].describe} are of one class, as where labels are not "
                "published: leave the file out, or name others under `splits`"
            )


def _without_bytes(tables: Mapping[Split, Table]) -> str:
    """Describes images without bytes, by their digests. Returns "" if there are none."""
    for table in tables.values():
        digests = table.digests()
        empty = np.flatnonzero((digests == 0).all(axis=1) | (digests == NO_BYTES).all(axis=1))
        if len(empty):
            return (
                f"{table.describe}: {len(empty)} of {len(digests)} images have no bytes, the first is row "
                f"{empty[0]}; images stored as paths only are not supported. To leave them out:  "
                "data.on_bad_image: skip"
            )
    return ""


def _missing_classes(class_names: Sequence[str], splits: Mapping[Split, Images]) -> Iterator[str]:
    """Yields notices of classes without training images."""
    there = np.unique(splits["train"].labels)
    empty = np.setdiff1d(np.arange(len(class_names)), there)
    if not len(empty):
        return
    yield (
        f"{len(empty)} of {len(class_names)} classes have no training image: {_quoted(class_names, empty)}"
        + ("; do the labels begin at 1?" if empty.tolist() == [0] else "")
    )
    for split in ("val", "test"):
        labels = splits[split].labels
        if strange := int(np.isin(labels, empty).sum()):
            yield f"{strange} of {len(labels)} {split} images are of classes without training images"


def _quoted(class_names: Sequence[str], numbers: NDArray[np.int64]) -> str:
    shown = ", ".join(repr(class_names[number]) for number in numbers[:3])
    return shown + (", ..." if len(numbers) > 3 else "")


def _nearly_black(tables: Mapping[Split, Table]) -> Iterator[str]:
    """Yields notices of splits whose files all begin with a nearly black image of 16 bits a colour."""
    for split, table in tables.items():
        firsts = [data for data in table.first_images() if data]
        if firsts and all(map(_is_dark, firsts)):
            yield (
                f"{split}: the first image of {table.describe} is nearly black, as pictures of 12 bits "
                "stored in 16 bits a colour are"
            )


def _is_dark(data: bytes) -> bool:
    try:
        image = decode(data)
    except DataError:
        return False
    return bool(image.info["deep"]) and is_nearly_black(image)


def _repeated(tables: Mapping[Split, Table], labels: Mapping[Split, NDArray[np.int64]]) -> Iterator[str]:
    """Yields notices of images that are there twice, byte for byte, and so may be learnt and tested on."""
    digests = {split: table.digests() for split, table in tables.items()}
    if repeated := num_repeated(digests["train"]):
        yield (
            f"{repeated} of {len(digests['train'])} train images equal an earlier one; held-out images may "
            "be among those learnt"
        )
        if contrary := num_contrary(digests["train"], labels["train"]):
            yield f"{contrary} train images are there under several labels, byte for byte"
    for split in ("val", "test"):
        if split in digests and (shared := num_shared(digests[split], digests["train"])):
            yield f"{shared} of {len(digests[split])} {split} images are train images, too"
