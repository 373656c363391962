"""Report the epochs of a search's trial to its study, whose pruner may stop the training.

The callback is added to a training that is a trial of such a search. It is no part of the configuration: the training
has the same fingerprint as without the search, and whoever asks for it again resumes from its checkpoint.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_pipeline.reporting.metric_names import display_name, format_metric, unit
from cifar_pipeline.sweeps.job import current_study, current_trial
from cifar_pipeline.sweeps.study import STORAGE_ERRORS, report_epochs
from cifar_pipeline.tracking.trial import RUN_METRICS, TrialPruned
from cifar_pipeline.training.callbacks import EpochHistory
from cifar_pipeline.training.setup import TrainingSetup
from cifar_pipeline.training.trainer import find_monitors
from cifar_pipeline.utils.text import one_line

log = logging.getLogger(__name__)


def observe_trial(setup: TrainingSetup) -> TrainingSetup:
    """Add the callback to the training of a search's trial, if the search has a pruner; others are unchanged.

    Raises UserError if nothing logs one of the search's objectives, as far as that is known before the training.
    """
    trial, reference = current_trial(), current_study()
    if trial is None or reference is None:
        return setup
    for objective in reference.objectives[1:]:
        if "/" in objective.metric and objective.metric not in RUN_METRICS:
            find_monitors(replace(setup, monitor=objective.metric))
    if not reference.pruner:
        return setup
    study = reference.load()
    stored = study.get_trials(deepcopy=False)[trial.number]
    reporter = EpochReporter(optuna.trial.Trial(study, stored._trial_id), reference.objectives[0].metric)
    # Not the name of an option of conf/callbacks.
    callbacks: Mapping[str, Callback] = {**setup.callbacks, "hydra.sweeper.pruner": reporter}
    return replace(setup, callbacks=callbacks)


class EpochReporter(Callback):
    """Report the value of each epoch to the study, and stop the training by an exception if the pruner says so.

    It acts at the first batch of the following epoch, when the epoch's checkpoint is written. Lightning's own way to
    stop, `should_stop`, would be a part of the checkpoint, and the same training would not resume from it. The last
    epoch is reported with the result.

    Args:
        trial: Optuna's.
        metric: whose values are reported.
    """

    def __init__(self, trial: optuna.trial.Trial, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.epoch = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == self.epoch:
            return
        self.epoch = trainer.current_epoch
        reason = self._reported(trainer) if trainer.is_global_zero else ""
        if reason := trainer.strategy.broadcast(reason):
            raise TrialPruned(reason)

    def _reported(self, trainer: Trainer) -> str:
        """Report the epochs so far; return why the pruner stops the trial, empty if it does not."""
        history = next(callback for callback in trainer.callbacks if isinstance(callback, EpochHistory))  # type: ignore[attr-defined]
        epochs = {int(row["epoch"]): row[self.metric] for row in history.rows if self.metric in row}
        if not epochs:
            return ""
        try:
            # After an interruption the storage may have some of them already.
            report_epochs(self.trial, epochs)
            is_pruned = self.trial.should_prune()
        except STORAGE_ERRORS as error:
            log.warning(f"The search's storage took no value, which the next epoch makes up for: {one_line(error)}")
            return ""
        last = max(epochs)
        return self._reason(last, epochs[last], trainer.max_epochs or 0) if is_pruned else ""

    def _reason(self, epoch: int, value: float, epochs: int) -> str:
        pruner, shown = type(self.trial.study.pruner).__name__, format_metric(self.metric, value) + unit(self.metric)
        return (
            f"Pruned after epoch {epoch} of {epochs} with {display_name(self.metric)} {shown} ({pruner}); "
            "the checkpoint is kept."
        )
