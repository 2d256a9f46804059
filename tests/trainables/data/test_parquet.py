import io
import json
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import trainables.data.cache
import trainables.data.parquet_table
from trainables.base import DataError
from trainables.data import content
from trainables.data.base import drawn_from, held_out
from trainables.data.cache import collect
from trainables.data.decode import decode
from trainables.data.digits import Digits
from trainables.data.order import epoch_order, num_steps, step_samples
from trainables.data.packing import import_folder
from trainables.data.parquet import Parquet
from trainables.data.shifted import ShiftedSet
from trainables.io.machine import cache_folder
from trainables.io.reading import listen


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def marked(png_bytes):
    """n images that are told apart by the red of their one colour."""
    return lambda n, start=0: [png_bytes([[[start + i, 0, 0]]]) for i in range(n)]


def reds(images) -> list[int]:
    return [images.read(i).getpixel((0, 0))[0] for i in range(len(images))]


def all_reds(path) -> list[int]:
    return sorted(red for split in Parquet(path=str(path)).open().values() for red in reds(split))


# --- splits -------------------------------------------------------------------------------------------


def test_digits_are_split_without_overlap_and_nothing_is_lost():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    splits = Digits().open()
    assert {name: len(split) for name, split in splits.items()} == Digits().info().sizes
    # The sixteen grey levels of every image, as the file has them: 0 to 16 scaled to 0 to 255.
    pixels = [
        (int(label), np.asarray(split.read(i))[:, :, 0].tobytes())
        for split in splits.values()
        for i, label in enumerate(split.labels)
    ]
    scaled = (bunch.images * 255 / 16).round().astype(np.uint8)
    original = [(int(label), image.tobytes()) for label, image in zip(bunch.target, scaled, strict=True)]
    assert sorted(pixels) == sorted(original)


def test_digits_splits_hold_their_share_of_every_class():
    from sklearn.datasets import load_digits

    totals = np.bincount(load_digits().target)
    for split in ("val", "test"):
        counts = np.bincount(Digits().open()[split].labels, minlength=10)
        # Rounding takes half an image; the second of two splits works on what the first left.
        assert np.all(np.abs(counts - totals / 6) <= 1)


def test_which_image_is_in_which_split_depends_on_the_split_seed_only():
    labels = Digits().open()["test"].labels
    assert np.array_equal(Digits(val_share=0.1).open()["test"].labels, labels)
    assert not np.array_equal(Digits(split_seed=1).open()["test"].labels, labels)
    assert Digits(split_seed=1).info().fingerprint != Digits().info().fingerprint


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.floats(0.01, 0.49), st.integers(0, 5))
def test_held_out_takes_some_of_every_class_and_leaves_some(labels, share, seed):
    labels = np.array(labels)
    stay, out = held_out(labels, share, seed)
    assert sorted([*stay, *out]) == list(range(len(labels)))
    for label in np.unique(labels):
        total, held = int((labels == label).sum()), int((labels[out] == label).sum())
        assert held == 0 if total == 1 else 1 <= held < total
        assert abs(held - share * total) <= 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data(), st.integers(0, 5))
def test_drawn_from_takes_exactly_that_many_with_classes_in_proportion(labels, data, seed):
    labels = np.array(labels)
    count = data.draw(st.integers(1, len(labels)))
    taken = drawn_from(labels, count, seed)
    assert len(set(taken.tolist())) == len(taken) == count
    for label in np.unique(labels):
        quota = count * (labels == label).mean()
        assert abs((labels[taken] == label).sum() - quota) <= 1 + 1e-9


# --- Parquet ------------------------------------------------------------------------------------------


