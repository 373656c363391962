"""Loggers of Lightning: MLflow, which always logs, and those of conf/logger/, all of which can resume a training."""

import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas
from hydra.utils import get_object, instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only

from cifar_pipeline.config.validation import install_command, root_cause, target_config
from cifar_pipeline.training.checkpoints import EpochMetrics, loggable
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.errors import UserError, describe_environment_error
from cifar_pipeline.utils.paths import main_workspace
from cifar_pipeline.utils.text import one_line

log = logging.getLogger(__name__)

# Arguments for which conf/logger/ has null: a name that a training has again when it is resumed.
RUN_NAME_KEYS = ("name", "version")
# Methods that end the run of a logger's service; a second run in this process would otherwise continue it.
CLOSING_METHODS = ("finish", "end", "stop")


class ResumableMLFlowLogger(MLFlowLogger):
    """Log to an MLflow run that is opened and ended elsewhere, and that may have metrics of an interrupted training.

    Steps that the run has of a metric are not logged again.

    Args:
        tracking_uri: of the MLflow server or database.
        run_id: the run.
    """

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        super().__init__(tracking_uri=tracking_uri, run_id=run_id)
        self.logged_steps: dict[str, int] = {}
        self.pending: list[tuple[Mapping[str, float], int | None]] = []

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send metrics; if MLflow fails, keep them for the next call instead of stopping the training."""
        self.pending.append((metrics, step))
        try:
            self.flush_pending()
        except Exception as error:
            description = describe_environment_error(error)
            if description is None:
                raise
            if len(self.pending) == 1:
                log.warning(f"{description} The training continues; its metrics are kept until they can be sent.")

    def flush_pending(self) -> None:
        """Send the metrics that could not be sent before. Raises what MLflow raises."""
        while self.pending:
            metrics, step = self.pending[0]
            new = {key: value for key, value in metrics.items() if step is None or step > self._last_logged_step(key)}
            if new:
                super().log_metrics(new, step)
            del self.pending[0]

    def _last_logged_step(self, key: str) -> int:
        """Return the last step of a metric that the run had when this process first logged it; -1 for none."""
        if key not in self.logged_steps:
            logged = self._mlflow_client.get_metric_history(str(self.run_id), key)
            self.logged_steps[key] = max((metric.step for metric in logged), default=-1)
        return self.logged_steps[key]

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Leave the run open: models and figures are logged after the training."""


class KeyRecorder(DummyLogger):
    """Record which metrics callbacks and Lightning send to the loggers, and log nothing.

    Callbacks such as LearningRateMonitor refuse to run without a logger, which ranks above 0 would not have.
    """

    def __init__(self) -> None:
        super().__init__()
        self.keys: set[str] = set()

    def log_metrics(self, metrics: Mapping[str, float], *args: Any, **kwargs: Any) -> None:
        """Record the names of metrics."""
        self.keys.update(metrics)


class ResumableCSVLogger(CSVLogger):
    """Log to a CSV file that a resumed training continues; Lightning's own logger would delete it."""

    @property
    def experiment(self) -> Any:
        """The writer of the file."""
        if self._experiment is None:
            path = Path(self.log_dir) / "metrics.csv"
            previous = pandas.read_csv(path, on_bad_lines="skip") if path.is_file() else None
            with warnings.catch_warnings(action="ignore"):
                writer = super().experiment
            if previous is not None:
                with atomic_write(path) as tmp:
                    previous.to_csv(tmp, index=False)
                writer.metrics_keys = list(previous.columns)
            self.known_keys = {} if previous is None else _keys_by_step(previous)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Write metrics, except those of steps that the file has already."""
        writer = self.experiment
        known = self.known_keys.get(step, set()) if step is not None else set()
        if new := {key: value for key, value in metrics.items() if key not in known}:
            super().log_metrics(new, step)
            writer.save()


def _keys_by_step(logged: pandas.DataFrame) -> dict[int, set[str]]:
    """Return the metrics that a CSV file has, by step."""
    keys: dict[int, set[str]] = {}
    for row in logged.to_dict("records"):
        keys.setdefault(int(row["step"]), set()).update(str(key) for key, value in row.items() if value == value)
    return keys


def build_loggers(options: Mapping[str, Any], run_name: str, config: Mapping[str, Any]) -> list[Logger]:
    """Build the loggers of conf/logger/ and connect them, so that a missing login is found before the training.

    Args:
        options: the group `logger`.
        run_name: the name under which a training logs, the same when it is resumed.
        config: the values that decide the training, which are logged as hyperparameters.

    Raises:
        UserError: a logger is not installed, or it cannot be built or connected.
    """
    loggers = []
    for name, node in options.items():
        values = target_config(node, f"logger.{name}")
        # Slashes would make folders, and Weights & Biases refuses other characters.
        values |= {key: re.sub(r"[^\w.-]+", "-", run_name) for key in RUN_NAME_KEYS if values.get(key, "") is None}
        if values.get("save_dir"):
            # A workspace of `dvc exp run --temp` is deleted.
            values["save_dir"] = str(main_workspace() / values["save_dir"])
        try:
            logger: Any = instantiate(values, _convert_="all")
            logger.experiment  # noqa: B018 - it connects
            logger.log_hyperparams(dict(config))
        except Exception as error:
            raise UserError(_describe_logger_error(name, values["_target_"], root_cause(error))) from None
        loggers.append(logger)
    return loggers


def _describe_logger_error(name: str, target: str, error: BaseException) -> str:
    if isinstance(error, ImportError):
        return f"logger={name} is not installed: `{install_command('loggers')}` installs it."
    hint = ""
    if "offline" in inspect.signature(get_object(target)).parameters:
        hint = f" Or write logger.{name}.offline=true."
    return f"logger={name} cannot log: {one_line(error).rstrip('.')}.{hint}"


def log_rows(loggers: Sequence[Logger], rows: Sequence[EpochMetrics]) -> None:
    """Log the metrics of finished epochs."""
    for row in rows:
        for logger in loggers:
            logger.log_metrics(*loggable(row))


@contextmanager
def close_loggers(loggers: Sequence[Any]) -> Iterator[None]:
    """End the runs of the loggers' services after the block, so that the next training of this process has its own."""
    try:
        yield
    finally:
        for logger in loggers:
            logger.save()
            methods = (getattr(logger.experiment, name, None) for name in CLOSING_METHODS)
            if close := next(filter(callable, methods), None):
                close()
