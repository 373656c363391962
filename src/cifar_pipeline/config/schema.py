"""Validate a composed configuration: its keys, and the type and range of each value."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.params import CONF, groups, suggest, to_yaml_inline
from cifar_pipeline.utils.errors import UserError


@dataclass(frozen=True)
class Constraint:
    """Constraint on a key's values: a predicate, and its description in an error message and in the documentation."""

    description: str
    is_valid: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _or_null(constraint: Constraint) -> Constraint:
    return Constraint(f"{constraint.description}, or null", lambda value: value is None or constraint.is_valid(value))


POSITIVE = Constraint("a number above 0", lambda value: _is_number(value) and 0 < value < float("inf"))
NOT_NEGATIVE = Constraint("a number of at least 0", lambda value: _is_number(value) and 0 <= value < float("inf"))
NUMBER = Constraint("a number", _is_number)
FRACTION = Constraint("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
HALF_OPEN_UNIT = Constraint("a number of at least 0 and below 1", lambda value: _is_number(value) and 0 <= value < 1)
OPEN_UNIT_INTERVAL = Constraint("a number above 0 and below 1", lambda value: _is_number(value) and 0 < value < 1)
NON_NEGATIVE_INT = Constraint("a whole number of at least 0", lambda value: _is_int(value) and value >= 0)
POSITIVE_INT = Constraint("a whole number of at least 1", lambda value: _is_int(value) and value >= 1)
SEED = Constraint("a whole number from 0 to 4294967295", lambda value: _is_int(value) and 0 <= value < 2**32)
BOOL = Constraint("true or false", lambda value: isinstance(value, bool))
NON_EMPTY_STR = Constraint("a non-empty string", lambda value: isinstance(value, str) and bool(value))
# MLflow allows more characters, but not in a model URI: models:/NAME@ALIAS.
NAME = Constraint(
    "a name of letters, digits, - and _",
    lambda value: isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w-]*", value, re.ASCII) is not None,
)
PORT = Constraint("a whole number from 1 to 65535", lambda value: _is_int(value) and 1 <= value <= 65535)
MIRRORS = Constraint(
    "a list of URLs", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value)
)
BETAS = Constraint(
    "two numbers of at least 0 and below 1",
    lambda value: isinstance(value, list) and len(value) == 2 and all(HALF_OPEN_UNIT.is_valid(beta) for beta in value),
)
WIDTHS = Constraint(
    "a list of whole numbers of at least 1",
    lambda value: isinstance(value, list) and all(map(POSITIVE_INT.is_valid, value)),
)
CHANNELS = Constraint(
    "a number, or one for each channel, or null",
    lambda value: value is None or _is_number(value) or (isinstance(value, list) and all(map(_is_number, value))),
)
STD = Constraint(
    "a number above 0, or one for each channel, or null",
    lambda value: value is None or all(map(POSITIVE.is_valid, value if isinstance(value, list) else [value])),
)
WEIGHTS = Constraint(
    "balanced, a list of numbers above 0 (one for each class), or null",
    lambda value: value in (None, "balanced") or (isinstance(value, list) and all(map(POSITIVE.is_valid, value))),
)
AUTO_OR_COUNT = Constraint(
    "auto or a whole number of at least 1", lambda value: value == "auto" or POSITIVE_INT.is_valid(value)
)
STRATEGY = Constraint("auto, ddp or fsdp", lambda value: value in ("auto", "ddp", "fsdp"))
PRECISION = Constraint(
    "32-true, bf16-mixed, 16-mixed or 64-true", lambda value: value in ("32-true", "bf16-mixed", "16-mixed", "64-true")
)
ENGINE = Constraint("auto, eager or compiled", lambda value: value in ("auto", "eager", "compiled"))
PROFILER = Constraint("simple, pytorch, or null", lambda value: value in (None, "simple", "pytorch"))
TARGET_OR_NULL = Constraint("a class to import, or null", lambda value: value is None or isinstance(value, str))
RESIZE_MODE = Constraint("crop or pad", lambda value: value in ("crop", "pad"))
CHECKPOINT = Constraint("last or best", lambda value: value in ("last", "best"))
TARGET_CONFIG = Constraint(
    "an option of conf/ that names a class or function as `_target_`",
    lambda value: isinstance(value, dict) and isinstance(value.get("_target_"), str),
)