def test_a_single_file_gives_three_disjoint_splits_that_are_all_of_it(write_parquet, marked):
    path = write_parquet("set.parquet", marked(60), [i % 3 for i in range(60)], ["cat", "dog", "owl"])
    config = Parquet(path=str(path))
    info, splits = config.info(), config.open()
    assert info.class_names == ("cat", "dog", "owl")
    assert info.num_classes == 3
    assert info.name == "set"
    # A tenth of 60 for the final number, a tenth of the 54 left for selection, whole images per class.
    assert info.sizes == {"train": 48, "val": 6, "test": 6}
    assert "held out" in info.splits["val"]
    assert "held out" in info.splits["test"]
    everything = [red for split in splits.values() for red in reds(split)]
    assert sorted(everything) == list(range(60))
    for split in splits.values():
        assert [red % 3 for red in reds(split)] == split.labels.tolist()


def test_shards_of_a_folder_are_one_split_in_order_of_their_names(write_parquet, marked, tmp_path):
    for shard in (1, 0):
        write_parquet(f"hf/data/train-0000{shard}-of-00002.parquet", marked(20, 20 * shard), [0, 1] * 10)
    write_parquet("hf/data/validation-00000-of-00001.parquet", marked(6, 100), [0, 1] * 3)
    write_parquet("hf/data/test-00000-of-00001.parquet", marked(4, 200), [0, 1] * 2)
    (tmp_path / "hf" / "README.md").write_text("not data")
    config = Parquet(path=str(tmp_path / "hf"))
    splits = config.open()
    assert reds(splits["train"]) == list(range(40))
    assert reds(splits["val"]) == list(range(100, 106))
    assert reds(splits["test"]) == list(range(200, 204))
    assert config.info().splits["train"] == "train-00000-of-00002.parquet and 1 more"


def test_a_validation_split_alone_gives_the_final_number_and_selection_is_held_out(
    write_parquet, marked, tmp_path
):
    write_parquet("in/train.parquet", marked(40), [0, 1] * 20)
    write_parquet("in/val.parquet", marked(10, 100), [0, 1] * 5)
    splits = Parquet(path=str(tmp_path / "in")).open()
    assert reds(splits["test"]) == list(range(100, 110))
    assert sorted(reds(splits["train"]) + reds(splits["val"])) == list(range(40))
    assert len(splits["val"]) == 4


def test_selection_on_the_final_split_uses_all_of_train_and_says_so(write_parquet, marked, tmp_path):
    write_parquet("in/train.parquet", marked(40), [0, 1] * 20)
    write_parquet("in/test.parquet", marked(10, 100), [0, 1] * 5)
    config = Parquet(path=str(tmp_path / "in"), selection="final")
    splits, info = config.open(), config.info()
    assert reds(splits["val"]) == reds(splits["test"]) == list(range(100, 110))
    assert len(splits["train"]) == 40
    assert info.splits["val"] == info.splits["test"]
    assert info.fingerprint != Parquet(path=str(tmp_path / "in")).info().fingerprint


def test_train_limit_takes_that_many_and_touches_no_other_split(write_parquet, marked):
    path = write_parquet("set.parquet", marked(100), [0] * 75 + [1] * 25)
    whole, few = Parquet(path=str(path)), Parquet(path=str(path), train_limit=20)
    assert few.info().sizes["train"] == 20
    # Three quarters of 20.
    assert np.bincount(few.open()["train"].labels).tolist() == [15, 5]
    assert set(reds(few.open()["train"])) < set(reds(whole.open()["train"]))
    for split in ("val", "test"):
        assert reds(few.open()[split]) == reds(whole.open()[split])
    assert Parquet(path=str(path), train_limit=5000).info().sizes == whole.info().sizes


def test_other_columns_can_hold_images_and_labels(tmp_path, marked):
    rows = [{"bytes": data} for data in marked(20)]
    table = pa.table({"img": rows, "fine_label": pa.array([0, 1] * 10, pa.uint8())})
    pq.write_table(table, tmp_path / "c.parquet")
    config = Parquet(path=str(tmp_path / "c.parquet"), image_column="img", label_column="fine_label")
    assert config.info().num_classes == 2
    assert sum(config.info().sizes.values()) == 20


