"""Find a learning rate with Lightning's Tuner (range test), and the largest batch that fits into the memory.

Both train for some steps in a temporary folder and leave no weights behind.
"""

import gc
import json
import logging
import math
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.tuner.tuning import Tuner
from lightning.pytorch.utilities.memory import is_oom_error
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from cifar_pipeline.config.compose import available_cores, digest, fingerprint, is_sweep
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.models.pretrained import PretrainedWeights
from cifar_pipeline.training.checkpoints import RunDir
from cifar_pipeline.training.compiled.engine import EAGER
from cifar_pipeline.training.distributed import SINGLE_PROCESS, DistributedContext
from cifar_pipeline.training.hardware import Hardware, available_memory, select_hardware
from cifar_pipeline.training.module import Batch, Classifier
from cifar_pipeline.training.setup import TrainingSetup, build_training
from cifar_pipeline.training.trainer import build_trainer, translate_errors
from cifar_pipeline.utils.atomic import atomic_write, exclusive_lock
from cifar_pipeline.utils.console import progress_bar, status
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.paths import runs_cache_dir

log = logging.getLogger(__name__)

# Values of conf/trainer under which a test runs for a number of steps, without validation.
TEST_OPTIONS = {
    "min_epochs": None, "min_steps": None, "max_time": None, "fast_dev_run": False, "num_sanity_val_steps": 0,
    "val_check_interval": 1.0, "check_val_every_n_epoch": sys.maxsize,
}  # fmt: skip
# The loss is smoothed over this fraction of the tested range (a standard deviation to both sides), at so many points.
SMOOTHING, POINTS = 0.1, 200
# The fewest steps with a finite loss, and by how many of its standard errors the loss has to fall.
MIN_STEPS, MIN_FALL = 20, 5.0


