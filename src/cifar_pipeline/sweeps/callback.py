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
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_pipeline.config.compose import compose_config, digest, set_experiment_name, stage_config
from cifar_pipeline.config.local_settings import load_environment
from cifar_pipeline.config.params import SWEEP_GROUPS, suggest, to_yaml_inline
from cifar_pipeline.config.schema import validate
from cifar_pipeline.config.unused_values import check_unused
from cifar_pipeline.config.validation import check_settings, find_user_error, format_error
from cifar_pipeline.sweeps import multirun
from cifar_pipeline.sweeps.devices import GpuPool, open_pool
from cifar_pipeline.sweeps.job import LEVEL_KEY, RANKING_KEYS, Job, SweepBasis, start_job
from cifar_pipeline.sweeps.multirun import sweep_subdir, typed_words
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
EXPERIMENT_KEY = "mlflow.experiment_name"
# Groups and keys on which the data of a trial depend: the size of stored images follows the network's.
DATA_GROUPS = ("data", "image_dir", "experiment", "model")
TIMEOUT_SECONDS = 5
# Folders of the project in which a sweep must not write.
PROJECT_FOLDERS = (".cache", ".dvc", ".git", ".venv", "conf", "data", "images", "models", "reports", "src", "tests")
# What makes the folders of two trials differ.
TRIAL_NAMES = re.compile(r"hydra\.job\.(num|id|override_dirname)\b")
# Values of joblib that do not suit trials, which share nothing and run in processes of their own; others are refused.
JOBLIB_FIXED: dict[str, tuple[Any, ...]] = {
    "backend": (None, "loky"),
    "prefer": ("processes", None),
    "require": (None,),
    "timeout": (None,),
    "pre_dispatch": ("2*n_jobs",),
    "temp_folder": (None,),
    "max_nbytes": (None,),
    "mmap_mode": ("r",),
}
ONE_TASK = "a trial is one task, which starts the processes of trainer.devices itself"
# Values of submitit that are refused, by launcher, and what to do instead.
SUBMITIT_FIXED: dict[str, dict[str, tuple[Any, str]]] = {
    "submitit_slurm": {"nodes": (1, ONE_TASK), "tasks_per_node": (1, ONE_TASK)},
    "submitit_local": {
        "nodes": (1, ONE_TASK),
        "tasks_per_node": (1, ONE_TASK),
        "gpus_per_node": (None, "the sweep assigns GPUs by runtime.gpus_per_trial"),
        "mem_gb": (None, "memory is limited by launcher=slurm only"),
    },
}
# Smallest values of whole numbers, where one is set.
MINIMA = {
    "cpus_per_task": 1,
    "timeout_min": 1,
    "mem_gb": 1,
    "gpus_per_node": 0,
    "array_parallelism": 1,
    "max_num_timeout": 0,
    "signal_delay_s": 0,
}


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
            check_settings(config.hydra)
            check_sweep(config)
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
        check_unused(composed, typed_words(config, "task"), "train", compose_config, swept)
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
            # Before the first line, which names the trial's values.
            load_environment()
            settings = HydraConfig.get()
            number, overrides = int(settings.job.num), tuple(settings.overrides.task)
            trial = Trial(self.parent, number, overrides, self.swept, self.total, self.rerun)
            start_job(Job(trial, self.process, self.basis, self.experiment, self.pool, self.study))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Close the job's log file."""
        close_job_log()


def _reject_secrets(config: DictConfig) -> None:
    """Raise UserError for secrets on the command line, and redact the configuration that goes to multirun.yaml.

    Jobs do not read that file: they compose their configuration from conf/, params.yaml and the command line.
    """
    for word in (*typed_words(config, "task"), *typed_words(config, "hydra")):
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
    """Raise UserError for a sweep over what ranks its trials, or over what belongs to the whole sweep."""
    for key in swept:
        if key in SWEEP_GROUPS:
            raise UserError(
                f"{key}: a sweep has one option of it, for all trials; choose one, or start several sweeps."
            )
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
    texts += typed_words(config, "task")
    return {override.get_key_element(): override for override in OverridesParser.create().parse_overrides(texts)}


