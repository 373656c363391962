"""Decode image files, convert them to sRGB and resize them to the arrays that networks are trained on.

Pixels are those that an image viewer shows: turned by EXIF, converted from the file's ICC profile or a PNG's gamma. A
file without either, or with a damaged profile, keeps its pixels. Normalization is part of the model.

A JPEG that is much larger than its target is decoded at 1/2, 1/4 or 1/8 of its size, which libjpeg-turbo does in a
fraction of the time. MIN_DECODED_RATIO bounds the loss.
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
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError, features

from cifar_pipeline.data.sources.base import CROP, PAD
from cifar_pipeline.utils.safe_io import NotRegularFile, open_regular

# Formats of cameras, browsers and drawing programs. Pillow's other formats are disabled: one of them starts a program.
# (The MPO of a phone opens as the JPEG that it begins with.)
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000", "AVIF", "HEIF")
SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".ico", ".tga", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".hif",
}  # fmt: skip
# Bytes 4 to 11 of a HEIC file, whatever its suffix.
HEIC = {f"ftyp{brand}".encode() for brand in ("heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs", "mif1")}
HEIC_PLUGIN = "pillow_heif"
NEEDS_PLUGIN = "HEIC needs the extra heif: `pip install --constraint constraints.txt --editable '.[heif]'`"
MODES = {1: "L", 3: "RGB"}  # by the number of channels
WHITE = 255
MAX_UINT16 = 65535
# Four channels of 16 bits, and the metadata that cameras add to a file.
MAX_BYTES_PER_PIXEL, MAX_OVERHEAD_BYTES = 8, 64 << 20
# Pillow's names of the libraries that decode images and convert colors.
LIBRARIES = ("jpg", "libjpeg_turbo", "jpg_2000", "zlib", "zlib_ng", "libtiff", "webp", "avif", "littlecms2")
SRGB_GAMMA = 2.2
# A PNG's gamma within this relative distance is that of sRGB (libpng's threshold).
GAMMA_TOLERANCE = 0.05
# Points per axis of the color grid that is used to detect identity profiles, and the largest rounding error.
COLOR_GRID_SIZE, MAX_ROUNDING_ERROR = 9, 1
# A JPEG is decoded at no less than this multiple of the target's longer side in both directions. Differences from
# decoding at full size, of photo-like JPEGs of quality 90: peak signal-to-noise ratio (mean, maximum), by this ratio.
#
#     source, target       1                    2                    3
#     500 x 400, 32        45.0 dB (1.08, 8)    52.5 dB (0.34, 4)    52.5 dB (0.34, 4)
#     500 x 400, 96        41.2 dB (1.68, 22)   50.7 dB (0.46, 8)    none
#     4000 x 3000, 32      57.3 dB (0.12, 2)    57.3 dB (0.12, 2)    57.3 dB (0.12, 2)
#     4000 x 3000, 96      54.9 dB (0.21, 2)    54.9 dB (0.21, 2)    54.9 dB (0.21, 2)
#     4000 x 3000, 224     50.8 dB (0.48, 6)    55.0 dB (0.20, 3)    55.0 dB (0.20, 3)
#
# With 2, reading and resizing takes 0.15 to 0.5 times as long as at full size; a 500 x 400 JPEG is decoded at full size
# for 224.
MIN_DECODED_RATIO = 2
# By EXIF orientation.
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDES_EXCHANGED = (5, 6, 7, 8)
INTENT = ImageCms.Intent.PERCEPTUAL
# The image modes that a profile of each color space applies to.
MODES_BY_COLOR_SPACE = {"RGB": ("RGB", "RGBA", "L"), "GRAY": ("L",), "CMYK": ("CMYK",)}


class UnreadableImage(Exception):
    """A file that cannot be read as an image. The message is the reason, without the file's name."""


# The option that sets the size limit, for error messages.
_limit_option = ""


def set_max_megapixels(megapixels: float, option: str) -> None:
    """Limit the size of images from now on, checked before they are decoded; `option` is named in error messages."""
    global _limit_option
    # Pillow raises an error at twice this number and warns above it.
    Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6 / 2)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    _limit_option = option


def load_image(file: Path | BytesIO, shape: tuple[int, int, int], resize_mode: str = CROP) -> np.ndarray:
    """Decode and resize an image file, or its content, to `[H, W, C] uint8` of `shape`; C is 1 or 3.

    "crop" scales the shorter side to the target size and crops the center; "pad" scales the longer side and pads with
    black; "stretch" scales each side to its own size. The first frame of an animation is used.

    Raises:
        UnreadableImage: the file is missing, not a regular file, not an image, damaged, or above the size limit.
    """
    with _wrap_errors(), _open(file) as stream, _identify(stream) as image:
        return to_array(image, shape, resize_mode)


def read_bytes(path: Path) -> bytes:
    """Read a file. Raises UnreadableImage if it is missing, or larger than any image within the size limit."""
    with _wrap_errors(), open_regular(path) as file:
        max_bytes = MAX_OVERHEAD_BYTES + MAX_BYTES_PER_PIXEL * 2 * (Image.MAX_IMAGE_PIXELS or 0)
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise UnreadableImage(f"{size:,} bytes, more than the largest allowed image ({_limit_option})")
        return file.read()


