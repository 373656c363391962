"""One MLflow run per training: opened, continued, and ended with what really happened.

Trainings that have been measured on the test part, as MLflow's database has them.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, Run, RunTag, ViewType

from cifar_pipeline.config.source_files import variables
from cifar_pipeline.tracking import provenance
from cifar_pipeline.tracking.client import connect, get_run_or_none, tracking_uri
from cifar_pipeline.tracking.stale_runs import (
    WORKSPACE_TAG,
    belongs_to_workspace,
    close_stale_runs,
    crash_count,
    logged_epochs,
)
from cifar_pipeline.tracking.sweeps import record_trial
from cifar_pipeline.tracking.trial import FAILURE_TAG, PARENT_KEY, RERUN, SECONDS_TAG, SWEEP_RERUN, Trial
from cifar_pipeline.utils.console import info
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.paths import main_workspace, workspace_id
from cifar_pipeline.utils.text import flatten_dict

MAX_PARAM_LENGTH = 6000
# The experiment that runs are taken to be of where their names don't say.
DEFAULT_EXPERIMENT = "tutorial"
# How often a sweep lets a trial end its process without a word.
MAX_CRASHES = 2


@dataclass(frozen=True)
class TrainingRun:
    """The run of one training."""

    client: MlflowClient
    id: str
    name: str
    tracking_uri: str
    logged_epochs: int

    def log_files(self, paths: list[Path]) -> None:
        """Show images and tables on the run's page."""
        for path in paths:
            self.client.log_artifact(self.id, str(path))

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Put numbers on the run; each metric once for a step."""
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def tag(self, values: Mapping[str, Any]) -> None:
        """Add facts that the runs can be filtered by."""
        self.client.log_batch(self.id, tags=[RunTag(key, str(value)) for key, value in values.items()])

    def log_result(self, folder: Path, tags: Mapping[str, Any]) -> None:
        """Keep what a finished training left: each model folder as a model of its own, the files beside them as files.

        A run that has its models already keeps them.
        """
        self.tag(tags)
        models = self.client.get_run(self.id).outputs
        if models and models.model_outputs:
            return
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                self.log_model(path, path.name)
            else:
                self.client.log_artifact(self.id, str(path))

    def log_model(self, folder: Path, name: str) -> None:
        """Keep a model folder (an MLflow model, as `mlflow models serve -m` takes it) under `name` on the run."""
        run = self.client.get_run(self.id)
        model = self.client.create_logged_model(run.info.experiment_id, name=name, source_run_id=self.id)
        self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(self.id, [LoggedModelOutput(model.model_id, step=0)])


def run_name(choices: Mapping[str, str], seed: int, point: Trial | None = None) -> str:
    """What a run is called, by its choices: `sgd-cross_entropy-0`; in a sweep with what else is swept.

    An experiment of another recipe comes first, unless its optimizer is called like it: `debug-sgd-cross_entropy-0`.
    """
    words = [choices["optimizer"], choices["loss"], str(seed)]
    if choices.get("experiment", "null") not in (DEFAULT_EXPERIMENT, "null", words[0]):
        words.insert(0, choices["experiment"])
    return " ".join(["-".join(words), *(point.beside if point else [])])


@contextmanager
def training_run(
    fingerprint: str,
    name: str,
    config: Mapping[str, Any],
    dataset: Mapping[str, str],
    rerun: str = "",
    point: Trial | None = None,
) -> Iterator[TrainingRun]:
    """The run of this fingerprint, RUNNING until the block ends: then FINISHED, FAILED or KILLED.

    A run that an earlier process left off, and one that has finished, is continued; one that is RUNNING in another
    workspace is not. A `rerun` (its id) has one of its own. A new run of a sweep's trial is a child of the
    sweep's run, which is told of it in any case.

    Raises `Refusal` where this trial of a sweep has killed its process twice: a third try might end a third sweep.
    """
    client, experiment = connect()
    found = _find(client, experiment, fingerprint, rerun)
    if found and found.info.status == "RUNNING" and not belongs_to_workspace(found):
        found = None  # Another workspace is at the same training.
    close_stale_runs(client, experiment, fingerprint, found.info.run_id if found else "")
    run_id = (
        found.info.run_id if found else _create(client, experiment, fingerprint, name, config, dataset, rerun, point)
    )
    if point:
        record_trial(point, run_id)
        if point.rerun:
            client.set_tag(run_id, SWEEP_RERUN, point.rerun)
    deaths = crash_count(client, found) if found else 0
    if point and deaths >= MAX_CRASHES:
        client.set_terminated(run_id, "FAILED")
        if rerun:
            client.delete_tag(run_id, RERUN)  # the next start opens another run, which has killed nothing
        raise UserError(
            f"It has killed its process {deaths} times and is passed over; the next start with rerun=true tries again."
        )
    if found and FAILURE_TAG in found.data.tags:
        client.delete_tag(run_id, FAILURE_TAG)
    spent = float(found.data.tags.get(SECONDS_TAG, 0)) if found else 0.0
    with _run_alone(suspect=point is not None and deaths > 0):
        client.update_run(run_id, status="RUNNING")
        client.set_tag(run_id, WORKSPACE_TAG, workspace_id())
        with _terminate_run(
            client, run_id, spent, finished_before=found is not None and found.info.status == "FINISHED"
        ):
            yield TrainingRun(client, run_id, name, tracking_uri(), logged_epochs(client, run_id))


@contextmanager
def resume_run(run_id: str, name: str) -> Iterator[TrainingRun]:
    """The run of a training that has ended, for results that come after it.

    A new one, and a line that says so, where this store doesn't have it: the model may come from DVC's cache.
    """
    client, experiment = connect()
    if get_run_or_none(client, run_id):
        yield TrainingRun(client, run_id, name, tracking_uri(), 0)
        return
    info(f"The run that trained this model is not in this MLflow database: a new one, {name}, takes the results.")
    run_id = client.create_run(experiment, run_name=name, tags=provenance.tags()).info.run_id
    with _terminate_run(client, run_id):
        yield TrainingRun(client, run_id, name, tracking_uri(), 0)


def finished_run(fingerprint: str, sweep_rerun: str = "") -> Run | None:
    """The newest run of this fingerprint that has come to its end; in one rerun of a sweep, where its id is given."""
    client, experiment = connect()
    within = {SWEEP_RERUN: sweep_rerun} if sweep_rerun else {}
    return _newest(client, experiment, {"fingerprint": fingerprint, **within}, finished=True)


def _run_alone(suspect: bool) -> AbstractContextManager[Any]:
    """Let trials that may have killed their process run one at a time.

    Where one process dies, joblib kills the others: the guilty trial is the one that dies again without them.
    """
    return FileLock(main_workspace() / ".cache" / "crashed_trials.lock") if suspect else nullcontext()


@contextmanager
def _terminate_run(
    client: MlflowClient, run_id: str, spent: float = 0.0, finished_before: bool = False
) -> Iterator[None]:
    """End the run with what became of the block, and with its seconds added to those spent before.

    A training that had finished keeps its seconds: to take it again, or to make it again, is no part of them.
    """
    status, start = "FAILED", time.perf_counter()
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        if not finished_before:
            client.set_tag(run_id, SECONDS_TAG, round(spent + time.perf_counter() - start, 2))
        client.set_terminated(run_id, status)


def _find(client: MlflowClient, experiment: str, fingerprint: str, rerun: str) -> Run | None:
    """The run of this fingerprint to go on with: the rerun's, or else the newest that has finished, or the newest."""
    if rerun:
        return _newest(client, experiment, {"fingerprint": fingerprint, RERUN: rerun})
    tags = {"fingerprint": fingerprint}
    return _newest(client, experiment, tags, finished=True) or _newest(client, experiment, tags)


