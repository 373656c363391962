"""Image files as the arrays that a network was trained on: decoded as an image viewer would, brought to one size.

Normalisation is no part of this: it acts in the model, in training as in use.

The colours of an image file, converted to sRGB as image viewers do: its ICC profile, or the gamma of a PNG.

A file that has neither, or whose profile is damaged or sRGB itself, keeps its pixels.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, features

from cifar_pipeline.utils.safe_io import NotRegularFile, open_regular

SRGB_GAMMA = 2.2
# Below it a PNG's gamma is that of sRGB, written with other digits (libpng's own threshold).
EQUAL_GAMMA = 0.05
# Edges of a grid of colours that tells whether a profile changes any of them, and by how much rounding may.
GRID, ROUNDING = 9, 1
INTENT = ImageCms.Intent.PERCEPTUAL
# The modes of an image that a profile of each colour space describes.
DESCRIBED = {"RGB": ("RGB", "RGBA", "L"), "GRAY": ("L",), "CMYK": ("CMYK",)}


@dataclass(frozen=True)
class ColorConverter:
    """What a file says about its colours: the bytes of an ICC profile, the gamma of a PNG (0: neither)."""

    profile: bytes = b""
    gamma: float = 0.0

    @staticmethod
    def of(image: Image.Image) -> "ColorConverter":
        """Read what an open image says. An ICC profile goes before an sRGB chunk, and that before a gamma."""
        profile = image.info.get("icc_profile") or b""
        if isinstance(profile, bytes) and profile:
            return ColorConverter(profile=profile)
        gamma = image.info.get("gamma")
        if "srgb" in image.info or not isinstance(gamma, float) or gamma <= 0:
            return ColorConverter()
        return ColorConverter(gamma=0.0 if abs(gamma * SRGB_GAMMA - 1) < EQUAL_GAMMA else gamma)

    @property
    def keep_inks(self) -> bool:
        """Whether the inks of CMYK have to be kept for `converted`, because a profile says what they look like."""
        return _space(self.profile) == "CMYK"

    def converted(self, image: Image.Image) -> Image.Image:
        """Convert an image of mode L, RGB, RGBA or CMYK to sRGB; transparency stays. L may become RGB."""
        if self.gamma:
            return _with_gamma(image, self.gamma)
        space = _space(self.profile)
        if image.mode == "RGBA" and space == "GRAY":
            shown = self.converted(image.convert("L")).convert("RGBA")
            shown.putalpha(image.getchannel("A"))
            return shown
        if image.mode not in DESCRIBED.get(space, ()):
            return image
        if image.mode == "L" and space == "RGB":
            image = image.convert("RGB")
        change = _change(self.profile, image.mode)
        if change is None:
            return image
        try:
            return change.apply(image)
        except (ImageCms.PyCMSError, OSError, ValueError):
            return image


@functools.lru_cache(maxsize=32)
def _space(profile: bytes) -> str:
    """The colour space that a profile describes: RGB, GRAY, CMYK; empty for none, and for a damaged profile."""
    try:
        return ImageCms.ImageCmsProfile(BytesIO(profile)).profile.xcolor_space.strip() if profile else ""
    except (ImageCms.PyCMSError, OSError, ValueError):
        return ""


@functools.lru_cache(maxsize=32)
def _change(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB for images of `mode`; None where there is none, or it changes nothing."""
    target = "RGBA" if mode == "RGBA" else "RGB"
    try:
        found = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, target, INTENT
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode == "CMYK":
        return found
    grid = _grid()
    before = Image.fromarray(grid).convert(mode) if mode != "L" else Image.fromarray(grid[..., 0])
    after = np.asarray(found.apply(before).convert("RGB")).astype(int)
    expected = np.asarray(before.convert("RGB")).astype(int)
    return None if abs(after - expected).max() <= ROUNDING else found


def _grid() -> np.ndarray:
    """Colours from all of the cube, `[1, GRID ** 3, 3] uint8`."""
    values = np.linspace(0, 255, GRID).round().astype(np.uint8)
    return np.stack(np.meshgrid(values, values, values), axis=-1).reshape(1, -1, 3)


def _with_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """Undo the gamma that a PNG was written with and apply that of the screen, to all bands but transparency."""
    if image.mode not in ("L", "RGB", "RGBA"):
        return image
    values = np.arange(256) / 255
    table = (values ** (1 / (gamma * SRGB_GAMMA)) * 255).round().astype(int).tolist()
    bands = [
        band if name == "A" else band.point(table) for name, band in zip(image.getbands(), image.split(), strict=True)
    ]
    return Image.merge(image.mode, bands)


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
MAX_BYTES_PER_PIXEL, MAX_OVERHEAD_BYTES = 8, 64 << 20
# Pillow's names of the libraries that it decodes and converts colours with.
LIBRARIES = ("jpg", "libjpeg_turbo", "jpg_2000", "zlib", "zlib_ng", "libtiff", "webp", "avif", "littlecms2")
CROP, PAD = RESIZE_MODES = ("crop", "pad")


class UnreadableImage(Exception):
    """A file that gives no image. The message says why, without naming the file."""


