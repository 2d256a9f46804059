"""Packs a folder of images into one Parquet file."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainables.base import DataError
from trainables.data.decode import IMAGE_EXTENSIONS, decode


def import_folder(source: Path, target: Path) -> tuple[int, tuple[str, ...]]:
    """Writes an ImageFolder tree (one folder of images per class) as one Parquet file.

    Bytes are copied unchanged. Each image is decoded once to check it.

    Returns:
      The number of images, and the class names in label order.

    Raises:
      DataError: there are no class folders or no images, or an image does not decode. No file is written.
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