def _newest(client: MlflowClient, experiment: str, tags: Mapping[str, str], finished: bool = False) -> Run | None:
    """The newest run with these tags."""
    conditions = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
    runs = client.search_runs(
        [experiment],
        " and ".join(conditions + ["attributes.status = 'FINISHED'"] * finished),
        run_view_type=ViewType.ACTIVE_ONLY,
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    return runs[0] if runs else None


def _create(
    client: MlflowClient,
    experiment: str,
    fingerprint: str,
    name: str,
    config: Mapping[str, Any],
    dataset: Mapping[str, str],
    rerun: str,
    point: Trial | None,
) -> str:
    parent = {PARENT_KEY: point.parent} if point else {}
    # Given as it is made: a process that is killed right after finds it again by them.
    tags = {"fingerprint": fingerprint, "dataset": dataset["name"], **parent, **({RERUN: rerun} if rerun else {})}
    tags |= {WORKSPACE_TAG: workspace_id(), **provenance.tags()}
    tags |= {f"env.{name}": value for name, value in variables().items()}
    run_id = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
    client.log_batch(run_id, params=[Param(key, _truncate(str(value))) for key, value in flatten_dict(config).items()])
    entity = Dataset(
        name=dataset["name"], digest=dataset["hash"][:36], source_type="local", source=dataset["source"], profile=None
    )
    client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])
    client.log_text(run_id, yaml.safe_dump(dict(config), sort_keys=False), "config.yaml")
    if changes := provenance.diff():
        _log_bytes(client, run_id, changes, "code.diff")
    return run_id


