"""The one rule that picks how a training's steps are run: plain, one by one, or as compiled blocks of several.

The Lightning module whose unit of work is a chunk of batches, run in compiled blocks of optimizer steps.
"""

import os
import shutil
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.optim import Optimizer

from cifar_pipeline.training.compiled import small_conv
from cifar_pipeline.training.compiled.step import CompiledSteps
from cifar_pipeline.training.hardware import Hardware
from cifar_pipeline.training.module import Batch, Classifier
from cifar_pipeline.utils.console import clear_status, status, warning
from cifar_pipeline.utils.errors import UserError


@dataclass(frozen=True)
class Engine:
    """`eager`: Lightning's automatic optimization, every feature of it. `compiled`: compiled blocks (`blocks.Block`).

    `block_steps` optimizer steps are one compiled function, or one CUDA graph; `steps_per_chunk` are what Lightning sees as
    one batch.
    """

    name: str
    reason: str
    steps_per_block: int
    steps_per_chunk: int

    def __str__(self) -> str:
        several = f"in blocks of {self.steps_per_block}" if self.steps_per_block > 1 else "compiled"
        what = several if self.is_compiled else "one by one"
        return f"{what} ({self.reason})"

    @property
    def is_compiled(self) -> bool:
        """Whether the steps are compiled."""
        return self.name == "compiled"


EAGER = Engine("eager", "asked for", 1, 0)


def select_engine(config: DictConfig, hardware: Hardware, train_images: int) -> Engine:
    """Choose by conf/runtime: blocks where a step is small and there are enough of them to pay back the compilation.

    Raises `Refusal` where blocks are asked for and can't be had.
    """
    machine = config.runtime
    # A recording of kernels on a GPU is made in no time and pays at larger batches, too.
    on_gpu = hardware.accelerator == "cuda"
    prefix = "cuda_graph" if on_gpu else "compile"
    batch_size = config.trainer.batch_size
    steps = config.trainer.max_epochs * (train_images // batch_size)
    obstacle = _unsupported_reason(config, hardware)
    if machine.engine == "compiled" and obstacle:
        raise UserError(f"runtime.engine=compiled is not supported here: {obstacle}; write auto or eager.")
    if machine.engine != "auto":
        name, reason = machine.engine, "asked for"
    elif obstacle:
        name, reason = "eager", obstacle
    elif batch_size > machine[f"{prefix}_max_batch_size"]:
        name, reason = "eager", f"batches of {batch_size} gain nothing from blocks"
    elif steps < machine[f"{prefix}_min_steps"]:
        name, reason = "eager", f"{steps:,} steps would not pay back a compilation"
    else:
        name, reason = "compiled", f"{steps:,} steps of {batch_size} images"
    return Engine(name, reason, machine.cuda_graph_steps if on_gpu else 1, machine.steps_per_chunk)


def _unsupported_reason(config: DictConfig, hardware: Hardware) -> str:
    """Why this training can't run in blocks; empty where it can."""
    trainer = config.trainer
    if hardware.devices > 1:
        return "several processes share each step"
    precisions = {"cpu": ("32-true",), "cuda": ("32-true", "bf16-mixed")}.get(hardware.accelerator)
    if precisions is None:
        return f"blocks are for CPUs and CUDA, and this runs on {hardware.accelerator}"
    if hardware.precision not in precisions:
        return f"blocks there are {' or '.join(precisions)}, and precision is {hardware.precision}"
    if config.optimizer.get("full_batch"):
        return "a full batch is accumulated in parts"
    if trainer.gradient_clip_val is not None or trainer.limit_train_batches is not None:
        return "trainer.gradient_clip_val and trainer.limit_train_batches need single steps"
    if trainer.micro_batch_size is not None:
        return "trainer.micro_batch_size needs single steps"
    if config.weight_averaging._target_ is not None:
        return "the weights are averaged after single steps"
    if hardware.accelerator == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
        return "there is no C++ compiler"
    return ""


class CompiledClassifier(Classifier):
    """Trains like `Classifier`, on chunks `[S, B, H, W, C] uint8` and `[S, B] int64`, in blocks of `block_steps` steps.

    What makes no whole block (an epoch's end, a smaller batch, the very first step, which makes the optimizer's state)
    is stepped one by one.
    """

    def __init__(self, *arguments: Any, steps_per_block: int, steps_per_chunk: int) -> None:
        super().__init__(*arguments)
        self.steps_per_block, self.steps_per_chunk = steps_per_block, steps_per_chunk
        self.automatic_optimization = False
        self.block: CompiledSteps | None = None
        self.compile_failed = False
        self.batch_size = 0
        if not torch.cuda.is_available():
            # It takes some seconds, in which MLflow and Lightning can get ready.
            small_conv.build_async()

    @property
    def engine(self) -> str:
        """`eager` where no block has been compiled: all steps were single ones then."""
        return "eager" if self.block is None else "compiled"

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.steps_done = 0

    def mid_epoch_state(self) -> dict[str, Any]:
        return super().mid_epoch_state() | {"steps_per_chunk": self.steps_per_chunk, "taken": self.steps_done}

    def restore_mid_epoch_state(self, left_off: dict[str, Any]) -> None:
        super().restore_mid_epoch_state(left_off)
        self.steps_done = left_off["taken"]

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
            end = done + (len(labels) - done) // self.steps_per_block * self.steps_per_block
            done += self._run_compiled(optimizer, images[done:end], labels[done:end])
        for step in range(done, len(labels)):
            self._step(optimizer, images[step], labels[step])
        self._advance_lightning_progress(len(labels))
        self.check_finite_loss()

    def _run_compiled(self, optimizer: Optimizer, images: Tensor, labels: Tensor) -> int:
        """Take the steps in blocks, and return how many: none where they can't be compiled."""
        if self.compile_failed or not len(labels):
            return 0
        first = self.current_epoch * self.epoch_steps + self.steps_done
        factors = [self.schedule(step, self.all_steps) for step in range(first, first + len(labels))]
        initial = [group["initial_lr"] for group in optimizer.param_groups]
        lrs = torch.tensor([[lr * factor for lr in initial] for factor in factors], device=images.device)
        if self.block is None:
            block = CompiledSteps(self.net, self.loss, optimizer, self.steps_per_block)
            status("Compiling the steps (some fifteen seconds the first time, one from then on)")
            try:
                block.compile(images, labels, lrs)
            except Exception as error:
                self.compile_failed = True
                warning(f"The steps go one by one, for they can't be compiled: {' '.join(str(error).split())[:200]}")
                return 0
            clear_status()
            self.block = block
        loss, right = self.block(images, labels, lrs)
        self.train_sums.update_sums(loss * labels.shape[1], right, labels.numel())
        self.steps_done += len(labels)
        for group, lr in zip(optimizer.param_groups, initial, strict=True):
            group["lr"] = lr * factors[-1]
        return len(labels)

    def _step(self, optimizer: Optimizer, images: Tensor, labels: Tensor) -> None:
        self.set_lr(self.current_epoch * self.epoch_steps + self.steps_done)
        optimizer.zero_grad()
        logits = self.net(images)
        loss: Tensor = self.loss(logits, labels)
        self.manual_backward(loss)
        optimizer.step()
        # A block leaves no gradients behind either, so that a checkpoint and what follows see the same.
        optimizer.zero_grad()
        self.train_sums.add(loss, logits, labels)
        self.steps_done += 1

    def _advance_lightning_progress(self, steps: int) -> None:
        """Count optimizer steps as automatic optimization does: checkpoints, `max_steps` and loggers go by them."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for counted in (progress.total, progress.current):
            counted.ready += steps
            counted.completed += steps
