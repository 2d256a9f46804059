"""Folders of pictures: what becomes a data set, what is left out, and what is refused."""

import io
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from typer.testing import CliRunner

import orchestrator.cli
from trainables.base import DataError
from trainables.data import packing
from trainables.data.decode import decode
from trainables.data.packing import Imported, import_folder
from trainables.data.parquet import Parquet


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


def reasons(result: Imported, root: Path) -> dict[str, str]:
    return {os.path.relpath(path, root): reason for path, reason in result.left_out.items()}


# --- trees --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", ["", "photos/", "a/b/"])
@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "validation", "holdout"), ("train", "dev", "eval")]
)
def test_folders_of_splits_become_splits(tmp_path, names, wrapped):
    root = tmp_path / "tree"
    for count, split in enumerate(names, 1):
        for i in range(count):
            plant(root, f"{wrapped}{split}/cat/{i}.png", f"{wrapped}{split}/dog/{i}.png")
    result = imported(root)
    assert result.counts == {"train": [1, 1], "val": [2, 2], "test": [3, 3]}
    assert result.classes == ("cat", "dog")
    info = Parquet(path=str(tmp_path / "out")).info()
    assert info.sizes == {"train": 2, "val": 4, "test": 6}


def test_classes_may_have_the_names_of_splits(tmp_path):
    # Vehicles: the folder `train` holds pictures, and no folders of classes.
    root = plant(tmp_path / "tree", *(f"{name}/{i}.png" for name in ("train", "bus") for i in range(3)))
    assert imported(root, "out.parquet").classes == ("bus", "train")


def test_splits_want_a_folder_and_the_message_has_the_command(tmp_path):
    root = plant(tmp_path / "tree", "train/a/0.png", "train/b/0.png", "val/a/0.png")
    fault = fault_of(root, "out.parquet")
    assert f"vitc-sweep data import ROOT {tmp_path}/out" in fault


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["cat/0.png"], "ROOT: holds one class only, 'cat'"),
        (["photos/cat/0.png"], "ROOT/photos: holds one class only, 'cat'"),
        (["0.png", "1.png"], "ROOT: holds no folders with images"),
        (["train/a/0.png", "train/b/0.png", "val/c/0.png"], "ROOT: val has 'c', and train has no class"),
        (["val/a/0.png", "test/b/0.png"], "ROOT: holds 'test', 'val' and no folder `train`"),
        (
            ["train/a/0.png", "train/b/0.png", "val/a/0.png", "valid/a/0.png"],
            "ROOT: val and valid are both the val split",
        ),
    ],
)
def test_a_tree_that_is_no_set_of_classes_is_refused(tmp_path, names, fault):
    assert fault_of(plant(tmp_path / "tree", *names)).startswith(fault)


def test_what_is_no_picture_of_a_class_is_left_out_and_named(tmp_path):
    root = plant(tmp_path / "tree", "cat/0.png", "cat/deep/er/1.png", "dog/0", "dog/1.jfif")
    plant(root, ".DS_Store", "cat/._0.png", "cat/.ipynb_checkpoints/0.png", "__MACOSX/cat/0.png", "Thumbs.db")
    plant(root, "cat/@eaDir/0.png", "loose.png")
    plant(root, "cat/notes.txt", "dog/labels.json", "empty/readme", data=b"text")
    plant(root, "dog/phone.heic", "dog/new.avif", data=b"\0\0\0\x18ftypheic")
    (root / "nothing").mkdir()
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    (root / "cat" / "loop").symlink_to(root)
    result = imported(root, "out.parquet", threads=3)
    assert (result.num_images, result.classes) == (4, ("cat", "dog"))
    hidden, other = "hidden, or of the system", "a kind of image that is not read"
    assert reasons(result, root) == {
        ".DS_Store": hidden,
        "cat/._0.png": hidden,
        "cat/.ipynb_checkpoints": hidden,
        "__MACOSX": hidden,
        "Thumbs.db": hidden,
        "cat/@eaDir": hidden,
        "loose.png": "in no folder of a class",
        "cat/notes.txt": "no image",
        "dog/labels.json": "no image",
        "empty": "a folder without images",
        "nothing": "a folder without images",
        "dog/phone.heic": other,
        "dog/new.avif": other,
        "cat/gone.png": "a link that leads nowhere",
        "cat/loop": "a link to a folder",
    }


def test_all_bad_images_are_listed_at_once_or_left_out(tmp_path):
    root = plant(tmp_path / "tree", *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)))
    plant(root, "cat/cut.png", "dog/cut.jpg", data=picture()[:40])
    fault = fault_of(root)
    assert fault.startswith("2 images cannot be used; --on-bad-image skip leaves them out:\n")
    assert "ROOT/cat/cut.png does not decode" in fault
    assert "ROOT/dog/cut.jpg does not decode" in fault
    result = imported(root, on_bad_image="skip")
    assert result.num_images == 6
    assert set(reasons(result, root).values()) == {"an image that does not decode"}


