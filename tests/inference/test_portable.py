"""The exported files answer as the model does, on a machine that has never seen this project."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from project import ROOT
from small_model import CLASSES, facts, pictures

from cifar_pipeline.console import Refusal
from cifar_pipeline.inference import portable
from cifar_pipeline.inference.portable import write_portable
from cifar_pipeline.inference.predictor import Predictor
from cifar_pipeline.inference.safe_archive import check_archive

# What somebody with the files alone would write.
ALONE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cifar_pipeline", "lightning", "mlflow", "hydra"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import numpy as np, onnxruntime, torch

pictures = np.load("pictures.npy")
session = onnxruntime.InferenceSession("model.onnx")
onnx, = session.run(None, {"pictures": pictures})
one, = session.run(None, {"pictures": pictures[:1]})
texts = {"facts.json": ""}
network = torch.export.load("model.pt2", extra_files=texts).module()
with torch.inference_mode():
    pt2, pt2_one = (network(torch.from_numpy(batch)).numpy() for batch in (pictures, pictures[:1]))
np.savez("answers.npz", onnx=onnx, onnx_one=one, pt2=pt2, pt2_one=pt2_one)
print(json.dumps([json.loads(session.get_modelmeta().custom_metadata_map["facts"]), json.loads(texts["facts.json"])]))
"""


@pytest.mark.long
def test_both_files_answer_in_a_process_without_this_project(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert write_portable(exported, tmp_path) == [tmp_path / "model.pt2", tmp_path / "model.onnx"]
    images = pictures(1000)
    np.save(tmp_path / "pictures.npy", images)
    ended = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    answers, expected = np.load(tmp_path / "answers.npz"), Predictor.open(exported).probabilities(images).numpy()
    for kind in ("onnx", "pt2"):
        np.testing.assert_allclose(answers[kind], expected, atol=1e-5)
        np.testing.assert_allclose(answers[f"{kind}_one"], expected[:1], atol=1e-5)
    for said in json.loads(ended.stdout):
        assert tuple(said["classes"]) == CLASSES and said["commit"] == facts()["commit"]
        assert "[N, 32, 32, 3] uint8" in said["input"] and "normalisation is inside" in said["preprocessing"]
    check_archive(tmp_path / "model.pt2")
    for path in (tmp_path / "model.pt2", tmp_path / "model.onnx"):
        assert str(ROOT).encode() not in path.read_bytes()


def test_an_export_without_its_packages_says_how_to_get_them(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match=r"ONNX takes onnx and onnxscript: `pip install --editable '\.\[export\]'`"):
        write_portable(exported, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
