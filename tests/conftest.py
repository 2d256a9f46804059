"""What several test files share: one CPU thread, examples that do not change, tiny runs and data sets."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch is imported, and for the processes that tests start: results depend on it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from PIL import Image

settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")


@pytest.fixture
def run_tree() -> Callable[..., dict[str, Any]]:
    """A run of a few seconds on digits as the tree of its file; settings by dotted path on top."""
    from trainables.config import set_paths

    def make(**settings: Any) -> dict[str, Any]:
        tree: dict[str, Any] = {
            "model": {"family": "vit", "image_size": 16, "patch_size": 8, "width": 16, "depth": 2},
            "data": "digits",
            "optim": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.1},
            "schedule": {"epochs": 2},
            "batch_size": 128,
        }
        tree["model"] |= {"heads": 2, "mlp_ratio": 2}
        set_paths(tree, {path.replace("__", "."): value for path, value in settings.items()})
        return tree

    return make


def png(pixels: Any, mode: str | None = None) -> bytes:
    """An array or image as the bytes of a PNG file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels, np.uint8), mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Writes images and labels in the Hugging Face layout; returns the file."""

    def write(
        name: str, images: list[bytes | None], labels: list[int], classes: list[str] | None = None
    ) -> Path:
        features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})} if classes else None
        image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        schema = pa.schema([("image", image_type), ("label", pa.int64())], metadata=metadata)
        rows = [{"bytes": data, "path": None} for data in images]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.table([pa.array(rows, image_type), pa.array(labels, pa.int64())], schema=schema), path
        )
        return path

    return write


@pytest.fixture
def png_bytes() -> Callable[..., bytes]:
    """An array or image as the bytes of a PNG file."""
    return png
