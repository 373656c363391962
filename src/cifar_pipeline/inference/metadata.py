"""What has to be known about a model to use it: facts of its training, kept as JSON in the model file itself."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cifar_pipeline.data.sources.base import CROP, PAD, RESIZE_MODES
from cifar_pipeline.inference.onnx_session import MODEL_FILE, OnnxSession
from cifar_pipeline.utils.errors import UserError

# The key of the file's texts under which they are kept.
METADATA_KEY = "facts"
# Raised when what is kept changes its meaning, so that older code refuses instead of misreading.
FORMAT = 1
# Which of a training's facts are kept; the others are about how it went.
METADATA_FIELDS = ("fingerprint", "commit", "dataset", "classes", "shape", "resize_mode", "output_activation")
# What each way to bring an image to its size does.
RESIZE_DESCRIPTIONS = {
    CROP: "bring the shorter side to the size (bicubic, antialiased), cut out the middle",
    PAD: "bring the longer side to the size (bicubic, antialiased), fill the rest with black",
}


@dataclass(frozen=True)
class ModelMetadata:
    """`shape` is that of an image, [H, W, C], `resize_mode` how one is brought to it; `output_activation` names the way from
    outputs to probabilities.

    `dataset` and `dataset_hash` say what was trained on, `fingerprint` and `commit` by which choices and code.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    resize_mode: str
    output_activation: str
    dataset: str
    dataset_hash: str
    fingerprint: str
    commit: str

    @property
    def title(self) -> str:
        """What messages call the data set."""
        return self.dataset

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the pixels, in a network whose normalisation is loaded with its weights."""
        return (0.0,) * self.shape[2]

    @property
    def std(self) -> tuple[float, ...]:
        """Of the pixels, in a network whose normalisation is loaded with its weights."""
        return (1.0,) * self.shape[2]

    @staticmethod
    def of(session: OnnxSession, folder: Path) -> "ModelMetadata":
        """The facts in an open model file, which lies in `folder`.

        Raises:
            Refusal: the file is none of this project, or one of a newer commit, which the sentence names.
        """
        try:
            values = json.loads(session.metadata[METADATA_KEY])
            if int(values.get("format", 0)) > FORMAT:
                commit = _commit(values) or "main"
                raise UserError(f"The model in {folder} was made by a newer commit: `git checkout {commit}` uses it.")
            facts = _parse_metadata(values)
        except KeyError as error:
            if error.args == (METADATA_KEY,):
                raise UserError(
                    f"The model in {folder} does not say what its classes are: it was not made by this project."
                ) from None
            raise UserError(_invalid_reason(folder, error)) from None
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(_invalid_reason(folder, error)) from None
        if (facts.shape, len(facts.classes)) != (session.shape, session.classes):
            raise UserError(
                f"The model in {folder} does not do what it says about itself: an image {list(facts.shape)} in, "
                f"{len(facts.classes)} classes out."
            )
        return facts

    @staticmethod
    def read(folder: Path) -> "ModelMetadata":
        """The facts of the model in `folder`. Raises `Refusal` where there is none that can be opened."""
        return ModelMetadata.of(OnnxSession.open(folder, threads=1, accelerator="cpu"), folder)


def to_onnx_metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is written into a model file of a training's facts, and what somebody with the file alone has to know."""
    height, width, channels = facts["shape"]
    colours = {1: "grey", 3: "red, green, blue"}[channels]
    classes = len(facts["classes"])
    return {
        "format": FORMAT,
        **{key: facts[key] for key in METADATA_FIELDS},
        "input": f"images [N, {height}, {width}, {channels}] uint8: {colours}, 0 to 255, not normalised",
        "output": f"logits and probabilities, each [N, {classes}] float32, in the order of the classes",
        "preprocessing": (
            f"turn as EXIF says, lay transparency over white, {RESIZE_DESCRIPTIONS[facts['resize_mode']]}; normalisation is in the model"
        ),
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
    }


def _invalid_reason(folder: Path, error: Exception) -> str:
    return f"What {folder / MODEL_FILE} says about itself makes no sense ({str(error)[:80]!r})."


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
    )


def _commit(values: Mapping[str, Any]) -> str:
    commit = str(values.get("commit", ""))
    # It becomes a part of a command that a person may type.
    return commit if re.fullmatch(r"[0-9a-f]{7,64}", commit) else ""