def decoders() -> dict[str, str]:
    """Return what determines the pixels besides the file and this code: library versions and the size limit."""
    versions = {name: str(features.version(name)) for name in LIBRARIES}
    if "HEIF" in _formats():
        import pillow_heif

        versions |= {"pillow-heif": pillow_heif.__version__, "libheif": pillow_heif.libheif_version()}
    return {"pillow": PIL.__version__, "limit": str(Image.MAX_IMAGE_PIXELS), **versions}


def to_array(image: Image.Image, shape: tuple[int, int, int], resize_mode: str) -> np.ndarray:
    """Convert an open image to `[H, W, C] uint8` of `shape`: turned by EXIF, resized, in sRGB, on white."""
    height, width, channels = shape
    converter = ColorConverter.of(image)
    extent = _decode(image, max(height, width))
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    image = _to_resizable(_to_uint8(image), channels, converter)
    image = _resize(image, extent, (width, height), resize_mode, orientation)
    # After resizing, because fewer pixels are left to convert.
    image = converter.convert(image)
    if image.mode == "RGBA":
        background = Image.new("RGBA", image.size, (WHITE,) * 4)
        image = Image.alpha_composite(background, image)
    pixels = np.asarray(image.convert(MODES[channels]))
    return pixels.reshape(shape)


def _decode(image: Image.Image, side: int) -> tuple[float, float]:
    """Decode an image for a target of at most `side` pixels, and return the width and height that it now has.

    The last column and row of a JPEG that is decoded at a fraction may represent fewer pixels than the others; the
    width and height then have decimal places.
    """
    drafted = image.draft(None, (MIN_DECODED_RATIO * side, MIN_DECODED_RATIO * side))
    image.load()
    return drafted[1][2:] if drafted else image.size


def _to_resizable(image: Image.Image, channels: int, converter: "ColorConverter") -> Image.Image:
    """Convert an image to a mode whose pixels can be interpolated (palettes cannot), without losing its colors."""
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "CMYK" and converter.needs_cmyk:
        return image
    if converter != ColorConverter():
        return image.convert("L" if image.mode in ("1", "L") else "RGB")
    # Pillow would copy an image that has the mode already.
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def _resize(
    image: Image.Image, extent: tuple[float, float], size: tuple[int, int], resize_mode: str, orientation: int
) -> Image.Image:
    """Resize the part `extent`, from the top left corner on, of an image to `size`, and turn it.

    It is turned after resizing, because then it has fewer pixels.
    """
    target = size[::-1] if orientation in SIDES_EXCHANGED else size
    if resize_mode == CROP:
        image = image.resize(target, Image.Resampling.BICUBIC, _central_box(extent, target))
    else:
        inner = _contained(extent, target) if resize_mode == PAD else target
        image = image.resize(inner, Image.Resampling.BICUBIC, (0, 0, *extent))
    if (transposition := TRANSPOSITIONS.get(orientation)) is not None:
        image = image.transpose(transposition)
    if resize_mode != PAD:
        return image
    black: dict[str, int | tuple[int, ...]] = {
        "L": 0, "RGB": (0, 0, 0), "RGBA": (0, 0, 0, WHITE), "CMYK": (0, 0, 0, WHITE),
    }  # fmt: skip
    return ImageOps.pad(image, size, color=black[image.mode])


