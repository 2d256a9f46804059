"""Pictures: which are read, how they come out, and how much memory they take."""

import io
import os
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from tests.support.trees import fault_of, imported, picture, plant, reasons
from trainables.base import DataError
from trainables.data import decode as decoding
from trainables.data.decode import decode
from trainables.data.packing_parts import Layout
from trainables.data.parquet import Parquet
from trainables.data.shifted import ShiftedSet


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


MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "F", "I")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_of_any_mode_is_upright_and_keeps_its_values(mode, orientation):
    rng = np.random.default_rng(0)
    if mode in ("I;16", "F", "I"):
        kind = {"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode]
        values = rng.integers(0, 65536, (10, 14)).astype(kind)
        # Its largest and smallest values are those of 16 bits.
        values[0, :2] = 0, 65535
        image = Image.fromarray(values)
    else:
        image = Image.fromarray(rng.integers(0, 256, (10, 14, 4), np.uint8), "RGBA").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", exif=exif)
    with Image.open(buffer) as opened:
        opened.load()
        upright = ImageOps.exif_transpose(opened)
    if mode in ("I;16", "F", "I"):
        grey = np.rint(np.asarray(upright).astype(float) * 255 / 65535).astype(np.uint8)
        expected = np.stack([grey] * 3, axis=-1)
    elif mode in ("RGBA", "LA"):
        white = Image.new("RGBA", upright.size, "white")
        expected = np.asarray(Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB"))
    else:
        expected = np.asarray(upright.convert("RGB"))
    assert np.array_equal(np.asarray(decode(buffer.getvalue())), expected)


@pytest.mark.parametrize(("kind", "extension"), [("AVIF", ".jpg"), ("JPEG2000", ""), ("PPM", ".pnm")])
def test_what_a_picture_is_does_not_follow_from_its_name(tmp_path, kind, extension):
    root = plant(tmp_path / "tree", "cat/0.png", "dog/0.png")
    plant(root, f"cat/1{extension}", data=picture(kind, size=(32, 32)))
    assert imported(root, "out.parquet").counts["train"] == [2, 1]


OTHER = {
    "phone.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "xl.png": b"\xff\x0a" + bytes(9),
    "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "game.tga": bytes(40),
    "layers": b"8BPS" + bytes(40),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_kinds_of_images_are_left_out_by_content_and_name(tmp_path, name):
    root = plant(tmp_path / "tree", "cat/0.png", "dog/0.png")
    plant(root, f"cat/{name}", data=OTHER[name])
    assert reasons(imported(root, "out.parquet"), root) == {f"cat/{name}": "a kind of image that is not read"}


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("extension", ["", "."])
@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "JPEG", "PNG", "WEBP", "GIF"])
def test_an_image_that_is_cut_off_is_named_as_such_and_not_as_another_kind(tmp_path, kind, extension, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer := io.BytesIO(), kind)
    whole, name = (
        buffer.getvalue(),
        "photo" + (extension and {"JPEG2000": ".jp2"}.get(kind, f".{kind.lower()}")),
    )
    root = plant(tmp_path / "tree", "cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    plant(root, f"cat/{name}", data=whole[: max(24, int(share * len(whole)))])
    fault = fault_of(root)
    assert re.match(rf"ROOT/cat/{re.escape(name)} does not decode: .*(cut off|truncated)", fault), fault


def test_a_raw_photograph_is_left_out_although_its_thumbnail_could_be_read(tmp_path):
    root = plant(tmp_path / "tree", "cat/0.png", "dog/0.png")
    plant(root, "cat/1.NEF", "only/1.dng", data=picture("TIFF"))
    result = imported(root, "out.parquet")
    assert result.classes == ("cat", "dog")
    raw = "a kind of image that is not read"
    assert reasons(result, root) == {"cat/1.NEF": raw, "only": "a folder without images"}


def test_a_large_file_is_read_only_if_it_is_an_image_and_not_too_large(tmp_path, monkeypatch):
    root = plant(tmp_path / "tree", "cat/0.png", "dog/0.png")
    large = {"film.mp4": b"\0\0\0\x18ftypmp42", "zeros.png": b"", "real.png": picture()}
    for name, data in large.items():
        plant(root, f"cat/{name}", data=data)
        # Holes take no room on the disk, and all the room in memory.
        os.truncate(root / "cat" / name, 2**29)
    tracemalloc.start()
    try:
        result = imported(root, "out.parquet", on_bad_image="skip")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert result.counts["train"] == [1, 1]
    bad = "an image that cannot be used"
    assert reasons(result, root) == {"cat/film.mp4": "no image", "cat/zeros.png": bad, "cat/real.png": bad}
    fault = fault_of(root, layout=Layout(part_bytes=2**31, shard_bytes=2**31))
    assert "real.png has 536,870,912 bytes, over 268,435,456" in fault


def white_of_12_bits() -> bytes:
    """Returns a white PNG of 12 bits stored in 16. Of these, Pillow keeps the upper eight: 15 of 255."""
    row = b"\0" + np.full(4 * 3, 4095, ">u2").tobytes()
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 4, 1, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(row)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in (*parts, (b"IEND", b""))
    )


def black() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_that_are_nearly_black_are_told(tmp_path):
    root = plant(tmp_path / "tree", "cat/0.png", "dog/0.png")
    plant(root, "dog/dark.png", data=white_of_12_bits())
    assert imported(root, "out.parquet").dark == [root / "dog" / "dark.png"]


@pytest.mark.parametrize(
    ("first", "is_told"), [(white_of_12_bits(), True), (picture("PNG"), False), (black(), False)]
)
def test_files_that_begin_with_a_picture_that_is_nearly_black_are_told(tmp_path, first, is_told):
    rows = [{"image": {"bytes": first, "path": None}, "label": 0}] + [
        {"image": {"bytes": picture(size=(9, 2 + number)), "path": None}, "label": number % 2}
        for number in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    told = [text for text in Parquet(path=str(tmp_path)).info().notices if "nearly black" in text]
    wanted = (
        "train: the first image of train.parquet is nearly black, as pictures of 12 bits stored in 16 bits a "
        "colour are"
    )
    assert told == ([wanted] if is_told else [])


def test_shifted_sets_leave_out_hidden_files_and_take_images_by_content(tmp_path):
    root = plant(tmp_path / "tree", "cat/0", "dog/0.jfif", "dog/1.JPEG")
    plant(root, "cat/.ipynb_checkpoints/0.png", "__MACOSX/emu/0.png", "cat/._1.png", "Thumbs.db")
    plant(root, "cat/2.nef", data=picture("TIFF"))
    plant(root, "dog/labels.txt", data=b"text")
    shifted = ShiftedSet(name="other", uri=str(root)).open(["cat", "dog"])
    assert shifted.images.labels.tolist() == [0, 1, 1]
    assert [shifted.images.read(row).size for row in range(3)] == [(3, 2)] * 3


def test_a_strip_is_refused_in_shifted_sets_as_elsewhere(tmp_path):
    root = plant(tmp_path / "tree", "cat/0.png", "dog/0.png")
    plant(root, "cat/1.png", data=picture(size=(1, 10_000)))
    images = ShiftedSet(name="other", uri=str(root)).open(["cat", "dog"]).images
    with pytest.raises(DataError, match=r"cat/1\.png has 1 x 10000 pixels, over 64 times as long as wide"):
        images.read(1)


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
        # A little beyond black and white, as resized images are.
        ([-0.05, 0.5, 1.05], np.float32, [0, 128, 255]),
        ([-2.0, 100.0, 256.0], np.float32, [0, 100, 255]),
        # Outside the usual ranges, each from its smallest to its largest value.
        ([-1000.0, 0.0, 3000.0], np.float32, [0, 64, 255]),
        ([-1.0, 0.0, 1.0], np.float32, [0, 128, 255]),
        ([0.0, 5.0, 10.0], np.float32, [0, 128, 255]),
        ([0.0, 1e5, 2e5], np.float32, [0, 128, 255]),
        ([-5, 0, 5], np.int32, [0, 128, 255]),
        ([0, 70_000, 140_000], np.int32, [0, 128, 255]),
        # All would be the same byte.
        ([0.0, 1e-4, 2e-4], np.float32, [0, 127, 255]),
        ([65_000, 65_015, 65_030], np.uint16, [0, 128, 255]),
        ([7.0, 7.0], np.float32, [0, 0]),
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


def test_of_the_largest_images_a_process_decodes_one_at_a_time(monkeypatch):
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 100)
    alone = []
    convert = decoding.to_rgb
    monkeypatch.setattr(
        decoding, "to_rgb", lambda image: alone.append(decoding._LARGE.locked()) or convert(image)
    )
    for size in ((10, 10), (10, 11)):
        decode(picture(size=size))
    assert alone == [False, True]
    assert not decoding._LARGE.locked()


def test_large_files_are_written_a_few_at_a_time(tmp_path):
    """Forty files of 100 KB, of which a group holds at most four."""
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
        imported(root, "out.parquet", layout=Layout(400_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 14
