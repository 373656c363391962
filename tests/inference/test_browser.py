"""Compare the exported page in headless Chromium, with ONNX Runtime's build for browsers, with predict."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_model import CLASSES, random_images

from cifar_pipeline.inference.portable import TEMPLATE, export_portable
from cifar_pipeline.inference.predictor import Predictor
from helpers.headless_browser import Page, chromium, opened
from helpers.servers import free_port, wait_for_answer

VERSION = re.search(r"onnxruntime-web@([\d.]+)", TEMPLATE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Download the npm package that the page uses."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, so ONNX Runtime's build for browsers can't be downloaded")
    assert VERSION
    folder = tmp_path_factory.mktemp("npm")
    ended = subprocess.run([npm, "pack", f"onnxruntime-web@{VERSION[1]}"], cwd=folder, capture_output=True, text=True)
    if ended.returncode:
        pytest.skip("npm can't reach its registry")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package" / "dist"


@pytest.fixture(scope="module")
def page(exported: Path, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Serve the exported folder with a copy of the package's files, and open the page."""
    program = chromium()
    if program is None:
        pytest.skip("Chromium is not installed")
    folder, port = tmp_path_factory.mktemp("page") / "exported", free_port()
    export_portable(exported, folder)
    (folder / "ort").mkdir()
    for name in integrities():
        shutil.copy(package / name, folder / "ort")
    command = [sys.executable, "-m", "http.server", "--directory", folder.name, "--bind", "127.0.0.1", str(port)]
    server = subprocess.Popen(command, cwd=folder.parent, stderr=subprocess.DEVNULL)
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/", server)
        with opened(program, tmp_path_factory.mktemp("profile")) as page:
            page.open(f"http://127.0.0.1:{port}/")
            yield page
    finally:
        server.terminate()
        server.wait()


def integrities() -> dict[str, str]:
    return dict(re.findall(r'"(\S+)": "(sha384-\S+)"', TEMPLATE.read_text(encoding="utf-8")))


def classify(page: Page, content: bytes) -> dict[str, float]:
    """Return the page's probabilities for an image file."""
    text = base64.b64encode(content).decode()
    code = f"fetch('data:;base64,{text}').then((a) => a.blob()).then((b) => classifyImage(new File([b], 'a.png')))"
    ranking: list[Any] = page.evaluate(code)
    return dict(ranking)


def png(image: Image.Image) -> bytes:
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


@pytest.mark.long
def test_the_files_have_the_hashes_in_the_page(package: Path) -> None:
    assert len(integrities()) == 2
    for name, integrity in integrities().items():
        digest = hashlib.sha384((package / name).read_bytes()).digest()
        assert integrity == f"sha384-{base64.b64encode(digest).decode()}"


@pytest.mark.long
def test_the_page_predicts_as_predict_does(page: Page, exported: Path) -> None:
    predictor = Predictor.open(exported)
    for pixels in random_images(3):
        expected = dict(predictor.top_k(pixels[None], len(CLASSES))[0])
        assert classify(page, png(Image.fromarray(pixels))) == pytest.approx(expected, abs=1e-4)
    assert "a.png: " in page.evaluate("document.getElementById('status').textContent")
    assert page.evaluate("document.querySelectorAll('#predictions tr').length") == len(CLASSES)
    assert [url for url in page.fetched if "127.0.0.1" not in url and not url.startswith("blob:")] == []


@pytest.mark.long
@pytest.mark.parametrize("size", [(48, 64), (20, 33), (300, 200)])
def test_images_of_other_sizes_are_resized_as_predict_does(
    page: Page, exported: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)
    content = png(Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR))
    (tmp_path / "a.png").write_bytes(content)
    (prediction,) = Predictor.open(exported).predictions([tmp_path / "a.png"], 1, len(CLASSES))
    assert classify(page, content) == pytest.approx(dict(prediction.ranking), abs=1e-3)


@pytest.mark.long
def test_a_file_that_is_no_image_is_reported(page: Page) -> None:
    with pytest.raises(AssertionError):
        classify(page, b"no image")
    assert "a.png can't be read: " in page.evaluate("document.getElementById('status').textContent")
    assert json.dumps(page.evaluate("document.title"))
