"""Folders of pictures: what becomes a data set, what is left out, and what is refused."""

import gc
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import orchestrator.cli
from orchestrator.cli import data as data_verbs
from tests.support.trees import LOOSE, fault_of, imported, picture, plant, reasons
from trainables.base import DataError
from trainables.data import packing_parts
from trainables.data.packing import import_folder
from trainables.data.packing_parts import Layout
from trainables.data.parquet import Parquet
from trainables.data.tree import left_out_lines


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


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set/training_set", "test_set/test_set"),
        ("Train-Images", "TestImages"),
        ("train", "test1"),
    ],
)
def test_names_that_hold_the_word_of_a_split_are_splits_if_their_classes_agree(tmp_path, train, test):
    root = tmp_path / "tree"
    plant(root, f"{train}/cat/0.png", f"{train}/dog/0.png", f"{test}/cat/0.png", f"{test}/dog/0.png")
    plant(root, "seg_pred/0.png", "readme.txt")
    result = imported(root)
    assert (result.classes, result.counts) == (("cat", "dog"), {"train": [1, 1], "test": [1, 1]})
    assert reasons(result, root) == {"seg_pred": "beside the splits, and none", "readme.txt": LOOSE}


@pytest.mark.parametrize("extension", [".jpg", ".JFIF", ".avif", ".pnm"])
@pytest.mark.parametrize("splits", [("",), ("Train/", "test/")])
def test_a_folder_of_pictures_given_as_data_names_the_command_that_packs_it(tmp_path, splits, extension):
    root = plant(tmp_path / "my photos", *(f"{s}{name}/0{extension}" for s in splits for name in ("a", "b")))
    with pytest.raises(DataError, match="holds pictures in folders, and no Parquet file") as refused:
        Parquet(path=str(root)).info()
    words = shlex.split(str(refused.value).partition("To pack them:")[2])
    assert words[:3] == ["vitc-sweep", "data", "import"]
    done = CliRunner().invoke(orchestrator.cli.app, words[1:])
    assert done.exit_code == 0, done.output
    assert pq.read_table(words[-1]).num_rows == 2 * len(splits)


def test_a_train_that_is_one_class_among_others_is_no_split(tmp_path):
    root = plant(tmp_path / "tree", "bullet train/day/0.png", "bullet train/night/0.png", "bus/day/0.png")
    result = imported(root, "out.parquet")
    assert (result.classes, result.counts) == (("bullet train", "bus"), {"train": [2, 1]})


def test_a_wrapping_folder_may_lie_beside_a_readme(tmp_path):
    root = plant(tmp_path / "tree", "photos/cat/0.png", "photos/dog/0.png")
    plant(root, "LICENSE", data=b"text")
    result = imported(root, "out.parquet")
    assert result.classes == ("cat", "dog")
    assert reasons(result, root) == {"LICENSE": LOOSE}


def test_a_split_without_images_is_left_out(tmp_path):
    root = plant(tmp_path / "tree", "train/cat/0.png", "train/dog/0.png", "test/cat/0.png")
    plant(root, "test/cat/0.png", data=picture()[:40])
    (root / "val" / "cat").mkdir(parents=True)
    result = imported(root, on_bad_image="skip")
    assert result.counts == {"train": [1, 1]}
    assert reasons(result, root)["val"] == "a split without images"
    assert result.notices == ["no image of test can be read, so the split is left out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["train.parquet"]


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
        (["val/a/0.png", "test/b/0.png"], "ROOT: holds 'test', 'val' and no folder `train` with"),
        (
            ["train/0.png", "val/a/0.png"],
            "ROOT: holds 'val' and no folder `train` with a folder",
        ),
        (
            ["train/a/0.png", "train/b/0.png", "val/a/0.png", "valid/a/0.png"],
            "ROOT: val and valid are both the val split",
        ),
        (["train/0.png", "test1/0.png"], "ROOT: holds 'test1', 'train', which are named as splits"),
        (["my_train/a/0.png", "my_test/b/0.png"], "ROOT: holds 'my_test', 'my_train', which are named"),
        (
            [f"{name}/{split}/0.png" for name in ("cat", "dog") for split in ("train", "test")],
            "ROOT/cat: is a class that holds the splits 'test', 'train'",
        ),
        (["train/images/0.png", "valid/images/0.png"], "ROOT/train: holds one class only, 'images'"),
        (["caf\u00e9/0.png", "cafe\u0301/0.png"], "ROOT: holds two folders 'caf\u00e9'"),
        (["a\nb/0.png", "c/0.png"], "ROOT/a\\nb: the name of a class must be text that can be printed"),
    ],
)
def test_a_tree_that_is_no_set_of_classes_is_refused(tmp_path, names, fault):
    assert fault_of(plant(tmp_path / "tree", *names)).startswith(fault)


