"""What `train` left in models/: which model to use, and what it was told to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.utils.console import info
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import parse_json, read_text

if TYPE_CHECKING:
    from torch import Tensor, nn

# What a training leaves beside its models, and what has to stand in it.
METADATA_FILE = ("metadata.json", ("dataset", "loss", "parameters", "output_activation", "timing"))
RUN_FILE = ("run.json", ("id", "name"))


@dataclass(frozen=True)
class TrainedModel:
    """A finished training's folder and, in it, the model of one checkpoint (`last` or `best`)."""

    folder: Path
    checkpoint: str
    metadata: dict[str, Any]
    run: dict[str, str]

    @staticmethod
    def open(folder: Path, checkpoint: str) -> "TrainedModel":
        """Open models/. Raises `Refusal` where no training has finished there."""
        try:
            facts, run = _read(folder, *METADATA_FILE), _read(folder, *RUN_FILE)
        except (OSError, ValueError) as error:
            raise UserError(
                f"There is no finished training in {folder}/ ({error}): `dvc repro train` makes one."
            ) from None
        if not (folder / checkpoint).is_dir():
            info(f"There was no validation part to choose the {checkpoint} weights by: the last ones are measured.")
            checkpoint = "last"
        return TrainedModel(folder, checkpoint, facts, run)

    @property
    def model(self) -> Path:
        """The folder of the model."""
        return self.folder / self.checkpoint

    def require_same_dataset(self, dataset: Dataset) -> None:
        """Refuse data other than what this was trained on: the test part might hold training images."""
        if self.metadata["dataset"]["hash"] != dataset.hash:
            raise UserError(
                f"{self.folder}/ was trained on other data ({self.metadata['dataset']['name']}) than is in "
                f"{dataset.folder} ({dataset.name}): `dvc repro` trains on what is there."
            )

    def loss(self, logits: "Tensor", labels: "Tensor") -> float:
        """The training's own loss of logits `[N, K]` and labels `[N] int64`, the mean over the images.

        It is the one that was trained and validated with, class weights included. Raises `Refusal` where an older
        commit left out with which weights.
        """
        # Imported here, because torch takes seconds in which the answers could be there.
        from hydra.utils import instantiate

        from cifar_pipeline.config.validation import target_config

        if self.metadata["loss"].get("class_weights") is not None:
            raise UserError(
                f"{self.folder}/ was made by an older commit, which does not say what each class weighs: "
                "`dvc repro train` makes it again."
            )
        loss: nn.Module = instantiate(target_config(self.metadata["loss"], "loss"))
        return float(loss(logits, labels))


def _read(folder: Path, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """The values of a file. Raises `OSError` or `ValueError` where it is missing, or not what a training wrote."""
    values: dict[str, Any] = parse_json(read_text(folder / name))
    if not isinstance(values, dict) or not values.keys() >= set(keys):
        raise ValueError(f"{name} is not what a training writes")
    return values


def first_conv_weights(model: "nn.Module") -> np.ndarray | None:
    """The filters `[O, C, h, w]` of the model's first convolution, if it has one."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            weights: np.ndarray = parameter.detach().float().numpy()
            return weights
    return None
