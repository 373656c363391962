"""A trained network as a folder that outlives the training: an MLflow model around a pt2 file, without pickle."""

import copy
import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn

from cifar_pipeline.console import Refusal

WEIGHTS = Path("data") / "model.pt2"


def export_model(net: nn.Module, shape: Sequence[int], classes: int, folder: Path) -> None:
    """Write `net` (raw pictures `[N, H, W, C] uint8` to logits `[N, K]`) to `folder`, for any number of pictures.

    The folder is an MLflow model: logged as it is, loaded by `load_model`, served by `mlflow models serve -m FOLDER`.
    """
    # Imported here, because it brings Lightning along, which takes two seconds that only a training has to spare.
    import mlflow.pytorch

    example = np.zeros((2, *shape), np.uint8)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.uint8), (-1, *shape))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]),
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
            # Given, because to find them out takes MLflow eight seconds.
            pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "torch", "numpy")],
        )
        _forget_places(folder / WEIGHTS)


def load_model(folder: Path) -> nn.Module:
    """The network that `export_model` wrote, raw pictures to logits.

    Raises `Refusal` where the folder holds no model.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise Refusal(f"There is no model in {folder}: `dvc repro train` makes one.")
    try:
        return torch.export.load(path).module()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise Refusal(f"{path} is damaged ({reason}): `dvc repro -f train` makes it again.") from None


def _forget_places(path: Path) -> None:
    """Drop the stack traces that torch keeps with each operation, so that equal networks are equal bytes in any folder.

    They name this machine's folders, too, which is nobody's business who gets the model.
    """
    program = torch.export.load(path)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path)
