"""Hydra sweeper that searches with Optuna: `hydra/sweeper=optuna4`, which sweep=search chooses.

Hydra imports every module of the namespace package `hydra_plugins` in each process, so the search itself
(`cifar_pipeline.sweeps.search`) and Optuna are imported when a search starts.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig, OmegaConf


@dataclass
class Optuna4Config:
    """Keys of hydra.sweeper. conf/sweep/search.yaml has their values and what they mean."""

    _target_: str = "hydra_plugins.optuna4_sweeper.sweeper.Optuna4Sweeper"
    # The sampler's seed depends on the number of trials, so the search builds it anew for each of them.
    _recursive_: bool = False
    n_trials: int = MISSING
    n_jobs: int = 1
    storage: str | None = None
    sampler: Any = None
    pruner: Any = None
    params: dict[str, str] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="optuna4", node=Optuna4Config, provider="cifar-pipeline")


class Optuna4Sweeper(Sweeper):
    """Launch the trials that a search proposes, in batches."""

    def __init__(self, **options: Any) -> None:
        # The callback of a sweep has read and checked the options before.
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Build the launcher of the jobs. Called by Hydra."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search that the callback of the sweep has opened. Called by Hydra with the command line."""
        from cifar_pipeline.sweeps.search import current_search

        assert self.config is not None and self.launcher is not None
        search, folder = current_search(), Path(self.config.hydra.sweep.dir)
        assert search is not None
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        for trials in search.batches():
            overrides = [search.overrides(trial) for trial in trials]
            self.validate_batch_is_legal(overrides)
            for job in self.launcher.launch(overrides, initial_job_idx=trials[0].number):
                _ = job.return_value  # raises what the job has raised
            search.require_results(trials)
