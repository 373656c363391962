"""Write a trained network as a model folder: an MLflow model of flavor onnx, with the weights beside the graph."""

import logging
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cifar_pipeline.inference.facts import metadata
from cifar_pipeline.inference.graph import NetworkGraph
from cifar_pipeline.inference.session import LOGITS, MODEL, PROBABILITIES, WEIGHTS
from cifar_pipeline.inference.weights import save_weights


def export_model(graph: NetworkGraph, net: nn.Module, facts: Mapping[str, Any], folder: Path) -> None:
    """Write model.onnx, weights.safetensors and MLflow's files to `folder`, which is not there yet.

    `graph` is that of `net`, whose weights it gets. `facts` are those of the training; what it takes to use the model
    is kept in the file itself (`ModelFacts`).
    """
    # Imported here, because it takes two seconds that only a training has to spare.
    import mlflow.onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shape, classes = facts["shape"], facts["classes"]
    answer = np.dtype(np.float32), (-1, len(classes))
    # The input has no name, so that an array can be passed as it is.
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.uint8), (-1, *shape))]),
        Schema([TensorSpec(*answer, LOGITS), TensorSpec(*answer, PROBABILITIES)]),
    )
    kept = metadata(facts)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.onnx.save_model(
            graph.filled(net.state_dict(), kept),
            str(folder),
            signature=signature,
            input_example=np.zeros((1, *shape), np.uint8),
            metadata=kept,
            # Given, because to find them out takes MLflow eight seconds.
            pip_requirements=[f"{package}=={version(package)}" for package in ("onnxruntime", "numpy")],
            save_as_external_data=False,
        )
    assert (folder / MODEL).is_file()
    save_weights(net, folder / WEIGHTS)
