"""Classify image files with a model file, and compute its outputs for the test split.

Both use the same code. `evaluate` computes outputs with ONNX Runtime; if only torch can use the GPU, torch computes
them and must agree with the model file on a sample.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from cifar_pipeline.data.images import UnreadableImage, load_image
from cifar_pipeline.inference.metadata import ModelMetadata
from cifar_pipeline.inference.onnx_session import CUDA, OnnxSession
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.paths import MODEL_FILE

if TYPE_CHECKING:
    from torch import Tensor, nn

DECIMALS = 6


@dataclass(frozen=True)
class Prediction:
    """The prediction for a file: classes with probabilities, the most probable first, or the error."""

    file: str
    ranking: tuple[tuple[str, float], ...]
    error: str = ""

    def as_json(self) -> dict[str, object]:
        """Return class, probability and the probabilities of all ranked classes; or the error."""
        file = {"file": self.file} if self.file else {}
        if self.error:
            return {**file, "error": self.error}
        probabilities = {name: round(value, DECIMALS) for name, value in self.ranking}
        name, value = next(iter(probabilities.items()))
        return {**file, "class": name, "probability": value, "probabilities": probabilities}


@dataclass(frozen=True)
class Predictor:
    """An open model with its metadata."""

    metadata: ModelMetadata
    session: OnnxSession

    @staticmethod
    def open(folder: Path, threads: int = 1, accelerator: str = "auto") -> "Predictor":
        """Open the model in `folder`, as `OnnxSession.open`.

        Raises:
            UserError: there is none, it is damaged or unsafe, or it does not match its metadata.
        """
        session = OnnxSession.open(folder, threads, accelerator)
        return Predictor(ModelMetadata.of(session, folder), session)

    def resolve_top_k(self, requested: int | None, default: int) -> int:
        """Return the number of classes to rank: `requested`, or at most `default`.

        Raises:
            UserError: the model has fewer classes than requested.
        """
        num_classes = len(self.metadata.classes)
        if requested is not None and not 1 <= requested <= num_classes:
            raise UserError(
                f"--top {requested} must be between 1 and {num_classes}, the number of classes of this model."
            )
        return min(default, num_classes) if requested is None else requested

    def probabilities(self, images: np.ndarray, batch_size: int = 1000) -> np.ndarray:
        """Compute probabilities `[N, K] float32` of raw images `[N, H, W, C] uint8`."""
        return self.session.predict(images, self.metadata.network.limit_batch(batch_size))[1]

    def top_k(self, images: np.ndarray, k: int) -> list[tuple[tuple[str, float], ...]]:
        """Return the `k` most probable classes with their probabilities, for each raw image."""
        probabilities = self.probabilities(images)
        indices = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
        values = np.take_along_axis(probabilities, indices, axis=1)
        classes = self.metadata.classes
        return [
            tuple((classes[index], value) for index, value in zip(row_indices, row_values, strict=True))
            for row_indices, row_values in zip(indices.tolist(), values.tolist(), strict=True)
        ]

    def predictions(self, files: Iterable[Path], batch_size: int, top_k: int) -> Iterator[Prediction]:
        """Classify files in order, yielding an error for each that can't be read.

        Two batches are in memory: the next is read in a thread while the network computes.
        """
        pending: deque[tuple[list[Path], Future[list[np.ndarray | str]]]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for batch in _batches(files, batch_size):
                pending.append((batch, reader.submit(_load_images, batch, self.metadata)))
                if len(pending) > 1:
                    yield from self._to_predictions(*pending.popleft(), top_k)
            for batch, images in pending:
                yield from self._to_predictions(batch, images, top_k)

    def _to_predictions(
        self, batch: list[Path], loaded: Future[list[np.ndarray | str]], top_k: int
    ) -> Iterator[Prediction]:
        images_or_errors = loaded.result()
        images = [image for image in images_or_errors if not isinstance(image, str)]
        rankings = iter(self.top_k(np.stack(images), top_k) if images else [])
        for path, image in zip(batch, images_or_errors, strict=True):
            if isinstance(image, str):
                yield Prediction(str(path), (), image)
            else:
                yield Prediction(str(path), next(rankings))


def threads_for(runtime_threads: int | str, cores: int, reader_threads: int = 0) -> int:
    """Return the number of compute threads: `runtime.threads`, or for `auto` the cores less those for reading files."""
    return max(1, cores - reader_threads) if runtime_threads == "auto" else int(runtime_threads)


def _load_images(paths: list[Path], metadata: ModelMetadata) -> list[np.ndarray | str]:
    return [_load_image(path, metadata) for path in paths]


def _load_image(path: Path, metadata: ModelMetadata) -> np.ndarray | str:
    try:
        return load_image(path, metadata.shape, metadata.resize_mode)
    except UnreadableImage as error:
        return str(error)


def _batches(files: Iterable[Path], size: int) -> Iterator[list[Path]]:
    iterator = iter(files)
    while batch := list(islice(iterator, size)):
        yield batch


# Number of images for which model file and network are compared, and the largest difference of probabilities.
NUM_COMPARED = 1000
TOLERANCE = 1e-4

Outputs = tuple[str, np.ndarray, np.ndarray]


def compute_outputs(
    predictor: Predictor,
    images: np.ndarray,
    batch_size: int,
    on_progress: Callable[[float], None],
    accelerator: str,
    network: Callable[[], "nn.Module"],
) -> Outputs:
    """Compute logits and probabilities, each `[N, K] float32`, of raw images `[N, H, W, C] uint8`, and name the device.

    Args:
        predictor: the open model file.
        images: may be memory-mapped.
        batch_size: number of images per batch.
        on_progress: called with the number of images of each batch.
        accelerator: `runtime.accelerator`.
        network: builds the network that the file was exported from; called only if torch is to use a GPU.

    Raises:
        UserError: the outputs of the network on the GPU and of the file differ.
    """
    batch_size = predictor.metadata.network.limit_batch(batch_size)
    if gpu_for_torch(accelerator):
        return compute_on_gpu(predictor, images, batch_size, on_progress, network(), "cuda")
    logits, probabilities = predictor.session.predict(images, batch_size, on_progress)
    return predictor.session.device, logits, probabilities


def gpu_for_torch(accelerator: str) -> bool:
    """Return whether torch can use a GPU of this machine that the installed ONNX Runtime can't."""
    if accelerator not in ("auto", "gpu", "cuda") or CUDA in onnxruntime.get_available_providers():
        return False
    # Before importing torch, which takes seconds.
    if accelerator == "auto" and not any(
        Path(path).exists() for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
    ):
        return False
    import torch

    return torch.cuda.is_available()


