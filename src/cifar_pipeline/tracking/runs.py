"""MLflow runs of trainings: open or resume one, end it with its real status, and list the evaluated ones."""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, Run, RunTag, ViewType
from omegaconf import OmegaConf

from cifar_pipeline.config.source_files import variables
from cifar_pipeline.config.tracking_uri import tracking_uri
from cifar_pipeline.tracking import provenance
from cifar_pipeline.tracking.client import (
    WORKSPACE_TAG,
    belongs_to_workspace,
    close_if_stale,
    close_stale_runs,
    connect,
    crash_count,
    get_run_or_none,
)
from cifar_pipeline.tracking.sweeps import record_trial
from cifar_pipeline.tracking.trial import (
    FAILURE_TAG,
    GPU_TAG,
    PARENT_KEY,
    PRUNED_TAG,
    RERUN,
    SECONDS_TAG,
    SWEEP_RERUN,
    Trial,
    TrialPruned,
)
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.paths import main_workspace, workspace_id
from cifar_pipeline.utils.process import find_interruption
from cifar_pipeline.utils.text import flatten_dict

log = logging.getLogger(__name__)

MAX_PARAM_LENGTH = 6000
# The experiment that run names don't contain.
DEFAULT_EXPERIMENT = "tutorial"
# A sweep skips a trial that crashed its process this many times in a row.
MAX_CRASHES = 2
ACCURACY = "test/accuracy"


