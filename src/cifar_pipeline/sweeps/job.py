"""Run a trial of a sweep: require what the sweep started with, isolate failures, reuse finished trainings.

A sweep records code, conf/, params.yaml, package versions, environment variables and data when it starts
(`SweepBasis`). Its fingerprint includes them, and a trial fails if they have changed since.
"""

import functools
import io
import logging
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_pipeline.config.compose import (
    NON_TRAINING_GROUPS,
    Stage,
    digest,
    output_root,
    set_experiment_name,
    stage_targets,
)
from cifar_pipeline.config.params import CONF, PARAMS, SWEEP_GROUPS
from cifar_pipeline.config.source_files import loaded_sources, variables, versions
from cifar_pipeline.config.validation import target_names
from cifar_pipeline.sweeps.devices import DEVICES_KEY, GpuPool, may_use_gpu
from cifar_pipeline.tracking.trial import Trial, TrialPruned, checkpoint_metrics
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import clear_status, configure_logging, log_prefix
from cifar_pipeline.utils.errors import UserError, describe_environment_error
from cifar_pipeline.utils.process import exit_when_process_dies, install_signal_handlers
from cifar_pipeline.utils.safe_io import require_bounded
from cifar_pipeline.utils.text import one_line, redact_and_escape

if TYPE_CHECKING:
    from cifar_pipeline.sweeps.study import StudyReference

log = logging.getLogger(__name__)

# Config groups and keys that cannot affect a training.
NON_TRAINING_KEYS = {*NON_TRAINING_GROUPS, *SWEEP_GROUPS}
# Keys by which the trials of a sweep are ranked.
RANKING_KEYS = ("monitor", "mode", "evaluation.checkpoint")
# The significance level of their comparison, which is no part of what makes it another sweep.
LEVEL_KEY = "comparison.significance_level"


@dataclass(frozen=True)
class SweepBasis:
    """Everything that all trials of a sweep share.

    Attributes:
        code: hash of each source file.
        values: content of each file of conf/ and of params.yaml, without what cannot affect a training.
        versions: of each package that the training uses.
        variables: environment variables that affect numbers.
        data: hash of data/processed, if it has the values of `data` that all trials share; empty otherwise.
        ranking: `monitor`, `mode` and `evaluation.checkpoint`, by which the trials are compared.
    """

    code: dict[str, str]
    values: dict[str, Any]
    versions: dict[str, str]
    variables: dict[str, str]
    data: str
    ranking: dict[str, str]

    @staticmethod
    def now(config: DictConfig) -> "SweepBasis":
        """Record the present state, and how `config` ranks trials; the code is what this process has loaded."""
        values = dict(_values())
        used = loaded_sources().used("train", target_names(list(values.values())))
        return SweepBasis(
            code=loaded_sources().hashes() | used.hashes,
            values=values,
            versions=versions("train", used.packages),
            variables=variables(),
            data=_data_hash(config),
            ranking={key: str(OmegaConf.select(config, key)) for key in RANKING_KEYS},
        )

    @property
    def fingerprint(self) -> str:
        """Hash of everything that a trial may use."""
        used = loaded_sources().used("train", target_names(list(self.values.values())))
        return digest([used.hashes, self.values, self.versions, self.variables, self.data, self.ranking])

    def require_same(self, config: DictConfig) -> None:
        """Raise UserError if the trial is ranked differently, or something that it uses has changed since the start."""
        now = SweepBasis.now(config)
        for key in _differing(self.ranking, now.ranking):
            raise UserError(
                f"This trial has {key}={now.ranking[key]} and the sweep {key}={self.ranking[key]}, so they would not "
                f"be comparable: set {key} on the command line, which then applies to all trials."
            )
        if change := next(self._changes(config, now), None):
            raise UserError(
                f"{change} after the sweep started, so its trials would not be comparable: undo that and type the same "
                "command again to finish the sweep, or keep it and type the command again for a new sweep."
            )

    def _changes(self, config: DictConfig, now: "SweepBasis") -> Iterator[str]:
        used = loaded_sources().used("train", stage_targets(config, "train"))
        yield from (f"{name} was edited" for name, hashed in used.hashes.items() if self.code.get(name) != hashed)
        if changed := used.changed():  # This process has loaded the old code, the next may load the new.
            yield f"{changed} was edited"
        yield from (f"{name} was edited" for name in _differing(self.values, now.values))
        yield from (f"The version of {name} changed" for name in _differing(self.versions, now.versions))
        yield from (f"The environment variable {name} changed" for name in _differing(self.variables, now.variables))
        # A trial with other values of `data` has its own dataset.
        if self.data and now.data and now.data != self.data:
            yield "data/processed was changed"


