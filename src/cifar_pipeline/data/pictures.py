"""Picture files as the arrays that a network was trained on: decoded as an image viewer would, brought to one size.

Normalisation is no part of this: it acts in the model, in training as in use.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError, features

from cifar_pipeline.data.colours import Colours
from cifar_pipeline.regular import Irregular, open_regular

# What cameras, browsers and drawing programs write. Pillow's other formats stay shut: one of them starts a program.
# (A telephone's MPO opens as the JPEG that it begins with.)
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000", "AVIF", "HEIF")
SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".ico", ".tga", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".hif",
}  # fmt: skip
# What the eight bytes from the fourth on say in a HEIC file, whatever the file is called.
HEIC = {f"ftyp{brand}".encode() for brand in ("heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs", "mif1")}
HEIC_PLUGIN = "pillow_heif"
NEEDS_PLUGIN = "it is HEIC, which needs the extra heif: `pip install --constraint constraints.txt --editable '.[heif]'`"
MODES = {1: "L", 3: "RGB"}  # by the number of channels
WHITE = 255
SIXTEEN_BITS = 65535
# Of a file: four channels of 16 bits, and what cameras write beside them.
MOST_BYTES_PER_PIXEL, MOST_BESIDE_PIXELS = 8, 64 << 20
# Pillow's names of the libraries that it decodes and converts colours with.
LIBRARIES = ("jpg", "libjpeg_turbo", "jpg_2000", "zlib", "zlib_ng", "libtiff", "webp", "avif", "littlecms2")
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
        Unreadable: there is no regular file, it is no picture, a damaged one, or one larger than `limit_pixels` allows.
    """
    with _told(), _opened(file) as stream, _identified(stream) as image:
        return fitted(image, shape, fit)


def content_of(path: Path) -> bytes:
    """The bytes of a file. Raises Unreadable where there is none, or where it is larger than any allowed picture."""
    with _told(), open_regular(path) as file:
        most = MOST_BESIDE_PIXELS + MOST_BYTES_PER_PIXEL * 2 * (Image.MAX_IMAGE_PIXELS or 0)
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise Unreadable(f"it has {size:,} bytes, more than a picture of the largest allowed size ({_limited_by})")
        return file.read()


def decoders() -> dict[str, str]:
    """What decides about a picture's pixels besides its file and our code: libraries, and the limit on its size."""
    found = {name: str(features.version(name)) for name in LIBRARIES}
    if "HEIF" in _formats():
        import pillow_heif

        found |= {"pillow-heif": pillow_heif.__version__, "libheif": pillow_heif.libheif_version()}
    return {"pillow": PIL.__version__, "limit": str(Image.MAX_IMAGE_PIXELS), **found}


def fitted(image: Image.Image, shape: tuple[int, int, int], fit: str) -> np.ndarray:
    """An open image as `[H, W, C] uint8` of `shape`: turned, scaled, in the colours of sRGB and on white paper.

    That is what an image viewer shows.
    """
    height, width, channels = shape
    colours = Colours.of(image)
    image = ImageOps.exif_transpose(_eight_bits(image))
    image = _mixable(image, channels, colours)
    if image.size != (width, height):
        image = _scaled(image, (width, height), fit)
    # After scaling, when the fewest pixels are left to convert.
    image = colours.converted(image)
    if image.mode == "RGBA":
        paper = Image.new("RGBA", image.size, (WHITE,) * 4)
        image = Image.alpha_composite(paper, image)
    pixels = np.asarray(image.convert(MODES[channels]))
    return pixels.reshape(shape)


def _mixable(image: Image.Image, channels: int, colours: Colours) -> Image.Image:
    """Convert an image to a mode whose pixels can be mixed, as those of a palette can't; its colours are kept."""
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "CMYK" and colours.keep_inks:
        return image
    if colours != Colours():
        return image.convert("L" if image.mode in ("1", "L") else "RGB")
    return image.convert(MODES[channels])


def _scaled(image: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    if fit == CROP:
        return ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    black: dict[str, int | tuple[int, ...]] = {
        "L": 0, "RGB": (0, 0, 0), "RGBA": (0, 0, 0, WHITE), "CMYK": (0, 0, 0, WHITE),
    }  # fmt: skip
    return ImageOps.pad(image, size, Image.Resampling.BICUBIC, color=black[image.mode])


@contextmanager
def _told() -> Iterator[None]:
    """Whatever goes wrong with a file, as an Unreadable that says so in words."""
    try:
        yield
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except Irregular as error:
        is_folder = error.kind == "a folder"
        raise Unreadable(
            "it is a folder without pictures" if is_folder else f"it is {error.kind}, not a file"
        ) from None
    except PermissionError:
        raise Unreadable("it may not be read") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise Unreadable(f"it has more than {most:,.0f} million pixels ({_limited_by})") from None
    except Unreadable:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"it is damaged ({reason[:100]})") from None


@contextmanager
def _opened(file: Path | BytesIO) -> Iterator[BinaryIO]:
    if not isinstance(file, Path):
        yield file
        return
    with open_regular(file) as stream:
        yield stream


def _identified(stream: BinaryIO) -> Image.Image:
    """Open an image of one of FORMATS. Raises Unreadable for anything else."""
    try:
        return Image.open(stream, formats=_formats())
    except UnidentifiedImageError:
        stream.seek(0)
        head = stream.read(12)
        if not head:
            raise Unreadable("it is empty") from None
        if head[4:] in HEIC and not find_spec(HEIC_PLUGIN):
            raise Unreadable(NEEDS_PLUGIN) from None
        raise Unreadable("it is no image of a known format") from None


@functools.cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow was built with, and HEIF where its plugin is installed."""
    Image.init()
    if find_spec(HEIC_PLUGIN):
        from pillow_heif import register_heif_opener

        register_heif_opener()
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
