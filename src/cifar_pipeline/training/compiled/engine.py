"""Select the engine of a training (eager or compiled steps), and the Lightning module that runs compiled steps."""

import logging
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
from cifar_pipeline.utils.console import clear_status, status
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """The engine that runs the optimizer steps of a training.

    Args:
        name: `eager` (Lightning's automatic optimization, with all its features) or `compiled` (`step.CompiledSteps`).
        reason: why it was selected.
        steps_per_block: optimizer steps in one CUDA graph; 1 on a CPU, where each step is a call of compiled code.
        steps_per_chunk: batches that the compiled engine takes as one of Lightning's batches.
    """

    name: str
    reason: str
    steps_per_block: int
    steps_per_chunk: int

    def __str__(self) -> str:
        blocks = f" in blocks of {self.steps_per_block} steps" if self.is_compiled and self.steps_per_block > 1 else ""
        return f"{self.name}{blocks} ({self.reason})"

    @property
    def is_compiled(self) -> bool:
        """Whether the optimizer steps are compiled."""
        return self.name == "compiled"


# The values of conf/trainer that the compiled engine supports, because it takes many steps as one of
# Lightning's batches.
EAGER_KEYS = {
    "gradient_clip_val": None,
    "limit_train_batches": None,
    "micro_batch_size": None,
    "accumulate_grad_batches": 1,
    "max_steps": -1,
    "min_steps": None,
    "overfit_batches": 0,
    "fast_dev_run": False,
    "val_check_interval": 1.0,
    "detect_anomaly": False,
}
EAGER = Engine("eager", "requested", 1, 0)


