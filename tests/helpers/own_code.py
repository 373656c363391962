"""Train with an option of conf/ as the stage `train` does, for the tests that `python src/new.py` writes."""

import tempfile
from dataclasses import replace
from pathlib import Path

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.checkpoints import EpochMetrics, RunDir
from cifar_pipeline.training.compiled.engine import EAGER
from cifar_pipeline.training.distributed import SINGLE_PROCESS
from cifar_pipeline.training.hardware import Hardware
from cifar_pipeline.training.setup import build_callbacks, build_training
from cifar_pipeline.training.trainer import fit
from helpers.config_project import Project


def train(project: Project, dataset: Dataset, *overrides: str) -> list[EpochMetrics]:
    """Train on the CPU, without MLflow, and return the metrics of each epoch."""
    config = project.compose(*overrides)
    # A folder of its own, because a second training would resume the first.
    run_dir = RunDir(Path(tempfile.mkdtemp(dir=project.folder)))
    hardware = Hardware("cpu", 1, 1, "32-true", "test")
    callbacks = build_callbacks(config.callbacks)
    setup = build_training(config, dataset, hardware, EAGER, run_dir, SINGLE_PROCESS, callbacks)
    return fit(replace(setup, history_file=run_dir.path / "history.csv")).rows
