"""Decodes images to RGB, from bytes of untrusted origin."""

import contextlib
import io
import threading
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from trainables.base import DataError

#: An image of more pixels is refused before decoding, because a few kilobytes can expand to gigabytes.
MAX_PIXELS = 2**26

#: Of images of more pixels, a process decodes one at a time, because each may take a gigabyte.
LARGE_PIXELS = 2**25
_LARGE: contextlib.AbstractContextManager[object] = threading.Lock()

#: A JPEG of more scans is refused too. Each scan costs a pass over the whole image and may be a few bytes
#: long, so 80 KB can take minutes. Progressive JPEGs have about ten scans.
MAX_SCANS = 100

#: Formats that are read. Other formats of PIL are rare, and some start other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

#: Beginnings of files, and positions of them, by which images of FORMATS are known. Of TIFF and BMP they say
#: too little.
_BEGINNINGS = (
    (0, b"\xff\xd8\xff"),
    (0, b"\x89PNG\r\n\x1a\n"),
    (0, b"GIF8"),
    (8, b"WEBP"),
    (4, b"ftypavif"),
    (0, b"\0\0\0\x0cjP  "),
    (0, b"\xff\x4f\xff\x51"),
)

#: A file of fewer bytes holds no more than the name of its kind.
_LEAST_BYTES = 20

_DAMAGED = "it is cut off or damaged"

#: What PIL's decoders say of a file that is cut off or damaged, which tells people nothing.
_UNCLEAR = (
    "could not create decoder object",
    "broken data stream when reading image file",
    "Truncated File Read",
    "unrecognized data stream contents when reading image file",
)

#: What a repository holds in place of a file that Git LFS has not fetched, and what messages say of it.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
OF_LFS = "a pointer of Git LFS and not the file itself; `git lfs pull` fetches it"

#: An image that is so many times longer than wide is refused, because resizing its shorter side to a usual
#: size could take gigabytes.
MAX_ASPECT = 64

#: Values of white in grey images of more than 8 bits. Images of 12 bits, as cameras and X-ray detectors give,
#: are usually stored in 16.
_WHITES = (255, 4095, 65535)

#: Floats may be beyond black and white by this share of the range, as those of resized images are.
_FLOAT_SLACK = 0.1

#: Floats of at most the first number have white 1. Those below the second are light in a unit of their own.
_FLOAT_ONE, _FLOAT_BYTES = 2, 16

#: Values that are scaled at a time, which bounds the memory of large images.
_SCALED_VALUES = 2**20

#: An image without any brighter value, of 255, is nearly black.
_DARK = 16

#: EXIF's number of a picture's orientation, and what turns it upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def share_large(lock: contextlib.AbstractContextManager[object]) -> None:
    """Lets all processes that share a lock decode one large image at a time, instead of one each."""
    global _LARGE
    _LARGE = lock


def begins_as_image(data: bytes) -> bool:
    """Returns whether bytes begin as an image of a kind that is read, though it may be cut off or damaged."""
    return len(data) >= _LEAST_BYTES and any(data.startswith(text, at) for at, text in _BEGINNINGS)


