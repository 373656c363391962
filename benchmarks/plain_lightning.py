"""Baseline: Lightning as in its introduction: the tutorial's DataLoader, `self.log` in each step, progress bar.

    python benchmarks/plain_lightning.py --steps 1000

The bar goes to /dev/null. Logger and checkpoints are Lightning's defaults.
"""

import os
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import CLASSES, LR, MOMENTUM, WARM_UP, parser, print_step_result, since_start
from lightning.pytorch import Callback, LightningModule, Trainer
from models import LeNet
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision_loader import build_loader


class LitLeNet(LightningModule):
    """LeNet as a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.net = LeNet(channels=3, size=32, classes=CLASSES)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = cross_entropy(self.net(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LR, momentum=MOMENTUM)


class Clock(Callback):
    """Record the time after the warm-up and after the last step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start_up = since_start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == WARM_UP:
            self.start = time.perf_counter()
        self.end = time.perf_counter()


options = parser(__doc__).parse_args()
clock = Clock()
with (
    TemporaryDirectory() as folder,
    Path(os.devnull).open("w", encoding="utf-8") as devnull,
    redirect_stdout(devnull),
    redirect_stderr(devnull),
):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=WARM_UP + options.steps,
        callbacks=[clock],
        default_root_dir=folder,
    )
    trainer.fit(LitLeNet(), build_loader(options.data, options.batch_size))
print_step_result(clock.start_up, clock.end - clock.start, options.steps, options.batch_size)
