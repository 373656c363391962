"""Build a training from the configuration and the dataset: module, data module, callbacks, optimizer, scheduler.

Nothing is computed yet, so that errors of the configuration appear first.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_method, get_object, instantiate
from lightning.pytorch import Callback, seed_everything
from omegaconf import DictConfig
from torch import nn

from cifar_pipeline.config.compose import output_root
from cifar_pipeline.config.validation import target_config
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.data.transforms import build_augmentation
from cifar_pipeline.models.build import NormalizedModel, build_model, get_activation
from cifar_pipeline.models.network_input import NetworkInput
from cifar_pipeline.models.pretrained import PretrainedWeights
from cifar_pipeline.training.checkpoints import RunDir, reports_history
from cifar_pipeline.training.compiled.engine import EAGER, CompiledClassifier, Engine
from cifar_pipeline.training.datamodule import ImageDataModule
from cifar_pipeline.training.distributed import SINGLE_PROCESS, DistributedContext
from cifar_pipeline.training.features import FeatureCache, cache_obstacle
from cifar_pipeline.training.finetuning import FineTuning, network_name
from cifar_pipeline.training.hardware import Hardware
from cifar_pipeline.training.losses import build_loss
from cifar_pipeline.training.metrics import build_metrics
from cifar_pipeline.training.module import Classifier, OptimizerConfig, Scheduler, build_optimizer
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that `fit` needs to run one training.

    Args:
        module: the model with its loss, optimizer and scheduler.
        datamodule: the batches.
        options: the values of conf/trainer.
        hardware: accelerator, threads and precision.
        run_dir: where checkpoints are written, and from which a training resumes.
        weight_averaging: callback whose average is validated and saved in place of the last weights, if any.
        distributed: the ranks that share each batch; all of them have the same setup.
        checkpoint_interval_seconds: seconds between two checkpoints within an epoch; None: only at an epoch's end.
        profiler: a key of `PROFILERS`; the profile is written next to the checkpoints.
        history_file: history.csv, which grows with each epoch; None: no file.
        callbacks: those of conf/callbacks, by name.
        monitor: the metric by which the best checkpoint is chosen.
        mode: whether larger or smaller values of it are better, `max` or `min`.
        log_every_n_steps: steps between two values of the training loss within an epoch; None: none.
    """

    module: Classifier
    datamodule: ImageDataModule
    options: Mapping[str, Any]
    hardware: Hardware
    run_dir: RunDir
    weight_averaging: Callback | None = None
    distributed: DistributedContext = SINGLE_PROCESS
    checkpoint_interval_seconds: float | None = None
    profiler: str | None = None
    history_file: Path | None = None
    callbacks: Mapping[str, Callback] = field(default_factory=dict)
    monitor: str = "val/accuracy"
    mode: str = "max"
    log_every_n_steps: int | None = None

    @property
    def best_monitor(self) -> str | None:
        """The metric of the best checkpoint; None if it is one of validation and there is no validation split."""
        return None if self.monitor.startswith("val/") and not self.datamodule.has_val else self.monitor


def build_training(
    config: DictConfig,
    dataset: Dataset,
    hardware: Hardware,
    engine: Engine,
    run_dir: RunDir,
    distributed: DistributedContext,
    callbacks: Mapping[str, Callback],
    weights: PretrainedWeights | None = None,
) -> TrainingSetup:
    """Build the setup of a training: module, data module, callbacks. `weights` are those that it starts from.

    Raises what `build_module`, `build_datamodule` and `build_weight_averaging` raise.
    """
    module = build_module(config, dataset, engine, weights)
    assert isinstance(module.net, NormalizedModel)
    datamodule = build_datamodule(config, dataset, engine, module.net.network_input, hardware.cores)
    if datamodule.augmentation.mixes_labels:
        require_mixed_labels(module.loss, len(dataset.classes))
    if module.fine_tuning.is_partial:
        _require_freezable(module, distributed)
        hardware = use_cached_features(module, datamodule, config, hardware)
    return TrainingSetup(
        module=module,
        datamodule=datamodule,
        options=config.trainer,
        hardware=hardware,
        run_dir=run_dir,
        weight_averaging=build_weight_averaging(config),
        distributed=distributed,
        checkpoint_interval_seconds=config.runtime.checkpoint_interval_seconds,
        profiler=config.runtime.profiler,
        history_file=reports_history(output_root()),
        callbacks=callbacks,
        monitor=config.monitor,
        mode=config.mode,
        log_every_n_steps=config.runtime.log_every_n_steps,
    )


