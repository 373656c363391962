"""The Lightning module whose unit of work is a chunk of batches, run in compiled blocks of optimizer steps."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from cifar_pipeline.console import doing, finish, warn
from cifar_pipeline.training.engines import small_convolutions
from cifar_pipeline.training.engines.blocks import Block
from cifar_pipeline.training.module import Batch, Classifier


class BlockClassifier(Classifier):
    """Trains like `Classifier`, on chunks `[S, B, H, W, C] uint8` and `[S, B] int64`, in blocks of `block_steps` steps.

    What makes no whole block (an epoch's end, a smaller batch, the very first step, which makes the optimizer's state)
    is stepped one by one.
    """

    def __init__(self, *arguments: Any, block_steps: int, chunk_steps: int) -> None:
        super().__init__(*arguments)
        self.block_steps, self.chunk_steps = block_steps, chunk_steps
        self.automatic_optimization = False
        self.block: Block | None = None
        self.impossible = False
        self.batch_size = 0
        if not torch.cuda.is_available():
            # It takes some seconds, in which MLflow and Lightning can get ready.
            small_convolutions.building()

    @property
    def engine(self) -> str:
        """`plain` where no block has been compiled: all steps were single ones then."""
        return "plain" if self.block is None else "block"

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.taken = 0

    def epoch_so_far(self) -> dict[str, Any]:
        return super().epoch_so_far() | {"chunk_steps": self.chunk_steps, "taken": self.taken}

    def go_on(self, left_off: dict[str, Any]) -> None:
        super().go_on(left_off)
        self.taken = left_off["taken"]

    def steps_per_epoch(self) -> int:
        loader: Any = self.trainer.train_dataloader
        # Not that of the first batch seen: a training may go on at an epoch's last, which is smaller.
        self.batch_size = self.step_images = loader.batches.batch_size
        return len(loader.batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # What a recording needs of an optimizer, stepping on a CPU can't do.
        for state in checkpoint.get("optimizer_states", []):
            for group in state["param_groups"]:
                group.update({"capturable": False} if "capturable" in group else {})

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """The learning rates are set step by step, within the chunk."""

    def training_step(self, batch: Batch, batch_index: int) -> None:  # type: ignore[override]
        images, labels = batch
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        done = 0
        if not optimizer.state:
            self._step(optimizer, images[0], labels[0])
            done = 1
        if labels.shape[1] == self.batch_size:
            end = done + (len(labels) - done) // self.block_steps * self.block_steps
            done += self._blocks(optimizer, images[done:end], labels[done:end])
        for step in range(done, len(labels)):
            self._step(optimizer, images[step], labels[step])
        self._tell_lightning(len(labels))
        self.refuse_infinite_loss()

    def _blocks(self, optimizer: Optimizer, images: Tensor, labels: Tensor) -> int:
        """Take the steps in blocks, and return how many: none where they can't be compiled."""
        if self.impossible or not len(labels):
            return 0
        first = self.current_epoch * self.epoch_steps + self.taken
        factors = [self.schedule(step, self.all_steps) for step in range(first, first + len(labels))]
        initial = [group["initial_lr"] for group in optimizer.param_groups]
        lrs = torch.tensor([[lr * factor for lr in initial] for factor in factors], device=images.device)
        if self.block is None:
            block = Block(self.net, self.loss, optimizer, self.block_steps)
            doing("Compiling the steps (some fifteen seconds the first time, one from then on)")
            try:
                block.compile(images, labels, lrs)
            except Exception as error:
                self.impossible = True
                warn(f"The steps go one by one, for they can't be compiled: {' '.join(str(error).split())[:200]}")
                return 0
            finish()
            self.block = block
        loss, right = self.block(images, labels, lrs)
        self.train_sums.add_sums(loss * labels.shape[1], right, labels.numel())
        self.taken += len(labels)
        for group, lr in zip(optimizer.param_groups, initial, strict=True):
            group["lr"] = lr * factors[-1]
        return len(labels)

    def _step(self, optimizer: Optimizer, images: Tensor, labels: Tensor) -> None:
        self.set_lr(self.current_epoch * self.epoch_steps + self.taken)
        optimizer.zero_grad()
        logits = self.net(images)
        loss: Tensor = self.loss(logits, labels)
        self.manual_backward(loss)
        optimizer.step()
        # A block leaves no gradients behind either, so that a checkpoint and what follows see the same.
        optimizer.zero_grad()
        self.train_sums.add(loss, logits, labels)
        self.taken += 1

    def _tell_lightning(self, steps: int) -> None:
        """Count optimizer steps as automatic optimization does: checkpoints, `max_steps` and loggers go by them."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for counted in (progress.total, progress.current):
            counted.ready += steps
            counted.completed += steps