def compute_on_gpu(
    predictor: Predictor,
    images: np.ndarray,
    batch_size: int,
    on_progress: Callable[[float], None],
    network: "nn.Module",
    device: str,
) -> Outputs:
    """Compute outputs on torch's `device`, and compare with the file on the first `NUM_COMPARED` images."""
    import torch

    from cifar_pipeline.inference.torch_model import predict_logits
    from cifar_pipeline.models.build import get_activation

    logits = predict_logits(network.to(device).eval(), images, batch_size, on_progress, device)
    network.to("cpu")
    probabilities = get_activation(predictor.metadata.output_activation)(logits)
    _, expected = predictor.session.predict(images[:NUM_COMPARED], batch_size)
    difference = float(np.abs(expected - probabilities[:NUM_COMPARED].numpy()).max(initial=0.0))
    if not difference <= TOLERANCE:
        raise UserError(
            f"{MODEL_FILE} and its weights on the GPU give different outputs (probabilities differ by {difference:.1g} "
            f"among the first {len(expected)} images). Use runtime.accelerator=cpu to evaluate the file itself."
        )
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return f"{name}, by torch", logits.numpy(), probabilities.numpy()


def require_same_outputs(
    network: "nn.Module",
    activation: Callable[["Tensor"], "Tensor"],
    images: np.ndarray,
    probabilities: np.ndarray,
    folder: Path,
) -> None:
    """Raise `UserError` if a network's probabilities differ from those of the model file in `folder`, `[N, K]`."""
    from cifar_pipeline.inference.torch_model import predict_logits

    if not len(images):
        return
    network_probabilities = activation(predict_logits(network, images, len(images))).numpy()
    difference = float(np.abs(network_probabilities - probabilities).max())
    if not difference <= 10 * TOLERANCE:
        raise UserError(
            f"The model in {folder} and the network of conf/ and params.yaml give different outputs (probabilities "
            f"differ by {difference:.1g}). Run `dvc repro` to train this network."
        )
