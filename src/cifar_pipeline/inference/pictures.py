"""Picture files as the arrays that a network was trained on: decoded as an image viewer would, brought to one size.

Normalisation is no part of this: it acts in the model, in training as in use.
"""

import functools
import warnings
from pathlib import Path

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


class Unreadable(Exception):
    """A file that gives no picture. The message says why, without naming the file."""


def limit_pixels(megapixels: float) -> None:
    """From now on refuse pictures of more than so many million pixels, before they take memory."""
    # Pillow raises an error at twice this number, and warns from here on.
    Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6 / 2)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def read_picture(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The picture in the file at `path` as `[H, W, C] uint8` of `shape`; C is 1 or 3.

    The shorter side is brought to the wanted size and the middle cut out. Of an animation the first frame is taken.

    Raises:
        Unreadable: there is no file, it is no picture, a damaged one, or one larger than `limit_pixels` allows.
    """
    try:
        with Image.open(path, formats=_formats()) as file:
            return fitted(file, shape)
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except IsADirectoryError:
        raise Unreadable("it is a folder without pictures") from None
    except PermissionError:
        raise Unreadable("it may not be read") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise Unreadable(f"it has more than {most:,.0f} million pixels (predict.most_megapixels)") from None
    except UnidentifiedImageError:
        raise Unreadable("it is empty" if not path.stat().st_size else "it is no image of a known format") from None
    except Unreadable:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"it is damaged ({reason[:100]})") from None


def fitted(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """An open image as `[H, W, C] uint8` of `shape`, turned, flattened and scaled as a viewer would show it."""
    height, width, channels = shape
    image = ImageOps.exif_transpose(_eight_bits(image))
    # Before scaling, because the colours of a palette can't be mixed.
    image = image.convert("RGBA") if image.has_transparency_data else image.convert(MODES[channels])
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    if image.mode == "RGBA":
        paper = Image.new("RGBA", image.size, (WHITE,) * 4)
        image = Image.alpha_composite(paper, image).convert(MODES[channels])
    pixels = np.asarray(image)
    return pixels.reshape(shape)


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
