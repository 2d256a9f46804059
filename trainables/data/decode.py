"""Decodes images to RGB, from bytes of untrusted origin."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from trainables.base import DataError

#: An image of more pixels is refused before decoding, because a few kilobytes can expand to gigabytes.
MAX_PIXELS = 2**26

#: A JPEG of more scans is refused too. Each scan costs a pass over the whole image and may be a few bytes
#: long, so 80 KB can take minutes. Progressive JPEGs have about ten scans.
MAX_SCANS = 100

#: Formats that are read. Other formats of PIL are rare, and some start other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any PIL image to 8-bit RGB: grey, palette, transparency, CMYK, 16 bits a channel."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        # Scaled here, because PIL would clip these values at 255.
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
    """Decodes an image file to RGB. Of an animation it returns the first frame.

    The bytes are not trusted, so size and format are checked before decoding.

    Raises:
      DataError: the bytes are not an image of FORMATS, are truncated, or exceed MAX_PIXELS or MAX_SCANS.
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
                image.load()
                return to_rgb(image)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"has over {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        # PIL's own message would only name the address of a buffer.
        raise DataError("does not decode: it is no image of a kind that is known") from error
    # On hostile bytes PIL raises any exception of its format plug-ins: OSError, SyntaxError, struct.error...
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"does not decode: {told[:200]}") from error


IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
