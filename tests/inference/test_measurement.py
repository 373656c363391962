"""Test that `evaluate` uses the outputs of the model file, or of a GPU whose outputs agree with the file."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from small_model import network, random_images

from cifar_pipeline.inference import predictor as predictor_module
from cifar_pipeline.inference.onnx_session import CPU, CUDA, OnnxSession
from cifar_pipeline.inference.predictor import (
    Predictor,
    compute_on_gpu,
    compute_outputs,
    gpu_for_torch,
    require_same_outputs,
)
from cifar_pipeline.utils.errors import UserError


@pytest.fixture
def predictor(exported: Path) -> Predictor:
    return Predictor.open(exported)


def altered() -> torch.nn.Module:
    """Change one weight of the network."""
    net = network()
    with torch.no_grad():
        net.net.fc3.bias[3] += 0.1  # type: ignore[operator,union-attr,index]
    return net


def nothing(amount: float) -> None:
    pass


def test_without_a_gpu_the_file_is_evaluated_and_no_network_is_built(predictor: Predictor) -> None:
    def never() -> torch.nn.Module:
        raise AssertionError

    device, logits, probabilities = compute_outputs(predictor, random_images(5), 2, nothing, "cpu", never)
    assert device == "cpu, 1 thread" and logits.shape == (5, 10)
    np.testing.assert_array_equal(probabilities, predictor.probabilities(random_images(5), 2))


def test_torch_uses_a_gpu_that_onnx_runtime_can_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [gpu_for_torch(name) for name in ("cuda", "gpu", "cpu", "mps")] == [True, True, False, False]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    assert not gpu_for_torch("cuda")


def test_outputs_of_a_gpu_are_used_if_the_file_agrees(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU replaces the GPU."""
    progress: list[float] = []
    monkeypatch.setattr(predictor_module, "gpu_for_torch", lambda accelerator: True)
    monkeypatch.setattr(predictor_module, "compute_on_gpu", lambda *args: compute_on_gpu(*args[:-1], "cpu"))
    device, logits, probabilities = compute_outputs(predictor, random_images(7), 3, progress.append, "auto", network)
    assert device == "cpu, by torch" and sum(progress) == 7
    expected = predictor.session.predict(random_images(7), 7)
    np.testing.assert_allclose(logits, expected[0], atol=1e-5)
    np.testing.assert_allclose(probabilities, expected[1], atol=1e-6)
    with pytest.raises(UserError, match=r"model\.onnx and its weights on the GPU give different outputs .* by 0\.0\d"):
        compute_outputs(predictor, random_images(7), 3, progress.append, "auto", altered)


def test_attributions_are_refused_for_a_network_with_other_outputs(predictor: Predictor, exported: Path) -> None:
    def activation(logits: torch.Tensor) -> torch.Tensor:
        return torch.softmax(logits, 1)

    expected = predictor.probabilities(random_images(3))
    require_same_outputs(network().eval(), activation, random_images(3), expected, exported)
    require_same_outputs(altered().eval(), activation, random_images(0), expected[:0], exported)
    with pytest.raises(UserError, match="and the network of conf/ and params.yaml give different outputs"):
        require_same_outputs(altered().eval(), activation, random_images(3), expected, exported)


@pytest.mark.parametrize(("works", "device"), [(True, "cuda"), (False, "cpu, 2 threads")])
def test_a_gpu_provider_is_used_and_reported_if_it_works(
    exported: Path, monkeypatch: pytest.MonkeyPatch, works: bool, device: str
) -> None:
    requested: list[Any] = []

    class Fake:
        def __init__(self, *_: Any, providers: list[str], **__: Any) -> None:
            requested.append(providers)

        def get_providers(self) -> list[str]:
            return [CUDA, CPU] if works else [CPU]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fake)
    assert OnnxSession.open(exported, threads=2).device == device
    OnnxSession.open(exported, threads=2, accelerator="cpu")
    assert requested == [[CUDA, CPU], [CPU]]
