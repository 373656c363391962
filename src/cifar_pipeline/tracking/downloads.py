"""A model from MLflow as files on this machine; nothing of it is run."""

import json
import os
import re
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from cifar_pipeline.console import Refusal
from cifar_pipeline.documents import json_of
from cifar_pipeline.tracking.store import connect, known_run

FACTS = "training.json"
# What MLflow answers where there is no such run, model or alias; everything else is a fault of the store.
ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/]+)|/(?P<version>\d+))")


def download_model(address: str, place: Path) -> Path:
    """The folder below `place` that holds the model of `models:/cifar10@champion`, `models:/cifar10/3` or `runs:/...`.

    Raises:
        Refusal: MLflow has no such model.
    """
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    client, _ = connect()
    try:
        folder = Path(download_artifacts(artifact_uri=address, dst_path=str(place / "model")))
    except (MlflowException, FileNotFoundError) as error:
        if isinstance(error, MlflowException) and error.error_code not in ABSENT:
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise Refusal(f"MLflow has no {address} ({reason}): `make models` lists those it has.") from None
    if not (folder / "MLmodel").is_file():
        raise Refusal(f"{address} is no model: runs:/RUN/last and models:/NAME/VERSION are.")
    _bring_facts(client, address, folder.parent)
    return folder


def _bring_facts(client: MlflowClient, address: str, place: Path) -> None:
    """Put the training's facts, as its run has them, beside the model: those of older commits hold none themselves."""
    run_id = _run_of(client, address)
    run = known_run(client, run_id)
    if run is None or not any(file.path == FACTS for file in client.list_artifacts(run_id)):
        return
    path = Path(client.download_artifacts(run_id, FACTS, str(place)))
    facts = {"commit": run.data.tags.get("git.commit", ""), **json_of(path.read_text(encoding="utf-8"))}
    path.write_text(json.dumps(facts), encoding="utf-8")


def _run_of(client: MlflowClient, address: str) -> str:
    """The run that the model at this address, which is there, comes from; empty where it has none."""
    if address.startswith("runs:/"):
        return address.removeprefix("runs:/").partition("/")[0]
    match = ADDRESS.fullmatch(address)
    if match is None:
        return ""
    if match["alias"]:
        return str(client.get_model_version_by_alias(match["name"], match["alias"]).run_id or "")
    return str(client.get_model_version(match["name"], match["version"]).run_id or "")
