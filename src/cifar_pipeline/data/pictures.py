"""Picture files as the arrays that a network was trained on: decoded as an image viewer would, brought to one size.

Normalisation is no part of this: it acts in the model, in training as in use.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# What cameras, browsers and drawing programs write. Pillow's other formats stay shut: one of them starts a program.
# (A telephone's MPO opens as the JPEG that it begins with.)
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000", "AVIF")
SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".ico", ".tga", ".jp2", ".j2k", ".avif",
}  # fmt: skip
MODES = {1: "L", 3: "RGB"}  # by the number of channels
WHITE = 255
SIXTEEN_BITS = 65535
CROP, PAD = FITS = ("crop", "pad")


class Unreadable(Exception):
    """A file that gives no picture. The message says why, without naming the file."""


# The option that sets the limit, for the sentence that a larger picture gets.
_limited_by = ""


def limit_pixels(megapixels: float, option: str) -> None:
    """From now on refuse pictures of more than so many million pixels, as `option` says, before they take memory."""
    global _limited_by
    # Pillow raises an error at twice this number, and warns from here on.
    Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6 / 2)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    _limited_by = option


def read_picture(file: Path | BytesIO, shape: tuple[int, int, int], fit: str = CROP) -> np.ndarray:
    """The picture in a file, or in the bytes of one, as `[H, W, C] uint8` of `shape`; C is 1 or 3.

    By the fit "crop" the shorter side is brought to the wanted size and the middle cut out; by "pad" the longer side
    is, and the rest is black. Of an animation the first frame is taken.

    Raises:
        Unreadable: there is no file, it is no picture, a damaged one, or one larger than `limit_pixels` allows.
    """
    with _told(file), Image.open(file, formats=_formats()) as opened:
        return fitted(opened, shape, fit)


def pictures_in(folder: Path) -> Iterator[Path]:
    """The picture files in a folder and below, by name; one folder's names at a time, so that any tree fits."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(place, name) for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES)


def content_of(path: Path) -> bytes:
    """The bytes of a file. Raises Unreadable where there is none."""
    with _told(path):
        return path.read_bytes()


def fitted(image: Image.Image, shape: tuple[int, int, int], fit: str) -> np.ndarray:
    """An open image as `[H, W, C] uint8` of `shape`, turned, flattened and scaled as a viewer would show it."""
    height, width, channels = shape
    image = ImageOps.exif_transpose(_eight_bits(image))
    # Before scaling, because the colours of a palette can't be mixed.
    image = image.convert("RGBA") if image.has_transparency_data else image.convert(MODES[channels])
    if image.size != (width, height):
        image = _scaled(image, (width, height), fit)
    if image.mode == "RGBA":
        paper = Image.new("RGBA", image.size, (WHITE,) * 4)
        image = Image.alpha_composite(paper, image).convert(MODES[channels])
    pixels = np.asarray(image)
    return pixels.reshape(shape)


def _scaled(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    if fit == CROP:
        return ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    black: dict[str, int | tuple[int, ...]] = {"L": 0, "RGB": (0, 0, 0), "RGBA": (0, 0, 0, WHITE)}
    return ImageOps.pad(image, size, Image.Resampling.BICUBIC, color=black[image.mode])


@contextmanager
def _told(file: Path | IO[bytes]) -> Iterator[None]:
    """Whatever goes wrong with a file, as an Unreadable that says so in words."""
    try:
        yield
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except IsADirectoryError:
        raise Unreadable("it is a folder without pictures") from None
    except PermissionError:
        raise Unreadable("it may not be read") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise Unreadable(f"it has more than {most:,.0f} million pixels ({_limited_by})") from None
    except UnidentifiedImageError:
        raise Unreadable("it is empty" if _is_empty(file) else "it is no image of a known format") from None
    except Unreadable:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"it is damaged ({reason[:100]})") from None


def _is_empty(file: Path | IO[bytes]) -> bool:
    return not file.stat().st_size if isinstance(file, Path) else not file.seek(0, 2)


@functools.cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8, which Pillow would cut off at 255; everything else as it is."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > SIXTEEN_BITS:
        raise Unreadable("its pixels are not of 8 or 16 bits")
    scaled = (values.astype(np.uint32) * WHITE + SIXTEEN_BITS // 2) // SIXTEEN_BITS
    eight = Image.fromarray(scaled.astype(np.uint8))
    eight.info = dict(image.info)
    eight.info.pop("transparency", None)
    return eight
