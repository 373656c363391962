"""Weight averaging over the training steps (EMA, SWA), as callbacks for conf/weight_averaging/.

The average is validated and exported in place of the last weights. Checkpoints hold it, so a resumed training ends with
the same average.
"""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_avg_fn

from cifar_pipeline.utils.errors import UserError


class ExponentialMovingAverage(WeightAveraging):
    """Average the weights exponentially (EMA) after each step, starting from the weights after the first.

    `average <- decay * average + (1 - decay) * theta`.

    Raises:
        UserError: `decay` is not at least 0 and below 1.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"weight_averaging.decay={decay} must be at least 0 and below 1.")
        super().__init__(avg_fn=get_ema_avg_fn(decay))  # type: ignore[no-untyped-call]


class StochasticWeightAveraging(WeightAveraging):
    """Average the weights of all steps (SWA) after the fraction `start_fraction`; until then, use the last weights.

    Raises:
        UserError: `start_fraction` is not at least 0 and below 1.
    """

    def __init__(self, start_fraction: float) -> None:
        if not 0 <= start_fraction < 1:
            raise UserError(
                f"weight_averaging.start_fraction={start_fraction} must be at least 0 and below 1, "
                "as a fraction of all steps."
            )
        super().__init__()
        self.start_fraction = start_fraction
        self.first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first_step = int(self.start_fraction * float(trainer.estimated_stepping_batches))

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether a step was taken; until the average begins, also reset it to that step's weights."""
        if step_idx is not None and step_idx <= self.first_step and self._average_model is not None:
            self._average_model.n_averaged.zero_()
        return step_idx is not None
