"""Hostile images and paths: each gives one line with file and row, without a hang or gigabytes of memory."""

import io
import resource
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import trainables.data.decode
from trainables.base import DataError
from trainables.data.decode import FORMATS, MAX_SCANS, decode
from trainables.data.packing import import_folder
from trainables.data.parquet import Parquet


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _examples() -> list[bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    deep = Image.fromarray(rng.integers(0, 65536, (9, 7), np.uint16))
    return [
        *(encoded(rgb, kind) for kind in FORMATS),
        *(encoded(rgb, kind, **frames) for kind in ("GIF", "WEBP", "PNG", "TIFF")),
        encoded(rgb, "JPEG", progressive=True),
        encoded(rgb.convert("CMYK"), "JPEG"),
        encoded(rgb.convert("RGBA"), "WEBP", lossless=True),
        encoded(rgb.convert("P"), "PNG", transparency=3),
        encoded(rgb, "TIFF", compression="tiff_lzw"),
        encoded(deep, "PNG"),
        encoded(deep, "TIFF"),
    ]


EXAMPLES = _examples()


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """An image with bytes changed, cut out, doubled or put in, and perhaps with another one's head."""
    data = bytearray(draw(st.sampled_from(EXAMPLES)))
    for _ in range(draw(st.integers(1, 4))):
        # Mostly in the head, where sizes, kinds and offsets stand.
        last = max(1, min(len(data), draw(st.sampled_from([48, 200, len(data)]))) - 1)
        # Mostly behind the first bytes, by which kinds are told.
        at = draw(st.integers(min(draw(st.sampled_from([8, 8, 8, 0])), last), last))
        match draw(st.sampled_from(["set", "flip", "cut", "drop", "double", "insert", "splice"])):
            case "set":
                value = draw(
                    st.sampled_from([b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff", b"\x80\x00"])
                )
                data[at : at + len(value)] = value
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + draw(st.integers(1, 16))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=16))
            case "splice":
                data[:at] = draw(st.sampled_from(EXAMPLES))[:at]
    return bytes(data)


def test_whatever_is_done_to_an_image_it_is_an_image_or_one_line_about_it(monkeypatch):
    # So small that a picture let through in error is told from one that is not.
    monkeypatch.setattr(trainables.data.decode, "MAX_PIXELS", 2**20)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = {"images": 0, "faults": 0}

    @settings(max_examples=800, suppress_health_check=list(HealthCheck))
    @given(mutated())
    def check(data: bytes) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            told = ""
            try:
                image = decode(data)
            except DataError as error:
                told = str(error)
        seen["faults" if told else "images"] += 1
        assert "\n" not in told
        assert len(told) < 300
        if not told:
            assert image.mode == "RGB"
            assert image.width * image.height <= 2**20

    check()
    # Both ways were gone.
    assert min(seen.values()) > 60
    # Four channels of the largest picture, in a few copies, are 16 MiB each.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 256 * 1024


def test_a_progressive_jpeg_of_thousands_of_scans_is_refused_undecoded(monkeypatch):
    whole = encoded(Image.new("L", (512, 512)), "JPEG", progressive=True)
    start = whole.rfind(b"\xff\xda")
    last_scan = whole[start:-2]
    scans = whole.count(b"\xff\xda")
    allowed = whole[:-2] + last_scan * (MAX_SCANS - scans) + b"\xff\xd9"
    assert decode(allowed).size == (512, 512)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match=rf"has {MAX_SCANS + 1} scans, over {MAX_SCANS}"):
        decode(allowed[:-2] + last_scan + b"\xff\xd9")


def test_the_canvas_of_an_animation_counts_and_not_its_first_picture():
    def canvas(side: int) -> bytes:
        inner = encoded(Image.new("RGB", (16, 16)), "WEBP", lossless=True)[12:]
        frame = bytes(6) + (15).to_bytes(3, "little") * 2 + bytes(4) + inner
        frame += b"\0" * (len(frame) % 2)
        head = b"\x02\0\0\0" + (side - 1).to_bytes(3, "little") * 2
        parts = ((b"VP8X", head), (b"ANIM", bytes(6)), (b"ANMF", frame))
        body = b"WEBP" + b"".join(kind + len(part).to_bytes(4, "little") + part for kind, part in parts)
        return b"RIFF" + len(body).to_bytes(4, "little") + body

    assert decode(canvas(32)).size == (32, 32)
    for side in (9_000, 16_383):
        with pytest.raises(DataError, match="pixels"):
            decode(canvas(side))


def test_of_an_animation_the_first_picture_is_taken():
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    for kind in ("GIF", "PNG", "TIFF"):
        data = encoded(red, kind, save_all=True, append_images=[blue])
        assert decode(data).getpixel((4, 4)) == (255, 0, 0), kind


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"\x7fELF" + bytes(64),
    ],
)
def test_other_kinds_of_files_are_not_even_tried(data):
    with pytest.raises(DataError, match="it is no image of a kind that is known"):
        decode(data)


def hugging_face_file(path, rows) -> None:
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(rows, image_type), "label": pa.array([i % 2 for i in range(len(rows))])}
    pq.write_table(pa.table(columns), path)


def test_a_path_in_a_data_file_opens_no_file(tmp_path, png_bytes):
    """The layout allows an image by path; a file from elsewhere could name any file of this machine."""
    (tmp_path / "outside.png").write_bytes(png_bytes([[[9, 9, 9]]]))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "inside.png").write_bytes(png_bytes([[[9, 9, 9]]]))
    paths = ["../outside.png", str(tmp_path / "outside.png"), "inside.png", "file:///etc/passwd"]
    good = {"bytes": png_bytes([[[1, 1, 1]]]), "path": "../outside.png"}
    rows = [{"bytes": None, "path": path} for path in paths] + [good] * 16
    hugging_face_file(tmp_path / "set" / "train.parquet", rows)
    splits = Parquet(path=str(tmp_path / "set")).open()
    read, refused = [], []
    for images in splits.values():
        for row in range(len(images)):
            try:
                read.append(images.read(row).getpixel((0, 0)))
            except DataError as error:
                refused.append(str(error))
    # What has bytes is read from them, whatever its path says.
    assert read == [(1, 1, 1)] * 16
    assert len(refused) == len(paths)
    assert all("has no bytes; images stored as paths only are not supported" in text for text in refused)


def test_names_of_classes_cannot_lead_out_of_an_imported_folder(tmp_path, png_bytes):
    for name in ("cat", "ape"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / "x.png").write_bytes(png_bytes([[[1, 1, 1]]]))
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "y.png").write_bytes(b"no image")
    # A folder that is linked into a class is not entered.
    (tmp_path / "tree" / "cat" / "linked").symlink_to(tmp_path / "secret")
    done = import_folder(tmp_path / "tree", tmp_path / "out.parquet")
    assert (done.num_images, done.classes) == (2, ("ape", "cat"))
    assert done.left_out == {tmp_path / "tree" / "cat" / "linked": "a link to a folder"}