def _central_box(extent: tuple[float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the largest box (left, top, right, bottom) in the center of `extent` with the proportions of `size`."""
    width, height = extent
    box_width = min(width, height * size[0] / size[1])
    box_height = min(height, width * size[1] / size[0])
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def _contained(extent: tuple[float, float], size: tuple[int, int]) -> tuple[int, int]:
    """Return the largest width and height with the proportions of `extent` that fit into `size`, each at least 1."""
    scale = min(size[0] / extent[0], size[1] / extent[1])
    return max(1, round(extent[0] * scale)), max(1, round(extent[1] * scale))


@contextmanager
def _wrap_errors() -> Iterator[None]:
    """Turn every error of reading and decoding into UnreadableImage."""
    try:
        yield
    except FileNotFoundError:
        raise UnreadableImage("no such file") from None
    except NotRegularFile as error:
        is_folder = error.kind == "a folder"
        raise UnreadableImage("a folder without images" if is_folder else f"{error.kind}, not a file") from None
    except PermissionError:
        raise UnreadableImage("permission denied") from None
    except Image.DecompressionBombError:
        max_megapixels = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UnreadableImage(f"more than {max_megapixels:,.0f} million pixels ({_limit_option})") from None
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds of errors for a damaged file
        if isinstance(error, OSError) and error.errno:
            raise UnreadableImage(f"cannot be read ({(error.strerror or '').lower()})") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"damaged ({reason[:100]})") from None


@contextmanager
def _open(file: Path | BytesIO) -> Iterator[BinaryIO]:
    if not isinstance(file, Path):
        yield file
        return
    with open_regular(file) as stream:
        yield stream


def _identify(stream: BinaryIO) -> Image.Image:
    """Open an image of one of FORMATS. Raises UnreadableImage for anything else."""
    try:
        return Image.open(stream, formats=_formats())
    except UnidentifiedImageError:
        stream.seek(0)
        head = stream.read(12)
        if not head:
            raise UnreadableImage("empty file") from None
        if head[4:] in HEIC and not find_spec(HEIC_PLUGIN):
            raise UnreadableImage(NEEDS_PLUGIN) from None
        raise UnreadableImage("not an image of a supported format") from None


@functools.cache
def _formats() -> list[str]:
    """Return those of FORMATS that this build of Pillow supports, and HEIF if its plugin is installed."""
    Image.init()
    if find_spec(HEIC_PLUGIN):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_uint8(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray to 8 bits, which Pillow would clip at 255; return other images unchanged."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > MAX_UINT16:
        raise UnreadableImage("pixels of neither 8 nor 16 bits")
    scaled = (values.astype(np.uint32) * WHITE + MAX_UINT16 // 2) // MAX_UINT16
    result = Image.fromarray(scaled.astype(np.uint8))
    result.info = dict(image.info)
    result.info.pop("transparency", None)
    return result


@dataclass(frozen=True)
class ColorConverter:
    """Convert an image to sRGB by the bytes of its ICC profile, or by the gamma of a PNG (0: neither)."""

    profile: bytes = b""
    gamma: float = 0.0

    @staticmethod
    def of(image: Image.Image) -> "ColorConverter":
        """Read the metadata of an open image. An ICC profile overrides an sRGB chunk, which overrides a gamma."""
        profile = image.info.get("icc_profile") or b""
        if isinstance(profile, bytes) and profile:
            return ColorConverter(profile=profile)
        gamma = image.info.get("gamma")
        if "srgb" in image.info or not isinstance(gamma, float) or gamma <= 0:
            return ColorConverter()
        return ColorConverter(gamma=0.0 if abs(gamma * SRGB_GAMMA - 1) < GAMMA_TOLERANCE else gamma)

    @property
    def needs_cmyk(self) -> bool:
        """Whether `convert` takes a CMYK image as it is, because the profile describes its inks."""
        return _color_space(self.profile) == "CMYK"

    def convert(self, image: Image.Image) -> Image.Image:
        """Convert an image of mode L, RGB, RGBA or CMYK to sRGB. Keeps transparency; L may become RGB."""
        if self.gamma:
            return _correct_gamma(image, self.gamma)
        space = _color_space(self.profile)
        if image.mode == "RGBA" and space == "GRAY":
            converted = self.convert(image.convert("L")).convert("RGBA")
            converted.putalpha(image.getchannel("A"))
            return converted
        if image.mode not in MODES_BY_COLOR_SPACE.get(space, ()):
            return image
        if image.mode == "L" and space == "RGB":
            image = image.convert("RGB")
        transform = _srgb_transform(self.profile, image.mode)
        if transform is None:
            return image
        try:
            return transform.apply(image)
        except (ImageCms.PyCMSError, OSError, ValueError):
            return image


@functools.lru_cache(maxsize=32)
def _color_space(profile: bytes) -> str:
    """Return the color space of a profile: RGB, GRAY or CMYK; empty without a profile or for a damaged one."""
    try:
        return ImageCms.ImageCmsProfile(BytesIO(profile)).profile.xcolor_space.strip() if profile else ""
    except (ImageCms.PyCMSError, OSError, ValueError):
        return ""


@functools.lru_cache(maxsize=32)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the transform from a profile to sRGB for images of `mode`; None if it fails or changes nothing."""
    target = "RGBA" if mode == "RGBA" else "RGB"
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, target, INTENT
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode == "CMYK":
        return transform
    grid = _color_grid()
    before = Image.fromarray(grid).convert(mode) if mode != "L" else Image.fromarray(grid[..., 0])
    after = np.asarray(transform.apply(before).convert("RGB")).astype(int)
    unchanged = np.asarray(before.convert("RGB")).astype(int)
    return None if abs(after - unchanged).max() <= MAX_ROUNDING_ERROR else transform


def _color_grid() -> np.ndarray:
    """Return a grid over the RGB cube as an image `[1, COLOR_GRID_SIZE ** 3, 3] uint8`."""
    values = np.linspace(0, 255, COLOR_GRID_SIZE).round().astype(np.uint8)
    return np.stack(np.meshgrid(values, values, values), axis=-1).reshape(1, -1, 3)


def _correct_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """Replace the gamma that a PNG was written with by that of sRGB, in all bands but transparency."""
    if image.mode not in ("L", "RGB", "RGBA"):
        return image
    values = np.arange(256) / 255
    table = (values ** (1 / (gamma * SRGB_GAMMA)) * 255).round().astype(int).tolist()
    bands = [
        band if name == "A" else band.point(table) for name, band in zip(image.getbands(), image.split(), strict=True)
    ]
    return Image.merge(image.mode, bands)