# A group without a `_target_` has no keys but these.
SCHEMA: dict[str, Constraint] = {
    "seed": SEED,
    "image_dir": NON_EMPTY_STR,
    "rerun": BOOL,
    "data.source": TARGET_CONFIG,
    "data.fallback": _or_null(TARGET_CONFIG),
    "data.mirrors": MIRRORS,
    "data.timeout": POSITIVE,
    "data.val_fraction": HALF_OPEN_UNIT,
    "data.split_seed": SEED,
    "data.*.test_fraction": OPEN_UNIT_INTERVAL,
    "data.*.size": POSITIVE_INT,
    "data.root": NON_EMPTY_STR,
    "data.csv_file": NON_EMPTY_STR,
    "data.size": POSITIVE_INT,
    "data.resize_mode": RESIZE_MODE,
    "data.test_fraction": OPEN_UNIT_INTERVAL,
    "data.max_unreadable": NON_NEGATIVE_INT,
    "data.max_megapixels": POSITIVE,
    "normalization.mean": CHANNELS,
    "normalization.std": STD,
    "augmentation": TARGET_CONFIG,
    "augmentation.padding": NON_NEGATIVE_INT,
    "augmentation.flip": BOOL,
    "augmentation.alternating_flip": BOOL,
    "model": TARGET_CONFIG,
    "model.name": NON_EMPTY_STR,
    "model.depth": POSITIVE_INT,
    "model.norm_momentum": FRACTION,
    "model.widths": WIDTHS,
    "loss": TARGET_CONFIG,
    "loss.output_activation": NON_EMPTY_STR,
    "loss.class_weights": WEIGHTS,
    "loss.label_smoothing": HALF_OPEN_UNIT,
    "loss.gamma": NOT_NEGATIVE,
    "loss.alpha": NUMBER,
    "optimizer": TARGET_CONFIG,
    "optimizer.lr": POSITIVE,
    "optimizer.fallback_lr_scale": POSITIVE,
    "optimizer.bias_lr": POSITIVE,
    "optimizer.linear_lr": POSITIVE,
    "optimizer.sgd_momentum": HALF_OPEN_UNIT,
    "optimizer.ns_steps": POSITIVE_INT,
    "optimizer.momentum": HALF_OPEN_UNIT,
    "optimizer.alpha": HALF_OPEN_UNIT,
    "optimizer.betas": BETAS,
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.nesterov": BOOL,
    "optimizer.full_batch": BOOL,
    "weight_averaging._target_": TARGET_OR_NULL,
    "weight_averaging.decay": HALF_OPEN_UNIT,
    "weight_averaging.start_fraction": HALF_OPEN_UNIT,
    "scheduler": TARGET_CONFIG,
    "scheduler.warmup_fraction": FRACTION,
    "scheduler.initial_factor": FRACTION,
    "scheduler.final_factor": FRACTION,
    "precision.cpu": PRECISION,
    "precision.cuda": PRECISION,
    "precision.mps": PRECISION,
    "trainer.max_epochs": POSITIVE_INT,
    "trainer.batch_size": POSITIVE_INT,
    "trainer.micro_batch_size": _or_null(POSITIVE_INT),
    "trainer.eval_batch_size": POSITIVE_INT,
    "trainer.gradient_clip_val": _or_null(POSITIVE),
    "trainer.limit_train_batches": _or_null(POSITIVE_INT),
    "trainer.limit_val_batches": _or_null(POSITIVE_INT),
    "trainer.strategy": STRATEGY,
    "trainer.devices": AUTO_OR_COUNT,
    "trainer.num_nodes": AUTO_OR_COUNT,
    "tta.flip": BOOL,
    "tta.shift": NON_NEGATIVE_INT,
    "evaluation.checkpoint": CHECKPOINT,
    "evaluation.batch_size": POSITIVE_INT,
    "evaluation.calibration_bins": POSITIVE_INT,
    "evaluation.num_error_images": POSITIVE_INT,
    "evaluation.num_attributions": NON_NEGATIVE_INT,
    "runtime.accelerator": NON_EMPTY_STR,
    "runtime.threads": AUTO_OR_COUNT,
    "runtime.min_images_per_thread": POSITIVE_INT,
    "runtime.engine": ENGINE,
    "runtime.steps_per_chunk": POSITIVE_INT,
    "runtime.compile_min_steps": POSITIVE_INT,
    "runtime.compile_max_batch_size": POSITIVE_INT,
    "runtime.cuda_graph_steps": POSITIVE_INT,
    "runtime.cuda_graph_min_steps": POSITIVE_INT,
    "runtime.cuda_graph_max_batch_size": POSITIVE_INT,
    "runtime.checkpoint_interval_seconds": _or_null(POSITIVE),
    "runtime.profiler": PROFILER,
    "runtime.max_cached_runs": NON_NEGATIVE_INT,
    "registry.name": _or_null(NAME),
    "registry.alias": NAME,
    "registry.min_improvement": HALF_OPEN_UNIT,
    "predict.model": NON_EMPTY_STR,
    "predict.batch_size": POSITIVE_INT,
    "predict.top_k": POSITIVE_INT,
    "predict.max_megapixels": POSITIVE,
    "serve.host": NON_EMPTY_STR,
    "serve.port": PORT,
    "serve.max_images": POSITIVE_INT,
}

