"""An exported network answers as the network did, for any number of pictures, from a file that is always the same."""

import shutil
import zipfile

import mlflow.pyfunc
import numpy as np
import pytest
import torch
from archives import rewrite
from mlflow.exceptions import MlflowException
from project import ROOT
from small_model import CLASSES, SHAPE, facts, network, pictures

from cifar_pipeline.console import Refusal
from cifar_pipeline.inference.batched import logits_of
from cifar_pipeline.inference.export import WEIGHTS, export_model, load_model
from cifar_pipeline.models.lenet import LeNet
from cifar_pipeline.models.pixels import RawPixels


@pytest.mark.parametrize("number", [1, 2, 7, 1000])
def test_the_loaded_network_answers_as_the_network(exported, number):
    images = pictures(number)
    with torch.inference_mode():
        expected = network().eval()(torch.from_numpy(images))
        answered = load_model(exported)(torch.from_numpy(images))
    assert answered.dtype == torch.float32 and answered.shape == (number, len(CLASSES))
    assert torch.equal(answered, expected)


def test_the_size_of_a_portion_changes_no_answer(exported):
    images = pictures(10)
    model = load_model(exported)
    torch.testing.assert_close(logits_of(model, images, 3), logits_of(model, images, 10))


def test_equal_networks_are_equal_bytes_that_name_no_place(exported, tmp_path):
    export_model(network(), facts(), tmp_path / "again")
    content = (exported / WEIGHTS).read_bytes()
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == content
    with zipfile.ZipFile(exported / WEIGHTS) as archive:
        assert not [name for name in archive.namelist() if str(ROOT).encode() in archive.read(name)]


def test_other_weights_are_other_bytes(exported, tmp_path):
    other = network()
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    export_model(other, facts(), tmp_path / "other")
    assert (tmp_path / "other" / WEIGHTS).read_bytes() != (exported / WEIGHTS).read_bytes()


def test_the_weights_load_without_pickle(exported, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    assert mlflow.pytorch.load_model(str(exported)) is not None


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"There is no model in .*nowhere: `dvc repro train` makes one"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 100, 100_000])
def test_a_damaged_model_is_refused(exported, tmp_path, keep):
    damaged = tmp_path / "damaged"
    shutil.copytree(exported, damaged)
    (damaged / WEIGHTS).write_bytes((exported / WEIGHTS).read_bytes()[:keep])
    with pytest.raises(Refusal, match=r"model\.pt2 is damaged") as refusal:
        load_model(damaged)
    assert "\n" not in str(refusal.value)


def test_mlflow_serves_the_model_with_its_signature(exported):
    served = mlflow.pyfunc.load_model(str(exported))
    images = pictures(3)
    logits = served.predict(images)
    np.testing.assert_allclose(logits, load_model(exported)(torch.from_numpy(images)).detach().numpy(), atol=1e-6)
    (taken,), (given,) = served.metadata.signature.inputs.inputs, served.metadata.signature.outputs.inputs
    assert (taken.type, taken.shape) == (np.dtype(np.uint8), (-1, *SHAPE))
    assert (given.type, given.shape) == (np.dtype(np.float32), (-1, len(CLASSES)))
    with pytest.raises(MlflowException, match="shape"):
        served.predict(images[:, :16])


def test_a_network_for_grey_pictures_of_another_size_is_exported(tmp_path):
    net = RawPixels(LeNet(channels=1, size=28, classes=2), mean=[0.1], std=[0.3])
    export_model(net, facts(shape=[28, 28, 1], classes=["even", "odd"]), tmp_path / "grey")
    assert load_model(tmp_path / "grey")(torch.zeros((5, 28, 28, 1), dtype=torch.uint8)).shape == (5, 2)


def test_a_file_of_another_torch_is_refused_with_the_commit_that_reads_it(exported, tmp_path):
    other = tmp_path / "last"
    shutil.copytree(exported, other)
    rewrite(other / WEIGHTS, {"models/model.json": lambda text: text.replace(b'"major": 8', b'"major": 99')})
    with pytest.raises(Refusal, match=r"can't be read by torch .*`git checkout c0ffee10+` and `make setup` use it"):
        load_model(other)
