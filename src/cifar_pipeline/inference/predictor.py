"""A model in use: image files in, classes with probabilities out, by the code that the training is measured by.

A model file's answers for the test part; on a GPU that ONNX Runtime can't use, those of the network itself.

The number that is reported is the file's: where torch computes it, the file has to give the same answers.
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
from cifar_pipeline.inference.onnx_session import CUDA, MODEL_FILE, OnnxSession
from cifar_pipeline.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

DECIMALS = 6


@dataclass(frozen=True)
class Prediction:
    """What a file shows: classes with their probabilities, the likeliest first; or why it shows nothing."""

    file: str
    ranking: tuple[tuple[str, float], ...]
    error: str = ""

    def as_json(self) -> dict[str, object]:
        """The class, its probability, and those of all that were ranked; or the error."""
        file = {"file": self.file} if self.file else {}
        if self.error:
            return {**file, "error": self.error}
        probabilities = {name: round(value, DECIMALS) for name, value in self.ranking}
        name, value = next(iter(probabilities.items()))
        return {**file, "class": name, "probability": value, "probabilities": probabilities}


@dataclass(frozen=True)
class Predictor:
    """An open model with what its outputs mean."""

    metadata: ModelMetadata
    session: OnnxSession

    @staticmethod
    def open(folder: Path, threads: int = 1, accelerator: str = "auto") -> "Predictor":
        """Open the model in `folder` as `Session.open` does.

        Raises `Refusal` where there is none, where it is damaged or unsafe, or where it is not as it says.
        """
        session = OnnxSession.open(folder, threads, accelerator)
        return Predictor(ModelMetadata.of(session, folder), session)

    def resolve_top_k(self, asked: int | None, usual: int) -> int:
        """How many classes to rank: as many as were asked for, or the usual number where nobody asked.

        Raises `Refusal` where there are not so many classes.
        """
        known = len(self.metadata.classes)
        if asked is not None and not 1 <= asked <= known:
            raise UserError(f"--top {asked}: this model knows {known} classes; write a number from 1 to {known}.")
        return min(usual, known) if asked is None else asked

    def probabilities(self, images: np.ndarray, batch_size: int = 1000) -> np.ndarray:
        """Probabilities `[N, K] float32` of raw images `[N, H, W, C] uint8`."""
        return self.session.predict(images, batch_size)[1]

    def ranking(self, images: np.ndarray, top: int) -> list[tuple[tuple[str, float], ...]]:
        """For each raw image the `top` likeliest classes with their probabilities."""
        probabilities = self.probabilities(images)
        places = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        values = np.take_along_axis(probabilities, places, axis=1)
        classes = self.metadata.classes
        return [
            tuple((classes[place], value) for place, value in zip(row, numbers, strict=True))
            for row, numbers in zip(places.tolist(), values.tolist(), strict=True)
        ]

    def predictions(self, files: Iterable[Path], batch_size: int, top: int) -> Iterator[Prediction]:
        """What each file shows, in order. A bad file stops nothing.

        In memory are twice so many images: while the network looks at some, the next are read.
        """
        waiting: deque[tuple[list[Path], Future[list[np.ndarray | str]]]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for batch in _batches(files, batch_size):
                waiting.append((batch, reader.submit(_load_images, batch, self.metadata)))
                if len(waiting) > 1:
                    yield from self._to_predictions(*waiting.popleft(), top)
            for batch, read in waiting:
                yield from self._to_predictions(batch, read, top)

    def _to_predictions(
        self, batch: list[Path], read: Future[list[np.ndarray | str]], top: int
    ) -> Iterator[Prediction]:
        pictures = read.result()
        good = [image for image in pictures if not isinstance(image, str)]
        rankings = iter(self.ranking(np.stack(good), top) if good else [])
        for path, image in zip(batch, pictures, strict=True):
            if isinstance(image, str):
                yield Prediction(str(path), (), image)
            else:
                yield Prediction(str(path), next(rankings))


def threads_for(machine_threads: int | str, cores: int, reading: int = 0) -> int:
    """How many threads a model computes on: as many as `runtime.threads` says, or (auto) a thread for each core.

    `reading` of the cores are left to threads that read files.
    """
    return max(1, cores - reading) if machine_threads == "auto" else int(machine_threads)


def _load_images(paths: list[Path], facts: ModelMetadata) -> list[np.ndarray | str]:
    return [_load_image(path, facts) for path in paths]


def _load_image(path: Path, facts: ModelMetadata) -> np.ndarray | str:
    """The image, or why there is none."""
    try:
        return load_image(path, facts.shape, facts.resize_mode)
    except UnreadableImage as error:
        return str(error)


def _batches(files: Iterable[Path], size: int) -> Iterator[list[Path]]:
    waiting = iter(files)
    while batch := list(islice(waiting, size)):
        yield batch


# How many images the file and the network have to agree on, and how far their probabilities may be apart.
NUM_COMPARED = 1000
TOLERANCE = 1e-4

Outputs = tuple[str, np.ndarray, np.ndarray]


def compute_outputs(
    predictor: Predictor,
    images: np.ndarray,
    batch_size: int,
    advance: Callable[[float], None],
    accelerator: str,
    network: Callable[[], "nn.Module"],
) -> Outputs:
    """The device, and logits and probabilities, each `[N, K] float32`, of raw images `[N, H, W, C] uint8`.

    Args:
        accelerator: as conf/runtime chooses it.
        network: makes the network that the file was exported from; called only where a GPU is left to torch.

    Raises:
        Refusal: the network on the GPU and the file give different answers.
    """
    if gpu_for_torch(accelerator):
        return compute_on_gpu(predictor, images, batch_size, advance, network(), "cuda")
    logits, probabilities = predictor.session.predict(images, batch_size, advance)
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


def compute_on_gpu(
    predictor: Predictor,
    images: np.ndarray,
    batch_size: int,
    advance: Callable[[float], None],
    network: "nn.Module",
    device: str,
) -> Outputs:
    """What `network` answers on torch's `device`, once the file has given the same for the first `COMPARED` images."""
    import torch

    from cifar_pipeline.inference.torch_model import predict_logits
    from cifar_pipeline.models.wrappers import get_activation

    logits = predict_logits(network.to(device).eval(), images, batch_size, advance, device)
    network.to("cpu")
    probabilities = get_activation(predictor.metadata.output_activation)(logits)
    _, found = predictor.session.predict(images[:NUM_COMPARED], batch_size)
    apart = float(np.abs(found - probabilities[:NUM_COMPARED].numpy()).max(initial=0.0))
    if not apart <= TOLERANCE:
        raise UserError(
            f"{MODEL_FILE} answers differently from its weights on the GPU (probabilities differ by {apart:.1g} among the "
            f"first {len(found)} images): runtime.accelerator=cpu measures the file itself."
        )
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return f"{name}, by torch", logits.numpy(), probabilities.numpy()


def require_same_outputs(
    network: "nn.Module",
    way: Callable[["Tensor"], "Tensor"],
    images: np.ndarray,
    probabilities: np.ndarray,
    folder: Path,
) -> None:
    """Refuse a network that gives other `probabilities` `[N, K]` than the model file in `folder` for some images."""
    from cifar_pipeline.inference.torch_model import predict_logits

    if not len(images):
        return
    apart = float(np.abs(way(predict_logits(network, images, len(images))).numpy() - probabilities).max())
    if not apart <= 10 * TOLERANCE:
        raise UserError(
            f"The model in {folder} answers differently from the network that conf/ and params.yaml describe "
            f"(probabilities differ by {apart:.1g}): `dvc repro` trains that one."
        )
