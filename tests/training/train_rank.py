"""Train as one rank that torchrun has started, and write what a callback found in it to rankN.json.

torchrun --nproc-per-node 2 train_rank.py DATA [overrides]
"""

import json
import sys
from pathlib import Path

import torch
from small_training import CPU, MetricReader

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.checkpoints import RunDir
from cifar_pipeline.training.distributed import detect_distributed
from cifar_pipeline.training.setup import TrainingSetup, build_datamodule, build_module
from cifar_pipeline.training.trainer import fit

torch.set_num_threads(1)
dataset, config = Dataset.open(Path(sys.argv[1])), compose_config(sys.argv[2:])
ranks = detect_distributed(config.trainer, "cpu")
# Each rank has its own directory, to see which of them write to it; its name is the fingerprint.
run_dir, reader = RunDir(Path(f"rank{ranks.rank}") / "training"), MetricReader()
run_dir.path.mkdir(parents=True)
module, datamodule = build_module(config, dataset), build_datamodule(config, dataset)
file = run_dir.path.parent / "history.csv"
setup = TrainingSetup(
    module, datamodule, config.trainer, CPU, run_dir, distributed=ranks, history_file=file, callbacks={"reader": reader}
)
rows = fit(setup).rows
history = file.read_text() if file.exists() else None
Path(f"rank{ranks.rank}.json").write_text(
    json.dumps({"seen": reader.seen, "rows": rows, "history": history}), encoding="utf-8"
)
