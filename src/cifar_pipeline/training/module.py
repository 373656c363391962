"""Lightning module for image classification, independent of the model, loss, optimizer and scheduler it is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer
from torchmetrics import MetricCollection

from cifar_pipeline.data.loader import rank_batch_size
from cifar_pipeline.data.random_streams import RandomStream, seed_torch
from cifar_pipeline.training.checkpoints import load_weights
from cifar_pipeline.training.finetuning import FineTuning, head_of
from cifar_pipeline.utils.errors import UserError

Batch = tuple[Tensor, Tensor]
Scheduler = Callable[[int, int], float]

# Batches between two checks for a NaN loss: each check synchronizes the GPU.
NAN_CHECK_INTERVAL = 100


@dataclass(frozen=True)
class OptimizerConfig:
    """How to build the optimizer.

    Args:
        build: takes the parameters, or groups of them.
        full_batch: whether one step uses the whole train split.
        weight_decay: the optimizer's own; None if it has none.
        takes_network: whether `build` takes the network, from which it makes groups itself, instead of parameters.
    """

    build: Callable[..., Optimizer]
    full_batch: bool
    weight_decay: float | None = None
    takes_network: bool = False


class Classifier(LightningModule):
    """Train `net` on batches of raw images `[N, H, W, C] uint8` and labels `[N] int64`, or `[N, K] float32` if mixed.

    Args:
        net: maps raw images to logits `[N, K]`.
        loss: maps logits `[N, K]` and labels `[N]` to the mean over the images.
        optimizer: how to build the optimizer, and whether one step is one epoch.
        scheduler: maps (step, total steps) to a factor of the learning rate; a pure function, so checkpoints hold no
            state of it.
        seed: seeds the randomness inside the model (dropout), together with the epoch and the rank.
        metrics: of torchmetrics, for validation, each with a scalar value; None: loss and accuracy only.
        activation: maps logits to the probabilities that `metrics` take.
        fine_tuning: which layers train in which epoch, and their learning rates.
        takes_features: whether the batches are features of a frozen network instead of images.

    Raises:
        UserError: the loss became NaN or infinite.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        optimizer: OptimizerConfig,
        scheduler: Scheduler,
        seed: int,
        metrics: MetricCollection | None = None,
        activation: Callable[[Tensor], Tensor] = nn.Identity(),  # noqa: B008
        fine_tuning: FineTuning = FineTuning(),  # noqa: B008
        takes_features: bool = False,
    ) -> None:
        super().__init__()
        # In a tuple, so that they are no layers of the model, in its summary and for FSDP.
        self.metrics_holder, self.activation = (metrics,), activation
        self.net = net.to(memory_format=torch.channels_last)
        self.loss, self.optimizer, self.scheduler, self.seed = loss, optimizer, scheduler, seed
        self.fine_tuning, self.takes_features = fine_tuning, takes_features
        if fine_tuning.is_head_only:
            # Before the strategy looks for the parameters that have a gradient.
            fine_tuning.apply(self.net, 0)
        self.train_sums = RunningMetrics()
        self.val_sums = RunningMetrics()
        self.resume_state: dict[str, Any] | None = None

    @property
    def val_metrics(self) -> MetricCollection | None:
        """The further metrics of validation."""
        return self.metrics_holder[0]

    @property
    def engine(self) -> str:
        """The engine that ran the steps of this process, `eager` or `compiled`."""
        return "eager"

    def load_checkpoint(self, path: Path) -> None:
        """Load the weights of a checkpoint; only tensors and plain values are unpickled.

        Raises `UserError` where the file is damaged.
        """
        self.load_state_dict(load_weights(path))

    def configure_optimizers(self) -> Optimizer:
        optimizer = build_optimizer(self.optimizer, self.fine_tuning, self.net)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"] = group["lr"] * group.pop("lr_scale", 1.0)
        return optimizer

    def compute_logits(self, inputs: Tensor) -> Tensor:
        """Compute logits `[N, K]` of raw images, or of features if the batches have those."""
        logits: Tensor = head_of(self.net, self.fine_tuning.head)(inputs) if self.takes_features else self.net(inputs)
        return logits

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epoch_so_far"] = self.mid_epoch_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.resume_state = checkpoint["epoch_so_far"]

    def mid_epoch_state(self) -> dict[str, Any]:
        """Return the state needed to resume within this epoch that Lightning does not save itself."""
        random = self.all_gather_objects(random_state(self.device))
        sums = vars(self.all_reduce_metrics(self.train_sums))
        return {"steps_per_chunk": 0, "sums": sums, "random": random[0], "others_random": random[1:]}

    def restore_mid_epoch_state(self, state: dict[str, Any]) -> None:
        """Restore what `mid_epoch_state` returned."""
        rank, random = self.trainer.global_rank, [state["random"], *state.get("others_random", [])]
        if rank == 0:
            vars(self.train_sums).update(state["sums"])
        if rank < len(random):
            set_random_state(self.device, random[rank])

    def on_train_start(self) -> None:
        # Lightning does not call on_train_epoch_start for an epoch that it resumes.
        if self.trainer.fit_loop.restarted_mid_epoch:
            assert self.resume_state is not None
            self.on_train_epoch_start()
            self.restore_mid_epoch_state(self.resume_state)

    def on_train_epoch_start(self) -> None:
        seed_torch(self.seed, RandomStream.NETWORK, self.current_epoch, self.trainer.global_rank)
        self.fine_tuning.apply(self.net, self.current_epoch)
        self.train_sums = RunningMetrics()
        self.epoch_steps = self.steps_per_epoch()
        self.total_steps = self.epoch_steps * (self.trainer.max_epochs or 1)
        if self.trainer.max_steps > 0:
            self.total_steps = min(self.total_steps, self.trainer.max_steps)

    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps in an epoch."""
        loader: Any = self.trainer.train_dataloader
        # trainer.limit_train_batches may leave some images out.
        self.images_per_epoch = min(len(loader.labels), loader.batch_size * int(self.trainer.num_training_batches))
        self.micro_batch_size = loader.batch_size
        self.batch_size = min(self.images_per_epoch, loader.batch_size * self.trainer.accumulate_grad_batches)
        return -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        step = batch_index // self.trainer.accumulate_grad_batches
        self.set_lr(self.current_epoch * self.epoch_steps + step)

    def set_lr(self, step: int) -> None:
        """Set the learning rate of a step, counted from the first step of the training."""
        factor = self.scheduler(step, self.total_steps)
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            group["lr"] = group["initial_lr"] * factor

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        images, labels = batch
        logits = self.compute_logits(images)
        loss: Tensor = self.loss(logits, labels)
        local = self.local_batch_size(
            len(labels), self.images_per_epoch - batch_index * self.micro_batch_size, self.micro_batch_size
        )
        if local:
            self.train_sums.add(loss, logits, labels)
        if batch_index % NAN_CHECK_INTERVAL == 0:
            self.check_finite_loss()
        micro_batches, world_size = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if micro_batches * world_size > 1:
            # Lightning averages over micro-batches and ranks, which may differ in size: weight them by their images.
            before = batch_index // micro_batches * self.batch_size
            loss = loss * (local * micro_batches * world_size / min(self.batch_size, self.images_per_epoch - before))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_index: int) -> None:
        # Not in on_train_epoch_end, which Lightning calls on most callbacks before the module.
        if is_epoch_ending(self.trainer):
            self.log_epoch_metrics("train", self.train_sums)

    def on_validation_epoch_start(self) -> None:
        self.val_sums = RunningMetrics()
        if self.val_metrics is not None:
            self.val_metrics.to(self.device).reset()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        images, labels = batch
        logits = self.compute_logits(images)
        loader: Any = self.trainer.val_dataloaders
        if self.local_batch_size(len(labels), len(loader.labels) - batch_index * loader.batch_size, loader.batch_size):
            self.val_sums.add(self.loss(logits, labels), logits, labels)
            if self.val_metrics is not None:
                self.val_metrics.update(self.activation(logits.float()), labels)

    def on_validation_batch_end(self, outputs: Any, batch: Batch, batch_index: int, dataloader_index: int = 0) -> None:
        if batch_index + 1 == self.num_validation_batches():
            computed = self.val_metrics.compute() if self.val_metrics is not None else {}
            self.log_epoch_metrics("val", self.val_sums, {name: float(value) for name, value in computed.items()})

    def num_validation_batches(self) -> int:
        """Return the number of batches of the validation that is running, which may be the check before a training."""
        trainer = self.trainer
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        return int(batches[0])

    def log_epoch_metrics(
        self, split: str, sums: "RunningMetrics", computed: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Log loss and accuracy of an epoch over all ranks as `SPLIT/loss` and `SPLIT/accuracy`, for any callback.

        They are not sent to loggers: `callbacks.EpochHistory` does that, with the epoch as the step. Lightning would
        convert numbers, but not tensors, to single precision.

        Args:
            split: `train` or `val`.
            sums: of the epoch on this rank.
            computed: further metrics, over all ranks.

        Raises `UserError` if a loss is NaN or infinite.
        """
        self.check_finite_loss()
        values = self.all_reduce_metrics(sums).compute() | dict(computed)
        metrics = {f"{split}/{name}": torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        self.log_dict(metrics, logger=False, batch_size=1)

    def local_batch_size(self, images: int, remaining: int, global_batch_size: int) -> int:
        """Return how many of this rank's images count, excluding padding images that only keep the ranks in lockstep.

        Args:
            images: images in this rank's batch.
            remaining: images of the epoch from this batch on, over all ranks.
            global_batch_size: images in a full batch, over all ranks.
        """
        world_size = self.trainer.world_size
        if world_size == 1:
            return images
        return rank_batch_size(min(remaining, global_batch_size), self.trainer.global_rank, world_size)

    def all_reduce_metrics(self, sums: "RunningMetrics") -> "RunningMetrics":
        """Sum the metrics over all ranks."""
        if self.trainer.world_size == 1:
            return sums
        values = torch.stack(
            [torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in vars(sums).values()]
        )
        dist.all_reduce(values)
        total = RunningMetrics()
        total.update_sums(values[0], values[1].long(), int(values[2]))
        return total

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Return the value of each rank, in the order of the ranks."""
        values = [value] * self.trainer.world_size
        if len(values) > 1:
            dist.all_gather_object(values, value)
        return values

    def check_finite_loss(self) -> None:
        """Raise `UserError` if a training or validation loss of this epoch is NaN or infinite."""
        total = float(self.all_reduce_metrics(self.train_sums).loss + self.all_reduce_metrics(self.val_sums).loss)
        if total != total or abs(total) == float("inf"):
            lr = self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"]  # type: ignore[union-attr]
            raise UserError(
                f"Loss became NaN or infinite in epoch {self.current_epoch + 1} (lr {lr:g}). "
                "Lower optimizer.lr or set trainer.gradient_clip_val."
            )


def build_optimizer(config: OptimizerConfig, fine_tuning: FineTuning, model: nn.Module) -> Optimizer:
    """Build the optimizer of a model's parameters that train in some epoch."""
    if config.takes_network:
        return config.build(getattr(model, "net", model))
    return config.build(fine_tuning.parameters(model, config.weight_decay))


def is_epoch_ending(trainer: Trainer) -> bool:
    """Return whether the present batch is the last one of its epoch: by its number, or by an early stop."""
    loop = trainer.fit_loop
    return loop.epoch_loop._is_training_done or (trainer.should_stop and loop._can_stop_early)


def random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the random generators of the CPU and of a CUDA device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu(), device)


