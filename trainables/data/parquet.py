"""Data sets of Parquet files: finds their splits, checks their columns, and reads their images."""

import functools
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from trainables.base import SPLITS, DataError, DataInfo, Frozen, Split
from trainables.data.base import Images, digest_of, drawn_from, held_out, with_chance
from trainables.data.cache import IN_MEMORY_BYTES, cache_folder
from trainables.data.decode import decode
from trainables.io.storage import Place, open_filesystem
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
    come from the `huggingface` metadata. The name of a file decides its split: train*, val* or validation*,
    test*. A missing split is held out: the selection split from train, and the final split too if necessary.
    """

    task: ClassVar[Task] = Classification()
    name: Literal["parquet"] = "parquet"
    path: Place = Field(min_length=1, description="A file, or a folder of files; a local path or a URI.")
    image_column: str = Field("image", description="Column of structs with `bytes`.")
    label_column: str = Field("label", description="Column of class numbers.")
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
    split_seed: int = Field(0, ge=0, description="Which images are held out; no trial's seed changes it.")
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
        return _parquet(self).info

    def open(self) -> dict[Split, Images]:
        """Returns the images of every split."""
        return _parquet(self).images


@dataclass(frozen=True)
class _ParquetData:
    info: DataInfo
    images: dict[Split, Images]


@dataclass(frozen=True)
class _Table:
    """The rows of one source split: labels in memory, images read on demand."""

    files: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    fingerprint: str
    read: Callable[[int], Image.Image]
    describe: str


def _find_files(path: str) -> dict[Split, tuple[pyarrow.fs.FileSystem, list[str]]]:
    filesystem, inner = open_filesystem(path)
    try:
        found = filesystem.get_file_info(inner)
        if found.type == pyarrow.fs.FileType.File:
            return {"train": (filesystem, [inner])}
        if found.type != pyarrow.fs.FileType.Directory:
            raise DataError(f"{path}: there is no such file or folder")
        listed = filesystem.get_file_info(pyarrow.fs.FileSelector(inner, recursive=True))
    except OSError as error:
        raise DataError(f"{path}: {error}") from error
    files: dict[Split, list[str]] = {}
    for entry in sorted(listed, key=lambda entry: entry.path):
        base = posixpath.basename(entry.path)
        if entry.type == pyarrow.fs.FileType.File and base.endswith(".parquet"):
            for split in SPLITS:
                if base.startswith(split):
                    files.setdefault(split, []).append(entry.path)
    if "train" not in files:
        raise DataError(f"{path}: holds no file named train*.parquet")
    return {split: (filesystem, names) for split, names in files.items()}


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    import json

    metadata = (schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(metadata)["info"]["features"][label_column]["names"] if metadata else None
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if names else None


def _read_images(
    filesystem: pyarrow.fs.FileSystem, names: list[str], column: str, num_bytes: int, fingerprint: str
) -> pa.ChunkedArray:
    """Reads the encoded images of some files, for random access."""

    def batches() -> Any:
        for name in names:
            with pq.ParquetFile(name, filesystem=filesystem) as file:
                for batch in file.iter_batches(batch_size=256, columns=[column]):
                    yield pc.struct_field(batch.column(0), "bytes").cast(pa.large_binary())

    if num_bytes <= IN_MEMORY_BYTES:
        return pa.chunked_array(list(batches()), type=pa.large_binary())
    # A copy in an Arrow file, because Parquet does not allow fast reads of single rows in random order.
    path = cache_folder() / f"{fingerprint}.arrow"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        schema = pa.schema([("bytes", pa.large_binary())])
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in batches():
                writer.write_batch(pa.record_batch([batch], schema=schema))
        os.replace(partial, path)
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)


def read_table(filesystem: pyarrow.fs.FileSystem, names: list[str], config: Parquet) -> _Table:
    labels, footers, bounds, num_bytes = [], [], [0], 0
    class_names: tuple[str, ...] | None = None
    for name in names:
        try:
            with pq.ParquetFile(name, filesystem=filesystem) as file:
                schema, metadata = file.schema_arrow, file.metadata
                _check_columns(name, schema, config)
                column = file.read(columns=[config.label_column]).column(0)
                class_names = class_names or _class_names(schema, config.label_column)
                num_bytes += sum(
                    metadata.row_group(g).total_byte_size for g in range(metadata.num_row_groups)
                )
                footers.append(f"{metadata.num_rows} {metadata.serialized_size}".encode())
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{name}: is not a readable Parquet file: {error}") from error
        if column.null_count:
            raise DataError(f"{name}: column {config.label_column!r} has {column.null_count} empty labels")
        labels.append(column.to_numpy().astype(np.int64))
        bounds.append(bounds[-1] + len(column))
    all_labels = np.concatenate(labels)
    if not len(all_labels):
        raise DataError(f"{names[0]}: holds no rows")
    if class_names is None:
        class_names = tuple(str(label) for label in range(int(all_labels.max()) + 1))
    bad = np.flatnonzero((all_labels < 0) | (all_labels >= len(class_names)))
    if len(bad):
        place, row = _locate(names, bounds, int(bad[0]))
        raise DataError(
            f"{place}: row {row} has label {all_labels[bad[0]]}, outside the {len(class_names)} classes "
            f"0 to {len(class_names) - 1} ({len(bad)} such row(s))"
        )
    fingerprint = digest_of(all_labels.tobytes(), *footers, *_samples(filesystem, names, config))
    load = functools.cache(
        lambda: _read_images(filesystem, names, config.image_column, num_bytes, fingerprint)
    )

    def read(row: int) -> Image.Image:
        try:
            data = load()[row].as_py()
            if data is None:
                raise DataError("has no bytes; images stored as paths only are not supported")
            return decode(data)
        except (DataError, pa.ArrowException, OSError) as error:
            place, local = _locate(names, bounds, row)
            raise DataError(f"{place}: row {local} {error}") from error

    shown = posixpath.basename(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    return _Table(tuple(names), all_labels, class_names, fingerprint, read, shown)


def _locate(names: Sequence[str], bounds: Sequence[int], row: int) -> tuple[str, int]:
    index = int(np.searchsorted(bounds, row, side="right")) - 1
    return names[index], row - bounds[index]


def _samples(filesystem: pyarrow.fs.FileSystem, names: list[str], config: Parquet) -> list[bytes]:
    """Reads the first image of every file, because footers alone do not show pixels changed in place."""
    samples = []
    for name in names:
        with pq.ParquetFile(name, filesystem=filesystem) as file:
            batch = next(file.iter_batches(batch_size=1, columns=[config.image_column]), None)
            if batch is not None:
                samples.append(pc.struct_field(batch.column(0), "bytes")[0].as_py() or b"")
    return samples


def _check_columns(name: str, schema: pa.Schema, config: Parquet) -> None:
    for column in (config.image_column, config.label_column):
        if column not in schema.names:
            raise DataError(f"{name}: has no column {column!r}, only {schema.names}")
    image = schema.field(config.image_column).type
    if not (pa.types.is_struct(image) and image.get_field_index("bytes") >= 0):
        raise DataError(f"{name}: column {config.image_column!r} must be a struct with `bytes`, is {image}")
    if not pa.types.is_integer(label := schema.field(config.label_column).type):
        raise DataError(f"{name}: column {config.label_column!r} must hold integers, holds {label}")


def _data_name(path: str) -> str:
    return posixpath.basename(path.rstrip("/")).removesuffix(".parquet") or path


@functools.lru_cache(maxsize=8)
def _parquet(config: Parquet) -> _ParquetData:
    tables = {split: read_table(*files, config) for split, files in _find_files(config.path).items()}
    classes = {split: table.class_names for split, table in tables.items()}
    if any(names != classes["train"] for names in classes.values()):
        counts = ", ".join(f"{split} {len(names)}" for split, names in classes.items())
        # Without names in the metadata, a small split may merely lack the last classes.
        if any(not all(n.isdigit() for n in names) for names in classes.values()):
            raise DataError(f"{config.path}: the splits have different classes ({counts})")
    class_names = max(classes.values(), key=len)
    if config.expects is not None:
        sizes = {split: len(table.labels) for split, table in tables.items()}
        config.expects.check(config.path, len(class_names), sizes)

    rows = {split: np.arange(len(table.labels)) for split, table in tables.items()}
    skipped = 0
    if config.on_bad_image == "skip":
        for split, table in tables.items():
            good = np.array([_decodes(table, int(row)) for row in rows[split]], dtype=np.bool_)
            skipped += int((~good).sum())
            rows[split] = rows[split][good]
            if not good.any():
                raise DataError(f"{config.path}: not one of {len(good)} {split} images decodes")
    parts = {split: (tables[split], rows[split], tables[split].describe) for split in tables}

    def hold_out(target: Split, share: float, seed: int) -> None:
        table, kept, described = parts["train"]
        stay, out = held_out(table.labels[kept], share, seed)
        parts["train"] = (table, kept[stay], described)
        parts[target] = (table, kept[out], f"{share:.0%} of {table.describe}, held out by seed")

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
        if not len(parts[split][1]):
            raise DataError(f"{config.path}: there are too few images to hold any out for {split}")
    table, kept, described = parts["train"]
    if config.train_limit is not None and config.train_limit < len(kept):
        few = drawn_from(table.labels[kept], config.train_limit, config.split_seed + 2)
        parts["train"] = (table, kept[few], f"{len(few)} images of {described}, drawn by seed")

    def images(split: Split) -> Images:
        table, kept, _ = parts[split]
        return Images(table.labels[kept], lambda i: table.read(int(kept[i])))

    info = DataInfo(
        name=_data_name(config.path),
        num_classes=len(class_names),
        class_names=class_names,
        sizes={split: len(parts[split][1]) for split in SPLITS},
        splits={split: parts[split][2] for split in SPLITS},
        fingerprint=digest_of(
            *(tables[split].fingerprint.encode() for split in SPLITS if split in tables),
            *(parts[split][1].tobytes() for split in SPLITS),
        ),
        skipped=skipped,
    )
    return _ParquetData(with_chance(info, config.task), {split: images(split) for split in SPLITS})


def _decodes(table: _Table, row: int) -> bool:
    try:
        table.read(row)
    except DataError:
        return False
    return True
