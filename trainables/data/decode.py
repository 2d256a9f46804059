"""Encoded images to RGB; the bytes may be anybody's."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from trainables.base import DataError

#: An image of more pixels is refused undecoded: a few kilobytes can ask for gigabytes.
MAX_PIXELS = 2**26

#: So is a JPEG of more scans. Each costs a pass over the whole picture and may be a few bytes long: 80 KB can
#: ask for minutes. Progressive JPEGs have about ten.
MAX_SCANS = 100

#: Kinds of images that are read. Others that PIL knows are rare, and some start other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as 8-bit RGB: grey, palette, transparency, CMYK, 16 bits a channel."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        # PIL clips these at 255; the eye, and a network, want them scaled.
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode == "F":
        return Image.fromarray((np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "PA", "LA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def decode(data: bytes) -> Image.Image:
    """The picture in an encoded image file, as RGB; of an animation the first one.

    The bytes may be anybody's: size and kind are looked at before anything is decoded.

    Raises:
      DataError: the bytes are no image of FORMATS, are cut off, or ask for more than MAX_PIXELS or MAX_SCANS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"has {image.width} x {image.height} pixels, over {MAX_PIXELS}")
                # In what a scan encodes, these two bytes cannot follow each other.
                if image.format in ("JPEG", "MPO") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
                    raise DataError(f"has {scans} scans, over {MAX_SCANS}")
                image.load()
                return to_rgb(image)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"has over {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        # PIL's own words are about the address of a buffer.
        raise DataError("does not decode: it is no image of a kind that is known") from error
    # PIL raises whatever its format plug-ins do on hostile bytes: OSError, SyntaxError, struct.error...
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"does not decode: {told[:200]}") from error


IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
