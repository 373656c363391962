"""The colours of a picture file, converted to sRGB as image viewers do: its ICC profile, or the gamma of a PNG.

A file that has neither, or whose profile is damaged or sRGB itself, keeps its pixels.
"""

import functools
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

SRGB_GAMMA = 2.2
# Below it a PNG's gamma is that of sRGB, written with other digits (libpng's own threshold).
EQUAL_GAMMA = 0.05
# Edges of a grid of colours that tells whether a profile changes any of them, and by how much rounding may.
GRID, ROUNDING = 9, 1
INTENT = ImageCms.Intent.PERCEPTUAL
# The modes of an image that a profile of each colour space describes.
DESCRIBED = {"RGB": ("RGB", "RGBA", "L"), "GRAY": ("L",), "CMYK": ("CMYK",)}


@dataclass(frozen=True)
class Colours:
    """What a file says about its colours: the bytes of an ICC profile, the gamma of a PNG (0: neither)."""

    profile: bytes = b""
    gamma: float = 0.0

    @staticmethod
    def of(image: Image.Image) -> "Colours":
        """Read what an open image says. An ICC profile goes before an sRGB chunk, and that before a gamma."""
        profile = image.info.get("icc_profile") or b""
        if isinstance(profile, bytes) and profile:
            return Colours(profile=profile)
        gamma = image.info.get("gamma")
        if "srgb" in image.info or not isinstance(gamma, float) or gamma <= 0:
            return Colours()
        return Colours(gamma=0.0 if abs(gamma * SRGB_GAMMA - 1) < EQUAL_GAMMA else gamma)

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