# Keys that only some options of a group have.
OPTIONAL = {
    f"data.{name}"
    for name in ("root", "csv_file", "size", "resize_mode", "test_fraction", "max_unreadable", "max_megapixels")
}


def validate(config: DictConfig) -> None:
    """Raise UserError for an unknown key, a missing key, or a value that its constraint rejects."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    _check_keys("", plain, _child_keys("") | set(groups()))
    for key, value in _walk(plain):
        for pattern, constraint in SCHEMA.items():
            if fnmatch(key, pattern) and not constraint.is_valid(value):
                raise UserError(f"{key}={to_yaml_inline(value)} is not allowed; it must be {constraint.description}.")
    for key in _child_keys(""):
        if _child_keys(f"{key}.") and "_target_" not in plain[key]:
            _check_keys(f"{key}.", plain[key], _child_keys(f"{key}."))
    if "output_activation" not in plain["loss"]:
        raise UserError(
            "loss.output_activation is missing; name the activation that turns the loss's logits into probabilities."
        )


def _check_keys(prefix: str, node: Any, known: set[str]) -> None:
    if not isinstance(node, dict):
        raise UserError(
            f"{prefix[:-1]}={to_yaml_inline(node)} is not allowed; it must be an option of {CONF}/{prefix[:-1]}/."
        )
    for key in node:
        if key not in known:
            raise UserError(f"{prefix}{key}: unknown key in {CONF}/; {suggest(str(key), sorted(known))}")
    for key in sorted(_child_keys(prefix)):
        if key not in node and f"{prefix}{key}" not in OPTIONAL:
            raise UserError(f"{prefix}{key} is missing; a file of {CONF}/ must set it.")


def _child_keys(prefix: str) -> set[str]:
    """Return the names that follow `prefix` in the keys of SCHEMA."""
    return {key.removeprefix(prefix).partition(".")[0] for key in SCHEMA if key.startswith(prefix) and "*" not in key}


def _walk(node: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _walk(value, f"{prefix}{key}.")
