"""The one rule that picks how a training's steps are run: plain, one by one, or as compiled blocks of several."""

import os
import shutil
from dataclasses import dataclass

from omegaconf import DictConfig

from cifar_pipeline.console import Refusal
from cifar_pipeline.training.hardware import Hardware


@dataclass(frozen=True)
class Engine:
    """`plain`: Lightning's automatic optimization, every feature of it. `block`: compiled blocks (`blocks.Block`).

    `block_steps` optimizer steps are one compiled function, or one CUDA graph; `chunk_steps` are what Lightning sees as
    one batch.
    """

    name: str
    reason: str
    block_steps: int
    chunk_steps: int

    def __str__(self) -> str:
        several = f"in blocks of {self.block_steps}" if self.block_steps > 1 else "compiled"
        what = several if self.is_block else "one by one"
        return f"{what} ({self.reason})"

    @property
    def is_block(self) -> bool:
        """Whether the steps are compiled."""
        return self.name == "block"


PLAIN = Engine("plain", "asked for", 1, 0)


def choose_engine(config: DictConfig, hardware: Hardware, train_images: int) -> Engine:
    """Choose by conf/machine: blocks where a step is small and there are enough of them to pay back the compilation.

    Raises `Refusal` where blocks are asked for and can't be had.
    """
    machine = config.machine
    # A recording of kernels on a GPU is made in no time and pays at larger batches, too.
    kind = "graph" if hardware.accelerator == "cuda" else "block"
    batch_size = config.trainer.batch_size
    steps = config.trainer.max_epochs * (train_images // batch_size)
    obstacle = _obstacle(config, hardware)
    if machine.engine == "block" and obstacle:
        raise Refusal(f"machine.engine=block cannot be had: {obstacle}; write auto or plain.")
    if machine.engine != "auto":
        name, reason = machine.engine, "asked for"
    elif obstacle:
        name, reason = "plain", obstacle
    elif batch_size > machine[f"{kind}_up_to_images"]:
        name, reason = "plain", f"batches of {batch_size} gain nothing from blocks"
    elif steps < machine[f"{kind}_from_steps"]:
        name, reason = "plain", f"{steps:,} steps would not pay back a compilation"
    else:
        name, reason = "block", f"{steps:,} steps of {batch_size} images"
    return Engine(name, reason, machine[f"{kind}_steps"], machine.chunk_steps)


def _obstacle(config: DictConfig, hardware: Hardware) -> str:
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
    if config.average.every_step:
        return "the weights are averaged after single steps"
    if hardware.accelerator == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++"))):
        return "there is no C++ compiler"
    return ""