def _log_bytes(client: MlflowClient, run_id: str, content: bytes, name: str) -> None:
    """Keep a file as it is, also where its bytes are no UTF-8."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        client.log_artifact(run_id, str(path))


def _truncate(value: str) -> str:
    """MLflow cuts longer values without a word; the whole stands in the artifact config.yaml."""
    notice = " ... (the whole value: artifact config.yaml)"
    return value if len(value) <= MAX_PARAM_LENGTH else value[: MAX_PARAM_LENGTH - len(notice)] + notice


ACCURACY = "test/accuracy"
# What decides a result, less the seed.
RESULT_KEYS = (
    "data.source", "data.val_fraction", "model", "normalization", "augmentation", "loss", "optimizer", "scheduler", "weight_averaging",
    "precision", "trainer", "tta",
)  # fmt: skip


@dataclass(frozen=True)
class EvaluatedRun:
    """A finished training: its seed, its accuracy on the test part, its seconds, what it ran on, and its commit."""

    seed: int
    accuracy: float
    seconds: float
    hardware: str
    commit: str
    values: Mapping[str, str]


def list_evaluated_runs(dataset: str) -> list[EvaluatedRun]:
    """Those on the data set of this name, the oldest first; of a training measured again, the last result."""
    client, experiment = connect()
    runs = client.search_runs(
        [experiment],
        "attributes.status = 'FINISHED' and tags.fingerprint LIKE '%'",
        ViewType.ACTIVE_ONLY,
        max_results=10_000,
        order_by=["attributes.start_time ASC"],
    )
    of_data = [run for run in runs if run.data.tags.get("dataset") == dataset and ACCURACY in run.data.metrics]
    return list({run.data.tags["fingerprint"]: _evaluated_run(run) for run in of_data}.values())


def result_params(config: Mapping[str, Any]) -> dict[str, str]:
    """What of a configuration decides a result but for chance, as the parameters of a run."""
    return {key: str(value) for key, value in flatten_dict(config).items() if _affects_result(key)}


def _evaluated_run(run: Run) -> EvaluatedRun:
    tags, values = run.data.tags, run.data.params
    device, processor = tags.get("device", "unknown"), tags.get("processor", "")
    return EvaluatedRun(
        seed=int(values["seed"]),
        accuracy=run.data.metrics[ACCURACY],
        seconds=float(tags.get(SECONDS_TAG, "nan")),
        hardware=f"{processor}, {device}" if processor and device.startswith("cpu") else device,
        commit=tags.get("git.commit", "")[:7] + ("+" if tags.get("git.dirty") == "true" else ""),
        values={key: value for key, value in values.items() if _affects_result(key)},
    )


def _affects_result(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in RESULT_KEYS)