@dataclass(frozen=True)
class RangeTest:
    """A learning rate range test.

    Args:
        lrs: the learning rate of each step.
        losses: the training loss of each step; it may be NaN.
        smoothed: learning rates with the smoothed loss; empty without enough steps.
        suggestion: the learning rate at which the loss falls fastest, to two digits; None if it does not fall clearly.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[tuple[float, float]]
    suggestion: float | None


def find_lr(setup: TrainingSetup, lr: float, options: DictConfig) -> RangeTest:
    """Raise the learning rate from step to step, and suggest the one at which the training loss falls fastest.

    Lightning's own suggestion takes the derivative by the learning rate instead of its logarithm, so that it favors the
    smallest learning rates; and its running mean lags behind.

    Args:
        setup: the training; its run directory is not used.
        lr: `optimizer.lr`. Groups of parameters with another learning rate keep its ratio to this one.
        options: the values of conf/lr_finder.

    Raises:
        Interrupted: SIGTERM or Ctrl-C stopped the test.
        UserError: Lightning refuses the options.
    """
    steps = max(options.num_training, options.min_images // setup.options["batch_size"])
    with TemporaryDirectory() as folder, progress_bar("Steps", steps, transient=True) as advance:
        module = RangeTestClassifier(setup.module, lr, advance)
        setup = _test_setup(setup, Path(folder), module=module, max_epochs=steps, max_steps=-1)
        trainer = build_trainer(setup, [], ())
        with translate_errors(lambda: "Stopped; nothing was changed."):
            finder = Tuner(trainer).lr_find(
                module,
                datamodule=setup.datamodule,
                min_lr=options.min_lr,
                max_lr=options.max_lr,
                num_training=steps,
                mode=options.mode,
                early_stop_threshold=options.early_stop_threshold,
                update_attr=False,
            )
    assert finder is not None
    lrs, losses = finder.results["lr"], [float(loss) for loss in module.losses]
    return RangeTest(lrs, losses, *suggest_lr(lrs, losses, options))


def suggest_lr(
    lrs: Sequence[float], losses: Sequence[float], options: DictConfig
) -> tuple[list[tuple[float, float]], float | None]:
    """Return `smoothed` and `suggestion` of a range test.

    Args:
        lrs, losses: of each step.
        options: `min_lr`, `max_lr` and `mode` of the test.
    """
    scale, unscale = (np.log, np.exp) if options.mode == "exponential" else (np.asarray, np.asarray)
    values = np.asarray(losses)
    finite = np.isfinite(values)
    steps, values = scale(np.asarray(lrs))[finite], values[finite]
    if len(values) < MIN_STEPS:
        return [], None
    width = SMOOTHING / 2 * (scale(options.max_lr) - scale(options.min_lr))
    points = np.linspace(steps[0], steps[-1], POINTS)
    weights = np.exp(-(((points[:, None] - steps) / width) ** 2) / 2)
    weights /= weights.sum(axis=1, keepdims=True)
    curve = weights @ values
    smoothed = list(zip(unscale(points).tolist(), curve.tolist(), strict=True))
    lowest = int(curve.argmin())
    before = steps <= points[lowest]
    noise = np.std((values - np.interp(steps, points, curve))[before])
    error = noise * np.sqrt(2 * (weights[lowest] ** 2).sum())
    if lowest == 0 or curve[:lowest].max() - curve[lowest] < MIN_FALL * error:
        return smoothed, None
    steepest = np.gradient(curve, points)[: lowest + 1].argmin()
    return smoothed, float(f"{unscale(points[steepest]):.2g}")


class RangeTestClassifier(Classifier):
    """Train with the learning rates of Lightning's finder instead of the scheduler's, until the loss is NaN.

    Args:
        module: the training's module, with which it shares the network.
        lr: `optimizer.lr`.
        advance: is called with 1 after each step.
    """

    def __init__(self, module: Classifier, lr: float, advance: Callable[[float], None]) -> None:
        super().__init__(
            module.net,
            module.loss,
            module.optimizer,
            module.scheduler,
            module.seed,
            fine_tuning=module.fine_tuning,
            takes_features=module.takes_features,
        )
        self.lr, self.advance, self.ratios = lr, advance, [1.0]
        self.losses: list[Tensor] = []

    def configure_optimizers(self) -> Optimizer:
        optimizer = super().configure_optimizers()
        self.ratios = [group["lr"] / self.lr for group in optimizer.param_groups]
        return optimizer

    def on_train_start(self) -> None:
        # During the test, Lightning's callback is the only one; it would draw a bar of its own.
        self.trainer.callbacks[0].progress_bar_refresh_rate = 0  # type: ignore[attr-defined]

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        # Lightning's finder sets the same learning rate for all groups.
        lr = self.trainer.lr_scheduler_configs[0].scheduler.lr[0]  # type: ignore[union-attr]
        for group, ratio in zip(self.trainer.optimizers[0].param_groups, self.ratios, strict=True):
            group["lr"] = ratio * lr

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_index: int) -> None:
        if not torch.isfinite(outputs["loss"]):
            self.trainer.should_stop = True
        # As Lightning counts the learning rates.
        if (batch_index + 1) % self.trainer.accumulate_grad_batches == 0:
            self.losses.append(outputs["loss"].detach())
            self.advance(1)

    def check_finite_loss(self) -> None:
        """Do nothing: the test goes up to learning rates at which the loss becomes NaN."""


def resolve_batch_size(
    config: DictConfig,
    dataset: Dataset,
    accelerator: str,
    processes: DistributedContext,
    weights: PretrainedWeights | None = None,
) -> DictConfig:
    """Return the configuration with the number that `trainer.batch_size=auto` stands for, the largest that fits.

    The number is stored under the fingerprint of the configuration with `auto`, so that an interrupted training is
    resumed with it, and all processes of a training have the same one.

    Args:
        config: the composed configuration.
        dataset: the processed dataset.
        accelerator: `cpu` or `cuda`.
        processes: the ranks that share each batch.
        weights: those that the training starts from.

    Raises:
        UserError: `auto` does not go together with other options, or not even the smallest batch fits.
    """
    if config.trainer.batch_size != "auto":
        return config
    _require_searchable(config, accelerator, processes)
    limits = {key: value for key, value in config.runtime.items() if str(key).startswith("auto_batch_")}
    key = digest([fingerprint(config, dataset.hash, weights_hash=weights.sha256 if weights else ""), limits])
    path = runs_cache_dir().with_name("batch_sizes") / f"{key}.json"
    with exclusive_lock(path):
        found, note = _read_search(path), f", as found before ({path.name})"
        if found is None:
            status("Searching the largest batch that fits")
            found, note = _search_batch_size(config, dataset, accelerator, processes.world_size, weights), ""
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as tmp:
                tmp.write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
    # If the ranks have yet to be launched, rank zero prints it.
    log.log(logging.DEBUG if processes.needs_launch else logging.INFO, f"trainer.batch_size=auto: {found}{note}")
    return _with_batch_size(config, found.batch_size)


def _read_search(path: Path) -> "BatchSearch | None":
    """Read the result of an earlier search; None if there is none, or if it is damaged."""
    try:
        return BatchSearch(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        log.warning(f"{path} is damaged: searching the batch size again.")
        return None


@dataclass(frozen=True)
class BatchSearch:
    """The result of a search for a batch size.

    Args:
        batch_size: images per optimizer step over all processes.
        memory: bytes that a step needs in each process.
        available: bytes that may be used.
        min_steps: steps per epoch, where these are the limit; 0 where the memory is.
    """

    batch_size: int
    memory: int
    available: int
    min_steps: int

    def __str__(self) -> str:
        limit = f"; larger ones would leave fewer than {self.min_steps} steps an epoch" if self.min_steps else ""
        used = f"{self.memory / 1e9:.3g} of {self.available / 1e9:.3g} GB that may be used"
        return f"{self.batch_size:,} images ({used}{limit})"


def _require_searchable(config: DictConfig, accelerator: str, processes: DistributedContext) -> None:
    auto = "trainer.batch_size=auto"
    if config.optimizer.get("full_batch"):
        raise UserError(
            f"{auto}: with optimizer.full_batch a step uses all images; set trainer.batch_size to a number."
        )
    if config.trainer.micro_batch_size is not None:
        raise UserError(
            f"{auto} finds the largest batch that fits without trainer.micro_batch_size="
            f"{config.trainer.micro_batch_size}: leave one of them out."
        )
    if accelerator not in ("cpu", "cuda"):
        raise UserError(f"{auto} knows the memory of CPUs and CUDA, not of {accelerator}: set a number.")
    if processes.num_nodes > 1:
        raise UserError(f"{auto} searches on one machine, and the training has {processes.num_nodes}: set a number.")


def _search_batch_size(
    config: DictConfig, dataset: Dataset, accelerator: str, world_size: int, weights: PretrainedWeights | None
) -> BatchSearch:
    """Double the batch size until a step needs more than the memory that may be used, or an epoch has too few steps."""
    options = config.runtime
    largest = max(2, world_size, dataset.sizes["train"] // options.auto_batch_min_steps)
    hardware = select_hardware(options, config.precision, available_cores(), largest)
    fraction = options.auto_batch_gpu_memory if accelerator == "cuda" else options.auto_batch_ram
    if accelerator == "cpu" and is_sweep():
        fraction *= available_cores() / (os.cpu_count() or 1)  # other jobs may run at the same time
    available = int(fraction * available_memory(accelerator))
    # The processes on a CPU share its memory.
    shared_by = world_size if accelerator == "cuda" else 1
    estimator = CpuEstimator if accelerator == "cpu" else CudaEstimator
    estimate: Callable[[int], int] = estimator(config, dataset, hardware, weights)
    best: BatchSearch | None = None
    size = max(2, 2 ** math.ceil(math.log2(world_size)))
    while size <= min(largest, dataset.sizes["train"]):
        memory = estimate(-(-size // shared_by))
        if memory > available:
            break
        is_limit = 2 * size > largest
        best = BatchSearch(size, memory, available, options.auto_batch_min_steps if is_limit else 0)
        size *= 2
    if best is None:
        raise UserError(
            f"trainer.batch_size=auto: not even {size} images fit into the {available / 1e9:.3g} GB that may be used; "
            "choose a smaller model, or set trainer.batch_size and trainer.micro_batch_size."
        )
    return best


class MemoryEstimator:
    """Train for some steps with a batch size, to measure the memory that they need."""

    def __init__(
        self, config: DictConfig, dataset: Dataset, hardware: Hardware, weights: PretrainedWeights | None = None
    ) -> None:
        # Without features that are computed before.
        self.config = _merge(config, {"finetune": {"cache_features": False}})
        self.dataset, self.hardware, self.weights = dataset, hardware, weights

    def run(self, batch_size: int, observer: "TensorMemory | None" = None) -> None:
        """Take two steps, because the first one creates the state of the optimizer."""
        config = _with_batch_size(self.config, batch_size)
        with TemporaryDirectory() as folder:
            run_dir = RunDir(Path(folder))
            setup = build_training(
                config, self.dataset, self.hardware, EAGER, run_dir, SINGLE_PROCESS, {}, self.weights
            )
            setup = _test_setup(setup, Path(folder), max_epochs=2, max_steps=2)
            callbacks = [*([setup.weight_averaging] if setup.weight_averaging else [])]
            if observer:
                observer.peak = observer.alive
                callbacks.append(HeldMemoryReader(observer))
            with translate_errors(lambda: "Stopped while searching the batch size; nothing was changed."):
                build_trainer(setup, callbacks, ()).fit(setup.module, datamodule=setup.datamodule)


class CudaEstimator(MemoryEstimator):
    """Measure the bytes of GPU memory that torch reserves in a step; more than any limit if it runs out of memory."""

    def __call__(self, batch_size: int) -> int:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            self.run(batch_size)
        except RuntimeError as error:
            if not is_oom_error(error):
                raise
            return sys.maxsize
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        return torch.cuda.max_memory_reserved()


class CpuEstimator(MemoryEstimator):
    """Measure the bytes that a step on a few images needs, and extrapolate them linearly, to be safe from overload."""

    # Batch sizes that are measured.
    SIZES = (2, 16, 64)

    def __init__(
        self, config: DictConfig, dataset: Dataset, hardware: Hardware, weights: PretrainedWeights | None = None
    ) -> None:
        super().__init__(config, dataset, hardware, weights)
        self.measured: list[tuple[int, TensorMemory]] = []

    def __call__(self, batch_size: int) -> int:
        for size in self.SIZES[len(self.measured) :]:
            if size > max(batch_size, self.SIZES[1]) or size > self.dataset.sizes["train"]:
                break
            memory = TensorMemory()
            with memory:
                self.run(size, memory)
            self.measured.append((size, memory))
        per_image = [
            max(after.peak - before.peak, after.held - before.held) / (large - small)
            for (small, before), (large, after) in zip(self.measured, self.measured[1:], strict=False)
        ]
        size, memory = self.measured[-1]
        return memory.peak + int(max(0, batch_size - size) * max(per_image, default=0.0))


class TensorMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of the tensors made in the block: those now `alive`, their `peak`, and those `held`.

    `held` is what a forward pass has stored for the backward pass. Unlike the peak, it grows linearly with the batch
    also where the gradients and the optimizer's state need more.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive, self.peak, self.held = 0, 0, 0
        self.storages = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._add, result)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.storages:
            size = storage.nbytes()
            self.storages[storage] = size
            weakref.finalize(storage, self._remove, size)
            self.alive += size
            self.peak = max(self.peak, self.alive)

    def _remove(self, size: int) -> None:
        self.alive -= size


class HeldMemoryReader(Callback):
    """Read the memory that is in use before a backward pass."""

    def __init__(self, memory: TensorMemory) -> None:
        self.memory = memory

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.memory.held = self.memory.alive


def _test_setup(setup: TrainingSetup, folder: Path, module: Classifier | None = None, **options: Any) -> TrainingSetup:
    """Return the setup of a test in a temporary folder, with other values of conf/trainer."""
    return replace(
        setup,
        module=module or setup.module,
        options={**setup.options, **TEST_OPTIONS, **options},
        run_dir=RunDir(folder / setup.run_dir.fingerprint),
        profiler=None,
        history_file=None,
    )


def _with_batch_size(config: DictConfig, batch_size: int) -> DictConfig:
    return _merge(config, {"trainer": {"batch_size": batch_size}})


def _merge(config: DictConfig, values: dict[str, Any]) -> DictConfig:
    changed = OmegaConf.merge(config, values)
    assert isinstance(changed, DictConfig)
    return changed
