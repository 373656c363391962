"""Hydra callback of a multirun: check the launcher, open the sweep's parent run, and pass it to each job.

Hydra pickles the callback to the process of each job, also on other machines, where environment variables would not
arrive.
"""

import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_pipeline.config.compose import digest, set_experiment_name, stage_config
from cifar_pipeline.config.schema import validate
from cifar_pipeline.config.validation import find_user_error, format_error
from cifar_pipeline.sweeps import job, multirun
from cifar_pipeline.sweeps.devices import GpuPool, open_pool
from cifar_pipeline.sweeps.job import LEVEL_KEY, RANKING_KEYS, SweepBasis
from cifar_pipeline.sweeps.multirun import sweep_subdir
from cifar_pipeline.tracking.trial import Trial
from cifar_pipeline.utils.console import close_job_log, status
from cifar_pipeline.utils.errors import UserError, describe_environment_error
from cifar_pipeline.utils.text import contains_secret, print_traceback, redact_values

if TYPE_CHECKING:
    from cifar_pipeline.sweeps.search import SearchPlan
    from cifar_pipeline.sweeps.study import StudyReference

log = logging.getLogger(__name__)

# The sweeper of this project, which searches.
SEARCH_SWEEPER = "hydra_plugins.optuna4_sweeper.sweeper.Optuna4Sweeper"
TIMEOUT_SECONDS = 5
EXPERIMENT_KEY = "mlflow.experiment_name"
# Groups and keys on which the data of a trial depend: the size of stored images follows the network's.
DATA_GROUPS = ("data", "image_dir", "experiment", "model")


def check_launcher(config: DictConfig) -> None:
    """Raise UserError if the launcher cannot start jobs from this machine."""
    launcher = config.hydra.runtime.choices["hydra/launcher"]
    if launcher == "submitit_slurm" and shutil.which("sbatch") is None:
        raise UserError(
            "Slurm's `sbatch` is not installed on this machine: start the sweep on a Slurm cluster, or set "
            "launcher=submitit_local."
        )
    if launcher == "ray":
        _require_cluster(config.hydra.launcher.ray.init.get("address") or os.environ.get("RAY_ADDRESS", ""))


def _require_cluster(address: str) -> None:
    """Raise UserError if nothing listens at the cluster's address: Ray itself would retry for minutes."""
    match = re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address)
    if not match:
        return
    try:
        socket.create_connection((match[1], int(match[2])), timeout=TIMEOUT_SECONDS).close()
    except OSError:
        raise UserError(
            f"No Ray cluster responds at {address}: start it, or unset hydra.launcher.ray.init.address and RAY_ADDRESS "
            "to use this machine only."
        ) from None


class SweepCallback(Callback):
    """Open the parent run of a multirun and pass it to each job."""

    def __init__(self) -> None:
        self.parent = ""
        self.process = 0
        self.folder = Path()
        self.swept: tuple[str, ...] = ()
        self.total = 0
        self.rerun = ""
        self.basis: SweepBasis | None = None
        self.experiment = ""
        self.pool: GpuPool | None = None
        self.study: StudyReference | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Resume the sweep's parent run, or create it."""
        self.process, self.folder = os.getpid(), Path.cwd()
        try:
            _reject_secrets(config)
            check_launcher(config)
            with sweep_subdir(config) as folder:
                self.parent, self.rerun = self._open(config)
        except Exception as error:
            # Hydra would turn the exception into a warning and continue.
            is_config_error = isinstance(error, HydraException | OmegaConfBaseException) or find_user_error(error)
            failure = None if is_config_error else describe_environment_error(error)
            if not is_config_error and failure is None:
                print_traceback(error)
            log.error(failure or format_error(error))
            raise SystemExit(2 if failure is None else 1) from None
        multirun.register_sweep(self.parent, folder)

    def _open(self, config: DictConfig) -> tuple[str, str]:
        fixed, swept = split_fixed_and_swept(config)
        reject_swept_ranking(swept)
        self.swept, self.total = tuple(swept), num_trials(config)
        composed = compose("config", overrides=fixed)
        plan = plan_search(config, composed)
        if plan:
            fixed += plan.ranking
            composed = compose("config", overrides=fixed)
        sweeper = plan.identity if plan else OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        validate(composed, "monitor", "mode", "mlflow", "comparison")
        base = stage_config(composed, "train")
        check_data(config, fixed)
        if EXPERIMENT_KEY in swept:
            raise UserError(f"{EXPERIMENT_KEY}: the trials of a sweep are in one experiment; give it one name.")
        self.pool = open_pool(config, composed, swept)
        self.experiment = composed.mlflow.experiment_name
        set_experiment_name(self.experiment)
        status("Opening the sweep in MLflow")
        from cifar_pipeline.tracking.provenance import configured_tags
        from cifar_pipeline.tracking.sweeps import open_sweep

        self.basis = SweepBasis.now(composed)
        fingerprint = digest([base, swept, sweeper, self.basis.fingerprint])
        if not multirun.lock_sweep_dir(fingerprint) and plan:
            raise UserError(
                "Another process of this project runs the same search: wait for its end; a larger "
                "hydra.sweeper.n_trials then adds trials."
            )
        name = " ".join(f"{key}={values}" for key, values in swept.items())[:200] or "sweep"
        metadata = {"swept": json.dumps(list(swept)), "base": json.dumps(fixed), "folder": config.hydra.sweep.dir}
        metadata |= {**self.basis.ranking, LEVEL_KEY: str(composed.comparison.significance_level)}
        labels = configured_tags(composed.mlflow)
        parent, rerun = open_sweep(fingerprint, name, metadata, composed.rerun, labels)
        if plan:
            self._open_search(plan, parent, fingerprint, rerun)
        return parent, rerun

    def _open_search(self, plan: "SearchPlan", parent: str, fingerprint: str, rerun: str) -> None:
        """Open the study of a search, which the sweeper runs, and name it on the parent run."""
        from cifar_pipeline.sweeps.search import set_current_search
        from cifar_pipeline.tracking.sweeps import tag_sweep
        from cifar_pipeline.tracking.trial import OBJECTIVES_TAG, STUDY_TAG

        search = plan.open(fingerprint, rerun)
        self.total, self.study = search.total, search.reference
        tag_sweep(parent, {STUDY_TAG: search.study.study_name, OBJECTIVES_TAG: json.dumps(plan.objectives)})
        set_current_search(search)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Set the trial that the job's process runs."""
        if self.parent:
            # The working directory of a Ray worker is where its node was started.
            os.chdir(self.folder)
            settings = HydraConfig.get()
            job.start_trial(
                Trial(
                    self.parent,
                    int(settings.job.num),
                    tuple(settings.overrides.task),
                    self.swept,
                    self.total,
                    self.rerun,
                ),
                self.process,
                self.basis,
                self.experiment,
                self.pool,
                self.study,
            )

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Close the job's log file."""
        close_job_log()