@dataclass(frozen=True)
class TrainingRun:
    """The MLflow run of one training."""

    client: MlflowClient
    id: str
    name: str
    tracking_uri: str

    @contextmanager
    def system_metrics(self, enabled: bool) -> Iterator[None]:
        """Log the machine's utilization during the block, if enabled; a resumed training continues its steps.

        Raises:
            UserError: a package that measures it is not installed.
        """
        if not enabled:
            yield
            return
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
        except ImportError as error:
            raise UserError(
                f"mlflow.log_system_metrics needs the package {error.name}: `pip install {error.name}` installs it."
            ) from None
        build: Any = SystemMetricsMonitor
        monitor = build(self.id, resume_logging=True, tracking_uri=self.tracking_uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def log_files(self, paths: list[Path]) -> None:
        """Log images and tables as artifacts."""
        for path in paths:
            self.client.log_artifact(self.id, str(path))

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step; to be called once per step for each metric."""
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def tag(self, values: Mapping[str, Any]) -> None:
        """Set tags, by which runs can be filtered."""
        self.client.log_batch(self.id, tags=[RunTag(key, str(value)) for key, value in values.items()])

    def log_result(self, folder: Path, tags: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Log a finished training: each model folder as an MLflow model, the files next to them as artifacts.

        A run that has metrics of the whole training, or models, keeps them.
        """
        self.tag(tags)
        run = self.client.get_run(self.id)
        if new := {key: value for key, value in (metrics or {}).items() if key not in run.data.metrics}:
            self.log_metrics(new)
        models = run.outputs
        if models and models.model_outputs:
            return
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                self.log_model(path, path.name)
            else:
                self.client.log_artifact(self.id, str(path))

    def log_model(self, folder: Path, name: str) -> None:
        """Log a folder in MLflow's model format (`mlflow models serve -m` serves it) as the run's model `name`."""
        run = self.client.get_run(self.id)
        model = self.client.create_logged_model(run.info.experiment_id, name=name, source_run_id=self.id)
        self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(self.id, [LoggedModelOutput(model.model_id, step=0)])


def run_name(options: Mapping[str, str], seed: int, trial: Trial | None = None) -> str:
    """Name a run by its config options, `sgd-cross_entropy-0`; a trial's name also has its other swept values.

    An experiment other than the tutorial comes first (`debug-sgd-cross_entropy-0`), unless the optimizer has its name.
    """
    words = [options["optimizer"], options["loss"], str(seed)]
    if options.get("experiment", "null") not in (DEFAULT_EXPERIMENT, "null", words[0]):
        words.insert(0, options["experiment"])
    return " ".join(["-".join(words), *(trial.name_suffixes if trial else [])])


@contextmanager
def training_run(
    fingerprint: str,
    name: str,
    config: Mapping[str, Any],
    dataset: Mapping[str, Any],
    rerun: str = "",
    trial: Trial | None = None,
    labels: Mapping[str, str] | None = None,
) -> Iterator[TrainingRun]:
    """Open the run of this fingerprint; it is RUNNING inside the block, then FINISHED, FAILED or KILLED.

    An interrupted or finished run is resumed, except one that is RUNNING in another workspace. A `rerun` (its id) has
    a run of its own. The run of a trial is recorded on the sweep's parent; a new one becomes its child. `labels` are
    set as tags, on a finished run as well.

    Raises:
        UserError: the trial crashed its process twice; a third attempt might kill a third sweep.
    """
    client, experiment = connect()
    run = _find(client, experiment, fingerprint, rerun)
    if run and run.info.status == "RUNNING" and not belongs_to_workspace(run):
        run = None  # Another workspace runs the same training.
    close_stale_runs(client, experiment, fingerprint, run.info.run_id if run else "")
    run_id = run.info.run_id if run else _create(client, experiment, fingerprint, name, config, dataset, rerun, trial)
    if trial:
        record_trial(trial, run_id)
        if trial.rerun:
            client.set_tag(run_id, SWEEP_RERUN, trial.rerun)
        if trial.gpu:
            client.set_tag(run_id, GPU_TAG, trial.gpu)
    crashes = crash_count(client, run) if run else 0
    if trial and crashes >= MAX_CRASHES:
        client.set_terminated(run_id, "FAILED")
        if rerun:
            client.delete_tag(run_id, RERUN)  # so that the next attempt opens a new run, without crashes
        raise UserError(
            f"This trial crashed its process {crashes} times and is skipped; start the sweep with rerun=true to try it "
            "again."
        )
    for tag in (FAILURE_TAG, PRUNED_TAG):
        if run and tag in run.data.tags:
            client.delete_tag(run_id, tag)
    seconds_before = float(run.data.tags.get(SECONDS_TAG, 0)) if run else 0.0
    with _run_alone(suspected_crasher=trial is not None and crashes > 0):
        client.update_run(run_id, status="RUNNING")
        tags = {WORKSPACE_TAG: workspace_id(), **(labels or {})}
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        finished_before = run is not None and run.info.status == "FINISHED"
        with _terminate_run(client, run_id, seconds_before, finished_before):
            yield TrainingRun(client, run_id, name, tracking_uri())


def require_own_run(fingerprint: str, rerun: bool, trial: Trial | None) -> None:
    """Raise UserError if MLFLOW_RUN_ID names a run other than the one that this training resumes."""
    run_id = os.environ.get(provenance.RUN_VARIABLE)
    if not run_id:
        return
    client, experiment = connect()
    if rerun:
        run = get_run_or_none(client, run_id)
        is_own = run is not None and RERUN in run.data.tags and run.info.status != "FINISHED"
    else:
        run, is_own = _find(client, experiment, fingerprint, ""), True
    is_own = is_own and run is not None and run.data.tags.get("fingerprint") == fingerprint
    provenance.reject_foreign_run(run.info.run_id if run and is_own else "", trial.parent if trial else "")


@contextmanager
def resume_run(run_id: str, name: str) -> Iterator[TrainingRun]:
    """Reopen the run of a finished training to add later results.

    If this store does not have it (the model may come from DVC's cache), create a new run and print a line about it.
    """
    client, experiment = connect()
    if get_run_or_none(client, run_id):
        yield TrainingRun(client, run_id, name, tracking_uri())
        return
    log.info(
        f"The run that trained this model is not in this MLflow database: logging the results to a new run, {name}."
    )
    run_id = client.create_run(experiment, run_name=name, tags=provenance.tags()).info.run_id
    with _terminate_run(client, run_id):
        yield TrainingRun(client, run_id, name, tracking_uri())


def log_evaluation(
    name: str,
    model: Mapping[str, str],
    metrics: Mapping[str, float],
    data: Mapping[str, str],
    files: Mapping[Path, str],
) -> str:
    """Log the evaluation of a model on any data to a new run, and return its id. The run of the training is unchanged.

    Args:
        name: of the new run.
        model: its `address`, `sha256` and `fingerprint`, which become the tags `model_uri`, `model_sha256` and
            `model_fingerprint`; `model_run` is the id of the run that trained it, where this store has it.
        metrics: logged with the prefix `evaluation/`.
        data: `name`, `digest` and `source` of the run's data set.
        files: artifacts, each with the folder to log it in.
    """
    client, experiment = connect()
    training = _newest(client, experiment, {"fingerprint": model["fingerprint"]}, "FINISHED")
    tags = {"model_uri": model["address"]}
    tags |= {f"model_{key}": model[key] for key in ("sha256", "fingerprint")}
    tags |= {"model_run": training.info.run_id} if training else {}
    tags |= {WORKSPACE_TAG: workspace_id(), **provenance.tags()}
    run_id = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
    with _terminate_run(client, run_id):
        dataset = Dataset(data["name"], data["digest"][:36], source_type="local", source=data["source"])
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation")])])
        run = TrainingRun(client, run_id, name, tracking_uri())
        run.log_metrics({f"evaluation/{key}": value for key, value in metrics.items()})
        for path, folder in files.items():
            client.log_artifact(run_id, str(path), folder or None)
    return run_id


def fail_stale_run(fingerprint: str) -> None:
    """End the run of this fingerprint as FAILED if the process that logged to it was killed and left it RUNNING."""
    client, experiment = connect()
    if run := _newest(client, experiment, {"fingerprint": fingerprint}, "RUNNING"):
        close_if_stale(client, run, "FAILED")


def finished_run(fingerprint: str, sweep_rerun: str = "") -> Run | None:
    """Find the newest FINISHED run of this fingerprint; with a sweep's rerun id, only one of that rerun."""
    client, experiment = connect()
    rerun_tag = {SWEEP_RERUN: sweep_rerun} if sweep_rerun else {}
    return _newest(client, experiment, {"fingerprint": fingerprint, **rerun_tag}, "FINISHED")


def _run_alone(suspected_crasher: bool) -> AbstractContextManager[Any]:
    """Run suspected crashers one at a time.

    joblib kills all workers when one dies, so the culprit is the trial that crashes again alone.
    """
    if not suspected_crasher:
        return nullcontext()
    return FileLock(main_workspace() / ".cache" / "crashed_trials.lock")


@contextmanager
def _terminate_run(
    client: MlflowClient, run_id: str, seconds_before: float = 0.0, finished_before: bool = False
) -> Iterator[None]:
    """End the run with the status of the block, and add the block's seconds to those spent before.

    A training that had finished keeps its seconds: reusing its result takes no training time.
    """
    status, start = "FAILED", time.perf_counter()
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except TrialPruned as pruned:
        status = "KILLED"
        client.set_tag(run_id, PRUNED_TAG, str(pruned))
        raise
    except Exception as error:
        status = "KILLED" if find_interruption(error) else "FAILED"
        raise
    finally:
        if not finished_before:
            client.set_tag(run_id, SECONDS_TAG, round(seconds_before + time.perf_counter() - start, 2))
        client.set_terminated(run_id, status)


def _find(client: MlflowClient, experiment: str, fingerprint: str, rerun: str) -> Run | None:
    """Find the run to resume: the rerun's, or else the newest finished one, or the newest."""
    if rerun:
        return _newest(client, experiment, {"fingerprint": fingerprint, RERUN: rerun})
    tags = {"fingerprint": fingerprint}
    return _newest(client, experiment, tags, "FINISHED") or _newest(client, experiment, tags)


def _newest(client: MlflowClient, experiment: str, tags: Mapping[str, str], status: str = "") -> Run | None:
    """Find the newest run with these tags and, if given, with this status."""
    conditions = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
    conditions += [f"attributes.status = '{status}'"] * bool(status)
    runs = client.search_runs(
        [experiment],
        " and ".join(conditions),
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
    dataset: Mapping[str, Any],
    rerun: str,
    trial: Trial | None,
) -> str:
    parent = {PARENT_KEY: trial.parent} if trial else {}
    # Set on creation, so that the run is found again even if the process is killed right afterwards.
    tags = {"fingerprint": fingerprint, "dataset": dataset["name"], **parent, **({RERUN: rerun} if rerun else {})}
    tags |= {WORKSPACE_TAG: workspace_id(), **provenance.tags()}
    tags |= {f"env.{variable}": value for variable, value in variables().items()}
    run_id = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
    client.log_batch(run_id, params=[Param(key, _truncate(str(value))) for key, value in flatten_dict(config).items()])
    client.log_inputs(run_id, [DatasetInput(_dataset(dataset), [InputTag("mlflow.data.context", "training")])])
    client.log_text(run_id, OmegaConf.to_yaml(OmegaConf.create(dict(config))), "config.yaml")
    if changes := provenance.diff():
        _log_bytes(client, run_id, changes, "code.diff")
    return run_id


def _dataset(dataset: Mapping[str, Any]) -> Dataset:
    """Describe the data set, with schema and profile in the format of `mlflow.data.from_numpy`.

    That function itself would import pandas and hash all images.
    """
    shape, images = list(dataset["shape"]), dataset["sizes"]["train"]
    schema = {
        "mlflow_tensorspec": {"features": _tensor("uint8", [-1, *shape]), "targets": _tensor("int64", [-1])},
    }
    profile = {
        "features_shape": [images, *shape],
        "targets_shape": [images],
        "images": dict(dataset["sizes"]),
        "classes": dataset["classes"],
    }
    return Dataset(
        name=dataset["name"],
        digest=dataset["hash"][:36],
        source_type="local",
        source=dataset["source"],
        schema=json.dumps(schema),
        profile=json.dumps(profile),
    )


def _tensor(dtype: str, shape: list[int]) -> str:
    """Return a schema of one unnamed tensor as MLflow's JSON."""
    return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}])


