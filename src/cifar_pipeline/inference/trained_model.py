"""Open the result of a training in models/: the model of a checkpoint and the training's metadata."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.file_hashes import changed_message, has_changed
from cifar_pipeline.utils.safe_io import parse_json, read_text

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import Tensor, nn

# Files that a training writes next to its models, and the keys they must have.
METADATA_FILE = (
    "metadata.json",
    ("checkpoints", "dataset", "loss", "parameters", "output_activation", "timing"),
)
RUN_FILE = ("run.json", ("id", "name"))


@dataclass(frozen=True)
class TrainedModel:
    """A finished training's folder, and the checkpoint (`last` or `best`) to use."""

    folder: Path
    checkpoint: str
    metadata: dict[str, Any]
    run: dict[str, str]

    @staticmethod
    def open(folder: Path, checkpoint: str) -> "TrainedModel":
        """Open models/. Raises `UserError` if it contains no finished training."""
        try:
            metadata, run = _read(folder, *METADATA_FILE), _read(folder, *RUN_FILE)
        except (OSError, ValueError) as error:
            raise UserError(
                f"There is no finished training in {folder}/ ({error}): `dvc repro train` makes one."
            ) from None
        # Without a validation split a training makes no best weights.
        made = metadata["checkpoints"]
        for name in made:
            if not (folder / name).is_dir():
                raise UserError(
                    f"{folder / name} is missing: `dvc repro -f train` restores it from the finished training."
                )
        if checkpoint not in made:
            log.info(
                f"There are no {checkpoint} weights, because there was no validation split: evaluating the last ones."
            )
            checkpoint = "last"
        return TrainedModel(folder, checkpoint, metadata, run)

    @property
    def model(self) -> Path:
        """The model's folder."""
        return self.folder / self.checkpoint

    def require_same_dataset(self, dataset: Dataset) -> None:
        """Raise `UserError` for other data than the training's: the test split might contain training images."""
        if self.metadata["dataset"]["hash"] != dataset.hash:
            raise UserError(
                f"{self.folder}/ was trained on other data ({self.metadata['dataset']['name']}) than is in "
                f"{dataset.folder} ({dataset.name}): run `dvc repro` to train on this data."
            )

    def loss(self, logits: "Tensor", labels: "Tensor") -> float:
        """Compute the training's loss of logits `[N, K]` and labels `[N] int64`, averaged over the images.

        Class weights are included. Raises `UserError` if an older commit did not save them.
        """
        # Imported here, because torch takes seconds.
        from hydra.utils import instantiate

        from cifar_pipeline.config.validation import target_config

        if self.metadata["loss"].get("class_weights") is not None:
            raise UserError(
                f"{self.folder}/ was made by an older commit, which did not save the class weights: "
                "run `dvc repro train` to recreate it."
            )
        loss: nn.Module = instantiate(target_config(self.metadata["loss"], "loss"))
        return float(loss(logits, labels))


def _read(folder: Path, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """Read a JSON file of a training. Raises `OSError` or `ValueError` if it is missing or lacks a key."""
    values: dict[str, Any] = parse_json(read_text(folder / name))
    if not isinstance(values, dict) or not values.keys() >= set(keys):
        raise ValueError(f"{name} was not written by a training")
    return values


def read_model_file(path: Path) -> bytes:
    """Read a file that a training has written. Raises `UserError` if it is missing, or has changed since then."""
    try:
        if has_changed(path):
            raise UserError(changed_message(path))
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: `dvc repro -f train` restores it from the finished training.") from None


def first_conv_weights(model: "nn.Module") -> np.ndarray | None:
    """Return the weights `[O, C, h, w]` of the model's first convolution, if it has one."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            weights: np.ndarray = parameter.detach().float().numpy()
            return weights
    return None
