"""Tells images from other files by their content."""

import functools
import io
import mimetypes
import warnings
from pathlib import Path
from typing import IO

from PIL import Image

from trainables.data.decode import FORMATS, begins_as_image

#: A file of such a name is an image, and a bad one if it does not decode.
IMAGE_EXTENSIONS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm",
}  # fmt: skip

#: Extensions of images that neither Python nor PIL know.
_OTHER_EXTENSIONS = {
    ".heic", ".heif", ".jxl", ".exr", ".hdr", ".xcf",
}  # fmt: skip

#: Photographs as the sensor of a camera gives them. Many can be opened as TIFF, but show a thumbnail then.
_RAW_EXTENSIONS = {
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".kdc", ".mrw", ".nef", ".nrw", ".orf",
    ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srw", ".x3f",
}  # fmt: skip

#: Beginnings of files, and positions of them, by which images of kinds that are not read are known.
_BEGINNINGS = (
    *((4, b"ftyp" + brand) for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")),
    (0, b"\xff\x0a"),
    (0, b"\0\0\0\x0cJXL "),
    (0, b"8BPS"),
    (0, b"%!PS-Adobe"),
    (0, b"<svg"),
    (0, b"v/1\x01"),
    (0, b"#?RADIANCE"),
    (0, b"FUJIFILMCCD-RAW"),
)

#: Bytes that `reason_to_leave_out` looks at.
HEAD_BYTES = 64

#: Reasons to leave a file out.
NOT_READ, NO_IMAGE = "a kind of image that is not read", "no image"


def is_image(path: Path) -> bool:
    """Returns whether a file is an image of a kind that is read, or is named as one."""
    if is_raw(path.name):
        return False
    return path.suffix.lower() in IMAGE_EXTENSIONS or is_readable(path)


@functools.cache
def image_extensions() -> frozenset[str]:
    """Returns the extensions of names of images that the installed PIL reads. Some builds lack a library."""
    known = Image.registered_extensions().items()
    return frozenset(IMAGE_EXTENSIONS) | {
        extension for extension, kind in known if kind in FORMATS and kind in Image.OPEN
    }


def is_raw(name: str) -> bool:
    """Returns whether a name is of a camera's raw photograph."""
    return Path(name).suffix.lower() in _RAW_EXTENSIONS


def is_readable(file: Path | bytes | IO[bytes]) -> bool:
    """Returns whether a file begins as an image of a kind that is read. Its pixels are not decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS):
                return True
    # An image of too many pixels is one all the same.
    except Image.DecompressionBombError:
        return True
    # PIL raises any exception on hostile bytes.
    except Exception:
        return False


def reason_to_leave_out(name: str, head: bytes) -> str:
    """Returns why a file that cannot be read as an image is no bad image. Empty if it is one.

    Args:
      name: its name, which decides if its content does not.
      head: its first HEAD_BYTES bytes.
    """
    if is_raw(name) or any(head.startswith(text, at) for at, text in _BEGINNINGS):
        return NOT_READ
    suffix = Path(name).suffix.lower()
    if suffix in IMAGE_EXTENSIONS or begins_as_image(head):
        return ""
    if suffix in image_extensions():
        return NO_IMAGE
    is_other = (
        suffix in _OTHER_EXTENSIONS
        or Image.registered_extensions().get(suffix) in Image.OPEN
        or (mimetypes.guess_type(name)[0] or "").startswith("image/")
    )
    return NOT_READ if is_other else NO_IMAGE