def test_a_file_uri_is_the_same_data(write_parquet, marked):
    path = write_parquet("set.parquet", marked(20), [0, 1] * 10)
    by_path, by_uri = Parquet(path=str(path)), Parquet(path=path.as_uri())
    assert by_uri.info().fingerprint == by_path.info().fingerprint
    assert reds(by_uri.open()["train"]) == reds(by_path.open()["train"])


def test_large_data_are_read_through_a_memory_map_and_are_the_same(
    write_parquet, marked, monkeypatch, tmp_path
):
    path = write_parquet("set.parquet", marked(60), [i % 3 for i in range(60)])
    in_memory = reds(Parquet(path=str(path)).open()["train"])
    monkeypatch.setattr(trainables.data.parquet_table, "IN_MEMORY_BYTES", 0)
    monkeypatch.setenv("VITC_SWEEP_CACHE", str(tmp_path / "cache"))
    # Another setting that changes nothing, so that the cached table is not the one used.
    config = Parquet(path=str(path), train_limit=5000)
    assert reds(config.open()["train"]) == in_memory
    [copy] = (tmp_path / "cache").rglob("*.arrow")
    assert copy.parent.parent == tmp_path / "cache" / "copies"


def test_the_fingerprint_stays_when_files_move_and_changes_with_labels_and_pixels(write_parquet, marked):
    images, labels = marked(20), [0, 1] * 10

    def fingerprint(name, images=images, labels=labels):
        return Parquet(path=str(write_parquet(name, images, labels))).info().fingerprint

    original = fingerprint("a/set.parquet")
    assert fingerprint("b/moved.parquet") == original
    assert fingerprint("c/set.parquet", labels=[*labels[:-2], 1, 0]) != original
    assert fingerprint("d/set.parquet", images=[images[5], *images[1:]]) != original


def test_who_listens_is_told_how_far_the_read_for_a_fingerprint_is(write_parquet, marked, monkeypatch):
    monkeypatch.setattr(content, "_BATCH_BYTES", 1)
    path = write_parquet("set.parquet", marked(6), [0, 1] * 3)
    told = []
    listen(lambda *what: told.append(what))
    try:
        Parquet(path=str(path)).info()
    finally:
        listen(None)
    assert told == [("set.parquet", done, 6) for done in range(1, 7)]


# --- pictures of all kinds ----------------------------------------------------------------------------


def test_grey_images_have_three_equal_channels(png_bytes):
    assert decode(png_bytes([[0, 100, 255]])).getdata()[1] == (100, 100, 100)


def test_one_bit_images_are_black_and_white():
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert list(decode(encoded(image)).getdata()) == [(0, 0, 0), (255, 255, 255)]


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    # 65535 / 257 = 255, 32896 / 257 = 128.
    image = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert [pixel[0] for pixel in decode(encoded(image)).getdata()] == [0, 128, 255]
    assert [pixel[2] for pixel in decode(encoded(image, "TIFF")).getdata()] == [0, 128, 255]


def test_float_grey_of_zero_to_one_is_scaled():
    image = Image.fromarray(np.array([[0.0, 0.5, 2.0]], np.float32))
    # 0.5 x 255 = 127.5, which rounds to the even number.
    assert [pixel[0] for pixel in decode(encoded(image, "TIFF")).getdata()] == [0, 128, 255]


def test_transparency_shows_white_behind():
    image = Image.fromarray(np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], np.uint8), "RGBA")
    # The last is a fifth opaque black over white: 0.8 x 255.
    assert list(decode(encoded(image)).getdata()) == [(200, 0, 0), (255, 255, 255), (204, 204, 204)]


def test_a_palette_with_a_transparent_entry_shows_white_there():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    data = encoded(image, transparency=1)
    assert list(decode(data).getdata()) == [(10, 20, 30), (255, 255, 255), (70, 80, 90)]


def test_grey_with_alpha_shows_white_behind():
    image = Image.fromarray(np.array([[[100, 255], [100, 0]]], np.uint8), "LA")
    assert list(decode(encoded(image)).getdata()) == [(100, 100, 100), (255, 255, 255)]


