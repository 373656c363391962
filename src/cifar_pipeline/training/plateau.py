"""Learning rate scheduler that goes by a metric; apart from the others, because Lightning takes seconds to import."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class ReduceLROnPlateau(Callback):
    """Reduce the learning rate when a metric has not improved for some epochs: `torch.optim.lr_scheduler`'s, saved.

    Args:
        monitor: the metric, in epochs that log it.
        mode: whether larger or smaller values of it are better, `max` or `min`.
        factor: of each reduction.
        patience: epochs without an improvement before a reduction.
        threshold: changes of at most this size are no improvement.
        cooldown: epochs after a reduction that do not count.
        min_factor: the smallest factor of `optimizer.lr`.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["max", "min"],
        factor: float,
        patience: int,
        threshold: float,
        cooldown: int,
        min_factor: float,
    ) -> None:
        self.monitor = monitor
        # Of an optimizer with the learning rate 1, the reduced learning rate is the factor.
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer,
            mode,
            factor,
            patience,
            threshold,
            "abs",
            cooldown,
            min_factor,
        )

    def __call__(self, step: int, steps: int) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            self.plateau.step(float(trainer.callback_metrics[self.monitor]))

    def state_dict(self) -> dict[str, Any]:
        return {"plateau": self.plateau.state_dict(), "factor": self(0, 1)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.plateau.load_state_dict(state_dict["plateau"])
        self.optimizer.param_groups[0]["lr"] = state_dict["factor"]
