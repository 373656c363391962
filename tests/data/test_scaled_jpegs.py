"""A JPEG that is much larger than its target is decoded at a fraction of its size, to nearly the same pixels."""

import functools
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from profiles import ADOBE_RGB, rgb_profile

from cifar_pipeline.data.images import UnreadableImage, load_image
from cifar_pipeline.data.sources.base import RESIZE_MODES
from cifar_pipeline.data.sources.image_files import ResizedImageCache

SHAPE = (32, 32, 3)
ORIENTATION = 0x112
# The stored pixels of an upright image, by EXIF orientation.
STORED = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@functools.cache
def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return noise with the spectrum of photographs, whose amplitude falls with the frequency."""
    random = np.random.default_rng(width)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    noise = np.fft.rfft2(random.standard_normal((3, height, width))) / frequency**1.3
    noise[:, 0, 0] = 0
    pixels = np.fft.irfft2(noise, s=(height, width))
    pixels = 128 + 45 * pixels / pixels.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy()).convert(mode)


def jpeg(image: Image.Image, **options: Any) -> BytesIO:
    content = BytesIO()
    image.save(content, "JPEG", quality=90, **options)
    return content


def decoded_at_full_size(content: BytesIO) -> BytesIO:
    """Return the pixels of a JPEG in a format without scaled decoding, with its color profile and orientation."""
    lossless = BytesIO()
    with Image.open(content) as image:
        options = {"exif": image.getexif()} if "exif" in image.info else {}
        image.save(lossless, "TIFF", icc_profile=image.info.get("icc_profile"), **options)
    return lossless


def differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.asarray(abs(first.astype(int) - second))


@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("side", [32, 99])
def test_scaled_decoding_keeps_the_pixels_nearly(side: int, resize_mode: str) -> None:
    """At 99 pixels, decoding at 1/4 instead of 1/2 would give a mean difference of more than 2."""
    content = jpeg(photograph(501, 403))
    scaled = load_image(content, (side, side, 3), resize_mode)
    difference = differences(scaled, load_image(decoded_at_full_size(content), (side, side, 3), resize_mode))
    assert 0 < difference.mean() < 0.8 and difference.max() <= 12


@pytest.mark.parametrize(("width", "is_scaled"), [(203, True), (199, False)])
def test_half_of_the_size_is_decoded_if_it_is_twice_the_target(width: int, is_scaled: bool) -> None:
    content = jpeg(photograph(width, 220))
    difference = differences(load_image(content, (50, 50, 3)), load_image(decoded_at_full_size(content), (50, 50, 3)))
    assert difference.any() == is_scaled


@pytest.mark.parametrize("size", [(1200, 40), (40, 1200), (131, 259)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_modes_and_elongated_images_keep_their_pixels_nearly(size: tuple[int, int], mode: str) -> None:
    content = jpeg(photograph(*size, mode))
    for resize_mode in RESIZE_MODES:
        difference = differences(
            load_image(content, SHAPE, resize_mode), load_image(decoded_at_full_size(content), SHAPE, resize_mode)
        )
        assert difference.mean() < 1.3 and difference.max() <= 12


def test_the_long_side_of_a_padded_line_is_at_least_one_pixel_wide() -> None:
    line = load_image(jpeg(Image.new("RGB", (2000, 8), "white")), SHAPE, "pad")
    assert (line[16] == 255).all() and not line[:16].any() and not line[17:].any()


@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("orientation", STORED)
def test_a_scaled_jpeg_is_turned(orientation: int, resize_mode: str) -> None:
    """131 columns are decoded as 66, the last of which represents one of two: the first after turning."""
    shape = (24, 32, 3)
    upright = photograph(131, 143)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turned = load_image(jpeg(STORED[orientation](upright), exif=exif, subsampling=0), shape, resize_mode)
    difference = differences(turned, load_image(jpeg(upright, subsampling=0), shape, resize_mode))
    assert difference.mean() < 1.5


def test_the_color_profile_of_a_scaled_jpeg_is_converted() -> None:
    content = jpeg(photograph(500, 400), icc_profile=rgb_profile(ADOBE_RGB))
    plain = jpeg(photograph(500, 400))
    converted = load_image(content, SHAPE)
    assert differences(converted, load_image(decoded_at_full_size(content), SHAPE)).mean() < 0.8
    assert differences(converted, load_image(plain, SHAPE)).mean() > 2


def test_a_truncated_jpeg_is_refused_at_any_scale() -> None:
    content = jpeg(photograph(500, 400)).getvalue()
    for side in (8, 32, 96, 224):
        with pytest.raises(UnreadableImage, match="damaged"):
            load_image(BytesIO(content[: len(content) * 3 // 4]), (side, side, 3))


def test_preprocess_and_predict_read_the_same_pixels(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.jpg" for number in range(3)]
    for number, path in enumerate(files):
        path.write_bytes(jpeg(photograph(500 + number, 400)).getvalue())
    cache = ResizedImageCache(tmp_path / "cache", SHAPE, "crop")
    rows = [row for row in cache.resize_all(files) if not isinstance(row, str)]
    stored = cache.view(rows)[np.arange(len(files))]
    np.testing.assert_array_equal(stored, np.stack([load_image(path, SHAPE, "crop") for path in files]))