def test_cmyk_jpegs_come_out_in_their_colours():
    # Cyan ink takes the red out of white paper; JPEG is lossy, but not by 20 levels in a flat area.
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    red, green, blue = decode(encoded(image, "JPEG", quality=95)).getpixel((8, 8))
    assert red < 20
    assert min(green, blue) > 235


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_image_is_named_with_file_and_row(kind, write_parquet, marked):
    rng = np.random.default_rng(0)
    whole = encoded(Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), kind)
    path = write_parquet("set.parquet", [*marked(7), whole[: len(whole) // 2], *marked(12)], [0, 1] * 10)
    with pytest.raises(DataError, match=r"set\.parquet: row 7 does not decode"):
        all_reds(path)


def test_a_bad_image_in_a_later_shard_is_named_with_its_own_row(write_parquet, marked, tmp_path):
    write_parquet("in/train-0.parquet", marked(10), [0, 1] * 5)
    write_parquet("in/train-1.parquet", [*marked(3), b"nonsense", *marked(6)], [0, 1] * 5)
    write_parquet("in/test.parquet", marked(4), [0, 1] * 2)
    splits = Parquet(path=str(tmp_path / "in"), selection="final").open()
    with pytest.raises(DataError, match=r"train-1\.parquet: row 3 does not decode"):
        reds(splits["train"])


def test_a_row_without_bytes_is_named(write_parquet, marked):
    path = write_parquet("set.parquet", [None, *marked(19)], [0, 1] * 10)
    with pytest.raises(DataError, match="row 0 has no bytes"):
        all_reds(path)


def test_bad_images_are_left_out_and_counted_where_that_is_asked_for(write_parquet, marked):
    images = marked(60)
    for row in (3, 30, 31):
        images[row] = b"nonsense"
    path = write_parquet("set.parquet", images, [i % 3 for i in range(60)])
    config = Parquet(path=str(path), on_bad_image="skip")
    assert config.info().skipped == 3
    everything = [red for split in config.open().values() for red in reds(split)]
    assert sorted(everything) == [i for i in range(60) if i not in (3, 30, 31)]


def test_data_without_one_good_image_are_refused(write_parquet):
    path = write_parquet("set.parquet", [b"nonsense"] * 4, [0, 1] * 2)
    with pytest.raises(DataError, match="not one of 4 train images decodes"):
        Parquet(path=str(path), on_bad_image="skip").info()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("side", "words"),
    [
        (10_000, "has 10000 x 10000 pixels"),
        # So large that PIL itself refuses.
        (40_000, "has over 67108864 pixels"),
    ],
)
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side, words, monkeypatch):
    def explode(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", explode)
    with pytest.raises(DataError, match=words):
        decode(png_of_size(side, side))


# --- files that cannot be used ------------------------------------------------------------------------


def test_a_label_outside_the_classes_is_named_with_file_row_and_count(write_parquet, marked):
    path = write_parquet("set.parquet", marked(10), [0, 1, 0, 1, 2, 0, 1, -1, 0, 1], ["a", "b"])
    with pytest.raises(
        DataError, match=r"set\.parquet: row 4 has label 2, outside the 2 classes 0 to 1 \(2 "
    ):
        Parquet(path=str(path)).info()


def test_empty_labels_are_refused(write_parquet, marked):
    path = write_parquet("set.parquet", marked(4), [0, 1, None, 1])
    with pytest.raises(DataError, match="'label' has 1 empty labels"):
        Parquet(path=str(path)).info()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"label": [0, 1]}, "has no column 'image', only ['label']"),
        ({"image": [{"bytes": b""}]}, "has no column 'label', only ['image']"),
        ({"image": [b"x"], "label": [0]}, "must be a struct with `bytes`, is binary"),
        ({"image": [{"path": "x"}], "label": [0]}, "must be a struct with `bytes`"),
        ({"image": [{"bytes": b""}], "label": ["cat"]}, "must hold integers, holds string"),
        ({"image": [{"bytes": [137, 80]}], "label": [0]}, "must be binary, are list<"),
        ({"image": [{"bytes": "iVBORw0KGgo="}], "label": [0]}, "must be binary, are string"),
        ({"image": [{"bytes": b""}], "label": [0], "label ": [0]}, "has 2 columns 'label', so which is"),
        ({"image": [{"bytes": b""}], "label": [0], "image ": [0]}, "has 2 columns 'image', so which is"),
    ],
)
def test_missing_or_odd_columns_are_named(table, words, tmp_path):
    table = pa.table(table)
    # A dictionary has no key twice.
    pq.write_table(
        table.rename_columns([name.strip() for name in table.column_names]), tmp_path / "odd.parquet"
    )
    with pytest.raises(DataError) as caught:
        Parquet(path=str(tmp_path / "odd.parquet")).info()
    assert words in str(caught.value)
    assert "odd.parquet" in str(caught.value)


