"""Test that the exported folder works in a process without this project."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_model import CLASSES, network, random_images, training_metadata

from cifar_pipeline.inference.metadata import to_onnx_metadata
from cifar_pipeline.inference.portable import export_portable, write_browser_page, write_pt2
from cifar_pipeline.inference.predictor import Predictor
from cifar_pipeline.models.build import NormalizedModel
from cifar_pipeline.models.lenet import LeNet
from cifar_pipeline.utils.errors import UserError
from export import export
from helpers.config_project import ROOT, Project, run

# Blocks imports of this project and of the packages it trains with.
WITHOUT_PROJECT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cifar_pipeline", "lightning", "mlflow", "hydra", "torch", "onnx", *sys.argv[1:]):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
"""
TORCH = """
import json, numpy, torch
texts = {"facts.json": ""}
network = torch.export.load("model.pt2", extra_files=texts).module()
with torch.inference_mode():
    logits, probabilities = network(torch.from_numpy(numpy.load("images.npy")))
numpy.save("probabilities.npy", probabilities.numpy())
print(json.loads(texts["facts.json"])["commit"])
"""


def run_python(folder: Path, code: str, prelude: str = WITHOUT_PROJECT) -> str:
    ended = subprocess.run([sys.executable, "-c", prelude + code], cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_six_lines_work_in_a_process_without_this_project(exported: Path, tmp_path: Path) -> None:
    written = export_portable(exported, tmp_path / "exported")
    assert written == [tmp_path / "exported" / "model.onnx", tmp_path / "exported" / "index.html"]
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "elsewhere.md").read_text(encoding="utf-8"), re.S)
    assert "model.onnx" in block and len(list(filter(None, block.splitlines()))) == 6
    Image.fromarray(random_images(1)[0]).save(tmp_path / "cat.png")
    name, probability = run_python(tmp_path, block).split()
    ((expected, value),) = Predictor.open(exported).top_k(random_images(1), 1)[0]
    assert name == expected and float(probability) == pytest.approx(value, abs=1e-5)


def test_the_copy_is_the_model_folder(exported: Path, tmp_path: Path) -> None:
    export_portable(exported, tmp_path)
    for path in exported.rglob("*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(exported)).read_bytes() == path.read_bytes()


@pytest.mark.long
def test_pt2_matches_the_model(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the weights of another network"):
        write_pt2(exported, NormalizedModel(LeNet(3, 32, 7), 0.5, 0.5), tmp_path)
    assert not list(tmp_path.iterdir())
    path = write_pt2(exported, network(), tmp_path)
    np.save(tmp_path / "images.npy", random_images(100))
    assert run_python(tmp_path, TORCH, "") == f"{training_metadata()['commit']}\n"
    probabilities = np.load(tmp_path / "probabilities.npy")
    np.testing.assert_allclose(probabilities, Predictor.open(exported).probabilities(random_images(100)), atol=1e-5)
    assert str(ROOT).encode() not in path.read_bytes()


def test_export_copies_the_model_and_prints_how_to_use_it(project: Project, exported: Path) -> None:
    ended = run(export, "--model", exported)
    assert ended.code in (0, None) and "http.server --directory exported" in ended.out
    assert {path.name for path in (project.folder / "exported").iterdir()} >= {"model.onnx", "index.html", "MLmodel"}
    assert not (project.folder / "exported" / "model.pt2").exists()


def test_class_names_can_not_inject_html_into_the_page(exported: Path) -> None:
    hostile = "</script><script>alert(1)</script><!-- & \u2028"
    page = write_browser_page({**to_onnx_metadata(training_metadata()), "classes": [hostile, *CLASSES[1:]]})
    assert "alert(1)" in page and "<script>alert" not in page and page.count("</script>") == 1
    (metadata,) = re.findall(r"const metadata = (.*);$", page, re.MULTILINE)
    assert json.loads(metadata)["classes"][0] == hostile
