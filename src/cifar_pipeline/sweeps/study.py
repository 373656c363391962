"""Open the study of a search in Optuna's storage, and record there how a trial ended.

The storage is the SQLite database optuna.db of the main workspace, or that of `hydra.sweeper.storage`. The process of
the search proposes trials (`sweeps.search`); the process of each trial records its result as soon as it has one.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from cifar_pipeline.config.tracking_uri import sqlite_path, sqlite_uri
from cifar_pipeline.config.validation import check_target, root_cause

# Its import makes the SQLite connections of this process wait for locks, Optuna's too.
from cifar_pipeline.tracking.client import enable_wal
from cifar_pipeline.tracking.sweeps import history, trial_run
from cifar_pipeline.tracking.trial import RUN_METRICS, Objective, Trial, checkpoint_metrics
from cifar_pipeline.utils.errors import EnvironmentFailure, UserError
from cifar_pipeline.utils.paths import main_workspace
from cifar_pipeline.utils.text import one_line

log = logging.getLogger(__name__)

DATABASE = "optuna.db"
STORAGE_KEY = "hydra.sweeper.storage"
STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError)


@dataclass(frozen=True)
class StudyReference:
    """Reference by which the process of a trial finds its study. Hydra pickles it, so it has no password.

    Attributes:
        name: of the study.
        objectives: what the search improves, the metric that decides in each training first.
        pruner: options of the pruner; empty for none.
    """

    name: str
    objectives: tuple[Objective, ...]
    pruner: dict[str, Any]

    def load(self) -> optuna.Study:
        """Load the study in the process of a trial, with the pruner."""
        storage = open_storage(HydraConfig.get().sweeper.storage)
        # A trial does not propose values.
        return optuna.load_study(
            study_name=self.name, storage=storage, sampler=RandomSampler(), pruner=build_pruner(self.pruner)
        )


def use_our_logging() -> None:
    """Send Optuna's messages to the console of this project, and hide its warnings about experimental features."""
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    warnings.simplefilter("ignore", ExperimentalWarning)


@contextmanager
def translate_storage_errors() -> Iterator[None]:
    """Raise EnvironmentFailure in place of an error of the storage."""
    try:
        yield
    except STORAGE_ERRORS as error:
        reason = one_line(root_cause(error)).rstrip(".")
        raise EnvironmentFailure(
            f"The search's storage cannot be used ({reason}): the same command resumes the search."
        ) from None


def default_url() -> str:
    """Return the URL of the workspace's own database."""
    return sqlite_uri(main_workspace() / DATABASE)


def open_storage(url: str | None) -> RDBStorage:
    """Open a storage; a new database is created under a lock, because parallel processes would break each other's.

    Raises UserError if the database cannot be opened.
    """
    url = url or default_url()
    use_our_logging()
    lock = main_workspace() / ".cache" / "optuna.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        try:
            if database := sqlite_path(url):
                enable_wal(database)
            return RDBStorage(url)
        except Exception as error:
            reason = one_line(root_cause(error)).rstrip(".")
            if url == default_url():
                raise UserError(
                    f"{DATABASE} cannot be opened ({reason}): restore it from a backup, or move it away, which forgets "
                    "its searches but no training."
                ) from None
            raise UserError(
                f"{STORAGE_KEY} cannot be opened ({reason}): it must be the URL of a database that responds, such as "
                "postgresql://USER@HOST/NAME."
            ) from None


def build_pruner(options: Mapping[str, Any]) -> BasePruner:
    """Build the pruner of a search; one that never prunes without options."""
    return _build(options, "hydra.sweeper.pruner", BasePruner) if options else NopPruner()


def build_sampler(options: Mapping[str, Any], **changed: Any) -> BaseSampler:
    """Build the sampler of a search, with `changed` instead of the options of these names."""
    sampler: BaseSampler = _build({**options, **changed}, "hydra.sweeper.sampler", BaseSampler)
    return sampler


def _build(options: Mapping[str, Any], key: str, base: type) -> Any:
    """Build what `_target_` names. Raises UserError if it cannot be imported, rejects its options or is no `base`."""
    check_target(key, options)
    built = instantiate(dict(options), _convert_="all")
    if not isinstance(built, base):
        raise UserError(f"{key}: {options['_target_']} is no optuna.{base.__module__.split('.')[1]}.{base.__name__}.")
    return built


def record_result(reference: StudyReference, trial: Trial, value: float | None, checkpoint: str) -> None:
    """Record the result of a trial whose training has finished, or a failure if an objective has no finite value.

    With a pruner, the epochs that the study lacks are reported as well: the last one, and all of a reused training.

    Args:
        reference: of the study.
        trial: whose run has the metrics.
        value: of the first objective.
        checkpoint: the weights that trials are compared by, `last` or `best`.
    """
    run = trial_run(trial)
    assert run is not None
    (metric, mode), *others = reference.objectives
    rows = history(run.info.run_id, [name for name, _ in reference.objectives if name not in RUN_METRICS])
    known = checkpoint_metrics(rows, metric, mode, checkpoint)
    known |= {name: run.data.metrics[name] for name in RUN_METRICS if name in run.data.metrics}
    values = [math.nan if value is None else value, *(known.get(name, math.nan) for name, _ in others)]
    for (name, _), number in zip(reference.objectives, values, strict=True):
        if not math.isfinite(number):
            log.warning(f"{name} has no finite value, so the search counts this trial as failed.")
            record_state(reference, trial, TrialState.FAIL)
            return
    epochs = {int(row["epoch"]): row[metric] for row in rows if metric in row} if reference.pruner else {}
    record_state(reference, trial, TrialState.COMPLETE, values, epochs)


def record_state(
    reference: StudyReference,
    trial: Trial,
    state: TrialState,
    values: Sequence[float] | None = None,
    epochs: Mapping[int, float] | None = None,
) -> None:
    """Record how a trial ended, unless that is recorded already. Without the storage the next command repeats it."""
    try:
        study = reference.load()
        stored = study.get_trials(deepcopy=False)[trial.number]
        if stored.state.is_finished():
            return
        report_epochs(optuna.trial.Trial(study, stored._trial_id), epochs or {})
        study.tell(trial.number, values, state)
    except (*STORAGE_ERRORS, UserError) as error:
        log.warning(
            f"The search could not record this trial ({one_line(error)}): the same command finishes the search, "
            "without training it again."
        )


def report_epochs(trial: optuna.trial.Trial, epochs: Mapping[int, float]) -> None:
    """Report the values of epochs, counted from 1, that the study lacks."""
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    for epoch in sorted(epochs.keys() - known.keys()):
        trial.report(epochs[epoch], epoch)
