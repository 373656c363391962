"""An image file becomes what an image viewer would show, at the data set's size; what is none says why in a line."""

import contextlib
import io
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_pipeline.data import images
from cifar_pipeline.data.images import UnreadableImage, load_image, read_bytes, set_max_megapixels

SHAPE = (32, 32, 3)
RED, WHITE, BLACK = [255, 0, 0], [255, 255, 255], [0, 0, 0]
ORIENTATION = 0x112


@pytest.fixture(autouse=True)
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # put back afterwards
    with warnings.catch_warnings():
        set_max_megapixels(1, "predict.max_megapixels")


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8)


def saved(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "tga"])
def test_an_image_of_the_target_size_keeps_its_pixels(tmp_path: Path, suffix: str) -> None:
    read = load_image(saved(tmp_path / f"a.{suffix}", picture()), SHAPE)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, picture())


@pytest.mark.parametrize("suffix", ["jpg", "webp", "jp2", "gif"])
def test_formats_that_lose_a_little_are_read(tmp_path: Path, suffix: str) -> None:
    plain = np.full(SHAPE, RED, np.uint8)
    read = load_image(saved(tmp_path / f"a.{suffix}", plain), SHAPE)
    np.testing.assert_allclose(read.astype(int), plain, atol=6)


def test_an_image_with_the_suffix_of_another_format_is_read(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", picture()).rename(tmp_path / "photo.JPG")
    np.testing.assert_array_equal(load_image(tmp_path / "photo.JPG", SHAPE), picture())


@pytest.mark.parametrize("turn", range(1, 9))
def test_an_image_is_turned_by_its_exif_orientation(tmp_path: Path, turn: int) -> None:
    """Each orientation of EXIF: how the stored pixels must be turned to be seen upright."""
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    stored = np.ascontiguousarray(undo[turn](picture()))
    np.testing.assert_array_equal(load_image(saved(tmp_path / "a.png", stored, exif=exif), SHAPE), picture())


def test_gray_becomes_three_equal_channels_and_back(tmp_path: Path) -> None:
    grey = picture()[..., 0]
    path = saved(tmp_path / "a.png", grey)
    np.testing.assert_array_equal(load_image(path, SHAPE), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(load_image(path, (32, 32, 1)), grey[..., None])
    colour = saved(tmp_path / "b.png", np.full(SHAPE, RED, np.uint8))
    assert (load_image(colour, (32, 32, 1)) == 76).all()  # the weight of red in grey


def test_transparent_pixels_are_blended_with_white(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:8] = [*RED, 255]
    pixels[8:16] = [*RED, 0]
    pixels[16:] = [*BLACK, 128]
    read = load_image(saved(tmp_path / "a.png", pixels), SHAPE)
    assert read[0, 0].tolist() == RED and read[8, 0].tolist() == WHITE and read[20, 0].tolist() == [127] * 3


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_color_is_white(tmp_path: Path, mode: str) -> None:
    colour = {"P": 1, "RGB": tuple(RED), "L": 7}[mode]
    image = Image.new(mode, (32, 32), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, *RED])
    assert (load_image(saved(tmp_path / "a.png", image, transparency=colour), SHAPE) == 255).all()


def test_a_palette_is_resolved_before_resizing(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat([[0, 2]], 64, 0).repeat(32, 1).astype(np.uint8), "P")
    image.putpalette([*RED, *BLACK, *WHITE])
    read = load_image(saved(tmp_path / "a.png", image), SHAPE)
    assert read[16, 0].tolist() == RED and read[16, -1].tolist() == WHITE


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_to_eight_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    deep = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 32 32 65535\n" + deep.byteswap().tobytes())
    else:
        saved(path, deep)
    np.testing.assert_array_equal(load_image(path, SHAPE)[..., 0], (deep / 257).round())


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    for suffix in ("gif", "webp", "png"):
        path = saved(tmp_path / f"a.{suffix}", red, save_all=True, append_images=[blue], lossless=True)
        assert load_image(path, SHAPE)[0, 0].tolist() == RED


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (32, 32), (0, 255, 255, 0)))
    np.testing.assert_allclose(load_image(path, SHAPE)[0, 0].astype(int), RED, atol=6)


def test_the_center_of_a_long_image_is_cropped(tmp_path: Path) -> None:
    pixels = np.zeros((64, 256, 3), np.uint8)
    pixels[:, 96:160] = RED
    pixels[:, :96] = pixels[:, 160:] = [0, 0, 255]
    wide = load_image(saved(tmp_path / "wide.png", pixels), SHAPE)
    high = load_image(saved(tmp_path / "high.png", pixels.transpose(1, 0, 2).copy()), SHAPE)
    for read in (wide, high):
        assert (read[2:-2, 2:-2] == RED).all()