def test_a_file_that_is_there_is_not_replaced_unasked(tmp_path):
    root = plant(tmp_path / "tree", "cat/0.png", "dog/0.png")
    target = tmp_path / "out.parquet"
    target.write_bytes(b"precious")
    with pytest.raises(DataError, match=r"out\.parquet: is there already; --overwrite replaces it"):
        import_folder(root, target)
    assert target.read_bytes() == b"precious"
    import_folder(root, target, overwrite=True)
    assert pq.read_table(target).num_rows == 2


def test_the_command_tells_sizes_and_what_was_left_out(tmp_path):
    root = plant(tmp_path / "tree", "cat/0.png", "cat/1.png", "dog/0.png", ".DS_Store")
    (root / "dog" / "wide.png").write_bytes(picture(size=(40, 20)))
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "cat" / "turned.jpg").write_bytes(picture("JPEG", exif=exif))
    done = CliRunner().invoke(
        orchestrator.cli.app, ["data", "import", str(root), str(tmp_path / "out.parquet")]
    )
    assert done.exit_code == 0, done.output
    first, second, third, fourth = done.output.splitlines()
    assert first.startswith(f"{tmp_path}/out.parquet: 5 images, ")
    assert second == "2 classes of 2 to 3 images (cat, dog), sides of 2 to 40 pixels"
    assert third == "1 images are stored turned or mirrored (EXIF); they are read upright"
    assert fourth == "left out 1: hidden, or of the system (1 .DS_Store): .DS_Store"


NAMES = st.sampled_from(
    ["a.png", "b.JPG", "c", "d.txt", ".hidden", "Thumbs.db", "e.heic", "train", "val", "test", "cat", "dog"]
)
CONTENTS = st.sampled_from([picture(), picture("JPEG"), picture()[:30], b"", b"text"])
TREES = st.recursive(CONTENTS, lambda inner: st.dictionaries(NAMES, inner, max_size=5), max_leaves=20)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, TREES, max_size=5))
def test_of_any_tree_every_file_is_in_the_set_or_named(tmp_path_factory, tree):
    root = tmp_path_factory.mktemp("any") / "tree"
    root.mkdir()

    def build(folder: Path, content: dict[str, Any]) -> None:
        for name, inner in content.items():
            if isinstance(inner, bytes):
                (folder / name).write_bytes(inner)
            else:
                (folder / name).mkdir()
                build(folder / name, inner)

    build(root, tree)
    files = {path for path in root.rglob("*") if path.is_file()}
    try:
        result = imported(root, on_bad_image="skip")
    except DataError:
        return
    stored = [
        row["path"] for path in result.files.values() for row in pq.read_table(path)["image"].to_pylist()
    ]
    named = {path for path in files if any(parent in result.left_out for parent in (path, *path.parents))}
    assert len(stored) == len(set(stored)) == result.num_images
    assert {root / name for name in stored} == files - named


# --- pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright_as_its_exif_data_say(kind, orientation):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = (250, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    Image.fromarray(pixels).save(buffer, kind, exif=exif, **options)
    with Image.open(buffer) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    found = decode(buffer.getvalue())
    assert found.size == expected.size
    assert found.tobytes() == expected.tobytes()
    assert found.info["turned"] == (orientation != 1)


def test_damaged_exif_data_do_not_make_a_picture_bad():
    assert decode(picture("JPEG", exif=b"Exif\0\0" + b"\xff" * 40)).size == (3, 2)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
        ([0.0, 100.0, 255.0], np.float32, [0, 100, 255]),
        ([0.0, 2048.0, 4095.0], np.float32, [0, 128, 255]),
        ([0, 100, 255], np.uint16, [0, 100, 255]),
        ([0, 2048, 4095], np.uint16, [0, 128, 255]),
        ([0, 32896, 65535], np.uint16, [0, 128, 255]),
        ([0.0, float("nan"), float("inf")], np.float32, [0, 0, 255]),
    ],
)
def test_grey_of_many_values_does_not_come_out_in_one_colour(values, kind, expected):
    buffer = io.BytesIO()
    Image.fromarray(np.array([values], kind)).save(buffer, "TIFF")
    assert [pixel[0] for pixel in decode(buffer.getvalue()).getdata()] == expected


def test_a_strip_that_would_grow_to_gigabytes_is_refused():
    with pytest.raises(DataError, match="has 1 x 10000 pixels, over 64 times as long as wide"):
        decode(picture(size=(1, 10_000)))
    assert decode(picture(size=(1, 64))).size == (1, 64)


def test_large_files_are_written_a_few_at_a_time(tmp_path, monkeypatch):
    """Forty files of 100 KB, of which a group holds at most four."""
    monkeypatch.setattr(packing, "GROUP_BYTES", 400_000)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (180, 185, 3), np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG", compress_level=0)
    root = plant(
        tmp_path / "tree",
        *(f"{name}/{i:02}.png" for name in ("cat", "dog") for i in range(20)),
        data=buffer.getvalue(),
    )
    tracemalloc.start()
    try:
        imported(root, "out.parquet")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 14
