"""A model file's answers for the test part; on a GPU that ONNX Runtime can't use, those of the network itself.

The number that is reported is the file's: where torch computes it, the file has to give the same answers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from cifar_pipeline.console import Refusal
from cifar_pipeline.inference.predictor import Predictor
from cifar_pipeline.inference.session import CUDA, MODEL

if TYPE_CHECKING:
    from torch import Tensor, nn

# How many images the file and the network have to agree on, and how far their probabilities may be apart.
COMPARED = 1000
TOLERANCE = 1e-4

Answers = tuple[str, np.ndarray, np.ndarray]


def answers_of(
    predictor: Predictor,
    images: np.ndarray,
    batch_size: int,
    advance: Callable[[float], None],
    accelerator: str,
    network: Callable[[], "nn.Module"],
) -> Answers:
    """The device, and logits and probabilities, each `[N, K] float32`, of raw pictures `[N, H, W, C] uint8`.

    Args:
        accelerator: as conf/machine chooses it.
        network: makes the network that the file was exported from; called only where a GPU is left to torch.

    Raises:
        Refusal: the network on the GPU and the file give different answers.
    """
    if gpu_for_torch(accelerator):
        return on_gpu(predictor, images, batch_size, advance, network(), "cuda")
    logits, probabilities = predictor.session.answers(images, batch_size, advance)
    return predictor.session.device, logits, probabilities


def gpu_for_torch(accelerator: str) -> bool:
    """Whether this machine has a GPU that torch can use and the installed ONNX Runtime can't."""
    if accelerator not in ("auto", "gpu", "cuda") or CUDA in onnxruntime.get_available_providers():
        return False
    # Without torch, which takes seconds to load.
    if accelerator == "auto" and not any(
        Path(path).exists() for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
    ):
        return False
    import torch

    return torch.cuda.is_available()


def on_gpu(
    predictor: Predictor,
    images: np.ndarray,
    batch_size: int,
    advance: Callable[[float], None],
    network: "nn.Module",
    device: str,
) -> Answers:
    """What `network` answers on torch's `device`, once the file has given the same for the first `COMPARED` images."""
    import torch

    from cifar_pipeline.inference.batched import logits_of
    from cifar_pipeline.inference.probabilities import by_name

    logits = logits_of(network.to(device).eval(), images, batch_size, advance, device)
    network.to("cpu")
    probabilities = by_name(predictor.facts.probabilities)(logits)
    _, found = predictor.session.answers(images[:COMPARED], batch_size)
    apart = float(np.abs(found - probabilities[:COMPARED].numpy()).max(initial=0.0))
    if not apart <= TOLERANCE:
        raise Refusal(
            f"{MODEL} answers differently from its weights on the GPU (probabilities differ by {apart:.1g} among the "
            f"first {len(found)} pictures): machine.accelerator=cpu measures the file itself."
        )
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return f"{name}, by torch", logits.numpy(), probabilities.numpy()


def require_equal(
    network: "nn.Module",
    way: Callable[["Tensor"], "Tensor"],
    images: np.ndarray,
    probabilities: np.ndarray,
    folder: Path,
) -> None:
    """Refuse a network that gives other `probabilities` `[N, K]` than the model file in `folder` for some images."""
    from cifar_pipeline.inference.batched import logits_of

    if not len(images):
        return
    apart = float(np.abs(way(logits_of(network, images, len(images))).numpy() - probabilities).max())
    if not apart <= 10 * TOLERANCE:
        raise Refusal(
            f"The model in {folder} answers differently from the network that conf/ and params.yaml describe "
            f"(probabilities differ by {apart:.1g}): `dvc repro` trains that one."
        )
