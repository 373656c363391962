"""An image's colours are those that an image viewer shows: its ICC profile, or a PNG's gamma, is converted to sRGB."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from profiles import ADOBE_RGB, DISPLAY_P3, GAMMA, cmyk_profile, grey_profile, rgb_profile

from cifar_pipeline.data.images import ColorConverter, load_image

SHAPE = (8, 8, 3)
# XYZ of D50 to linear sRGB, as Bruce Lindbloom publishes it (Bradford).
TO_SRGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)

RED_IN_LAB = (54.29, 80.81, 69.89)  # sRGB's, adapted to D50


def encoded(linear: np.ndarray) -> np.ndarray:
    """sRGB's own curve."""
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def expected(colour: tuple[int, ...], primaries: tuple[tuple[float, ...], ...]) -> np.ndarray:
    xyz = np.array(primaries).T @ (np.array(colour) / 255) ** GAMMA
    return encoded(TO_SRGB @ xyz)


def colour_of(path: Path, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    pixels = load_image(path, shape)
    assert (pixels == pixels[0, 0]).all()
    return pixels[0, 0].astype(int)


def saved(path: Path, mode: str, colour: int | tuple[int, ...], **options: object) -> Path:
    Image.new(mode, (20, 12), colour).save(path, **options)
    return path


@pytest.mark.parametrize("primaries", [ADOBE_RGB, DISPLAY_P3], ids=["Adobe RGB", "Display P3"])
@pytest.mark.parametrize("colour", [(200, 100, 50), (90, 160, 70), (128, 128, 128), (60, 60, 180)])
def test_a_profile_is_converted_to_srgb(tmp_path: Path, primaries, colour) -> None:
    profile = rgb_profile(primaries)
    wanted = expected(colour, primaries)
    assert colour == (128, 128, 128) or abs(wanted - colour).max() > 4  # what the file stores is something else
    for suffix, options in (("png", {}), ("tif", {}), ("webp", {"lossless": True}), ("jpg", {"quality": 100})):
        path = saved(tmp_path / f"a.{suffix}", "RGB", colour, icc_profile=profile, **options)
        np.testing.assert_allclose(colour_of(path), wanted, atol=4 if suffix == "jpg" else 2)


def test_transparency_and_palettes_keep_their_profile(tmp_path: Path) -> None:
    profile, colour = rgb_profile(ADOBE_RGB), (90, 160, 70)
    image = Image.new("RGBA", (20, 12), (*colour, 255))
    image.save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_allclose(colour_of(tmp_path / "a.png"), expected(colour, ADOBE_RGB), atol=2)
    saved(tmp_path / "clear.png", "RGBA", (*colour, 0), icc_profile=profile)
    assert colour_of(tmp_path / "clear.png").tolist() == [255, 255, 255]
    palette = Image.new("P", (20, 12), 1)
    palette.putpalette([0, 0, 0, *colour])
    palette.save(tmp_path / "p.png", icc_profile=profile)
    np.testing.assert_allclose(colour_of(tmp_path / "p.png"), expected(colour, ADOBE_RGB), atol=2)


@pytest.mark.parametrize(("mode", "colour"), [("L", 100), ("LA", (100, 255))])
def test_the_profile_of_a_gray_image_is_converted(tmp_path: Path, mode: str, colour) -> None:
    wanted = float(encoded(np.array((100 / 255) ** 1.0)))  # a gamma of 1: linear light
    path = saved(tmp_path / "a.png", mode, colour, icc_profile=grey_profile(1.0))
    np.testing.assert_allclose(colour_of(path), [wanted] * 3, atol=2)
    np.testing.assert_allclose(colour_of(path, (8, 8, 1)), [wanted], atol=2)


def test_sixteen_bits_of_gray_keep_their_profile(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((12, 20), 100 * 257, np.uint16))
    deep.save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    np.testing.assert_allclose(colour_of(tmp_path / "a.png"), [float(encoded(np.array(100 / 255)))] * 3, atol=2)


def test_a_color_profile_of_a_gray_image_is_converted(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", "L", 100, icc_profile=rgb_profile(DISPLAY_P3, 1.0))
    np.testing.assert_allclose(colour_of(path), [float(encoded(np.array(100 / 255)))] * 3, atol=2)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize("size", [(8, 8), (20, 12)])
def test_the_profile_of_a_cmyk_image_is_converted(tmp_path: Path, suffix: str, size) -> None:
    """In this one the first ink is red; without a profile it is cyan."""
    inks = Image.new("CMYK", size, (255, 0, 0, 0))
    inks.save(tmp_path / f"a.{suffix}", icc_profile=cmyk_profile(RED_IN_LAB))
    np.testing.assert_allclose(colour_of(tmp_path / f"a.{suffix}"), [255, 0, 0], atol=6)
    inks.save(tmp_path / f"without.{suffix}")
    np.testing.assert_allclose(colour_of(tmp_path / f"without.{suffix}"), [0, 255, 255], atol=6)


def test_the_profile_of_srgb_itself_changes_no_pixel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", SHAPE), pixels)


@pytest.mark.parametrize(
    "profile", [b"no profile", rgb_profile(ADOBE_RGB)[:300], grey_profile(1.0)], ids=["text", "cut off", "of grey"]
)
def test_a_damaged_or_unsuitable_profile_is_ignored(tmp_path: Path, profile: bytes) -> None:
    path = saved(tmp_path / "a.png", "RGB", (200, 100, 50), icc_profile=profile)
    assert colour_of(path).tolist() == [200, 100, 50]


def with_chunks(path: Path, *chunks: tuple[bytes, bytes]) -> Path:
    """Put chunks into a PNG behind its header."""
    content = path.read_bytes()
    new = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(content[:33] + new + content[33:])
    return path


@pytest.mark.parametrize(
    ("chunks", "grey"),
    [
        ([(b"gAMA", 100000)], 255 * (100 / 255) ** (1 / 2.2)),  # linear light
        ([(b"gAMA", 55556)], 255 * (100 / 255) ** (1 / (0.55556 * 2.2))),  # old Macs
        ([(b"gAMA", 45455)], 100),  # sRGB's
        ([(b"sRGB", None), (b"gAMA", 100000)], 100),
    ],
)
def test_the_gamma_of_a_png_is_corrected(tmp_path: Path, chunks, grey: float) -> None:
    written = [(kind, b"\0" if value is None else struct.pack(">I", value)) for kind, value in chunks]
    for mode, colour in (("L", 100), ("RGB", (100,) * 3), ("RGBA", (100, 100, 100, 255))):
        path = with_chunks(saved(tmp_path / f"{mode}.png", mode, colour), *written)
        np.testing.assert_allclose(colour_of(path), [grey] * 3, atol=1)


def test_a_file_without_a_profile_is_not_converted(tmp_path: Path) -> None:
    """Then no pixel is looked at: such files are read as fast, and to the same bytes, as before."""
    for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp"):
        content = BytesIO()
        Image.new("RGB", (20, 12), (9, 99, 199)).save(content, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
        assert ColorConverter.of(Image.open(content)) == ColorConverter()
