"""A trained network as a folder that outlives the training: an MLflow model around a pt2 file, without pickle."""

import copy
import logging
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from cifar_pipeline.console import Refusal
from cifar_pipeline.inference.facts import commit_of, metadata
from cifar_pipeline.inference.safe_archive import Damaged, Unsafe, check_archive

WEIGHTS = Path("data") / "model.pt2"


def export_model(net: nn.Module, facts: Mapping[str, Any], folder: Path) -> None:
    """Write `net` (raw pictures `[N, H, W, C] uint8` to logits `[N, K]`) to `folder`, for any number of pictures.

    The folder is an MLflow model: logged as it is, loaded by `load_model`, put behind MLflow's server by `served.py`.
    `facts` are those of the training; what it takes to use the model travels in the folder (`ModelFacts.read`).
    """
    # Imported here, because it brings Lightning along, which takes two seconds that only a training has to spare.
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shape, classes = facts["shape"], facts["classes"]
    example = np.zeros((2, *shape), np.uint8)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.uint8), (-1, *shape))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, len(classes)))]),
    )
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    # Training keeps the weights channels_last; a file holds them in their plain order.
    plain = copy.deepcopy(net).cpu().eval().to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pytorch.save_model(
            plain,
            str(folder),
            serialization_format="pt2",
            signature=signature,
            input_example=example,
            metadata=metadata(facts),
            # Given, because to find them out takes MLflow eight seconds.
            pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "torch", "numpy")],
        )
        save_program(torch.export.load(folder / WEIGHTS), folder / WEIGHTS)


def save_program(program: ExportedProgram, path: Path, texts: Mapping[str, str] | None = None) -> None:
    """Write a network as a pt2 file, equal bytes for equal networks in any folder; `texts` travel along by name.

    Without the stack traces that torch keeps with each operation: they name this machine's folders, which is nobody's
    business who gets the model.
    """
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path, extra_files=dict(texts or {}))


def load_model(folder: Path) -> nn.Module:
    """The network that `export_model` wrote, raw pictures to logits. Nothing that its file may hold is run.

    Raises `Refusal` where the folder holds no model, a damaged one, one that would run code, or one that this torch
    can't read.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise Refusal(f"There is no model in {folder}: `dvc repro train` makes one.")
    try:
        check_archive(path)
    except Damaged as damage:
        raise Refusal(f"{path} is damaged ({damage}): `dvc repro -f train` makes it again.") from None
    except Unsafe as danger:
        raise Refusal(f"{path} is not opened, because {danger}: use a model that this project made.") from None
    # torch tells its own log about it first, with a traceback.
    logging.getLogger("torch.export").setLevel(logging.CRITICAL)
    try:
        return torch.export.load(path).module()
    except Exception as error:
        reason, commit = " ".join(str(error).split())[:200], commit_of(folder)
        remedy = f"`git checkout {commit}` and `make setup` use it" if commit else "`dvc repro -f train` makes it again"
        raise Refusal(f"{path} can't be read by torch {torch.__version__} ({reason}): {remedy}.") from None
