"""Data sets that are not what they look like: classes, splits, labels, files and identity."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import parquet_file
from trainables.base import DataError
from trainables.data import content, parquet, parquet_table
from trainables.data.parquet import Parquet


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), (number % 256, number // 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, labels: list[int], names: list[str] | None = None, start: int = 0) -> Path:
    """Writes images that all differ, from number `start` on."""
    images: list[bytes | None] = [picture(start + i) for i in range(len(labels))]
    return parquet_file(path, images, labels, names)


def info_of(path: Path, **changes: Any):
    parquet._parquet.cache_clear()
    return Parquet(path=str(path), **changes).info()


def labels_by_red(path: Path) -> dict[int, int]:
    parquet._parquet.cache_clear()
    splits = Parquet(path=str(path)).open()
    return {
        split.read(i).getpixel((0, 0))[0]: int(label)
        for split in splits.values()
        for i, label in enumerate(split.labels)
    }


def fault_of(path: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        info_of(path, **changes)
    return str(caught.value).replace(f"{path}", "SET")


# --- classes that mean different things ---------------------------------------------------------------


@pytest.mark.parametrize("other", ["val", "test", "train-00001-of-00002"])
@pytest.mark.parametrize("names", [("1", "10", "2"), ("cat", "dog", "eel")])
def test_labels_are_mapped_by_the_names_of_their_own_file(tmp_path, other, names):
    first = "train-00000-of-00002" if "-of-" in other else "train"
    write(tmp_path / f"{first}.parquet", [0, 1, 2] * 10, list(names))
    write(tmp_path / f"{other}.parquet", [0, 1] * 6, [names[2], names[0]], start=100)
    found = labels_by_red(tmp_path)
    assert {found[red] for red in range(100, 112, 2)} == {2}
    assert {found[red] for red in range(101, 112, 2)} == {0}
    assert any("differently; mapped by name" in text for text in info_of(tmp_path).notices)


def test_a_class_that_training_files_lack_is_refused_by_name(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 10, ["cat", "dog"])
    write(tmp_path / "val.parquet", [0, 1] * 5, ["dog", "cow"], start=50)
    assert "(val): 1 of its 2 classes are not among those of the first training file: 'cow'" in fault_of(
        tmp_path
    )


def test_a_name_without_an_image_needs_no_class(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 10, ["cat", "dog"])
    write(tmp_path / "val.parquet", [1, 1, 0], ["dog", "cat", "cow"], start=50)
    assert info_of(tmp_path).class_names == ("cat", "dog")


def test_files_without_names_count_by_number_and_that_is_told(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 10, ["cat", "dog"])
    write(tmp_path / "test.parquet", [0, 1] * 5, start=50)
    assert (
        "test: its files store no class names; its numbers count as those of train"
        in info_of(tmp_path).notices
    )
    write(tmp_path / "test.parquet", [0, 2] * 5, start=50)
    assert "row 1 has label 2, outside the 2 classes of the training files" in fault_of(tmp_path)


def test_a_name_that_stands_twice_is_refused(tmp_path):
    path = write(tmp_path / "set.parquet", [0, 1, 2] * 5, ["cat", "dog", "cat"])
    assert fault_of(path) == "SET: its metadata name the class 'cat' twice"


# --- identity is content ------------------------------------------------------------------------------


def test_any_image_counts_for_the_fingerprint(tmp_path):
    labels = [0, 1] * 10
    before = info_of(write(tmp_path / "a.parquet", labels)).fingerprint
    for changed in range(20):
        images: list[bytes | None] = [picture(i) for i in range(20)]
        images[changed] = picture(200)
        assert info_of(parquet_file(tmp_path / "b.parquet", images, labels)).fingerprint != before
    assert info_of(write(tmp_path / "b.parquet", labels)).fingerprint == before


def test_the_layout_of_the_file_does_not_count(tmp_path):
    path = write(tmp_path / "a.parquet", [0, 1] * 10)
    table = pq.read_table(path)
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=3, compression="zstd")
    assert info_of(tmp_path / "b.parquet").fingerprint == info_of(path).fingerprint


def test_a_large_file_is_read_once_and_again_if_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("VITC_SWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "_REMEMBERED_BYTES", 0)
    computed = []
    compute = content._computed

    def counted(*arguments: Any) -> Any:
        computed.append(arguments)
        return compute(*arguments)

    monkeypatch.setattr(content, "_computed", counted)

    def fingerprint() -> str:
        # As another process, which has only what is on the disk.
        monkeypatch.setattr(content, "_known", {})
        return info_of(tmp_path / "a.parquet").fingerprint

    path = write(tmp_path / "a.parquet", [0, 1] * 10)
    table = pq.read_table(path)
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, path, **plain)
    size, before = path.stat().st_size, fingerprint()
    assert fingerprint() == before
    assert len(computed) == 1
    # The same images in another order: size and footer stay.
    pq.write_table(
        table.set_column(0, "image", table["image"].take(pa.array(range(19, -1, -1)))), path, **plain
    )
    assert path.stat().st_size == size
    assert fingerprint() != before
    for remembered in (tmp_path / "cache" / "digests").iterdir():
        remembered.write_bytes(b"cut")
    after = fingerprint()
    os.chmod(tmp_path / "cache" / "digests", 0o500)
    assert fingerprint() == after


def test_a_copy_of_large_data_is_made_anew_after_a_repair(tmp_path, monkeypatch):
    monkeypatch.setenv("VITC_SWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parquet_table, "IN_MEMORY_BYTES", 0)
    path = write(tmp_path / "a.parquet", [0, 1] * 10)
    assert 3 in labels_by_red(path)
    images: list[bytes | None] = [picture(i if i != 3 else 77) for i in range(20)]
    parquet_file(path, images, [0, 1] * 10)
    found = labels_by_red(path)
    assert 77 in found
    assert 3 not in found


# --- files that are missing, doubled or oddly named ----------------------------------------------------


def test_a_shard_that_is_missing_is_named(tmp_path):
    for number in (0, 2):
        write(tmp_path / f"train-0000{number}-of-00004.parquet", [0, 1] * 5, start=20 * number)
    fault = fault_of(tmp_path)
    assert "2 of 4 train files are missing, the first is number 1 of train-*-of-00004" in fault
    # What is there can be used, if that is said.
    assert info_of(tmp_path, splits={"train": "train-*"}).sizes["train"] < 20


def test_shards_of_two_numberings_are_refused(tmp_path):
    for name in ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"):
        write(tmp_path / f"{name}.parquet", [0, 1] * 5)
    assert "train is there in 1 and in 2 parts" in fault_of(tmp_path)


def test_two_data_sets_of_one_repository_are_not_merged(tmp_path):
    for folder in ("plain", "extra"):
        for split in ("train", "test"):
            write(tmp_path / folder / f"{split}-00000-of-00001.parquet", [0, 1] * 5)
    fault = fault_of(tmp_path)
    assert "holds several data sets, as extra/test-00000-of-00001.parquet and plain/test-00000" in fault
    assert info_of(tmp_path / "plain").splits["test"] == "test-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train", "dev", "test"), "val"),
        (("training", "validation", "evaluation"), "test"),
        (("train", "valid", "holdout"), "test"),
        (("train/0000", "val/0000", "test/0000"), "val"),
        (("default/train/0000", "default/dev/0000", "default/eval/0000"), "val"),
        (("TRAIN", "Val", "Test"), "test"),
    ],
)
def test_splits_have_the_names_that_people_give_them(tmp_path, names, split):
    for start, name in enumerate(names):
        write(tmp_path / f"{name}.parquet", [0, 1] * (10 + start), start=50 * start)
    info = info_of(tmp_path)
    assert info.sizes == {"train": 20, "val": 22, "test": 24}
    assert "held out" not in info.splits[split]


def test_a_file_whose_name_tells_no_split_is_left_out_and_named(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 10)
    write(tmp_path / "trainval.parquet", [0, 1] * 10)
    write(tmp_path / ".cache" / "train.parquet", [0, 1] * 10)
    info = info_of(tmp_path)
    assert info.notices == ("left out 1 file, trainval.parquet: its name tells no split",)
    assert sum(info.sizes.values()) == 20


def test_splits_are_named_by_hand(tmp_path):
    for start, name in enumerate(("a1", "a2", "b", "c")):
        write(tmp_path / f"{name}.parquet", [0, 1] * 10, start=50 * start)
    info = info_of(tmp_path, splits={"train": ["a*"], "val": "b.parquet", "test": "c.parquet"})
    assert info.sizes == {"train": 40, "val": 20, "test": 20}
    assert "no Parquet file 'd*', which `splits.val` names" in fault_of(
        tmp_path, splits={"train": "a*", "val": "d*"}
    )
    assert "names a1.parquet for train and for val" in fault_of(
        tmp_path, splits={"train": "a*", "val": "a1*"}
    )


def test_a_test_split_that_nobody_published_is_left_out(tmp_path):
    names = ["cat", "dog"]
    write(tmp_path / "train.parquet", [0, 1] * 20, names)
    write(tmp_path / "validation.parquet", [0, 1] * 5, names, start=50)
    write(tmp_path / "test.parquet", [-1] * 10, names, start=80)
    info = info_of(tmp_path)
    assert info.splits["test"] == "validation.parquet"
    assert info.notices == ("left out test.parquet: its labels are all -1, that is, not published",)
    write(tmp_path / "test.parquet", [-1] * 9 + [0], names, start=80)
    assert "row 0 has label -1, outside the 2 classes 0 to 1 (9 such row(s))" in fault_of(tmp_path)


def test_images_in_two_splits_are_counted(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 20)
    write(tmp_path / "test.parquet", [0, 1] * 5, start=37)
    assert info_of(tmp_path).notices == ("3 of 10 test images are train images, too",)
    write(tmp_path / "twice.parquet", [0, 1] * 20)
    images: list[bytes | None] = [picture(i // 2) for i in range(40)]
    notice, *_ = info_of(parquet_file(tmp_path / "twice.parquet", images, [0, 1] * 20)).notices
    assert notice.startswith("20 of 40 train images equal an earlier one")


# --- labels -------------------------------------------------------------------------------------------


def test_one_class_is_nothing_to_learn(tmp_path):
    path = write(tmp_path / "set.parquet", [0] * 20, ["cat", "dog"])
    assert fault_of(path) == "SET: all training images are of one class, so there is nothing to learn"


@pytest.mark.parametrize("largest", [999, 20_000_000, 2**40])
def test_numbers_that_are_no_numbering_are_refused_at_once(tmp_path, largest):
    path = write(tmp_path / "set.parquet", [0, largest] * 10)
    fault = fault_of(path)
    assert f"the labels 0, {largest} are no numbering: 2 of the numbers 0 to {largest} are used" in fault


def test_labels_from_one_on_are_named(tmp_path):
    path = write(tmp_path / "set.parquet", [1, 2, 3] * 10)
    assert info_of(path).notices == ("1 of 4 classes have no training image: '0'; do the labels begin at 1?",)


def test_chance_is_the_error_of_the_largest_class(tmp_path):
    path = write(tmp_path / "set.parquet", ([0] * 9 + [1]) * 100)
    assert info_of(path).chance_error_pct == pytest.approx(10)
    balanced = write(tmp_path / "even.parquet", [0, 1, 2] * 20)
    assert info_of(balanced).chance_error_pct == 100 * (1 - 1 / 3)


# --- odd files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata",
    [
        b"5",
        b"[[",
        b"[" * 100_000,
        json.dumps({"info": {"features": {"label": {"names": 5}}}}).encode(),
        json.dumps({"info": {"features": {"label": {"names": {"a": 1}}}}}).encode(),
        json.dumps({"info": {"features": ["label"]}}).encode(),
        b'{"info": {"features": {"label": {"num_classes": ' + b"9" * 5000 + b"}}}}",
        b"\xff\xfe",
    ],
)
def test_metadata_of_any_form_are_no_names_at_worst(tmp_path, metadata):
    path = write(tmp_path / "set.parquet", [0, 1] * 10)
    table = pq.read_table(path).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, path)
    assert info_of(path).class_names == ("0", "1")


def test_large_images_are_read_a_few_at_a_time(tmp_path):
    """Twelve images of 8 MB in one row group: a batch holds at most 64 MiB of them."""
    noise = np.random.default_rng(0).bytes(2**23)
    images: list[bytes | None] = [noise[i:] + noise[:i] for i in range(12)]
    path = parquet_file(tmp_path / "set.parquet", images, [0, 1] * 6)
    with pq.ParquetFile(path) as file:
        sizes = [len(batch) for batch in content.image_batches(file, "image")]
    assert sum(sizes) == 12
    assert max(sizes) <= 8


BINARY = (pa.binary(), pa.large_binary(), pa.binary_view())
#: What may be odd about a file. The rest of it is as it should be, or hardly one could be read.
ODD: dict[str, st.SearchStrategy[Any]] = {
    "content_type": st.sampled_from([*BINARY, pa.string(), pa.list_(pa.uint8()), pa.int64()]),
    "label_type": st.sampled_from(
        [pa.int8(), pa.uint64(), pa.int32(), pa.float32(), pa.bool_(), pa.string()]
    ),
    "columns": st.lists(st.sampled_from(["image", "label", "label", "more"]), min_size=1, max_size=4),
    "names": st.lists(st.text(max_size=3), max_size=4) | st.integers() | st.text() | st.just(["b", "a", "c"]),
    "is_struct": st.just(False),
    "labels": st.lists(st.integers(-2, 4) | st.none(), max_size=12),
}


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    """The parts of a file that can be read, of which up to two are replaced."""
    drawn: dict[str, Any] = {
        "content_type": pa.binary(),
        "label_type": pa.int64(),
        "columns": draw(st.permutations(["image", "label", "more"])),
        "names": draw(st.sampled_from([None, ["a", "b", "c"]])),
        "is_struct": True,
        "labels": [number % 3 for number in range(draw(st.integers(12, 24)))],
        "num_bad": draw(st.sampled_from([0, 0, 1, 3])),
        "on_bad_image": draw(st.sampled_from(["error", "skip"])),
    }
    return drawn | {name: draw(ODD[name]) for name in draw(st.sets(st.sampled_from(list(ODD)), max_size=2))}


def test_of_any_schema_all_images_are_read_or_counted_as_left_out_or_it_is_refused_in_a_line(tmp_path):
    seen = {"read": 0, "skipped": 0, "refused": 0}

    @settings(max_examples=200, deadline=None)
    @given(files())
    def check(drawn: dict[str, Any]) -> None:
        rows = len(drawn["labels"])
        path = _drawn_file(tmp_path / "odd.parquet", drawn)
        parquet._parquet.cache_clear()
        config = Parquet(path=str(path), on_bad_image=drawn["on_bad_image"])
        told = ""
        try:
            info, splits = config.info(), config.open()
        except DataError as error:
            told = str(error)
        assert "\n" not in told
        if told:
            seen["refused"] += 1
            return
        # Images in are images out, and those that are counted as left out.
        read, bad = [], 0
        for split in splits.values():
            for row in range(len(split)):
                try:
                    red, green, _ = split.read(row).getpixel((0, 0))
                    read.append(256 * green + red)
                except DataError:
                    bad += 1
        expected = set(range(min(drawn["num_bad"], rows), rows))
        assert len(read) == len(set(read))
        assert set(read) == expected
        if drawn["on_bad_image"] == "skip":
            assert (bad, info.skipped) == (0, rows - len(expected))
        else:
            assert (bad, info.skipped) == (rows - len(expected), 0)
        seen["skipped" if info.skipped else "read"] += 1

    check()
    # All ways were gone.
    assert min(seen.values()) > 5, seen


def _drawn_file(path: Path, drawn: dict[str, Any]) -> Path:
    """Writes images of which the first ones are cut off."""
    rows = len(drawn["labels"])
    images = pa.array([None] * rows, drawn["content_type"])
    if drawn["content_type"] in BINARY:
        encoded = [picture(i)[: 20 if i < drawn["num_bad"] else None] for i in range(rows)]
        images = pa.array(encoded, drawn["content_type"])
    arrays = {
        "image": pa.StructArray.from_arrays([images], ["bytes"]) if drawn["is_struct"] else images,
        "label": _as(drawn["labels"], drawn["label_type"]),
        "more": pa.array([None] * rows, pa.null()),
    }
    features = {"info": {"features": {"label": {"names": drawn["names"]}}}}
    schema = pa.schema(
        [(column, arrays[column].type) for column in drawn["columns"]],
        metadata={"huggingface": json.dumps(features)},
    )
    pq.write_table(pa.Table.from_arrays([arrays[name] for name in drawn["columns"]], schema=schema), path)
    return path


def _as(labels: list[int | None], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(labels, pa.int64()).cast(kind)
    except pa.ArrowException:
        return pa.array([None] * len(labels), kind)


# --- more of what folders, columns and files hold --------------------------------------------------------


def refusal(path: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        info_of(path, **changes)
    return str(caught.value)


def test_images_without_bytes_are_refused_before_training_unless_they_are_left_out(tmp_path):
    images: list[bytes | None] = [picture(i) for i in range(40)]
    images[3], images[7] = None, b""
    path = parquet_file(tmp_path / "set.parquet", images, [0, 1] * 20, None)
    assert "2 of 40 images have no bytes, the first is row 3" in refusal(path)
    assert info_of(path, on_bad_image="skip").skipped == 2


def test_a_test_split_of_one_class_is_refused(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 10)
    write(tmp_path / "test.parquet", [0] * 8, start=50)
    assert "all images of test.parquet are of one class" in refusal(tmp_path)


def test_a_link_to_a_split_that_is_gone_is_refused(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 10)
    (tmp_path / "test.parquet").symlink_to(tmp_path / "gone.parquet")
    assert "test.parquet is a link that leads nowhere" in refusal(tmp_path)


def test_a_link_to_the_folder_itself_adds_nothing(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 10)
    (tmp_path / "again").symlink_to(tmp_path)
    assert sum(info_of(tmp_path).sizes.values()) == 20


def test_one_number_under_two_names_is_refused(tmp_path):
    write(tmp_path / "train-00000-of-00001-aa.parquet", [0, 1] * 10)
    write(tmp_path / "train-00000-of-00001-bb.parquet", [0, 1] * 10, start=50)
    assert "are both number 0 of 00001" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["train", "train (1)"], "train: files of 2 names are read as one split"),
        (["train-0", "train-1", "train-3"], "the first is number 2"),
    ],
)
def test_files_that_may_not_belong_together_or_lack_one_are_told(tmp_path, names, told):
    for number, name in enumerate(names):
        write(tmp_path / f"{name}.parquet", [0, 1] * 10, start=100 * number)
    assert any(told in notice for notice in info_of(tmp_path).notices)


def test_suffixes_may_be_capitals_and_other_files_are_named(tmp_path):
    write(tmp_path / "a" / "train.PARQUET", [0, 1] * 10)
    assert sum(info_of(tmp_path / "a").sizes.values()) == 20
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train.csv").write_text("a,b", encoding="utf-8")
    assert "holds no Parquet file, only 1 .csv" in refusal(tmp_path / "b")


def test_columns_of_other_names_get_the_settings_that_name_them(tmp_path):
    table = pq.read_table(write(tmp_path / "set.parquet", [0, 1] * 10))
    pq.write_table(table.rename_columns(["img", "fine_label"]), tmp_path / "set.parquet")
    assert "image_column: img, label_column: fine_label" in refusal(tmp_path / "set.parquet")
    assert info_of(tmp_path / "set.parquet", image_column="img", label_column="fine_label").num_classes == 2


def test_pointers_of_git_lfs_are_named_as_such(tmp_path):
    path = tmp_path / "set.parquet"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n")
    assert "git lfs pull" in refusal(path)


def test_names_of_classes_cannot_steer_a_terminal(tmp_path):
    path = write(tmp_path / "set.parquet", [0, 1] * 10, ["a\nb", "\x1b[31mred"])
    assert info_of(path).class_names == ("a\\nb", "\\x1b[31mred")


def test_one_picture_under_two_labels_is_told(tmp_path):
    path = parquet_file(tmp_path / "set.parquet", [picture(i // 2) for i in range(40)], [0, 1] * 20, None)
    assert any("20 train images are there under several labels" in text for text in info_of(path).notices)