def test_a_folder_of_the_classes_beside_others_is_named(tmp_path):
    root = plant(tmp_path / "tree", "images/cat/0.png", "images/dog/0.png")
    plant(root, "meta/classes.txt", data=b"text")
    assert fault_of(root).endswith("of two or more. To import the folders in it, name ROOT/images")


def test_what_is_no_picture_of_a_class_is_left_out_and_named(tmp_path):
    root = plant(tmp_path / "tree", "cat/0.png", "cat/deep/er/1.png", "dog/0", "dog/1.jfif")
    plant(root, ".DS_Store", "cat/._0.png", "cat/.ipynb_checkpoints/0.png", "__MACOSX/cat/0.png", "Thumbs.db")
    plant(root, "cat/@eaDir/0.png", "loose.png")
    plant(root, "cat/notes.txt", "dog/labels.json", "empty/readme", data=b"text")
    plant(root, "dog/phone.heic", "dog/new.avif", data=b"\0\0\0\x18ftypheic")
    (root / "nothing").mkdir()
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    (root / "cat" / "loop").symlink_to(root)
    plant(tmp_path / "secret", "0.png")
    (root / "cat" / "outside").symlink_to(tmp_path / "secret")
    result = imported(root, "out.parquet", workers=3)
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
        "cat/loop": "a link to a folder that is in the tree, or around it",
        "cat/outside": "a link to a folder",
    }
    assert result.notices == [
        "1 files are in folders inside their class, and count in the class: cat/deep/er"
    ]


def test_links_that_loop_or_repeat_are_left_out(tmp_path):
    root = plant(tmp_path / "tree", "cat/0.png", "dog/0.png")
    outside = plant(tmp_path / "outside", "0.png", "1.png")
    links = {"alias": "cat", "around": "..", "root": ".", "self": "self", "one": outside, "same": outside}
    for name, target in links.items():
        (root / name).symlink_to(target)
    result = imported(root, "out.parquet")
    assert (result.classes, result.counts["train"]) == (("cat", "dog", "one"), [1, 1, 2])
    again = "a link to a folder that is in the tree, or around it"
    left_out = {
        **dict.fromkeys(("alias", "around", "root", "same"), again),
        "self": "a link that leads nowhere",
    }
    assert reasons(result, root) == left_out
    only = tmp_path / "only"
    only.mkdir()
    (only / "a").symlink_to(".")
    assert "holds no folders with images" in fault_of(only)


def test_a_tree_of_a_thousand_levels_is_read(tmp_path):
    root = plant(tmp_path / "tree", "cat/0.png", "dog/0.png")
    # Python's own functions for folders recurse, and would not go so deep.
    deep = f"{root}/dog/{'a/' * 1_100}"
    subprocess.run(["mkdir", "-p", deep], check=True)
    try:
        Path(deep, "1.png").write_bytes(picture())
        assert imported(root, "out.parquet").counts["train"] == [1, 2]
    finally:
        subprocess.run(["rm", "-r", f"{root}/dog"], check=True)