def test_downscaling_averages_pixels(tmp_path: Path) -> None:
    """A fine chessboard is grey from afar; taken pixel by pixel it would be black or white."""
    board = np.indices((256, 256)).sum(0) % 2 * 255
    read = load_image(saved(tmp_path / "a.png", board.astype(np.uint8)), SHAPE)
    assert (abs(read.astype(int) - 127) < 12).all()


def refusal(path: Path) -> str:
    with pytest.raises(UnreadableImage) as unreadable:
        load_image(path, SHAPE)
    assert "\n" not in str(unreadable.value)
    return str(unreadable.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif", "ppm", "jp2", "tga"])
def test_a_truncated_image_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = saved(tmp_path / f"a.{suffix}", picture()).read_bytes()
    for part in (3 * len(whole) // 4, len(whole) // 2, 20):
        (tmp_path / f"part.{suffix}").write_bytes(whole[:part])
        refusal(tmp_path / f"part.{suffix}")


def test_a_file_that_is_not_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("a text")
    assert refusal(tmp_path / "empty.png") == "empty file"
    assert refusal(tmp_path / "text.png") == "not an image of a supported format"
    assert refusal(tmp_path / "none.png") == "no such file"
    assert refusal(tmp_path) == "a folder without images"


def test_a_format_that_starts_a_program_is_disabled(tmp_path: Path) -> None:
    assert refusal(saved(tmp_path / "a.eps", picture())) == "not an image of a supported format"


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    bomb = saved(tmp_path / "bomb.png", Image.new("1", (5000, 5000)))
    assert bomb.stat().st_size < 10_000
    assert refusal(bomb) == "more than 1 million pixels (predict.max_megapixels)"
    assert load_image(saved(tmp_path / "a.png", Image.new("1", (1000, 1000))), SHAPE).shape == SHAPE


def test_a_file_larger_than_any_allowed_image_is_not_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", picture())
    content = path.read_bytes()
    os.truncate(path, 1 << 40)  # a hole, which takes no place on the disk
    with pytest.raises(UnreadableImage, match=r"1,099,511,627,776 bytes, more than .*max_megapixels"):
        read_bytes(path)
    os.truncate(path, len(content))
    assert read_bytes(path) == content


def test_bytes_that_are_changed_at_random_raise_nothing_else(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for suffix in ("png", "jpg", "gif", "webp", "bmp", "tif"):
        content = io.BytesIO()
        Image.fromarray(picture()).save(content, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
        for _ in range(40):
            broken = bytearray(content.getvalue())
            for place in random.integers(0, len(broken), 4):
                broken[place] = random.integers(256)
            (tmp_path / "broken").write_bytes(broken)
            with contextlib.suppress(UnreadableImage):
                assert load_image(tmp_path / "broken", SHAPE).shape == SHAPE


def heic(path: Path, pixels: np.ndarray, **options: object) -> Path:
    """Write a HEIC file, as telephones do."""
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return saved(path, pixels, format="HEIF", quality=-1, chroma=444, **options)


def test_heic_is_read_whatever_it_is_called_and_turned_once(tmp_path: Path) -> None:
    top_red = np.full((32, 64, 3), BLACK, np.uint8)
    top_red[:16] = RED
    for name in ("a.heic", "exported.jpg"):
        read = load_image(heic(tmp_path / name, top_red), SHAPE).astype(int)
        assert abs(read[4] - RED).max() < 9 and abs(read[-4]).max() < 9
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # a quarter turn to the right shows it upright: the top goes to the right
    read = load_image(heic(tmp_path / "turned.heic", top_red, exif=exif.tobytes()), (64, 32, 3)).astype(int)
    assert abs(read[:, -4] - RED).max() < 9 and abs(read[:, 4]).max() < 9


def test_heic_without_its_plugin_is_named_with_the_command_that_installs_it(tmp_path: Path, monkeypatch) -> None:
    path = heic(tmp_path / "a.heic", picture())
    monkeypatch.setattr(images, "HEIC_PLUGIN", "not_installed")
    monkeypatch.delitem(Image.OPEN, "HEIF")
    images._formats.cache_clear()
    try:
        assert refusal(path) == (
            "HEIC needs the extra heif: `pip install --constraint constraints.txt --editable '.[heif]'`"
        )
    finally:
        images._formats.cache_clear()


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket.png"))
        assert refusal(tmp_path / "socket.png") == "a socket, not a file"
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    assert refusal(tmp_path / "pipe.png") == refusal(tmp_path / "link.png") == "a named pipe, not a file"
    assert refusal(tmp_path / "zero.png") == "a device, not a file"
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(UnreadableImage, match="not a file"):
            read_bytes(tmp_path / name)


def test_a_file_that_becomes_a_pipe_after_its_check_is_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    os.mkfifo(path)
    regular = saved(tmp_path / "b.png", picture()).stat()
    monkeypatch.setattr(Path, "stat", lambda self, **options: regular)
    assert refusal(path) == "a named pipe, not a file"
