"""Measure this project's training (`fit` as src/train.py calls it, with checkpoints and a CSV logger).

    python benchmarks/pipeline.py --steps 0 --epochs 2 trainer.batch_size=4

Arguments without dashes are overrides of src/train.py. `--steps` limits an epoch (0: the whole epoch, required by the
compiled engine). The first epoch, which includes compilation, is not measured.
"""

import environment  # noqa: F401

# isort: split

import csv
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import anonymous_bytes, parser, print_result, since_start
from lightning.pytorch.loggers import Logger

from cifar_pipeline.config.compose import available_cores, compose_config
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.checkpoints import RunDir
from cifar_pipeline.training.compiled.engine import select_engine
from cifar_pipeline.training.hardware import select_hardware
from cifar_pipeline.training.setup import TrainingSetup, build_datamodule, build_module, micro_batch_size
from cifar_pipeline.training.trainer import fit
from cifar_pipeline.utils.console import configure_logging
from cifar_pipeline.utils.process import disable_malloc_trim


class EpochFile(Logger):
    """Write the metrics of each epoch to a CSV file, and record the time."""

    name, version = "epochs", 0

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ends: list[float] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.ends.append(time.perf_counter())
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([step, *metrics.values()])

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: a benchmark logs no hyperparameters."""


class InMemory(Dataset):
    """A data set that is copied into memory when a split is opened."""

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = super().split(name)
        return np.array(images), np.array(labels)


class MemorySampler(threading.Thread):
    """Sample the anonymous memory of this process twenty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous_bytes() / 10**9)
            time.sleep(0.05)


arguments = parser(__doc__)
arguments.add_argument("--in-memory", action="store_true", help="copy the data set into memory first")
arguments.add_argument("--epochs", type=int, default=2, help="epochs, of which all but the first are measured")
arguments.add_argument("overrides", nargs="*")
options = arguments.parse_args()

disable_malloc_trim()
configure_logging()
# Resolve `auto` for the full recipe, before its epochs are shortened below.
config = compose_config([*options.overrides, "runtime.accelerator=cpu"])
sampler = MemorySampler()
sampler.start()
dataset = Dataset.open(options.data)
if options.in_memory:
    dataset = InMemory(**vars(dataset))
hardware = select_hardware(config.runtime, config.precision, available_cores(), micro_batch_size(config))
engine = select_engine(config, hardware, dataset.sizes["train"])
module = build_module(config, dataset, engine)
datamodule = build_datamodule(config, dataset, engine)
values = {**config.trainer, "max_epochs": options.epochs}
if options.steps:
    values |= {"limit_train_batches": options.steps, "limit_val_batches": 1}
with TemporaryDirectory() as folder:
    logger = EpochFile(Path(folder) / "epochs.csv")
    start_up, start = since_start(), time.perf_counter()
    fitted = fit(TrainingSetup(module, datamodule, values, hardware, RunDir(Path(folder))), [logger])
rows = fitted.rows[1:]
print_result(
    start_up=start_up,
    first_epoch=logger.ends[0] - start,
    # From the end of one epoch to the end of the next: training, validation, logging, two checkpoints.
    seconds=(logger.ends[-1] - logger.ends[0]) / len(rows),
    # The training only, as in the baselines.
    images_per_second=sum(row["images_per_second"] for row in rows) / len(rows),
    anonymous_gigabytes=sampler.peak,
    engine=str(engine),
    threads=hardware.threads,
)
