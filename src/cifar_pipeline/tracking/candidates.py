"""A trained model that may be registered: a run's checkpoint with all that is known about it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from cifar_pipeline.console import Refusal
from cifar_pipeline.documents import json_of
from cifar_pipeline.tracking.lineage import dvc_hash
from cifar_pipeline.tracking.store import connect, known_run

ACCURACY = "val/accuracy"
RUN_ID = re.compile(r"[0-9a-f]{32}")
# Facts of a run that its registered model carries, too.
CARRIED = ("identity", "git.commit", "git.dirty", "dvc.data", "dvc.experiment", "device")


@dataclass(frozen=True)
class Candidate:
    """`model_id` is that of the checkpoint's model in MLflow; `tags` are what its version will say about it."""

    run_id: str
    checkpoint: str
    model_id: str
    tags: dict[str, str]

    @property
    def dataset(self) -> str:
        """The name of the data set that it was trained on."""
        return self.tags["dataset"]

    @property
    def title(self) -> str:
        """Its run's name and its accuracy, for a person."""
        accuracy = f", {float(self.tags[ACCURACY]):.2%} on validation" if ACCURACY in self.tags else ""
        return f"{self.tags['run']}{accuracy}"


def data_of_pipeline(models: Path) -> str:
    """The name of the data set that the pipeline's model was trained on. Raises `Refusal` where there is none."""
    return str(_read(models, "training.json")["dataset"]["name"])


def of_pipeline(models: Path, checkpoint: str) -> Candidate:
    """The model that the pipeline has trained and measured.

    Raises:
        Refusal: no training has finished, or MLflow does not know its run.
    """
    client, _ = connect()
    run = known_run(client, _read(models, "run.json")["id"])
    if run is None:
        raise Refusal(
            f"The run that trained {models}/ is not in this MLflow database, so it can't be registered: `dvc repro "
            "--force --single-item train` puts it there, without training again where .cache/ still has it."
        )
    return _candidate(client, run, checkpoint, {"dvc.models": dvc_hash("train", str(models))})


def of_run(wanted: str, checkpoint: str) -> Candidate:
    """The model of the run with this id, or of the newest finished one with this name; a sweep's points are runs.

    Raises:
        Refusal: there is no such run, or it has not finished.
    """
    client, experiment = connect()
    run = known_run(client, wanted) if RUN_ID.fullmatch(wanted) else None
    if run is None:
        quoted = wanted.replace("'", "\\'")
        found = client.search_runs(
            [experiment],
            f"attributes.run_name = '{quoted}' and attributes.status = 'FINISHED' and tags.identity LIKE '%'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        if not found:
            raise Refusal(f"No finished training is called {wanted}: `make compare` and `make ui` show names and ids.")
        run = found[0]
    if run.info.status != "FINISHED":
        raise Refusal(f"The training {run.info.run_name} has not finished ({run.info.status}): it has no model yet.")
    return _candidate(client, run, checkpoint, {})


def _read(models: Path, name: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json_of((models / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise Refusal(f"There is no finished training in {models}/: `dvc repro` makes one.") from None
    except ValueError as error:
        raise Refusal(
            f"{models}/{name} is damaged ({error}): `dvc checkout {models}` or `dvc repro` mends it."
        ) from None
    return content


def _candidate(client: MlflowClient, run: Run, checkpoint: str, more: Mapping[str, str]) -> Candidate:
    outputs = run.outputs.model_outputs if run.outputs else []
    models = {client.get_logged_model(output.model_id).name: output.model_id for output in outputs}
    if not models:
        raise Refusal(f"The run {run.info.run_name} ({run.info.run_id}) has no model: it is no training.")
    # Without a validation part there is no best to choose.
    kept = checkpoint if checkpoint in models else "last"
    data = run.inputs.dataset_inputs[0].dataset if run.inputs and run.inputs.dataset_inputs else None
    tags = {
        "run": run.info.run_name,
        "checkpoint": kept,
        "dataset": data.name if data else "",
        "dataset.hash": data.digest if data else "",
        **{key: str(value) for key, value in run.data.metrics.items() if key.startswith("test/")},
        **_validated(client, run, kept),
        **{key: run.data.tags[key] for key in CARRIED if key in run.data.tags},
        **more,
    }
    return Candidate(run.info.run_id, kept, models[kept], {key: value for key, value in tags.items() if value})


def _validated(client: MlflowClient, run: Run, checkpoint: str) -> dict[str, str]:
    """The checkpoint's validation accuracy: of the last epoch, or the best of all; nothing without validation."""
    if ACCURACY not in run.data.metrics:
        return {}
    values = [metric.value for metric in client.get_metric_history(run.info.run_id, ACCURACY)]
    return {ACCURACY: repr(max(values) if checkpoint == "best" else run.data.metrics[ACCURACY])}