def test_a_truncated_parquet_file_is_named(write_parquet, marked):
    path = write_parquet("cut.parquet", marked(20), [0, 1] * 10)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cut\.parquet: is not a readable Parquet file"):
        Parquet(path=str(path)).info()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_what_is_no_parquet_is_named(content, tmp_path):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet: is not a readable Parquet file"):
        Parquet(path=str(tmp_path / "x.parquet")).info()


def test_a_file_without_rows_is_named(write_parquet):
    with pytest.raises(DataError, match=r"none\.parquet: holds no rows"):
        Parquet(path=str(write_parquet("none.parquet", [], []))).info()


def test_too_few_images_to_hold_any_out_are_refused(write_parquet, marked):
    path = write_parquet("set.parquet", marked(3), [0, 1, 2])
    with pytest.raises(DataError, match="too few images to hold any out"):
        Parquet(path=str(path)).info()


def test_splits_of_different_classes_are_refused(write_parquet, marked, tmp_path):
    write_parquet("in/train.parquet", marked(4), [0, 1] * 2, ["a", "b"])
    write_parquet("in/test.parquet", marked(4), [0, 2] * 2, ["a", "b", "c"])
    with pytest.raises(DataError, match=r"1 of its 2 classes are not among .* first training file: 'c'"):
        Parquet(path=str(tmp_path / "in")).info()


def test_a_path_without_data_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: there is no such file or folder"):
        Parquet(path=str(tmp_path / "nowhere")).info()
    with pytest.raises(DataError, match=r"holds no Parquet file, nor any other"):
        Parquet(path=str(tmp_path)).info()
    with pytest.raises(DataError, match="gopher://x/y"):
        Parquet(path="gopher://x/y").info()


# --- importing a folder -------------------------------------------------------------------------------


def test_an_imported_folder_comes_back_image_for_image(tmp_path, marked):
    images = marked(20)
    for i, data in enumerate(images):
        place = tmp_path / "tree" / ("cat" if i % 2 else "ape") / ("deep" if i % 4 > 1 else "")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:02}.PNG").write_bytes(data)
    (tmp_path / "tree" / "cat" / "notes.txt").write_text("no image")
    target = tmp_path / "new" / "out.parquet"
    done = import_folder(tmp_path / "tree", target)
    assert (done.num_images, done.classes) == (20, ("ape", "cat"))
    config = Parquet(path=str(target))
    assert config.info().class_names == ("ape", "cat")
    pairs = [pair for split in config.open().values() for pair in zip(reds(split), split.labels, strict=True)]
    assert sorted(pairs) == [(i, i % 2) for i in range(20)]
    stored = pq.read_table(target).column("image").to_pylist()
    assert {row["bytes"] for row in stored} == set(images)
    features = json.loads(pq.read_schema(target).metadata[b"huggingface"])["info"]["features"]
    assert features["label"]["_type"] == "ClassLabel"
    assert [entry.name for entry in target.parent.iterdir()] == ["out.parquet"]