# The option that sets the limit, for the sentence that a larger image gets.
_limit_option = ""


def set_max_megapixels(megapixels: float, option: str) -> None:
    """From now on refuse images of more than so many million pixels, as `option` says, before they take memory."""
    global _limit_option
    # Pillow raises an error at twice this number, and warns from here on.
    Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6 / 2)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    _limit_option = option


def load_image(file: Path | BytesIO, shape: tuple[int, int, int], resize_mode: str = CROP) -> np.ndarray:
    """The image in a file, or in the bytes of one, as `[H, W, C] uint8` of `shape`; C is 1 or 3.

    By the fit "crop" the shorter side is brought to the wanted size and the middle cut out; by "pad" the longer side
    is, and the rest is black. Of an animation the first frame is taken.

    Raises:
        Unreadable: there is no regular file, it is no image, a damaged one, or one larger than `limit_pixels` allows.
    """
    with _wrap_errors(), _opened(file) as stream, _identified(stream) as image:
        return to_array(image, shape, resize_mode)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises Unreadable where there is none, or where it is larger than any allowed image."""
    with _wrap_errors(), open_regular(path) as file:
        most = MAX_OVERHEAD_BYTES + MAX_BYTES_PER_PIXEL * 2 * (Image.MAX_IMAGE_PIXELS or 0)
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise UnreadableImage(
                f"it has {size:,} bytes, more than an image of the largest allowed size ({_limit_option})"
            )
        return file.read()


def decoders() -> dict[str, str]:
    """What decides about an image's pixels besides its file and our code: libraries, and the limit on its size."""
    found = {name: str(features.version(name)) for name in LIBRARIES}
    if "HEIF" in _formats():
        import pillow_heif

        found |= {"pillow-heif": pillow_heif.__version__, "libheif": pillow_heif.libheif_version()}
    return {"pillow": PIL.__version__, "limit": str(Image.MAX_IMAGE_PIXELS), **found}


def to_array(image: Image.Image, shape: tuple[int, int, int], resize_mode: str) -> np.ndarray:
    """An open image as `[H, W, C] uint8` of `shape`: turned, scaled, in the colours of sRGB and on white paper.

    That is what an image viewer shows.
    """
    height, width, channels = shape
    colours = ColorConverter.of(image)
    image = ImageOps.exif_transpose(_to_uint8(image))
    image = _mixable(image, channels, colours)
    if image.size != (width, height):
        image = _scaled(image, (width, height), resize_mode)
    # After scaling, when the fewest pixels are left to convert.
    image = colours.converted(image)
    if image.mode == "RGBA":
        paper = Image.new("RGBA", image.size, (WHITE,) * 4)
        image = Image.alpha_composite(paper, image)
    pixels = np.asarray(image.convert(MODES[channels]))
    return pixels.reshape(shape)


def _mixable(image: Image.Image, channels: int, colours: ColorConverter) -> Image.Image:
    """Convert an image to a mode whose pixels can be mixed, as those of a palette can't; its colours are kept."""
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "CMYK" and colours.keep_inks:
        return image
    if colours != ColorConverter():
        return image.convert("L" if image.mode in ("1", "L") else "RGB")
    return image.convert(MODES[channels])


def _scaled(image: Image.Image, size: tuple[int, int], resize_mode: str) -> Image.Image:
    if resize_mode == CROP:
        return ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    black: dict[str, int | tuple[int, ...]] = {
        "L": 0, "RGB": (0, 0, 0), "RGBA": (0, 0, 0, WHITE), "CMYK": (0, 0, 0, WHITE),
    }  # fmt: skip
    return ImageOps.pad(image, size, Image.Resampling.BICUBIC, color=black[image.mode])


@contextmanager
def _wrap_errors() -> Iterator[None]:
    """Whatever goes wrong with a file, as an Unreadable that says so in words."""
    try:
        yield
    except FileNotFoundError:
        raise UnreadableImage("there is no such file") from None
    except NotRegularFile as error:
        is_folder = error.kind == "a folder"
        raise UnreadableImage(
            "it is a folder without images" if is_folder else f"it is {error.kind}, not a file"
        ) from None
    except PermissionError:
        raise UnreadableImage("it may not be read") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UnreadableImage(f"it has more than {most:,.0f} million pixels ({_limit_option})") from None
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"it is damaged ({reason[:100]})") from None


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
            raise UnreadableImage("it is empty") from None
        if head[4:] in HEIC and not find_spec(HEIC_PLUGIN):
            raise UnreadableImage(NEEDS_PLUGIN) from None
        raise UnreadableImage("it is no image of a known format") from None


@functools.cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow was built with, and HEIF where its plugin is installed."""
    Image.init()
    if find_spec(HEIC_PLUGIN):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_uint8(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8, which Pillow would cut off at 255; everything else as it is."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > SIXTEEN_BITS:
        raise UnreadableImage("its pixels are not of 8 or 16 bits")
    scaled = (values.astype(np.uint32) * WHITE + SIXTEEN_BITS // 2) // SIXTEEN_BITS
    eight = Image.fromarray(scaled.astype(np.uint8))
    eight.info = dict(image.info)
    eight.info.pop("transparency", None)
    return eight