def _reject_secrets(config: DictConfig) -> None:
    """Raise UserError for secrets on the command line, and redact the configuration that goes to multirun.yaml.

    Jobs do not read that file: they compose their configuration from conf/, params.yaml and the command line.
    """
    for word in (*config.hydra.overrides.task, *config.hydra.overrides.hydra):
        if contains_secret(word):
            raise UserError(
                f"A sweep keeps its command line in files, and {word} contains a secret: put it into an environment "
                "variable and write '${oc.env:NAME}' instead, in params.yaml or in quotes on the command line."
            )
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    for key in plain.keys() - {"hydra"}:
        OmegaConf.update(config, str(key), redact_values(plain[key]), merge=False)


def reject_swept_ranking(swept: Iterable[str]) -> None:
    """Raise UserError for a sweep over what ranks its trials."""
    for key in swept:
        if key in (*RANKING_KEYS, "evaluation", LEVEL_KEY):
            raise UserError(
                f"A sweep ranks its trials by {', '.join(RANKING_KEYS)}, so it cannot have several values of {key}: "
                "choose one, or start a sweep for each."
            )


def plan_search(config: DictConfig, composed: DictConfig) -> "SearchPlan | None":
    """Read and check the options of a search; None for another sweeper. Raises what `SearchPlan.of` raises."""
    sweeper = config.hydra.sweeper
    if sweeper.get("_target_") != SEARCH_SWEEPER:
        return None
    from cifar_pipeline.sweeps.search import SearchPlan

    overrides = list(_last_overrides(config).values())
    for override in overrides:
        override.config_loader = GlobalHydra.instance().config_loader()  # for patterns such as glob(*)
    return SearchPlan.of(sweeper, composed, overrides)


def split_fixed_and_swept(config: DictConfig) -> tuple[list[str], dict[str, str]]:
    """Split the overrides of a multirun.

    The last override of a key wins, so the command line takes precedence over conf/sweep/.

    Returns:
        The overrides that all jobs share, and each swept key with its values as written.
    """
    last = _last_overrides(config)
    fixed = [str(override.input_line) for override in last.values() if not override.is_sweep_override()]
    swept = {
        key.lstrip("+"): str(override.input_line).partition("=")[2]
        for key, override in last.items()
        if override.is_sweep_override()
    }
    return fixed, swept


def check_data(config: DictConfig, fixed: Sequence[str]) -> None:
    """Raise UserError if trials of a multirun have values of `data` that do not suit their data.

    Values that a search draws from an interval are not known in advance, so the trial itself reports them.
    """
    axes = []
    for override in _last_overrides(config).values():
        if override.is_sweep_override() and override.key_or_group.partition(".")[0].partition("/")[0] in DATA_GROUPS:
            with suppress(HydraException):
                key = override.get_key_element()
                axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
    if axes:
        status("Checking the data of the trials")
        from cifar_pipeline.sweeps.datasets import check_trial_datasets

        check_trial_datasets([*fixed, *combination] for combination in product(*axes))


def num_trials(config: DictConfig) -> int:
    """Count the trials of a multirun; 0 if that is not known in advance."""
    if trials := config.hydra.sweeper.get("n_trials"):
        return int(trials)
    try:
        swept = [override for override in _last_overrides(config).values() if override.is_sweep_override()]
        return prod(sum(1 for _ in override.sweep_iterator()) for override in swept)
    except HydraException:  # intervals of a search, and glob patterns
        return 0


def _last_overrides(config: DictConfig) -> dict[str, Override]:
    texts = [f"{key}={values}" for key, values in (config.hydra.sweeper.get("params") or {}).items()]
    texts += list(config.hydra.overrides.task)
    return {override.get_key_element(): override for override in OverridesParser.create().parse_overrides(texts)}
