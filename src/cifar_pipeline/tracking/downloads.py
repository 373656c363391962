"""A model from MLflow as files on this machine; nothing of it is run."""

import os
from pathlib import Path

from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from cifar_pipeline.console import Refusal
from cifar_pipeline.tracking.store import connect

# What MLflow answers where there is no such run, model or alias; everything else is a fault of the store.
ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


def download_model(address: str, place: Path) -> Path:
    """The folder below `place` that holds the model of `models:/cifar10@champion`, `models:/cifar10/3` or `runs:/...`.

    Raises:
        Refusal: MLflow has no such model.
    """
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    connect()
    try:
        folder = Path(download_artifacts(artifact_uri=address, dst_path=str(place / "model")))
    except (MlflowException, FileNotFoundError) as error:
        if isinstance(error, MlflowException) and error.error_code not in ABSENT:
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise Refusal(f"MLflow has no {address} ({reason}): `make models` lists those it has.") from None
    if not (folder / "MLmodel").is_file():
        raise Refusal(f"{address} is no model: runs:/RUN/last and models:/NAME/VERSION are.")
    return folder
