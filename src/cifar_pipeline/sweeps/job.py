"""A job of a sweep: which trial it is, and how it fails without stopping the others.

What all trials of a sweep have in common: code, conf/ and params.yaml, packages, variables, data.

A sweep notes it at its start: its fingerprint holds it, and no trial is trained on anything else.
"""

import functools
import io
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_pipeline.config.compose import NON_RESULT_GROUPS, Stage, output_root, stage_targets
from cifar_pipeline.config.fingerprint import digest
from cifar_pipeline.config.params import CONF, PARAMS
from cifar_pipeline.config.source_files import loaded_sources, variables, versions
from cifar_pipeline.config.validation import target_names
from cifar_pipeline.tracking.trial import Trial
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import info, log_error, set_log_prefix
from cifar_pipeline.utils.errors import UserError, describe_environment_error
from cifar_pipeline.utils.process import exit_when_process_dies, install_sigterm_handler
from cifar_pipeline.utils.safe_io import parse_json, require_bounded
from cifar_pipeline.utils.text import redact_and_escape, redact_logging

DATASET = Path("data/processed/dataset.json")
# Groups of conf/ that decide nothing about a training.
TRIAL_SECTIONS = {*NON_RESULT_GROUPS, "evaluation", "launcher", "sweep"}


@dataclass(frozen=True)
class SweepBasis:
    """`code` has the hash of each file of the project, `values` what the files of conf/ and params.yaml hold."""

    code: dict[str, str]
    values: dict[str, Any]
    versions: dict[str, str]
    variables: dict[str, str]
    data: str

    @staticmethod
    def now() -> "SweepBasis":
        """What is there now; the code is that of this process."""
        values = dict(_values())
        used = loaded_sources().used("train", target_names(list(values.values())))
        return SweepBasis(
            code=loaded_sources().hashes() | used.hashes,
            values=values,
            versions=versions("train", used.packages),
            variables=variables(),
            data=_data_hash(),
        )

    @property
    def fingerprint(self) -> str:
        """Stands for everything that a trial may use."""
        used = loaded_sources().used("train", target_names(list(self.values.values())))
        return digest([used.hashes, self.values, self.versions, self.variables, self.data])

    def require_same(self, config: DictConfig) -> None:
        """Refuse to train a trial where what it uses is not what the sweep began with."""
        if what := next(self._changes(config), None):
            raise UserError(
                f"{what} after the sweep began, and its trials would not be of one kind: undo that and type the same "
                "command again, which does the rest; or type it as it is, for a new sweep."
            )

    def _changes(self, config: DictConfig) -> Iterator[str]:
        now = SweepBasis.now()
        used = loaded_sources().used("train", stage_targets(config, "train"))
        yield from (f"{name} was edited" for name, hashed in used.hashes.items() if self.code.get(name) != hashed)
        if changed := used.changed():  # this process has loaded the old code, the next may load the new
            yield f"{changed} was edited"
        yield from (f"{name} was edited" for name in _differing(self.values, now.values))
        yield from (f"The version of {name} was changed" for name in _differing(self.versions, now.versions))
        yield from (f"The variable {name} was changed" for name in _differing(self.variables, now.variables))
        if now.data != self.data:
            yield "data/processed was changed"


def _values() -> Iterator[tuple[str, Any]]:
    """The values in the files of conf/ and in params.yaml that may decide about a training, by the file's path."""
    for path in (*sorted(CONF.rglob("*.yaml")), PARAMS):
        if path.relative_to(CONF).parts[0] in TRIAL_SECTIONS if path.is_relative_to(CONF) else False:
            continue
        yield path.as_posix(), _parsed(path.read_bytes())


@functools.cache
def _parsed(content: bytes) -> Any:
    """The values in a file of YAML, less those that decide nothing about a training."""
    try:
        require_bounded(content)
        values = OmegaConf.to_container(OmegaConf.load(io.BytesIO(content)))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        return str(error)  # whoever composes it says what is wrong
    if not isinstance(values, dict):
        return values
    return {str(key): value for key, value in values.items() if key not in TRIAL_SECTIONS}


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]


def _data_hash() -> str:
    """What stands for the data set that is there; empty where there is none, which the trials refuse."""
    try:
        return str(parse_json(DATASET.read_text(encoding="utf-8"))["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


_trial: Trial | None = None
_basis: SweepBasis | None = None


def start_trial(point: Trial, sweep_process: int, basis: SweepBasis | None = None) -> None:
    """Let this process know which trial it is at, and what the sweep began with.

    Called by the callback, in the job's process. A process of its own ends with that of the sweep, if it was started on
    the same machine.
    """
    global _trial, _basis
    _trial, _basis = point, basis
    redact_logging()
    if os.getpid() != sweep_process:
        install_sigterm_handler()
        exit_when_process_dies(sweep_process)


def current_trial() -> Trial | None:
    """The trial that this process is at; none outside a multirun."""
    return _trial


def require_validation_split(images: int) -> None:
    """Refuse a sweep that has nothing to choose by: the test part is never used for that."""
    if images == 0:
        raise UserError("data.val_fraction=0 leaves a sweep nothing to choose by: write a fraction such as 0.1.")


def cached_objective(point: Trial, fingerprint: str) -> float | None:
    """The validation accuracy of the run that has this fingerprint, if it has finished; the trial is linked to it.

    In a rerun of the sweep, only a run that has finished in it counts.
    """
    from cifar_pipeline.tracking.runs import finished_run
    from cifar_pipeline.tracking.sweeps import record_trial

    run = finished_run(fingerprint, point.rerun)
    if run is None:
        return None
    record_trial(point, run.info.run_id)
    more = "this rerun of the sweep trained it already" if point.rerun else "`rerun=true` trains it again"
    info(f"finished before (run {run.info.run_name}); {more}")
    return float(run.data.metrics["val/accuracy"])


def isolate_failures(stage: Stage) -> Stage:
    """In a multirun, note a failure on the trial and tell the search that there is no value: the other jobs go on.

    Optuna's sweeper takes what is no number for a failed trial, but ends with an error for NaN.
    """

    @functools.wraps(stage)
    def run(config: DictConfig) -> Any:
        # Asked anew in the job's process: a launcher copies this function's own names as they were before.
        trial = current_trial()
        if trial is None:
            return stage(config)
        from cifar_pipeline.tracking.sweeps import record_failure, record_trial

        set_log_prefix(f"[{trial.number}] ")
        info(f"{trial.place}: {' '.join(trial.overrides)}")
        record_trial(trial)
        try:
            _require_same_basis(config)
            return stage(config)
        except Exception as error:
            reason = describe_failure(error)
            record_failure(trial, reason)
            log_error(reason)
            return None
        finally:
            set_log_prefix("")

    return run


def _require_same_basis(config: DictConfig) -> None:
    if _basis is not None:
        _basis.require_same(config)


def describe_failure(error: Exception) -> str:
    """Why a job failed, in a sentence; the traceback of what is a bug goes to error.txt in the job's folder."""
    if isinstance(error, UserError):
        return str(error)
    if fault := describe_environment_error(error):
        return fault
    path = output_root() / "error.txt"
    with atomic_write(path) as part:
        part.write_text(redact_and_escape("".join(traceback.format_exception(error))), encoding="utf-8")
    return f"{type(error).__name__}: {' '.join(str(error).split())} (the traceback: {path})"
