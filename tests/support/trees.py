"""Folders of pictures, and imports of them."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainables.base import DataError
from trainables.data.packing import Imported, import_folder


def picture(kind: str = "PNG", size: tuple[int, int] = (3, 2), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (9, 99, 9)).save(buffer, kind, **options)
    return buffer.getvalue()


def plant(root: Path, *names: str, data: bytes | None = None) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture() if data is None else data)
    return root


def imported(root: Path, target: str = "out", **options: Any) -> Imported:
    return import_folder(root, root.parent / target, **options)


def fault_of(root: Path, target: str = "out", **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        imported(root, target, **options)
    assert not (root.parent / target).exists() or not list((root.parent / target).iterdir())
    return str(caught.value).replace(f"{root}", "ROOT")


LOOSE = "in no folder of a class"


def reasons(result: Imported, root: Path) -> dict[str, str]:
    return {os.path.relpath(path, root): reason for path, reason in result.left_out.items()}
