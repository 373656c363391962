"""Test the output activations."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from cifar_pipeline.models.build import OUTPUT_ACTIVATIONS, clipped_linear, get_activation, normalized_sigmoid, softmax
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import ROOT, options_of

LOSSES = ROOT / "conf" / "loss"


def outputs(dtype: torch.dtype = torch.float64) -> Tensor:
    """Return ordinary rows and extreme ones: all equal, all far below zero, one far above."""
    rows = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[3], rows[4] = 0.0, -2000.0
    rows[5, 3] = 2000.0
    return rows.to(dtype)


@pytest.mark.parametrize("activation", OUTPUT_ACTIVATIONS.values())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_row_is_a_distribution(activation: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    probabilities = activation(outputs(dtype))
    assert probabilities.dtype == dtype
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(6, dtype=dtype))


@pytest.mark.parametrize("activation", OUTPUT_ACTIVATIONS.values())
def test_the_order_of_ordinary_outputs_is_kept(activation: Callable[[Tensor], Tensor]) -> None:
    rows = outputs()[:3]
    assert torch.equal(activation(rows).argmax(dim=1), rows.argmax(dim=1))


def test_each_activation_follows_its_formula() -> None:
    rows = outputs()[:3]
    z = rows.numpy()
    exponentials, sigmoids, clipped = np.exp(z), 1 / (1 + np.exp(-z)), np.maximum(z, 0)
    for activation, terms in ((softmax, exponentials), (normalized_sigmoid, sigmoids), (clipped_linear, clipped)):
        np.testing.assert_allclose(activation(rows).numpy(), terms / terms.sum(axis=1, keepdims=True), rtol=1e-10)


def test_rows_without_positive_logits_clip_to_uniform() -> None:
    torch.testing.assert_close(clipped_linear(torch.tensor([[-1.0, 0.0, -3.0, -0.5]])), torch.full((1, 4), 0.25))


@pytest.mark.parametrize("name", options_of("loss"))
def test_every_loss_names_an_output_activation(name: str) -> None:
    """Directly, or through the loss that it inherits from."""
    parents = [parent for parent in OmegaConf.load(LOSSES / f"{name}.yaml").get("defaults", []) if parent != "_self_"]
    assert (
        get_activation(OmegaConf.load(LOSSES / f"{[name, *parents][-1]}.yaml").output_activation)
        in OUTPUT_ACTIVATIONS.values()
    )


def test_an_unknown_name_is_refused_with_the_known_names_and_the_closest() -> None:
    with pytest.raises(
        UserError, match=r"softmx.*softmax, normalized_sigmoid, clipped_linear\. Did you mean softmax\?"
    ):
        get_activation("softmx")