def test_classes_of_splits_are_one_class_however_their_accents_are_written(tmp_path):
    root = plant(tmp_path / "tree", "train/caf\u00e9/0.png", "train/tea/0.png", "val/cafe\u0301/0.png")
    assert imported(root).counts == {"train": [1, 1], "val": [1, 0]}


def test_classes_whose_names_differ_little_are_told(tmp_path):
    root = plant(tmp_path / "tree", "red fox/0.png", "Red Fox/0.png", "redfish/0.png")
    note = "'Red Fox' and 'red fox' are two classes, whose names differ in case or spaces only"
    assert imported(root, "out.parquet").notices == [note]


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    root = plant(tmp_path / "tree", "cat/0.png", "dog/deep/0.png")
    scandir = os.scandir

    def refusing(place):
        if str(place).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    assert fault_of(root) == "ROOT/dog/deep: cannot be read: Permission denied"


def test_images_of_one_class_only_are_refused_even_if_skipped(tmp_path):
    root = plant(tmp_path / "tree", "cat/0.png", "dog/0.png")
    plant(root, "dog/0.png", data=b"")
    assert "images that can be read of the class 'cat' only" in fault_of(root, on_bad_image="skip")


def test_all_bad_images_are_listed_at_once_or_left_out(tmp_path):
    root = plant(tmp_path / "tree", *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)))
    plant(root, "cat/cut.png", "dog/cut.jpg", data=picture()[:40])
    fault = fault_of(root)
    assert fault.startswith("2 images cannot be used; --on-bad-image skip leaves them out:\n")
    assert "ROOT/cat/cut.png does not decode" in fault
    assert "ROOT/dog/cut.jpg does not decode" in fault
    result = imported(root, on_bad_image="skip")
    assert result.num_images == 6
    assert set(reasons(result, root).values()) == {"an image that cannot be used"}


def test_what_would_mix_with_other_data_is_refused(tmp_path):
    root = plant(tmp_path / "tree", "train/cat/0.png", "train/dog/0.png", "test/cat/0.png")
    target = plant(tmp_path / "out", "val.parquet", data=b"old")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"out: holds other data, val\.parquet, which a sweep would read"):
            import_folder(root, target, overwrite=overwrite)
    assert os.listdir(target) == ["val.parquet"]
    with pytest.raises(DataError, match="tree: is the folder of the images; name another one"):
        import_folder(root, root)


def test_places_that_are_no_local_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(plant(tmp_path, "tree/cat/0.png", "tree/dog/0.png", "photos.zip"))
    with pytest.raises(DataError, match=r"photos\.zip: is a file; an import reads a folder"):
        import_folder(Path("photos.zip"), Path("out.parquet"))
    with pytest.raises(
        DataError, match=r"s3:/bucket/out\.parquet: is an address; an import writes local files"
    ):
        import_folder(Path("tree"), Path("s3://bucket/out.parquet"))
    assert not Path("s3:").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_place_that_cannot_be_written_is_named(tmp_path, overwrite):
    root = plant(tmp_path / "tree", "cat/0.png", "dog/0.png")
    (tmp_path / "folder.parquet").mkdir()
    plant(tmp_path, "file")
    for place, fault in (("folder.parquet", "is a folder"), ("file/out.parquet", "cannot be written")):
        with pytest.raises(DataError, match=fault):
            import_folder(root, tmp_path / place, overwrite=overwrite)