def require_mixed_labels(loss: nn.Module, classes: int) -> None:
    """Raise UserError if a loss does not take mixed labels `[N, K] float32`."""
    logits, labels = torch.zeros(2, classes), torch.full((2, classes), 1 / classes)
    try:
        value = loss(logits, labels)
    except Exception as error:
        raise UserError(
            f"The augmentation mixes labels, and {type(loss).__name__} does not take them ({one_line(error)[:150]}): "
            "choose loss=cross_entropy or another one of conf/loss, or an augmentation that keeps the labels."
        ) from None
    if value.ndim or not bool(torch.isfinite(value)):
        raise UserError(
            f"The augmentation mixes labels, for which {type(loss).__name__} gives no finite number: choose "
            "loss=cross_entropy or another one of conf/loss, or an augmentation that keeps the labels."
        )


def build_callbacks(options: Mapping[str, Any]) -> dict[str, Callback]:
    """Build the callbacks of conf/callbacks, by name.

    Raises:
        UserError: one is no callback of Lightning, or two have the same key in a checkpoint.
    """
    callbacks: dict[str, Callback] = {}
    for name, node in options.items():
        callback = instantiate(target_config(node, f"callbacks.{name}"), _convert_="all")
        if not isinstance(callback, Callback):
            raise UserError(f"callbacks.{name}: {node['_target_']} is no lightning.pytorch.Callback.")
        for other, existing in callbacks.items():
            if existing.state_key == callback.state_key:
                raise UserError(
                    f"callbacks.{other} and callbacks.{name} are both {callback.state_key}, and a checkpoint can hold "
                    "the state of one of them only: leave one out, or give its class a state_key of its own."
                )
        callbacks[name] = callback
    return callbacks


# Hooks of Lightning's callbacks that are called for single batches.
BATCH_HOOKS = (
    "on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step",
)  # fmt: skip


def find_batch_callback(options: Mapping[str, Any], callbacks: Mapping[str, Callback]) -> str:
    """Return the name of a callback that needs single batches, which only the eager engine has; empty for none.

    A callback needs them if it overrides such a hook, or by the key `needs_single_batches` of its options.
    """
    for name, callback in callbacks.items():
        needs = options[name].get("needs_single_batches")
        overrides = any(getattr(type(callback), hook) is not getattr(Callback, hook) for hook in BATCH_HOOKS)
        if overrides if needs is None else needs:
            return name
    return ""


def _require_freezable(module: Classifier, distributed: DistributedContext) -> None:
    """Raise UserError if processes could not agree on which parameters have a gradient."""
    if distributed.is_distributed and (not module.fine_tuning.is_head_only or distributed.strategy == "fsdp"):
        raise UserError(
            "finetune: freezing layers for some epochs, or under trainer.strategy=fsdp, needs a single process: choose "
            "finetune=head with trainer.strategy=ddp, finetune=full, or trainer.devices=1."
        )


def use_cached_features(
    module: Classifier, datamodule: ImageDataModule, config: DictConfig, hardware: Hardware
) -> Hardware:
    """Let the batches be features of the frozen network, computed once, where that gives the same training.

    Returns the hardware with the number of threads that then suits the training: with `runtime.threads=auto` one,
    because a step is one small product of matrices.
    """
    model, fine_tuning, dataset = module.net, module.fine_tuning, datamodule.dataset
    assert isinstance(model, NormalizedModel)
    if not (fine_tuning.is_head_only and fine_tuning.caches_features):
        return hardware
    if obstacle := cache_obstacle(model, fine_tuning.head, datamodule.augmentation, hardware.devices, dataset.shape):
        log.info(f"Features are computed anew in each epoch: {obstacle}.")
        return hardware
    module.takes_features = True
    datamodule.features = FeatureCache(
        model,
        fine_tuning.head,
        dataset,
        is_mirrored=bool(datamodule.augmentation.transforms),
        batch_size=datamodule.eval_batch_size,
        use_bfloat16=hardware.features_in_bfloat16,
        threads=hardware.threads,
        max_files=config.runtime.max_cached_features,
    )
    if config.runtime.threads != "auto":
        return hardware
    torch.set_num_threads(1)
    return replace(hardware, threads=1)


def build_module(
    config: DictConfig, dataset: Dataset, engine: Engine = EAGER, weights: PretrainedWeights | None = None
) -> Classifier:
    """Build the Lightning module: model with new or pretrained weights, loss, optimizer and scheduler.

    Raises:
        UserError: what `build_model`, `FineTuning.of` and `build_loss` refuse, or the optimizer takes no groups.
    """
    seed_everything(config.seed, verbose=False)
    classifier: Callable[..., Classifier] = Classifier
    if engine.is_compiled:
        classifier = partial(
            CompiledClassifier, steps_per_block=engine.steps_per_block, steps_per_chunk=engine.steps_per_chunk
        )
    model, optimizer = build_model(config, dataset, weights), build_optimizer_config(config.optimizer)
    fine_tuning = FineTuning.of(config.finetune, model, len(dataset.classes), network_name(config.model))
    _require_layer_decay(optimizer, fine_tuning, model)
    return classifier(
        model,
        build_loss(config.loss, dataset),
        optimizer,
        build_scheduler(config),
        config.seed,
        build_metrics(config.metrics, len(dataset.classes)),
        get_activation(config.loss.output_activation),
        fine_tuning,
    )