def select_engine(config: DictConfig, hardware: Hardware, train_images: int, batch_callback: str = "") -> Engine:
    """Select the engine by conf/runtime: compiled if steps are small and numerous enough to pay off the compilation.

    Args:
        config: the composed configuration.
        hardware: of the training.
        train_images: images of the train split.
        batch_callback: name of a callback that needs single batches; empty for none.

    Raises `UserError` if the compiled engine is requested but not supported.
    """
    runtime = config.runtime
    # Capturing a CUDA graph takes no time and pays off at larger batches, too.
    on_gpu = hardware.accelerator == "cuda"
    prefix = "cuda_graph" if on_gpu else "compile"
    batch_size = config.trainer.batch_size
    steps = config.trainer.max_epochs * (train_images // batch_size)
    unsupported = _unsupported_reason(config, hardware, batch_callback)
    if runtime.engine == "compiled" and unsupported:
        raise UserError(f"runtime.engine=compiled is not supported here: {unsupported}; use auto or eager.")
    if runtime.engine != "auto":
        name, reason = runtime.engine, "requested"
    elif unsupported:
        name, reason = "eager", unsupported
    elif batch_size > runtime[f"{prefix}_max_batch_size"]:
        name, reason = "eager", f"batches of {batch_size} gain nothing from compiling"
    elif steps < runtime[f"{prefix}_min_steps"]:
        name, reason = "eager", f"{steps:,} steps are too few to pay off the compilation"
    else:
        name, reason = "compiled", f"{steps:,} steps of {batch_size} images"
    chunk = min(runtime.steps_per_chunk, runtime.log_every_n_steps or runtime.steps_per_chunk)
    return Engine(name, reason, min(chunk, runtime.cuda_graph_steps) if on_gpu else 1, chunk)


def _unsupported_reason(config: DictConfig, hardware: Hardware, batch_callback: str) -> str:
    """Return why the compiled engine does not support this training; empty if it does."""
    trainer = config.trainer
    if hardware.devices > 1:
        return "several processes share each batch"
    precisions = {"cpu": ("32-true",), "cuda": ("32-true", "bf16-mixed")}.get(hardware.accelerator)
    if precisions is None:
        return f"compiled steps need a CPU or CUDA, and the accelerator is {hardware.accelerator}"
    if hardware.precision not in precisions:
        return f"compiled steps need precision {' or '.join(precisions)}, not {hardware.precision}"
    if config.optimizer.get("full_batch"):
        return "optimizer.full_batch accumulates gradients over micro-batches"
    finetune = config.finetune
    if finetune.unfreeze_backbone_at_epoch != 0 or finetune.layer_decay != 1 or finetune.freeze_batch_norm:
        return "fine-tuning takes no compiled steps"
    for key, default in EAGER_KEYS.items():
        if trainer[key] != default:
            return f"trainer.{key} needs the eager engine"
    if config.weight_averaging._target_ is not None:
        return "weight averaging needs the eager engine"
    if hardware.accelerator == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
        return "there is no C++ compiler"
    return f"callbacks.{batch_callback} looks at single batches" if batch_callback else ""


class CompiledClassifier(Classifier):
    """Train like `Classifier` with compiled steps, on chunks of S batches, `[S, B, H, W, C] uint8` and `[S, B] int64`.

    Steps that do not fill a block (the rest of an epoch, a smaller batch, the very first step, which creates the state
    of the optimizer) run eagerly.
    """

    def __init__(self, *args: Any, steps_per_block: int, steps_per_chunk: int) -> None:
        super().__init__(*args)
        self.steps_per_block, self.steps_per_chunk = steps_per_block, steps_per_chunk
        self.automatic_optimization = False
        self.compiled_steps: CompiledSteps | None = None
        self.compile_failed = False
        self.batch_size = 0
        if not torch.cuda.is_available():
            # It takes some seconds, in which MLflow and Lightning start.
            small_conv.build_async()

    @property
    def engine(self) -> str:
        """`compiled`, or `eager` if nothing was compiled and all steps ran eagerly."""
        return "eager" if self.compiled_steps is None else "compiled"

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.steps_done = 0

    def mid_epoch_state(self) -> dict[str, Any]:
        return super().mid_epoch_state() | {"steps_per_chunk": self.steps_per_chunk, "taken": self.steps_done}

    def restore_mid_epoch_state(self, state: dict[str, Any]) -> None:
        super().restore_mid_epoch_state(state)
        self.steps_done = state["taken"]

    def steps_per_epoch(self) -> int:
        loader: Any = self.trainer.train_dataloader
        # Not that of the first batch seen: a training may resume at the last batch of an epoch, which is smaller.
        self.batch_size = loader.batches.batch_size
        return len(loader.batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # CUDA graphs need `capturable`, which fails when the checkpoint is resumed on a CPU.
        for state in checkpoint.get("optimizer_states", []):
            for group in state["param_groups"]:
                group.update({"capturable": False} if "capturable" in group else {})

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Do nothing, because the learning rate is set for each step of the chunk."""

    def training_step(self, batch: Batch, batch_index: int) -> None:  # type: ignore[override]
        images, labels = batch
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        done = 0
        if not optimizer.state:
            self._run_eager(optimizer, images[0], labels[0])
            done = 1
        if labels.shape[1] == self.batch_size:
            end = done + (len(labels) - done) // self.steps_per_block * self.steps_per_block
            done += self._run_compiled(optimizer, images[done:end], labels[done:end])
        for step in range(done, len(labels)):
            self._run_eager(optimizer, images[step], labels[step])
        self._advance_lightning_progress(len(labels))
        self.check_finite_loss()

    def _run_compiled(self, optimizer: Optimizer, images: Tensor, labels: Tensor) -> int:
        """Take the steps with compiled code, and return their number; 0 if they cannot be compiled."""
        if self.compile_failed or not len(labels):
            return 0
        first = self.current_epoch * self.epoch_steps + self.steps_done
        factors = [self.scheduler(step, self.total_steps) for step in range(first, first + len(labels))]
        initial = [group["initial_lr"] for group in optimizer.param_groups]
        lrs = torch.tensor([[lr * factor for lr in initial] for factor in factors], device=images.device)
        if self.compiled_steps is None:
            compiled_steps = CompiledSteps(self.net, self.loss, optimizer, self.steps_per_block)
            status("Compiling the training step (about fifteen seconds the first time, then one)")
            try:
                compiled_steps.compile(images, labels, lrs)
            except Exception as error:
                self.compile_failed = True
                reason = one_line(error)[:200]
                log.warning(f"Could not compile the training step; falling back to eager mode: {reason}")
                return 0
            clear_status()
            self.compiled_steps = compiled_steps
        loss, correct = self.compiled_steps(images, labels, lrs)
        self.train_sums.update_sums(loss * labels.shape[1], correct, labels.shape[0] * labels.shape[1])
        self.steps_done += len(labels)
        for group, lr in zip(optimizer.param_groups, initial, strict=True):
            group["lr"] = lr * factors[-1]
        return len(labels)

    def _run_eager(self, optimizer: Optimizer, images: Tensor, labels: Tensor) -> None:
        self.set_lr(self.current_epoch * self.epoch_steps + self.steps_done)
        optimizer.zero_grad()
        logits = self.net(images)
        loss: Tensor = self.loss(logits, labels)
        self.manual_backward(loss)
        optimizer.step()
        # Compiled steps leave no gradients either, so the state is the same after both.
        optimizer.zero_grad()
        self.train_sums.add(loss, logits, labels)
        self.steps_done += 1

    def _advance_lightning_progress(self, steps: int) -> None:
        """Count optimizer steps as automatic optimization does, for checkpoints, `max_steps` and loggers."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for counter in (progress.total, progress.current):
            counter.ready += steps
            counter.completed += steps