def test_an_import_that_fails_writes_nothing(tmp_path, marked):
    target = tmp_path / "out" / "out.parquet"
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        import_folder(tmp_path / "nowhere", target)
    (tmp_path / "tree" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no folders with images"):
        import_folder(tmp_path / "tree", target)
    (tmp_path / "tree" / "dog").mkdir()
    (tmp_path / "tree" / "dog" / "a.png").write_bytes(marked(1)[0])
    (tmp_path / "tree" / "cat" / "b.png").write_bytes(marked(1)[0][:40])
    with pytest.raises(DataError, match=r"b\.png does not decode"):
        import_folder(tmp_path / "tree", target)
    assert not target.parent.exists() or not list(target.parent.iterdir())


# --- order --------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 64), st.integers(1, 7), st.integers(0, 3), st.integers(0, 3))
def test_every_sample_is_seen_once_an_epoch_in_equal_steps_and_shares(size, batch, world, seed, epoch):
    order = epoch_order(size, seed, epoch)
    steps = num_steps(size, batch)
    assert steps == math.ceil(size / batch)
    shares = [
        [step_samples(order, batch, step, rank, world) for rank in range(world)] for step in range(steps)
    ]
    assert sorted(np.concatenate([part for step in shares for part in step])) == list(range(size))
    sizes = [sum(len(part) for part in step) for step in shares]
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1
    for step in shares:
        assert max(map(len, step)) - min(map(len, step)) <= 1


def test_the_images_of_a_step_do_not_depend_on_the_number_of_ranks():
    order = epoch_order(100, 0, 0)
    for step in range(4):
        alone = step_samples(order, 32, step, 0, 1)
        together = np.concatenate([step_samples(order, 32, step, rank, 3) for rank in range(3)])
        assert np.array_equal(alone, together)


def test_each_epoch_and_each_seed_has_its_own_order():
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert tuple(epoch_order(50, 1, 2)) == orders[5]


def test_collect_holds_every_prepared_image_with_its_label():
    images = Digits().open()["val"]
    collected = collect(
        images, lambda image: torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1), torch.device("cpu")
    )
    assert len(collected) == len(images)
    assert collected.labels_N.tolist() == images.labels.tolist()
    assert collected.pixels_NCHW[17, 0].numpy().tobytes() == np.asarray(images.read(17))[:, :, 0].tobytes()


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("VITC_SWEEP_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("VITC_SWEEP_CACHE")
    assert cache_folder() == (Path(os.path.expanduser("~")) / ".cache" / "vitc-sweep")


# --- shifted sets -------------------------------------------------------------------------------------


def colours_of(shifted) -> list[tuple[int, ...]]:
    return [shifted.images.read(row).getpixel((0, 0)) for row in range(len(shifted.images))]


def test_a_shifted_set_of_parquet_files_gets_the_labels_of_the_training_data(write_parquet, png_bytes):
    images = [png_bytes(np.full((2, 2, 3), shade)) for shade in (10, 20, 30)]
    # Its own labels number its own names; the file need not be called after a split.
    path = write_parquet("sketches.parquet", images, [1, 0, 1], ["zebra", "cat", "unused"])
    shifted = ShiftedSet(name="sketch", uri=str(path)).open(["ant", "cat", "dog", "zebra"])
    assert shifted.images.labels.tolist() == [1, 3, 1]
    assert shifted.classes.tolist() == [1, 3]
    assert colours_of(shifted) == [(10,) * 3, (20,) * 3, (30,) * 3]


@pytest.mark.parametrize("layout", ["parquet", "folders"])
def test_the_fingerprint_of_a_shifted_set_covers_every_image_label_and_name(
    layout, tmp_path, write_parquet, png_bytes
):
    def fingerprint(images, number):
        colours = {name: [png_bytes(np.full((2, 2, 3), c)) for c in own] for name, own in images.items()}
        place = tmp_path / str(number)
        if layout == "parquet":
            place.mkdir()
            labels = [label for label, own in enumerate(colours.values()) for _ in own]
            rows = [row for own in colours.values() for row in own]
            write_parquet(f"{number}/test.parquet", rows, labels, list(colours))
        for name, own in colours.items() if layout == "folders" else ():
            (place / name).mkdir(parents=True)
            for index, image in enumerate(own):
                (place / name / f"{index}.png").write_bytes(image)
        return ShiftedSet(name="r", uri=str(place)).fingerprint()

    same = {"a": [10, 20], "b": [30, 40]}
    assert fingerprint(same, 0) == fingerprint(same, 1)
    others = [
        {"a": [10, 20], "b": [30, 41]},
        {"a": [10, 21], "b": [30, 40]},
        {"a": [10], "b": [20, 30, 40]},
        {"a": [10, 20], "c": [30, 40]},
    ]
    assert len({fingerprint(one, 2 + number) for number, one in enumerate([same, *others])}) == 5


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_shifted_set_of_class_folders_is_read_in_the_order_of_its_names(prefix, tmp_path, png_bytes):
    for name, shade in (("b/2.png", 20), ("a/x/1.PNG", 10), ("b/1.png", 30)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png_bytes(np.full((2, 2, 3), shade)))
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "b" / "notes.txt").write_text("x")
    shifted = ShiftedSet(name="r", uri=f"{prefix}{tmp_path}").open(["b", "c", "a"])
    assert shifted.images.labels.tolist() == [2, 0, 0]
    assert shifted.classes.tolist() == [0, 2]
    assert colours_of(shifted) == [(10,) * 3, (30,) * 3, (20,) * 3]