def _require_layer_decay(optimizer: OptimizerConfig, fine_tuning: FineTuning, model: NormalizedModel) -> None:
    """Raise UserError if a layer decay is set that the optimizer would ignore or reject."""
    if fine_tuning.layer_decay == 1:
        return
    decay = f"finetune.layer_decay={fine_tuning.layer_decay:g}"
    if optimizer.takes_network:
        raise UserError(f"{decay}: this optimizer makes groups of the network itself; set finetune.layer_decay=1.")
    try:
        build_optimizer(optimizer, fine_tuning, model)
    except Exception as error:
        raise UserError(
            f"{decay}: this optimizer takes no groups of parameters ({one_line(error)[:100]}); set "
            "finetune.layer_decay=1 or choose another optimizer."
        ) from None


def build_scheduler(config: DictConfig) -> Scheduler:
    """Build the function (step, total steps) -> learning rate factor.

    It is a plain partial, because each call of one made by Hydra takes a tenth of a millisecond. An object
    may be a callback as well, which is called at each epoch's end.
    """
    values = target_config(config.scheduler, "scheduler")
    if not values.get("_partial_"):
        scheduler: Scheduler = instantiate(values, _convert_="all")
        return scheduler
    return partial(get_method(values.pop("_target_")), **{key: values[key] for key in values if key != "_partial_"})


def build_weight_averaging(config: DictConfig) -> Callback | None:
    """Build the callback of conf/weight_averaging; None for `weight_averaging=none`."""
    if config.weight_averaging._target_ is None:
        return None
    callback: Callback = instantiate(config.weight_averaging)
    return callback


def micro_batch_size(config: DictConfig) -> int:
    """Return how many images go through the model at once in training.

    Raises:
        UserError: `trainer.micro_batch_size` does not divide `trainer.batch_size`, or gradients are accumulated twice.
    """
    batch_size, micro_batch = config.trainer.batch_size, config.trainer.micro_batch_size
    accumulated = config.trainer.accumulate_grad_batches
    if accumulated > 1 and (micro_batch or config.optimizer.get("full_batch")):
        other = f"trainer.micro_batch_size={micro_batch}" if micro_batch else "optimizer.full_batch"
        raise UserError(
            f"trainer.accumulate_grad_batches={accumulated} and {other} both accumulate gradients: set one."
        )
    if config.optimizer.get("full_batch"):
        return int(micro_batch or config.trainer.eval_batch_size)
    if micro_batch and batch_size > micro_batch and batch_size % micro_batch:
        raise UserError(
            f"trainer.micro_batch_size={micro_batch} does not divide trainer.batch_size={batch_size}: "
            "set it to a divisor or to null."
        )
    return int(min(micro_batch or batch_size, batch_size))


def build_datamodule(
    config: DictConfig,
    dataset: Dataset,
    engine: Engine = EAGER,
    network_input: NetworkInput | None = None,
    processes: int = 1,
) -> ImageDataModule:
    """Build the data module; its batches are micro-batches where a step's batch is split, as a full batch always is.

    `network_input`, if it is given, limits the batches of validation; `processes` share transforms of single images.
    Raises UserError if a transform fails.
    """
    network_size = network_input.size if network_input else dataset.shape[0]
    augmentation = build_augmentation(config.augmentation, network_size, len(dataset.classes), processes)
    augmentation.check(dataset.shape, network_size)
    eval_batch_size = config.trainer.eval_batch_size
    if network_input is not None:
        eval_batch_size = network_input.limit_batch(eval_batch_size)
    batch_size = micro_batch_size(config)
    if config.optimizer.get("full_batch"):
        batch_size = min(batch_size, dataset.sizes["train"])
    chunk = engine.steps_per_chunk if engine.is_compiled else 0
    return ImageDataModule(
        dataset,
        batch_size,
        eval_batch_size,
        augmentation,
        config.seed,
        chunk,
        shuffle=not config.trainer.overfit_batches,
    )


def build_optimizer_config(options: Mapping[str, Any]) -> OptimizerConfig:
    """Split the options of conf/optimizer into the constructor's arguments and `full_batch`."""
    build = instantiate(target_config(options, "optimizer"), _convert_="all")
    first = next(iter(inspect.signature(get_object(options["_target_"])).parameters), "")
    takes_network = first == "model_or_params"
    if "layer_decay" in options and not takes_network:
        raise UserError("optimizer.layer_decay would have no effect: write finetune.layer_decay.")
    return OptimizerConfig(build, bool(options.get("full_batch", False)), options.get("weight_decay"), takes_network)
