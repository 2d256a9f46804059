"""Data sets, their splits, and batches whose every sample is a function of (seed, epoch, position).

Shape suffixes: B batch, C channels, H W image side.
"""

import dataclasses
import functools
import hashlib
import io
import math
import os
import posixpath
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from trainables.base import SPLITS, DataError, DataInfo, Frozen, Split, derive_seed
from trainables.io.storage import Place, open_filesystem
from trainables.tasks.base import Task
from trainables.tasks.classification import Classification

#: An image of more pixels is refused undecoded: a few kilobytes can ask for gigabytes.
MAX_PIXELS = 2**26

#: So is a JPEG of more scans. Each costs a pass over the whole picture and may be a few bytes long: 80 KB can
#: ask for minutes. Progressive JPEGs have about ten.
MAX_SCANS = 100

#: Kinds of images that are read. Others that PIL knows are rare, and some start other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def with_chance(info: DataInfo, task: Task) -> DataInfo:
    """Fills in the error of guessing, which the task tells from all the rest."""
    return dataclasses.replace(info, chance_error_pct=task.chance_error_pct(info))


@dataclass(frozen=True, eq=False)
class Images:
    """One split: labels at hand, images on demand.

    Attributes:
      labels: class of every image.
      read: the image at a position, PIL, RGB.
    """

    labels: NDArray[np.int64]
    read: Callable[[int], Image.Image] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as 8-bit RGB: grey, palette, transparency, CMYK, 16 bits a channel."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        # PIL clips these at 255; the eye, and a network, want them scaled.
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode == "F":
        return Image.fromarray((np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "PA", "LA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def decode(data: bytes) -> Image.Image:
    """The picture in an encoded image file, as RGB; of an animation the first one.

    The bytes may be anybody's: size and kind are looked at before anything is decoded.

    Raises:
      DataError: the bytes are no image of FORMATS, are cut off, or ask for more than MAX_PIXELS or MAX_SCANS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"has {image.width} x {image.height} pixels, over {MAX_PIXELS}")
                # In what a scan encodes, these two bytes cannot follow each other.
                if image.format in ("JPEG", "MPO") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
                    raise DataError(f"has {scans} scans, over {MAX_SCANS}")
                image.load()
                return to_rgb(image)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"has over {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        # PIL's own words are about the address of a buffer.
        raise DataError("does not decode: it is no image of a kind that is known") from error
    # PIL raises whatever its format plug-ins do on hostile bytes: OSError, SyntaxError, struct.error...
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"does not decode: {told[:200]}") from error


def held_out(
    labels: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions that stay and positions held out, `share` of every class, at least one of each.

    A class of a single image stays whole.
    """
    rng = np.random.default_rng(seed)
    out = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        out.append(members[:count])
    held = np.sort(np.concatenate(out))
    return np.setdiff1d(np.arange(len(labels)), held), held


def drawn_from(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """`count` positions, every class in proportion to within one image (largest remainders)."""
    rng = np.random.default_rng(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    whole, rest = np.divmod(sizes * count, len(labels))
    whole[np.argsort(-rest, kind="stable")[: count - whole.sum()]] += 1
    drawn = [
        rng.permutation(np.flatnonzero(labels == label))[:size]
        for label, size in zip(classes, whole, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


class Digits(Frozen):
    """scikit-learn's digits: 1,797 real 8x8 scans of ten handwritten digits, inside its wheel."""

    task: ClassVar[Task] = Classification()
    name: Literal["digits"] = "digits"
    val_share: float = Field(1 / 6, gt=0, lt=0.5, description="Share of all images used for selection.")
    test_share: float = Field(1 / 6, gt=0, lt=0.5, description="Share of all images kept for the end.")
    split_seed: int = Field(
        0, ge=0, description="Which images go to which split; no trial's seed changes it."
    )

    def info(self) -> DataInfo:
        """Sizes, classes and fingerprint."""
        splits = _digits_splits(self)
        shares = {"train": "the rest", "val": "held out by seed", "test": "held out by seed"}
        info = DataInfo(
            name="digits",
            num_classes=10,
            class_names=tuple("0123456789"),
            sizes={split: len(splits[split]) for split in SPLITS},
            splits={split: f"scikit-learn digits, {shares[split]}" for split in SPLITS},
            fingerprint=_digest(
                *(splits[split].labels.tobytes() for split in SPLITS), _digits()[0].tobytes()
            ),
        )
        return with_chance(info, self.task)

    def open(self) -> dict[Split, Images]:
        """The images of every split."""
        return _digits_splits(self)


@functools.cache
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Grey levels 0 to 16.
    return (bunch.images * 255 / 16).round().astype(np.uint8), bunch.target.astype(np.int64)


@functools.cache
def _digits_splits(config: Digits) -> dict[Split, Images]:
    pixels, labels = _digits()
    rest, test = held_out(labels, config.test_share, config.split_seed)
    share = config.val_share / (1 - config.test_share)
    train, val = (rest[part] for part in held_out(labels[rest], share, config.split_seed + 1))

    def images(rows: NDArray[np.int64]) -> Images:
        return Images(labels[rows], lambda i: Image.fromarray(pixels[rows[i]]).convert("RGB"))

    return {"train": images(train), "val": images(val), "test": images(test)}


class Expected(Frozen):
    """What data must hold to be those that a file means, so that it can be planned where they are not.

    Numbers of images count to within `EXPECTED_WITHIN`: copies of one set differ by a few broken files.
    """

    classes: int = Field(gt=1, description="Classes; exactly so many.")
    train: int = Field(gt=0, description="Training images, before any are held out.")
    val: int | None = Field(None, gt=0, description="Images of a validation split; none if left out.")
    test: int | None = Field(None, gt=0, description="Images of a test split; none if left out.")

    def _sizes(self) -> dict[Split, int]:
        sizes: dict[Split, int | None] = {"train": self.train, "val": self.val, "test": self.test}
        return {split: size for split, size in sizes.items() if size is not None}

    def check(self, path: str, num_classes: int, sizes: Mapping[Split, int]) -> None:
        """Raises `DataError` if the data at a path are others."""
        wrong = [f"{num_classes} classes, not {self.classes}"] if num_classes != self.classes else []
        expected = self._sizes()
        for split in SPLITS:
            found, wanted = sizes.get(split, 0), expected.get(split, 0)
            if abs(found - wanted) > EXPECTED_WITHIN * wanted:
                wrong.append(f"{found:,} {split} images, not {wanted:,}")
        if wrong:
            raise DataError(f"{path}: these are not the data that `expects` describes: {'; '.join(wrong)}")


#: Largest share by which a number of images may differ from what is expected.
EXPECTED_WITHIN = 0.05


class Parquet(Frozen):
    """Parquet files in the Hugging Face image layout, on any storage pyarrow can open.

    A column of structs {bytes, path} holds encoded images, an integer column their labels; class names
    stand in the `huggingface` metadata. Files are told apart by name: train*, val* or validation*,
    test*. A split that is missing is held out: selection from train, the final one too if need be.
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
        None, description="What they must hold; with it, a sweep can be planned where they do not lie."
    )

    def lies_there(self) -> bool:
        """Whether there is anything at the path.

        Raises:
          DataError: the storage cannot be asked.
        """
        filesystem, inner = open_filesystem(self.path)
        try:
            return bool(filesystem.get_file_info(inner).type != pyarrow.fs.FileType.NotFound)
        except OSError as error:
            raise DataError(f"{self.path}: {error}") from error

    def expected_info(self) -> DataInfo:
        """What `info` would tell of data as expected, for plans; held-out sizes to within a few images.

        Raises:
          DataError: nothing is expected.
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
            fingerprint="expected " + _digest(repr(sorted(sizes.items())).encode()),
        )
        return with_chance(info, self.task)

    def info(self) -> DataInfo:
        """Sizes, classes and fingerprint; reads labels and footers, no image unless bad ones are skipped.

        Raises:
          DataError: no files, not Parquet, columns missing or of another type, labels outside the classes.
        """
        return _parquet(self).info

    def open(self) -> dict[Split, Images]:
        """The images of every split."""
        return _parquet(self).images


@dataclass(frozen=True)
class _ParquetData:
    info: DataInfo
    images: dict[Split, Images]


@dataclass(frozen=True)
class _Table:
    """The rows of one source split: labels in memory, images where they lie."""

    files: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    fingerprint: str
    read: Callable[[int], Image.Image]
    describe: str


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()[:16]


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


#: Encoded images up to this size are held in memory; above, a memory-mapped copy is made once.
IN_MEMORY_BYTES = 2**30


def cache_folder() -> Path:
    """Where decoded copies of large data sets go; VITC_SWEEP_CACHE overrides."""
    return Path(os.environ.get("VITC_SWEEP_CACHE", "~/.cache/vitc-sweep")).expanduser()


def _read_images(
    filesystem: pyarrow.fs.FileSystem, names: list[str], column: str, num_bytes: int, fingerprint: str
) -> pa.ChunkedArray:
    """The encoded images of some files, for random access."""

    def batches() -> Any:
        for name in names:
            with pq.ParquetFile(name, filesystem=filesystem) as file:
                for batch in file.iter_batches(batch_size=256, columns=[column]):
                    yield pc.struct_field(batch.column(0), "bytes").cast(pa.large_binary())

    if num_bytes <= IN_MEMORY_BYTES:
        return pa.chunked_array(list(batches()), type=pa.large_binary())
    # Parquet cannot be read row by row in a shuffled order; an Arrow file under the page cache can.
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


def _read_table(filesystem: pyarrow.fs.FileSystem, names: list[str], config: Parquet) -> _Table:
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
    fingerprint = _digest(all_labels.tobytes(), *footers, *_samples(filesystem, names, config))
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
    """The first image of every file: footers alone would not notice pixels changed in place."""
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
    tables = {split: _read_table(*files, config) for split, files in _find_files(config.path).items()}
    classes = {split: table.class_names for split, table in tables.items()}
    if any(names != classes["train"] for names in classes.values()):
        counts = ", ".join(f"{split} {len(names)}" for split, names in classes.items())
        # Without names in the metadata a small split may just miss the last classes.
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
        # One evaluation split, as ImageNet has: the final number is taken there.
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
        fingerprint=_digest(
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


class ShiftedSet(Frozen):
    """Other images of the training classes, or of some of them, for the end of a run.

    ImageNet-V2, -R, -A and -Sketch, say: Parquet files in the Hugging Face image layout, or a folder of
    images per class, on any storage pyarrow can open. Its classes are found among the training classes
    by name; where it has some of them only (200 in -R and -A), answers are taken among those only.
    """

    name: str = Field(pattern="^[a-z][a-z0-9_]*$", description="What its error is called in the results.")
    uri: Place = Field(min_length=1, description="A Parquet file, a folder of them, or of class folders.")
    image_column: str = Field("image", description="Column of structs with `bytes`.")
    label_column: str = Field("label", description="Column of class numbers.")
    training_names: Literal["own", "imagenet_wnids"] = Field(
        "own",
        description="own: its class names are those of the training data. imagenet_wnids: they are WordNet "
        "ids (n01440764), and the training labels number these as ImageNet-1k does.",
    )

    def open(self, class_names: Sequence[str]) -> "Shifted":
        """Its images under the labels of the training data.

        Args:
          class_names: of the training data, in the order of its labels.

        Raises:
          DataError: no images, no class names, or a class that the training data lack.
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
        labels, names, read = self._read()
        present = np.unique(labels)
        index = {name: number for number, name in enumerate(class_names)}
        if unknown := [names[label] for label in present if names[label] not in index]:
            raise DataError(
                f"{self.uri}: {len(unknown)} of {len(present)} classes are not among the training classes: "
                f"{', '.join(unknown[:5])}" + (", ..." if len(unknown) > 5 else "")
            )
        numbers = np.array([index.get(name, -1) for name in names], dtype=np.int64)
        return Shifted(Images(numbers[labels], read), np.unique(numbers[present]))

    def _read(self) -> tuple[NDArray[np.int64], Sequence[str], Callable[[int], Image.Image]]:
        """Labels, the names they stand for, and the image of a row."""
        filesystem, inner = open_filesystem(self.uri)
        try:
            kind = filesystem.get_file_info(inner).type
            if kind == pyarrow.fs.FileType.NotFound:
                raise DataError(f"{self.uri}: there is no such file or folder")
            files = [inner]
            if kind == pyarrow.fs.FileType.Directory:
                found = filesystem.get_file_info(pyarrow.fs.FileSelector(inner, recursive=True))
                files = sorted(entry.path for entry in found if entry.type == pyarrow.fs.FileType.File)
        except OSError as error:
            raise DataError(f"{self.uri}: {error}") from error
        if tables := [path for path in files if path.endswith(".parquet")]:
            config = Parquet(path=self.uri, image_column=self.image_column, label_column=self.label_column)
            table = _read_table(filesystem, tables, config)
            return table.labels, table.class_names, table.read
        # A folder per class: whatever lies directly in the folder is no image of one.
        inside = [(path, path.removeprefix(inner).strip("/").split("/")) for path in files]
        images = [
            (path, parts[0])
            for path, parts in inside
            if len(parts) > 1 and parts[-1].lower().endswith(IMAGE_EXTENSIONS)
        ]
        if not images:
            raise DataError(f"{self.uri}: holds no Parquet files and no images in folders of classes")
        names = sorted({name for _, name in images})
        labels = np.array([names.index(name) for _, name in images], dtype=np.int64)

        def read(row: int) -> Image.Image:
            path, _ = images[row]
            try:
                with filesystem.open_input_stream(path) as stream:
                    return decode(stream.read())
            except (DataError, OSError) as error:
                raise DataError(f"{path} {error}") from error

        return labels, names, read


@dataclass(frozen=True)
class Shifted:
    """A shifted set, ready to be asked.

    Attributes:
      images: labelled with the numbers of the training classes.
      classes: the training classes it has, ascending; only these may be answered.
    """

    images: Images
    classes: NDArray[np.int64]


IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def import_folder(source: Path, target: Path) -> tuple[int, tuple[str, ...]]:
    """Writes an ImageFolder tree (one folder of images per class) as one Parquet file.

    Bytes are copied as they are; each image is decoded once to see that it can be.

    Returns:
      How many images, and the class names in label order.

    Raises:
      DataError: no class folders, no images, or one that does not decode; nothing is written then.
    """
    import json

    if not source.is_dir():
        raise DataError(f"{source}: there is no such folder")
    class_names = tuple(sorted(entry.name for entry in source.iterdir() if entry.is_dir()))
    files = [
        (path, label)
        for label, name in enumerate(class_names)
        for path in sorted((source / name).rglob("*"))
        if path.is_file() and path.suffix.lower() in IMAGE_EXTENSIONS
    ]
    if not files:
        raise DataError(f"{source}: holds no images in folders, one folder per class")
    features = {"image": {"_type": "Image"}, "label": {"names": class_names, "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    partial = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            for start in range(0, len(files), 1024):
                images, labels = [], []
                for path, label in files[start : start + 1024]:
                    data = path.read_bytes()
                    try:
                        decode(data)
                    except DataError as error:
                        raise DataError(f"{path} {error}") from error
                    images.append({"bytes": data, "path": path.relative_to(source).as_posix()})
                    labels.append(label)
                writer.write_batch(
                    pa.record_batch([pa.array(images, schema.field(0).type), pa.array(labels)], schema=schema)
                )
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return len(files), class_names


def num_steps(num_samples: int, batch_size: int) -> int:
    """Optimizer steps in one epoch."""
    return math.ceil(num_samples / batch_size)


def share_of(values: NDArray[np.int64], index: int, count: int) -> NDArray[np.int64]:
    """Part `index` of `count` nearly equal parts: sizes differ by at most one, nothing is lost."""
    return values[len(values) * index // count : len(values) * (index + 1) // count]


def epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which epoch `epoch` visits the samples: a function of its arguments alone."""
    return np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(num_samples)


def step_samples(
    order: NDArray[np.int64], batch_size: int, step: int, rank: int, world_size: int
) -> NDArray[np.int64]:
    """What one rank sees in one step.

    An epoch is cut into equal steps of at most `batch_size` rather than full ones and a rest, so every
    sample is seen exactly once and no step is too small for batch normalisation.
    """
    batch = share_of(order, step, num_steps(len(order), batch_size))
    return share_of(batch, rank, world_size)


class Collected:
    """Images of one size as bytes in memory, on the device where they are used."""

    def __init__(self, pixels_NCHW: Tensor, labels_N: Tensor) -> None:
        self.pixels_NCHW = pixels_NCHW
        self.labels_N = labels_N

    def __len__(self) -> int:
        return len(self.labels_N)


def collect(images: Images, prepare: Callable[[Image.Image], Tensor], device: torch.device) -> Collected:
    """Decodes and prepares a whole split once.

    Args:
      images: the split.
      prepare: a picture to uint8 of shape (3, side, side).
      device: where the bytes are to lie.
    """
    first = prepare(images.read(0))
    pixels = torch.empty((len(images), *first.shape), dtype=torch.uint8)
    pixels[0] = first
    for row in range(1, len(images)):
        pixels[row] = prepare(images.read(row))
    return Collected(pixels.to(device), torch.from_numpy(images.labels).to(device))