def _upright(image: Image.Image) -> Image.Image:
    """Turns a picture as its EXIF data say, as people and other loaders see it."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    # Damaged EXIF data raise any exception, and say nothing.
    except Exception:
        return image
    if orientation not in _UPRIGHT:
        return image
    return image.transpose(_UPRIGHT[orientation])


def _scaled(image: Image.Image) -> Image.Image:
    """Scales grey values of more than 8 bits to bytes, because PIL would clip them at 255.

    An image of many values that would come out in one colour is scaled by its own range instead.
    """
    values = np.asarray(image)
    finite = values[np.isfinite(values)] if image.mode == "F" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    grey = _as_bytes(values, *_black_and_white(image.mode == "F", low, high))
    if low < high and grey.min() == grey.max():
        grey = _as_bytes(values, low, high)
    return Image.fromarray(grey).convert("RGB")


def _black_and_white(is_float: bool, low: float, high: float) -> tuple[float, float]:
    """Returns the values of black and white: usual ones if the values fit, else the smallest and largest."""
    slack = _FLOAT_SLACK if is_float else 0.0
    if is_float and high < _FLOAT_BYTES:
        return (0.0, 1.0) if -slack <= low and high <= _FLOAT_ONE else (low, high)
    for white in _WHITES:
        if -slack * high <= low and high <= (1 + slack) * white:
            return 0.0, float(white)
    return low, high


def _as_bytes(values: NDArray[np.generic], black: float, white: float) -> NDArray[np.uint8]:
    flat = values.reshape(-1)
    grey = np.empty(flat.shape, np.uint8)
    scale = 255 / (white - black) if white > black else 0.0
    for start in range(0, len(flat), _SCALED_VALUES):
        part = flat[start : start + _SCALED_VALUES].astype(np.float64)
        part = np.nan_to_num(part, nan=black, posinf=white, neginf=black).clip(black, white)
        grey[start : start + _SCALED_VALUES] = ((part - black) * scale).round()
    return grey.reshape(values.shape)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any PIL image to 8-bit RGB: grey, palette, transparency, CMYK, 16 bits a channel."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image)
    if image.mode in ("P", "PA", "LA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    # PIL's conversion of an image to its own mode copies it, which takes a third of decoding a photograph.
    return image if image.mode == "RGB" else image.convert("RGB")


def is_nearly_black(image: Image.Image) -> bool:
    """Returns whether no value of an RGB image is seen as more than black.

    Pictures of 12 bits that are stored in 16 bits a colour come out so, because PIL reads the upper eight.
    """
    return bool(np.max(image.getextrema()) < _DARK)


def _has_deep_colours(image: ImageFile.ImageFile) -> bool:
    """Returns whether an image that is not loaded yet has 16 bits a colour, by the names that PIL gives."""
    return image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in image.tile)


def decode(data: bytes) -> Image.Image:
    """Decodes an image file to RGB, upright. Of an animation it returns the first frame.

    `info["turned"]` of the image says whether it is stored in another orientation, and `info["deep"]` whether
    it has 16 bits a colour.

    The bytes are not trusted, so size and format are checked before decoding.

    Raises:
      DataError: the bytes are not an image of FORMATS, are truncated, or exceed MAX_PIXELS, MAX_ASPECT or
        MAX_SCANS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"has {image.width} x {image.height} pixels, over {MAX_PIXELS}")
                # Each match starts a scan, because coded data cannot contain these two bytes in a row.
                if image.format in ("JPEG", "MPO") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
                    raise DataError(f"has {scans} scans, over {MAX_SCANS}")
                if max(image.size) > MAX_ASPECT * min(image.size):
                    shape = f"{image.width} x {image.height}"
                    raise DataError(f"has {shape} pixels, over {MAX_ASPECT} times as long as wide")
                deep = _has_deep_colours(image)
                with _LARGE if image.width * image.height > LARGE_PIXELS else contextlib.nullcontext():
                    image.load()
                    upright = _upright(image)
                    rgb = to_rgb(upright)
                rgb.info |= {"turned": upright is not image, "deep": deep}
                return rgb
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"has over {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        if not data:
            raise DataError("does not decode: it is empty") from error
        if data.startswith(LFS_POINTER):
            raise DataError(f"does not decode: it is {OF_LFS}") from error
        if begins_as_image(data):
            raise DataError(f"does not decode: {_DAMAGED}") from error
        # PIL's own message would only name the address of a buffer.
        raise DataError("does not decode: it is no image of a kind that is known") from error
    # On hostile bytes PIL raises any exception of its format plug-ins: OSError, SyntaxError, struct.error...
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        if told in _UNCLEAR or told.startswith("Expected to read"):
            told = f"{_DAMAGED} ({told})"
        raise DataError(f"does not decode: {told[:200]}") from error