def _values() -> Iterator[tuple[str, Any]]:
    """Yield path and content of each file of conf/ and of params.yaml that can affect a training."""
    for path in (*sorted(CONF.rglob("*.yaml")), PARAMS):
        if path.is_relative_to(CONF) and path.relative_to(CONF).parts[0] in NON_TRAINING_KEYS:
            continue
        yield path.as_posix(), _parsed(path.read_bytes())


@functools.cache
def _parsed(content: bytes) -> Any:
    """Parse a YAML file, without the keys that cannot affect a training."""
    try:
        require_bounded(content)
        values = OmegaConf.to_container(OmegaConf.load(io.BytesIO(content)))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        return str(error)  # Composing the configuration reports the error.
    if not isinstance(values, dict):
        return values
    return {str(key): value for key, value in values.items() if key not in NON_TRAINING_KEYS}


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]


def _data_hash(config: DictConfig) -> str:
    """Read the hash of data/processed; empty if there is none, or it was made with other values of `data`."""
    from cifar_pipeline.sweeps.datasets import read_matching

    return str((read_matching(config) or {}).get("hash", ""))


@dataclass(frozen=True)
class Job:
    """Job of a trial, as its sweep starts it.

    Attributes:
        trial: the trial.
        sweep_process: pid of the sweep's process on this machine; this process exits when that one dies.
        basis: what the sweep started with.
        experiment: of the sweep, in MLflow.
        pool: the GPUs that the trials share.
        study: of a search.
    """

    trial: Trial
    sweep_process: int
    basis: SweepBasis | None
    experiment: str
    pool: GpuPool | None = None
    study: "StudyReference | None" = None


_job: Job | None = None
_task: tuple[Stage, DictConfig] | None = None


def start_job(job: Job) -> None:
    """Set the job that this process runs. Called by the callback in the job's process, and by the trial's ranks."""
    global _job
    _job = job
    set_experiment_name(job.experiment)
    configure_logging()
    if os.getpid() != job.sweep_process:
        install_signal_handlers()
        exit_when_process_dies(job.sweep_process)


def current_job() -> Job | None:
    """Return the job that this process runs; None outside a multirun."""
    return _job


def _set_task(stage: Stage, config: DictConfig) -> None:
    global _task
    _task = stage, config


def current_task() -> tuple[Stage, DictConfig] | None:
    """Return the stage that this process runs for a trial, and its configuration; None outside a multirun."""
    return _task


def current_trial() -> Trial | None:
    """Return the trial that this process runs; None outside a multirun."""
    return _job.trial if _job else None


def current_study() -> "StudyReference | None":
    """Return the study of the search that this process runs a trial of; None in other sweeps, or outside of one."""
    return _job.study if _job else None


def require_validation_split(images: int, monitor: str) -> None:
    """Raise UserError if trials are compared by the validation split (never by the test split) and there is none."""
    if images == 0 and monitor.startswith("val/"):
        raise UserError(
            f"data.val_fraction=0 leaves no validation split to compare the trials by {monitor}: set it to a fraction "
            "such as 0.1, or choose monitor=train/loss mode=min."
        )


def objective(rows: Sequence[Mapping[str, float]], config: DictConfig) -> float | None:
    """Return the monitored metric of the checkpoint that would be evaluated; None if it is missing or not finite.

    Args:
        rows: metrics of each epoch.
        config: with `monitor`, `mode` and `evaluation.checkpoint`.
    """
    metrics = checkpoint_metrics(rows, config.monitor, config.mode, config.evaluation.checkpoint)
    return metrics.get(config.monitor)