def largest_share(labels: Tensor) -> Tensor:
    """Return labels `[N] int64`: of mixed labels `[N, K] float` the one with the largest share."""
    return labels.argmax(1) if labels.ndim == 2 else labels


class RunningMetrics:
    """Sums of loss and correct predictions, kept as tensors on the device so that no step waits for a number."""

    def __init__(self) -> None:
        self.loss = torch.zeros((), dtype=torch.float64)
        self.correct = torch.zeros((), dtype=torch.int64)
        self.images = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch, given its mean loss (scalar), logits `[N, K]` and labels `[N]`, or `[N, K]` if mixed.

        Of mixed labels the one with the largest share counts as the correct one.
        """
        self.loss = self.loss + loss.detach().double() * len(labels)
        self.correct = self.correct + (logits.detach().argmax(1) == largest_share(labels)).sum()
        self.images += len(labels)

    def update_sums(self, loss: Tensor, correct: Tensor, images: int) -> None:
        """Add several batches, given the sums of the losses and the correct predictions of their images."""
        self.loss = self.loss + loss
        self.correct = self.correct + correct
        self.images += images

    def compute(self) -> dict[str, float]:
        """Return mean loss and accuracy over all images added."""
        return {"loss": float(self.loss) / self.images, "accuracy": float(self.correct) / self.images}
