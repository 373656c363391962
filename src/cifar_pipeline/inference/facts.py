"""What has to be known about a model to use it: the facts of its training, which travel in the model's own folder."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cifar_pipeline.console import Refusal
from cifar_pipeline.data.pictures import CROP, FITS
from cifar_pipeline.inference.probabilities import WAYS
from cifar_pipeline.regular import text_of

# Raised when what stands here changes its meaning, so that older code refuses instead of misreading.
FORMAT = 1
# Which of a training's facts travel; the others are about how it went.
KEYS = ("identity", "commit", "dataset", "classes", "shape", "fit", "probabilities")


@dataclass(frozen=True)
class ModelFacts:
    """`shape` is that of a picture, [H, W, C], `fit` how one is brought to it; `probabilities` names the way from
    outputs to probabilities.

    `dataset` and `dataset_hash` say what was trained on, `identity` and `commit` by which choices and code; a model
    of an older commit knows no commit.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    fit: str
    probabilities: str
    dataset: str
    dataset_hash: str
    identity: str
    commit: str

    @staticmethod
    def read(folder: Path) -> "ModelFacts":
        """The facts of the model in `folder`, an MLflow model that `export_model` wrote.

        Raises:
            Refusal: it is no model of this project, or one of a newer commit, which the sentence names.
        """
        values = _metadata(folder) or _beside(folder)
        if values is None:
            raise Refusal(f"The model in {folder} does not say what its classes are: it was not made by this project.")
        try:
            if int(values.get("format", 0)) > FORMAT:
                commit = _commit(values) or "main"
                raise Refusal(f"The model in {folder} was made by a newer commit: `git checkout {commit}` uses it.")
            return _facts(values)
        except (KeyError, TypeError, ValueError) as error:
            raise Refusal(f"What the model in {folder} says about itself makes no sense ({error!r}).") from None


def metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a training's facts that are written into a model's folder."""
    return {"format": FORMAT, **{key: facts[key] for key in KEYS}}


def commit_of(folder: Path) -> str:
    """The commit that the model in `folder` was made by; empty where it does not say."""
    return _commit(_metadata(folder) or _beside(folder) or {})


def _facts(values: Mapping[str, Any]) -> ModelFacts:
    height, width, channels = map(int, values["shape"])
    classes = tuple(map(str, values["classes"]))
    # A model of an older commit knows one way.
    fit, probabilities = values.get("fit", CROP), values["probabilities"]
    if min(height, width) < 1 or channels not in (1, 3) or len(classes) < 1:
        raise ValueError(f"shape {values['shape']}, {len(classes)} classes")
    if fit not in FITS or probabilities not in WAYS:
        raise ValueError(f"{fit}, {probabilities}")
    return ModelFacts(
        classes=classes,
        shape=(height, width, channels),
        fit=fit,
        probabilities=probabilities,
        dataset=str(values["dataset"]["name"]),
        dataset_hash=str(values["dataset"]["hash"]),
        identity=str(values["identity"]),
        commit=_commit(values),
    )


def _commit(values: Mapping[str, Any]) -> str:
    commit = str(values.get("commit", ""))
    # It becomes a part of a command that a person may type.
    return commit if re.fullmatch(r"[0-9a-f]{7,64}", commit) else ""


def _metadata(folder: Path) -> dict[str, Any] | None:
    values = _mlmodel(folder).get("metadata")
    return values if isinstance(values, dict) and "classes" in values else None


def _mlmodel(folder: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text_of(folder / "MLmodel"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _beside(folder: Path) -> dict[str, Any] | None:
    """The training's own file, which lies beside its models: older commits wrote no facts into these."""
    try:
        values = json.loads(text_of(folder.parent / "training.json"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
