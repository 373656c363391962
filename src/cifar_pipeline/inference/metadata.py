"""Read and write the metadata that using a model requires, stored as JSON in the model file."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cifar_pipeline.data.sources.base import CROP, PAD, RESIZE_MODES, STRETCH
from cifar_pipeline.inference.onnx_session import OnnxSession
from cifar_pipeline.models.network_input import NetworkInput
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.paths import MODEL_FILE

# Key in the metadata properties of the ONNX file.
METADATA_KEY = "facts"
# Incremented when a field changes its meaning, so that older code does not misread it.
FORMAT = 1
# Fields copied from the training's metadata; the others describe the training itself.
METADATA_FIELDS = ("fingerprint", "commit", "dataset", "classes", "shape", "resize_mode", "output_activation")
# Copied where they are known.
OPTIONAL_FIELDS = ("network", "weights")
# By resize mode.
RESIZE_DESCRIPTIONS = {
    CROP: "resize the shorter side (bicubic, antialiased), crop the center",
    PAD: "resize the longer side (bicubic, antialiased), pad with black",
    STRETCH: "resize each side to its own size (bicubic, antialiased)",
}


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata of a model, checked.

    Attributes:
        classes: names of the classes, in the order of the outputs.
        shape: of an image, `(H, W, C)`.
        resize_mode: how images of other sizes are resized, CROP, PAD or STRETCH.
        output_activation: name of the function from logits to probabilities (models/build.py).
        dataset: name of the dataset of the training.
        dataset_hash: its content hash.
        fingerprint: of the training's configuration, code and data.
        commit: of the code; empty if unknown.
        network: what the network is built for, size and channels of the images that it sees.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    resize_mode: str
    output_activation: str
    dataset: str
    dataset_hash: str
    fingerprint: str
    commit: str
    network: NetworkInput

    @property
    def title(self) -> str:
        """The name of the dataset for messages."""
        return self.dataset

    @property
    def mean(self) -> tuple[float, ...]:
        """A placeholder for a network whose normalization is loaded with its weights."""
        return (0.0,) * self.shape[2]

    @property
    def std(self) -> tuple[float, ...]:
        """A placeholder for a network whose normalization is loaded with its weights."""
        return (1.0,) * self.shape[2]

    @staticmethod
    def of(session: OnnxSession, folder: Path) -> "ModelMetadata":
        """Read the metadata of an open model file, which is in `folder`.

        Raises:
            UserError: the file is not from this project or from a newer commit, or its metadata is invalid.
        """
        try:
            values = json.loads(session.metadata[METADATA_KEY])
            if int(values.get("format", 0)) > FORMAT:
                commit = _commit(values) or "main"
                raise UserError(
                    f"The model in {folder} was made by a newer commit: run `git checkout {commit}` to use it."
                )
            metadata = _parse_metadata(values)
        except KeyError as error:
            if error.args == (METADATA_KEY,):
                raise UserError(f"The model in {folder} has no metadata, so it was not made by this project.") from None
            raise UserError(_invalid_message(folder, error)) from None
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(_invalid_message(folder, error)) from None
        if (metadata.shape, len(metadata.classes)) != (session.shape, session.classes):
            raise UserError(
                f"The metadata of the model in {folder} (images {list(metadata.shape)}, {len(metadata.classes)} "
                "classes) does not match its graph."
            )
        return metadata

    @staticmethod
    def read(folder: Path) -> "ModelMetadata":
        """Read the metadata of the model in `folder`. Raises `UserError` if it can't be opened."""
        return ModelMetadata.of(OnnxSession.open(folder, threads=1, accelerator="cpu"), folder)


def to_onnx_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Select from a training's metadata the fields for the model file, and add a description of input and output."""
    height, width, channels = metadata["shape"]
    channel_names = {1: "gray", 3: "red, green, blue"}[channels]
    classes = len(metadata["classes"])
    return {
        "format": FORMAT,
        **{key: metadata[key] for key in METADATA_FIELDS},
        **{key: metadata[key] for key in OPTIONAL_FIELDS if key in metadata},
        "input": f"images [N, {height}, {width}, {channels}] uint8: {channel_names}, 0 to 255, not normalized",
        "output": f"logits and probabilities, each [N, {classes}] float32, in the order of the classes",
        "preprocessing": (
            f"rotate by EXIF, composite transparency over white, {RESIZE_DESCRIPTIONS[metadata['resize_mode']]}; "
            "normalization is in the model, and so are cropping and resizing to the size of its network"
        ),
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
    }


def _invalid_message(folder: Path, error: Exception) -> str:
    return f"The metadata of {folder / MODEL_FILE} is invalid ({str(error)[:80]!r})."


def _parse_metadata(values: Mapping[str, Any]) -> ModelMetadata:
    height, width, channels = map(int, values["shape"])
    classes = tuple(map(str, values["classes"]))
    resize_mode = values["resize_mode"]
    if min(height, width) < 1 or channels not in (1, 3) or len(classes) < 1:
        raise ValueError(f"shape {values['shape']}, {len(classes)} classes")
    if resize_mode not in RESIZE_MODES:
        raise ValueError(f"resize_mode {resize_mode}")
    return ModelMetadata(
        classes=classes,
        shape=(height, width, channels),
        resize_mode=resize_mode,
        output_activation=str(values["output_activation"]),
        dataset=str(values["dataset"]["name"]),
        dataset_hash=str(values["dataset"]["hash"]),
        fingerprint=str(values["fingerprint"]),
        commit=_commit(values),
        network=NetworkInput.read(values, (height, width, channels)),
    )


def _commit(values: Mapping[str, Any]) -> str:
    commit = str(values.get("commit", ""))
    # It is untrusted and becomes part of a command that a user may type.
    return commit if re.fullmatch(r"[0-9a-f]{7,64}", commit) else ""