def test_an_import_that_is_stopped_leaves_nothing(tmp_path, monkeypatch):
    loud = []
    monkeypatch.setattr(sys, "unraisablehook", loud.append)
    root = plant(tmp_path / "tree", *(f"{split}/{i}/0.png" for split in ("train", "val") for i in range(3)))

    def stop(done, total):
        if done == 6:
            raise KeyboardInterrupt

    try:
        import_folder(root, tmp_path / "new" / "out", workers=2, tell=stop, layout=Layout(1))
    except KeyboardInterrupt:
        stopped = True
    assert stopped
    assert os.listdir(tmp_path) == ["tree"]
    gc.collect()
    assert not loud


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
    assert fourth == "left out 1 file (1 .ds_store): hidden, or of the system: .DS_Store"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_command_shows_how_many_files_are_done(tmp_path, monkeypatch, is_terminal):
    root = plant(tmp_path / "tree", *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)))
    # As if each file took long enough for a line.
    monkeypatch.setattr(data_verbs, "_LINE_SECONDS", 0)
    if is_terminal:
        monkeypatch.setattr(data_verbs, "make_console", lambda: Console(force_terminal=True, width=80))
    done = CliRunner().invoke(
        orchestrator.cli.app, ["data", "import", str(root), str(tmp_path / "out.parquet"), "--workers", "1"]
    )
    assert done.exit_code == 0, done.output
    shown = "6/6" if is_terminal else "\n".join(f"{count} of 6 files" for count in range(1, 7))
    assert shown in done.output


def test_ctrl_c_ends_the_command_with_its_code_and_without_a_traceback(tmp_path, monkeypatch):
    root = plant(tmp_path / "tree", "cat/0.png", "dog/0.png")

    def stop(data):
        raise KeyboardInterrupt

    monkeypatch.setattr(packing_parts, "decode", stop)
    done = CliRunner().invoke(
        orchestrator.cli.app, ["data", "import", str(root), str(tmp_path / "new" / "x.parquet")]
    )
    assert done.exit_code == 130
    assert "Traceback" not in done.output
    assert os.listdir(tmp_path) == ["tree"]


def test_lines_of_what_is_left_out_count_files_and_those_in_folders(tmp_path):
    root = plant(tmp_path / "tree", "a.txt", "b.txt", "c.MD", ".cache/deep/0.png", ".cache/1.png", "l\nf.txt")
    empty = root / "empty"
    empty.mkdir()
    files = [root / name for name in ("a.txt", "b.txt", "c.MD", "l\nf.txt")]
    left_out = {**dict.fromkeys(files, "no image"), root / ".cache": "hidden", empty: "hidden"}
    assert left_out_lines(root, left_out) == [
        "left out 4 files (3 .txt, 1 .md): no image: a.txt, b.txt, c.MD, ...",
        "left out 2 folders (2 files in them): hidden: .cache, empty",
    ]


OF_FILES = ("a.png", "b.JPG", "c", "d.txt", ".hidden", "Thumbs.db", "e.heic", "f.nef")
OF_FOLDERS = ("train", "val", "test", "seg_train", "test1", "cat", "dog")
NAMES = st.sampled_from([*OF_FILES, *OF_FOLDERS])
HEIC = b"\0\0\0\x18ftypheic"
CONTENTS = st.sampled_from([picture(), picture("JPEG"), picture()[:30], b"", b"text", HEIC])
LINKS = st.sampled_from([".", "..", "cat", "../dog", "a.png", "../../c", "train"])
TREES = st.recursive(CONTENTS | LINKS, lambda inner: st.dictionaries(NAMES, inner, max_size=5), max_leaves=20)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, TREES, max_size=5))
def test_of_any_tree_every_file_is_in_the_set_or_named(tmp_path_factory, tree):
    root = tmp_path_factory.mktemp("any") / "tree"
    root.mkdir()

    def build(folder: Path, content: dict[str, Any]) -> None:
        for name, inner in content.items():
            if isinstance(inner, str):
                (folder / name).symlink_to(inner)
            elif isinstance(inner, bytes):
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
        row["path"]
        for paths in result.files.values()
        for path in paths
        for row in pq.read_table(path)["image"].to_pylist()
    ]
    named = {path for path in files if any(parent in result.left_out for parent in (path, *path.parents))}
    assert len(stored) == len(set(stored)) == result.num_images
    assert {root / name for name in stored} == files - named