@pytest.mark.parametrize(("labels", "told"), [([-1, -1], -1), ([0, -1], -1), ([0, 20_000_000], 20_000_000)])
@pytest.mark.parametrize("names", [None, ["cat", "dog"]])
def test_labels_of_a_shifted_set_that_are_no_classes_are_refused(
    labels, told, names, write_parquet, png_bytes
):
    path = write_parquet("shifted.parquet", [png_bytes(np.zeros((2, 2, 3)))] * 2, labels, names)
    # With names, numbers outside them have a message of their own.
    words = (
        rf"has label {told}, outside" if names and labels != [-1, -1] else rf"holds the label {told}, which"
    )
    with pytest.raises(DataError, match=words):
        ShiftedSet(name="r", uri=str(path)).open(["cat", "dog"])


def test_wordnet_ids_are_numbered_as_imagenet_does(tmp_path, png_bytes):
    # Tench, goldfish and toilet tissue: the first two and the last of ILSVRC 2012.
    for wnid in ("n15075141", "n01443537", "n01440764"):
        (tmp_path / wnid).mkdir()
        (tmp_path / wnid / "1.png").write_bytes(png_bytes(np.zeros((2, 2, 3))))
    one = ShiftedSet(name="r", uri=str(tmp_path), training_names="imagenet_wnids")
    assert one.open([str(number) for number in range(1000)]).images.labels.tolist() == [0, 1, 999]
    with pytest.raises(DataError, match="1000 classes of ImageNet-1k, these have 3"):
        one.open(["a", "b", "c"])


def test_a_shifted_set_that_cannot_be_used_is_refused_with_its_cause(tmp_path, png_bytes):
    (tmp_path / "empty").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "1.png").write_bytes(png_bytes(np.zeros((2, 2, 3))))
    (tmp_path / "set" / "cat" / "1.png").write_bytes(b"nonsense")
    for uri, words in (
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "empty", "no Parquet files and no images in folders of classes"),
        (tmp_path / "set", "1 of 2 classes are not among the training classes: dog"),
    ):
        with pytest.raises(DataError, match=words):
            ShiftedSet(name="x", uri=str(uri)).open(["cat", "bird"])
    broken = ShiftedSet(name="x", uri=str(tmp_path / "set")).open(["cat", "dog"])
    with pytest.raises(DataError, match=r"cat/1.png does not decode"):
        broken.images.read(0)
