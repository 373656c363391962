"""The Lightning module: one network, one loss, one optimizer and one schedule, whichever conf/ chose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from cifar_pipeline.data.loader import RandomStream, rank_batch_size, seed_torch
from cifar_pipeline.training.checkpoints import load_weights
from cifar_pipeline.training.optimizers import OptimizerConfig
from cifar_pipeline.utils.errors import UserError

Batch = tuple[Tensor, Tensor]
Scheduler = Callable[[int, int], float]

# Batches between two looks at whether the loss is still a number: a look makes a GPU wait.
NAN_CHECK_INTERVAL = 100


class Classifier(LightningModule):
    """Trains `net` on batches of raw images `[N, H, W, C] uint8` and labels `[N] int64`.

    Args:
        net: raw images to logits `[N, K]` (`models.pixels.RawPixels` around a network).
        loss: logits `[N, K]` and labels `[N]` to a mean over the images.
        optimizer: how to build the optimizer, and whether one step is one epoch.
        schedule: (step, all steps) to a factor of the learning rate; a pure function, so that nothing of it has to be
            kept when a training is broken off.
        seed: what the randomness inside the network (dropout) follows from, together with the epoch and the process.

    Raises:
        Refusal: the loss is no finite number any more.
    """

    def __init__(
        self, net: nn.Module, loss: nn.Module, optimizer: OptimizerConfig, schedule: Scheduler, seed: int
    ) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.loss, self.optimizer, self.schedule, self.seed = loss, optimizer, schedule, seed
        self.train_sums = RunningMetrics()
        self.val_sums = RunningMetrics()
        self.left_off: dict[str, Any] | None = None

    @property
    def engine(self) -> str:
        """How the steps have been run by this process."""
        return "eager"

    def load_checkpoint(self, path: Path) -> None:
        """Take the weights of a checkpoint, read without unpickling anything but tensors and plain values."""
        self.load_state_dict(load_weights(path))

    def configure_optimizers(self) -> Optimizer:
        optimizer = self.optimizer.build([p for p in self.net.parameters() if p.requires_grad])
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epoch_so_far"] = self.mid_epoch_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.left_off = checkpoint["epoch_so_far"]

    def mid_epoch_state(self) -> dict[str, Any]:
        """What a training that goes on within this epoch has to know of it, beside what Lightning keeps."""
        random = self.all_gather_objects(random_state(self.device))
        sums = vars(self.all_reduce_metrics(self.train_sums))
        return {"steps_per_chunk": 0, "sums": sums, "random": random[0], "others_random": random[1:]}

    def restore_mid_epoch_state(self, left_off: dict[str, Any]) -> None:
        """Take up an epoch where `epoch_so_far` was asked for."""
        rank, random = self.trainer.global_rank, [left_off["random"], *left_off.get("others_random", [])]
        if rank == 0:
            vars(self.train_sums).update(left_off["sums"])
        if rank < len(random):
            set_random_state(self.device, random[rank])

    def on_train_start(self) -> None:
        # Lightning does not announce an epoch again that it goes on with.
        if self.trainer.fit_loop.restarted_mid_epoch:
            assert self.left_off is not None
            self.on_train_epoch_start()
            self.restore_mid_epoch_state(self.left_off)

    def on_train_epoch_start(self) -> None:
        seed_torch(self.seed, RandomStream.NETWORK, self.current_epoch, self.trainer.global_rank)
        self.train_sums = RunningMetrics()
        self.epoch_steps = self.steps_per_epoch()
        self.all_steps = self.epoch_steps * (self.trainer.max_epochs or 1)

    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        loader: Any = self.trainer.train_dataloader
        # Lightning may take fewer batches than there are.
        self.epoch_images = min(len(loader.labels), loader.batch_size * int(self.trainer.num_training_batches))
        self.part_images = loader.batch_size
        self.step_images = min(self.epoch_images, loader.batch_size * self.trainer.accumulate_grad_batches)
        return -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        step = batch_index // self.trainer.accumulate_grad_batches
        self.set_lr(self.current_epoch * self.epoch_steps + step)

    def set_lr(self, step: int) -> None:
        """Set the learning rate of the step with this number, counted from the training's first."""
        factor = self.schedule(step, self.all_steps)
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            group["lr"] = group["initial_lr"] * factor

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        images, labels = batch
        logits = self.net(images)
        loss: Tensor = self.loss(logits, labels)
        own = self.local_batch_size(len(labels), self.epoch_images - batch_index * self.part_images, self.part_images)
        if own:
            self.train_sums.add(loss, logits, labels)
        if batch_index % NAN_CHECK_INTERVAL == 0:
            self.check_finite_loss()
        parts, processes = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if parts * processes > 1:
            # Lightning divides by the number of parts, and then of processes; what counts is their share of the step.
            before = batch_index // parts * self.step_images
            loss = loss * (own * parts * processes / min(self.step_images, self.epoch_images - before))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.val_sums = RunningMetrics()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        images, labels = batch
        logits = self.net(images)
        loader: Any = self.trainer.val_dataloaders
        if self.local_batch_size(len(labels), len(loader.labels) - batch_index * loader.batch_size, loader.batch_size):
            self.val_sums.add(self.loss(logits, labels), logits, labels)

    def on_validation_epoch_end(self) -> None:
        self.log("val/accuracy", self.all_reduce_metrics(self.val_sums).compute()["accuracy"], logger=False)

    def local_batch_size(self, images: int, left: int, together: int) -> int:
        """How many of the images of a batch are this process's own, and not there to keep step with the others.

        `left` are those of the epoch from this batch on, `together` those of a whole batch in all processes.
        """
        processes = self.trainer.world_size
        return images if processes == 1 else rank_batch_size(min(left, together), self.trainer.global_rank, processes)

    def all_reduce_metrics(self, sums: "RunningMetrics") -> "RunningMetrics":
        """The sums of all processes together."""
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
        """What each process has in this place."""
        values = [value] * self.trainer.world_size
        if len(values) > 1:
            dist.all_gather_object(values, value)
        return values

    def check_finite_loss(self) -> None:
        """Stop where the sum of an epoch's losses, in training or validation, is no finite number."""
        total = float(self.all_reduce_metrics(self.train_sums).loss + self.all_reduce_metrics(self.val_sums).loss)
        if total != total or abs(total) == float("inf"):
            lr = self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"]  # type: ignore[union-attr]
            raise UserError(
                f"The loss is no finite number any more in epoch {self.current_epoch + 1} (learning rate {lr:g}): "
                "write a smaller optimizer.lr, or a trainer.gradient_clip_val."
            )


def random_state(device: torch.device) -> list[Tensor]:
    """Where the random generators of the CPU and of this device are."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Put the random generators where they were."""
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu(), device)


class RunningMetrics:
    """Loss and right answers, added up as tensors on the device, so that no step waits for a number."""

    def __init__(self) -> None:
        self.loss = torch.zeros((), dtype=torch.float64)
        self.correct = torch.zeros((), dtype=torch.int64)
        self.images = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count one batch: its mean loss, logits `[N, K]`, labels `[N]`."""
        self.loss = self.loss + loss.detach().double() * len(labels)
        self.correct = self.correct + (logits.detach().argmax(1) == labels).sum()
        self.images += len(labels)

    def update_sums(self, loss: Tensor, right: Tensor, images: int) -> None:
        """Count several batches: the sum of the losses of their images, the right answers among them."""
        self.loss = self.loss + loss
        self.correct = self.correct + right
        self.images += images

    def compute(self) -> dict[str, float]:
        """Loss and accuracy over all images counted."""
        return {"loss": float(self.loss) / self.images, "accuracy": float(self.correct) / self.images}
