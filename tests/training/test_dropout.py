"""Dropout masks differ between seeds, epochs and ranks."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_training import start
from torch import Tensor, nn

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.finetuning import FineTuning
from cifar_pipeline.training.module import Classifier
from cifar_pipeline.training.setup import build_module
from helpers.config_project import Project


class Dropping(nn.Module):
    """A network that records its dropout masks."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(0.5), nn.Linear(channels * size**2, classes)
        self.masks: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        flat = torch.flatten(images, 1)
        if self.training:
            self.masks.append(self.dropout(torch.ones_like(flat)) > 0)
        logits: Tensor = self.linear(flat)
        return logits


def masks(project: Project, digits: Dataset, seed: int) -> list[Tensor]:
    config = project.compose(f"seed={seed}", "trainer.batch_size=45", "trainer.max_epochs=2")
    training = start(project, config, digits, project.folder / f"seed {seed}")
    network = Dropping(3, digits.shape[0], len(digits.classes))
    training.module.net.net = network  # type: ignore[assignment]
    training.run()
    return network.masks


def test_seeds_4096_apart_and_epochs_drop_other_inputs(project: Project, digits: Dataset) -> None:
    seen = [mask for seed in (1, 4097, 8193) for mask in masks(project, digits, seed)]
    assert len(seen) == 3 * 2 * 2
    assert len({mask.numpy().tobytes() for mask in seen}) == len(seen)


@pytest.mark.parametrize("seed", [0, 4095, 2**32 - 1])
def test_each_rank_draws_its_own_dropout_masks(project: Project, digits: Dataset, seed: int) -> None:
    module = build_module(project.compose(f"seed={seed}"), digits)

    def drawn(rank: int, epoch: int) -> tuple[float, ...]:
        # A stand-in for the trainer of that rank, without another process.
        trainer: Any = SimpleNamespace(global_rank=rank, current_epoch=epoch, max_epochs=3, max_steps=-1)
        process = SimpleNamespace(
            seed=seed,
            current_epoch=epoch,
            trainer=trainer,
            steps_per_epoch=lambda: 1,
            fine_tuning=FineTuning(),
            net=nn.Identity(),
        )
        Classifier.on_train_epoch_start(process)  # type: ignore[arg-type]
        return tuple(nn.functional.dropout(torch.ones(64), 0.5).tolist())

    assert module.seed == seed
    drawn_masks = [drawn(rank, epoch) for rank in range(8) for epoch in range(3)]
    assert len(set(drawn_masks)) == len(drawn_masks)
    assert drawn_masks[0] == drawn(0, 0)
