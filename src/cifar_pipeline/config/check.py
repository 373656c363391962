"""What a composed configuration may hold: the type and the range of each key's values."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.choices import CONF, groups, nearest, shown
from cifar_pipeline.console import Refusal


@dataclass(frozen=True)
class Rule:
    """What the values of a key may be, as a test and in words."""

    allowed: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _or_null(rule: Rule) -> Rule:
    return Rule(f"{rule.allowed}, or null", lambda value: value is None or rule.holds(value))


POSITIVE = Rule("a number above 0", lambda value: _is_number(value) and 0 < value < float("inf"))
NOT_NEGATIVE = Rule("a number of at least 0", lambda value: _is_number(value) and 0 <= value < float("inf"))
NUMBER = Rule("a number", _is_number)
FRACTION = Rule("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
BELOW_ONE = Rule("a number of at least 0 and below 1", lambda value: _is_number(value) and 0 <= value < 1)
INSIDE = Rule("a number above 0 and below 1", lambda value: _is_number(value) and 0 < value < 1)
WHOLE = Rule("a whole number of at least 0", lambda value: _is_whole(value) and value >= 0)
COUNT = Rule("a whole number of at least 1", lambda value: _is_whole(value) and value >= 1)
SEED = Rule("a whole number from 0 to 4294967295", lambda value: _is_whole(value) and 0 <= value < 2**32)
SWITCH = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("a word", lambda value: isinstance(value, str) and bool(value))
# MLflow takes more, but its addresses don't: models:/NAME@ALIAS.
NAME = Rule(
    "a word of letters, digits, - and _",
    lambda value: isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w-]*", value, re.ASCII) is not None,
)
PORT = Rule("a whole number from 1 to 65535", lambda value: _is_whole(value) and 1 <= value <= 65535)
MIRRORS = Rule(
    "a list of addresses", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value)
)
BETAS = Rule(
    "two numbers of at least 0 and below 1",
    lambda value: isinstance(value, list) and len(value) == 2 and all(BELOW_ONE.holds(beta) for beta in value),
)
WIDTHS = Rule(
    "a list of whole numbers of at least 1",
    lambda value: isinstance(value, list) and all(map(COUNT.holds, value)),
)
CHANNELS = Rule(
    "a number, or one for each channel, or null",
    lambda value: value is None or _is_number(value) or (isinstance(value, list) and all(map(_is_number, value))),
)
SPREAD = Rule(
    "a number above 0, or one for each channel, or null",
    lambda value: value is None or all(map(POSITIVE.holds, value if isinstance(value, list) else [value])),
)
WEIGHTS = Rule(
    "balanced, a list of numbers above 0 (one for each class), or null",
    lambda value: value in (None, "balanced") or (isinstance(value, list) and all(map(POSITIVE.holds, value))),
)
AUTO_OR_COUNT = Rule("auto or a whole number of at least 1", lambda value: value == "auto" or COUNT.holds(value))
STRATEGY = Rule("auto, ddp or fsdp", lambda value: value in ("auto", "ddp", "fsdp"))
PRECISION = Rule(
    "32-true, bf16-mixed, 16-mixed or 64-true", lambda value: value in ("32-true", "bf16-mixed", "16-mixed", "64-true")
)
ENGINE = Rule("auto, plain or block", lambda value: value in ("auto", "plain", "block"))
PROFILER = Rule("simple, pytorch, or null", lambda value: value in (None, "simple", "pytorch"))
FIT = Rule("crop or pad", lambda value: value in ("crop", "pad"))
CHECKPOINT = Rule("last or best", lambda value: value in ("last", "best"))
OPTION = Rule(
    "an option of conf/ that names a class or function as `_target_`",
    lambda value: isinstance(value, dict) and isinstance(value.get("_target_"), str),
)

# In a part of the configuration without a `_target_` these are all the keys there are.
RULES: dict[str, Rule] = {
    "seed": SEED,
    "pictures": TEXT,
    "rerun": SWITCH,
    "data.source": OPTION,
    "data.fallback": _or_null(OPTION),
    "data.mirrors": MIRRORS,
    "data.timeout": POSITIVE,
    "data.val_fraction": BELOW_ONE,
    "data.split_seed": SEED,
    "data.*.test_fraction": INSIDE,
    "data.*.size": COUNT,
    "data.root": TEXT,
    "data.table": TEXT,
    "data.size": COUNT,
    "data.fit": FIT,
    "data.test_fraction": INSIDE,
    "data.max_bad": WHOLE,
    "data.most_megapixels": POSITIVE,
    "normalize.mean": CHANNELS,
    "normalize.std": SPREAD,
    "augment": OPTION,
    "augment.padding": WHOLE,
    "augment.flip": SWITCH,
    "augment.alternating": SWITCH,
    "model": OPTION,
    "model.name": TEXT,
    "model.depth": COUNT,
    "model.norm_momentum": FRACTION,
    "model.widths": WIDTHS,
    "loss": OPTION,
    "loss.probabilities": TEXT,
    "loss.class_weights": WEIGHTS,
    "loss.label_smoothing": BELOW_ONE,
    "loss.gamma": NOT_NEGATIVE,
    "loss.alpha": NUMBER,
    "optimizer": OPTION,
    "optimizer.lr": POSITIVE,
    "optimizer.fallback_lr_scale": POSITIVE,
    "optimizer.bias_lr": POSITIVE,
    "optimizer.matrix_lr": POSITIVE,
    "optimizer.other_momentum": BELOW_ONE,
    "optimizer.iterations": COUNT,
    "optimizer.momentum": BELOW_ONE,
    "optimizer.alpha": BELOW_ONE,
    "optimizer.betas": BETAS,
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.nesterov": SWITCH,
    "optimizer.full_batch": SWITCH,
    "average": OPTION,
    "average.every_step": SWITCH,
    "average.decay": BELOW_ONE,
    "average.start": BELOW_ONE,
    "schedule": OPTION,
    "schedule.warmup": FRACTION,
    "schedule.start": FRACTION,
    "schedule.final": FRACTION,
    "precision.cpu": PRECISION,
    "precision.cuda": PRECISION,
    "precision.mps": PRECISION,
    "trainer.max_epochs": COUNT,
    "trainer.batch_size": COUNT,
    "trainer.micro_batch_size": _or_null(COUNT),
    "trainer.eval_batch_size": COUNT,
    "trainer.gradient_clip_val": _or_null(POSITIVE),
    "trainer.limit_train_batches": _or_null(COUNT),
    "trainer.limit_val_batches": _or_null(COUNT),
    "trainer.strategy": STRATEGY,
    "trainer.devices": AUTO_OR_COUNT,
    "trainer.num_nodes": AUTO_OR_COUNT,
    "views.flip": SWITCH,
    "views.shift": WHOLE,
    "evaluate.checkpoint": CHECKPOINT,
    "evaluate.batch_size": COUNT,
    "evaluate.calibration_bins": COUNT,
    "evaluate.mistakes": COUNT,
    "evaluate.attributions": WHOLE,
    "machine.accelerator": TEXT,
    "machine.threads": AUTO_OR_COUNT,
    "machine.images_per_thread": COUNT,
    "machine.engine": ENGINE,
    "machine.block_steps": COUNT,
    "machine.chunk_steps": COUNT,
    "machine.block_from_steps": COUNT,
    "machine.block_up_to_images": COUNT,
    "machine.graph_steps": COUNT,
    "machine.graph_from_steps": COUNT,
    "machine.graph_up_to_images": COUNT,
    "machine.checkpoint_every": _or_null(POSITIVE),
    "machine.profiler": PROFILER,
    "machine.keep_trainings": WHOLE,
    "registry.name": _or_null(NAME),
    "registry.alias": NAME,
    "registry.margin": BELOW_ONE,
    "predict.model": TEXT,
    "predict.batch_size": COUNT,
    "predict.top": COUNT,
    "predict.most_megapixels": POSITIVE,
    "serve.host": TEXT,
    "serve.port": PORT,
    "serve.most_pictures": COUNT,
}

# Those that some options of a group have and others do without.
OPTIONAL = {f"data.{name}" for name in ("root", "table", "size", "fit", "test_fraction", "max_bad", "most_megapixels")}


def check(config: DictConfig) -> None:
    """Refuse, in one sentence, a key that nothing reads or that is missing, or a value that is not allowed."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    _check_keys("", plain, _parts("") | set(groups()))
    for key, value in _nodes(plain):
        for pattern, rule in RULES.items():
            if fnmatch(key, pattern) and not rule.holds(value):
                raise Refusal(f"{key}={shown(value)} is not allowed; it must be {rule.allowed}.")
    for part in _parts(""):
        if _parts(f"{part}.") and "_target_" not in plain[part]:
            _check_keys(f"{part}.", plain[part], _parts(f"{part}."))
    if "probabilities" not in plain["loss"]:
        raise Refusal("loss.probabilities is missing; the loss's file says how its outputs become probabilities.")


def _check_keys(path: str, node: Any, known: set[str]) -> None:
    if not isinstance(node, dict):
        raise Refusal(f"{path[:-1]}={shown(node)} is not allowed; it must be an option of {CONF}/{path[:-1]}/.")
    for key in node:
        if key not in known:
            raise Refusal(f"{path}{key}: nothing reads this key of {CONF}/; {nearest(str(key), sorted(known))}")
    for key in sorted(_parts(path)):
        if key not in node and f"{path}{key}" not in OPTIONAL:
            raise Refusal(f"{path}{key} is missing; a file of {CONF}/ must give it a value.")


def _parts(path: str) -> set[str]:
    """The names that follow `path` in the keys of RULES."""
    return {key.removeprefix(path).partition(".")[0] for key in RULES if key.startswith(path) and "*" not in key}


def _nodes(node: dict[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        yield f"{path}{key}", value
        if isinstance(value, dict):
            yield from _nodes(value, f"{path}{key}.")