def cached_objective(trial: Trial, fingerprint: str, config: DictConfig) -> float | None:
    """Return the objective of the finished run of this fingerprint, and link the trial to it; None if there is none.

    In a rerun of the sweep, only runs that finished in this rerun count.
    """
    from cifar_pipeline.tracking.runs import finished_run
    from cifar_pipeline.tracking.sweeps import history, record_trial

    run = finished_run(fingerprint, trial.rerun)
    if run is None:
        return None
    record_trial(trial, run.info.run_id)
    hint = "this rerun of the sweep trained it already" if trial.rerun else "`rerun=true` trains it again"
    log.info(f"finished before (run {run.info.run_name}); {hint}")
    return objective(history(run.info.run_id, [config.monitor]), config)


def isolate_failures(stage: Stage) -> Stage:
    """Wrap a stage so that in a multirun a failure is recorded on the trial, and the other jobs continue.

    A failed or pruned trial returns None. In a search the study records how each trial ended.
    """

    @functools.wraps(stage)
    def run(config: DictConfig) -> Any:
        # By functions, in the job's process: a launcher pickles this one together with old values of this module.
        trial = current_trial()
        if trial is None:
            return stage(config)
        from cifar_pipeline.tracking.sweeps import record_failure, record_trial

        with log_prefix(f"[{trial.number}] "):
            record_trial(trial)
            try:
                with _assigned_gpus(config) as suffix:
                    log.info(f"{trial.title}: {' '.join(trial.overrides)}{suffix}")
                    require_same_basis(config)
                    _set_task(stage, config)
                    value = stage(config)
            except TrialPruned as pruned:
                log.info(str(pruned))
                _record_state(trial, "PRUNED")
                return None
            except Exception as error:
                reason = describe_failure(error)
                record_failure(trial, reason)
                log.error(reason)
                _record_state(trial, "FAIL")
                return None
            finally:
                clear_status()  # or it would be shown between the lines that follow the trial's
            _record_value(trial, value, config)
            return value

    return run


@contextmanager
def _assigned_gpus(config: DictConfig) -> Iterator[str]:
    """Take the trial's GPUs, if there are any; yield ` (GPU 1)` for its first line. Several make it train on all."""
    global _job
    job = _job
    if job is None or job.pool is None or not may_use_gpu(config):
        yield ""
        return
    with job.pool.assign() as gpus:
        _job = replace(job, trial=replace(job.trial, gpu=",".join(gpus)))
        if len(gpus) > 1:
            OmegaConf.update(config, DEVICES_KEY, len(gpus))
        yield f" (GPU{'s' if len(gpus) > 1 else ''} {', '.join(gpus)})"


def _record_value(trial: Trial, value: float | None, config: DictConfig) -> None:
    """Record in the study of a search that a trial has finished."""
    if study := current_study():
        from cifar_pipeline.sweeps.study import record_result

        record_result(study, trial, value, config.evaluation.checkpoint)


def _record_state(trial: Trial, state: str) -> None:
    """Record in the study of a search that a trial ended without a value."""
    if study := current_study():
        from optuna.trial import TrialState

        from cifar_pipeline.sweeps.study import record_state

        record_state(study, trial, TrialState[state])


def require_same_basis(config: DictConfig) -> None:
    """Raise what `SweepBasis.require_same` raises for the sweep of this process's job."""
    if _job and _job.basis is not None:
        _job.basis.require_same(config)


def describe_failure(error: Exception) -> str:
    """Describe a failure in one line; the traceback of a bug is written to error.txt in the job's folder."""
    if isinstance(error, UserError):
        return str(error)
    if description := describe_environment_error(error):
        return description
    path = output_root() / "error.txt"
    with atomic_write(path) as tmp:
        tmp.write_text(redact_and_escape("".join(traceback.format_exception(error))), encoding="utf-8")
    return f"{type(error).__name__}: {one_line(error)} (traceback: {path})"