def _log_bytes(client: MlflowClient, run_id: str, content: bytes, name: str) -> None:
    """Log a file unchanged, which may not be valid UTF-8."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        client.log_artifact(run_id, str(path))


def _truncate(value: str) -> str:
    """Cut a long value with a notice; MLflow would cut it silently. The artifact config.yaml has it in full."""
    notice = " ... (full value in the artifact config.yaml)"
    return value if len(value) <= MAX_PARAM_LENGTH else value[: MAX_PARAM_LENGTH - len(notice)] + notice


@dataclass(frozen=True)
class EvaluatedRun:
    """A finished training with its test accuracy.

    Attributes:
        accuracy: on the test split, from 0 to 1.
        seconds: spent on the training; NaN if unknown.
        hardware: processor and device.
        commit: short hash, with a `+` if the code was changed; empty without git.
        values: the parameters that decide its result, without the seed.
    """

    seed: int
    accuracy: float
    seconds: float
    hardware: str
    commit: str
    values: Mapping[str, str]


def list_evaluated_runs(dataset: str) -> list[EvaluatedRun]:
    """List the evaluated runs on a dataset, oldest first; of several of one fingerprint, the newest."""
    client, experiment = connect()
    runs = client.search_runs(
        [experiment],
        "attributes.status = 'FINISHED' and tags.fingerprint LIKE '%'",
        ViewType.ACTIVE_ONLY,
        max_results=10_000,
        order_by=["attributes.start_time ASC"],
    )
    evaluated = [run for run in runs if run.data.tags.get("dataset") == dataset and ACCURACY in run.data.metrics]
    return list({run.data.tags["fingerprint"]: _evaluated_run(run) for run in evaluated}.values())


def result_params(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the values that decide a training, as the parameters of its run, without the seed."""
    return {key: str(value) for key, value in flatten_dict(config).items() if key != "seed"}


def _evaluated_run(run: Run) -> EvaluatedRun:
    tags, values = run.data.tags, run.data.params
    device, processor = tags.get("device", "unknown"), tags.get("processor", "")
    return EvaluatedRun(
        seed=int(values["seed"]),
        accuracy=run.data.metrics[ACCURACY],
        seconds=float(tags.get(SECONDS_TAG, "nan")),
        hardware=f"{processor}, {device}" if processor and device.startswith("cpu") else device,
        commit=tags.get("git.commit", "")[:7] + ("+" if tags.get("git.dirty") == "true" else ""),
        values={key: value for key, value in values.items() if key != "seed"},
    )