def check_sweep(config: DictConfig) -> None:
    """Raise UserError for folders, a sweeper or a launcher with which trials cannot run from this machine."""
    hydra = config.hydra
    _check_folders(hydra)
    for plugin in ("sweeper", "launcher"):
        _check_keys(plugin, hydra.runtime.choices[f"hydra/{plugin}"], hydra[plugin])
    if (size := hydra.sweeper.get("max_batch_size")) is not None and size < 1:
        raise UserError(f"hydra.sweeper.max_batch_size={size} is not allowed; it must be at least 1, or null.")
    _check_values(hydra)
    check_launcher(config)


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


def _check_folders(hydra: DictConfig) -> None:
    """Refuse a sweep's folder that is the project's or in one of its folders, and trials that share a folder."""
    folder, root = Path(hydra.sweep.dir), Path.cwd().resolve()
    inside = folder.resolve().relative_to(root).parts[:1] if folder.resolve().is_relative_to(root) else ("outside",)
    if folder.parts[:1] and folder.parts[0].startswith("~"):
        raise UserError(f"hydra.sweep.dir={hydra.sweep.dir}: Hydra does not know `~`; write the whole path.")
    if not inside or inside[0] in PROJECT_FOLDERS:
        raise UserError(
            f"hydra.sweep.dir={to_yaml_inline(hydra.sweep.dir)} is a folder of the project, in which a sweep would mix "
            "its files with others: write another one, such as hydra.sweep.dir=multirun/mine."
        )
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"hydra.sweep.dir={hydra.sweep.dir} cannot be a folder, because {existing} is a file.")
    if not os.access(existing, os.W_OK):
        raise UserError(f"hydra.sweep.dir={hydra.sweep.dir} cannot be written: {existing} is not writable.")
    subdir = str(OmegaConf.to_container(hydra.sweep, resolve=False)["subdir"])  # type: ignore[index, call-overload]
    excluded = bool(hydra.job.config.override_dirname.exclude_keys)
    names = set(TRIAL_NAMES.findall(subdir)) - ({"override_dirname"} if excluded else set())
    if not names:
        raise UserError(
            f"hydra.sweep.subdir={to_yaml_inline(subdir)} can be the same for several trials, which would overwrite "
            "each other's results: write '${hydra.job.num}' in it."
        )
    if Path(subdir).is_absolute() or ".." in Path(subdir).parts:
        raise UserError(f"hydra.sweep.subdir={subdir} is outside of the sweep's folder: leave out `/` and `..`.")


def _check_keys(plugin: str, choice: str, node: DictConfig) -> None:
    """Refuse keys that the chosen launcher or sweeper does not declare."""
    stored = ConfigStore.instance().repo["hydra"][plugin].get(f"{choice}.yaml")
    known = [str(key) for key in (stored.node if stored else node)]
    for key in map(str, node):
        if key not in (*known, "_target_"):
            usable = [name for name in known if not name.startswith("_") and name not in JOBLIB_FIXED]
            hint = suggest(key, usable) if usable else "it has no keys."
            raise UserError(f"hydra.{plugin}.{key}: unknown key of hydra/{plugin}={choice}; {hint}")


def _check_values(hydra: DictConfig) -> None:
    """Refuse values that the chosen launcher rejects only after the sweep has started, or ignores."""
    choice, node = hydra.runtime.choices["hydra/launcher"], hydra.launcher
    if choice == "joblib":
        if node.n_jobs == 0:
            raise UserError(
                "hydra.launcher.n_jobs=0 is not allowed; it is a number of trials at a time, or -1 for all cores."
            )
        if not re.fullmatch(r"auto|[1-9]\d*", str(node.batch_size)):
            raise UserError(
                f"hydra.launcher.batch_size={node.batch_size} is not allowed; it must be auto or a whole number of at "
                "least 1."
            )
        for key, allowed in JOBLIB_FIXED.items():
            if node[key] not in allowed:
                raise UserError(
                    f"hydra.launcher.{key}={to_yaml_inline(node[key])} does not suit trials, which run in processes of "
                    "their own and share no data: leave it out."
                )
    for key, (value, instead) in SUBMITIT_FIXED.get(choice, {}).items():
        if node[key] != value:
            raise UserError(f"hydra.launcher.{key}={to_yaml_inline(node[key])} does not suit trials: {instead}.")
    for key, minimum in MINIMA.items() if choice in SUBMITIT_FIXED else ():
        if (number := node.get(key)) is not None and number < minimum:
            raise UserError(f"hydra.launcher.{key}={number} is not allowed; it must be at least {minimum}.")
