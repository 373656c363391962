"""Refuse values that would be accepted and not used: of the configuration, and of a command line.

Such a value is a mistake that nobody sees: the command ends well, with the result of another value. On a command line:

- keys that another command reads, such as `predict.top_k` for train.py (`OTHER_READERS`),
- keys that have no effect beside other values, such as `data.folds` without `data.fold` (`CONDITIONS`),
- keys that the chosen option of `data` does not have (`+data.mirrors` for local images).

Stages take the overrides of a whole training, so that all of them can be started by hand with the same ones. Keys that
only other stages read are therefore named in one line, and not refused.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.params import CONF, suggest
from cifar_pipeline.utils.errors import UserError

# Groups that not every command reads: the command that does, and whether it takes overrides on its command line.
OTHER_READERS = {
    "predict": ("predict", False),
    "serve": ("serve", False),
    "registry": ("registry", False),
    "lr_finder": ("find_lr", True),
}
# Groups and top-level keys that a stage reads, besides the experiment, which sets values of all groups.
STAGE_READS = {
    "download": ("data", "image_dir"),
    "preprocess": ("data", "image_dir", "model"),
    # The data of the model: `evaluate` refuses others.
    "evaluate": ("data", "evaluation", "metrics", "model", "normalization", "tta", "runtime", "mlflow"),
}
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Condition:
    """A key, the values beside which it has no effect, and the end of a sentence that says so.

    Attributes:
        key: regular expression of the key's name.
        depends_on: the keys and groups whose values decide.
        is_unused: whether the key has no effect in this configuration.
        reason: the end of the sentence "KEY has no effect ...", filled with the configuration by `str.format_map`.
    """

    key: str
    depends_on: tuple[str, ...]
    is_unused: Callable[[Values], bool]
    reason: str


CONDITIONS = (
    Condition(
        r"data\.val_fraction",
        ("data", "data.fold"),
        lambda values: values["data"]["fold"] is not None,
        "beside data.fold={data[fold]}, which is the validation split: leave out one of them.",
    ),
    Condition(
        r"data\.folds",
        ("data", "data.fold"),
        lambda values: values["data"]["fold"] is None,
        "without data.fold: write data.fold=0 for the first one, or -m 'data.fold=range({data[folds]})' for each.",
    ),
    Condition(
        "image_dir",
        ("data",),
        lambda values: "root" not in values["data"],
        "without your own images: choose data=image_folder or data=csv_table.",
    ),
    Condition(
        r"trainer\.batch_size",
        ("optimizer", "optimizer.full_batch"),
        lambda values: bool(values["optimizer"].get("full_batch")),
        "with optimizer.full_batch, whose steps use all images: leave it out, or choose another optimizer.",
    ),
    Condition(
        r"trainer\.limit_(train|val)_batches",
        ("trainer", "trainer.overfit_batches"),
        lambda values: bool(values["trainer"]["overfit_batches"]),
        "beside trainer.overfit_batches={trainer[overfit_batches]}, which replaces it: leave out one of them.",
    ),
    Condition(
        r"model\.(crop_fraction|max_upscaling|min_input_size)",
        ("model", "model.input_size", "model.weights"),
        lambda values: values["model"]["input_size"] is not None or values["model"]["weights"] is None,
        "beside model.input_size, or without model.weights: it says how large an image a pretrained network sees.",
    ),
    Condition(
        r"model\.reset_classifier",
        ("model", "model.weights"),
        lambda values: values["model"]["weights"] is None and values["model"]["reset_classifier"],
        "without model.weights: the classifier of an untrained network is new in any case.",
    ),
    Condition(
        r"finetune\.layer_decay",
        ("finetune", "finetune.unfreeze_backbone_at_epoch"),
        lambda values: (
            values["finetune"]["unfreeze_backbone_at_epoch"] is None and values["finetune"]["layer_decay"] != 1
        ),
        "while only the classifier trains: choose finetune=full or gradual, or leave it out.",
    ),
    Condition(
        r"finetune\.cache_features",
        ("finetune", "finetune.unfreeze_backbone_at_epoch"),
        lambda values: values["finetune"]["unfreeze_backbone_at_epoch"] == 0 and values["finetune"]["cache_features"],
        "while no layer is frozen: choose finetune=head or gradual, or leave it out.",
    ),
    Condition(
        r"precision\.cpu_bf16_min_parameters",
        ("precision", "precision.cpu"),
        lambda values: values["precision"]["cpu"] != "auto",
        "beside precision.cpu={precision[cpu]}: write precision.cpu=auto too, or leave it out.",
    ),
    Condition(
        r"runtime\.min_images_per_thread",
        ("runtime", "runtime.threads"),
        lambda values: values["runtime"]["threads"] != "auto",
        "beside runtime.threads={runtime[threads]}: leave out one of them.",
    ),
    Condition(
        r"runtime\.auto_batch_.*",
        ("trainer", "trainer.batch_size"),
        lambda values: values["trainer"]["batch_size"] != "auto",
        "beside trainer.batch_size={trainer[batch_size]}: write trainer.batch_size=auto too, or leave it out.",
    ),
    Condition(
        r"runtime\.(steps_per_chunk|compile_.*|cuda_graph_.*)",
        ("runtime", "runtime.engine"),
        lambda values: values["runtime"]["engine"] == "eager",
        "beside runtime.engine=eager, which compiles nothing: leave out one of them.",
    ),
    Condition(
        r"runtime\.cuda_graph_.*",
        ("runtime", "runtime.accelerator"),
        lambda values: values["runtime"]["accelerator"] == "cpu",
        "beside runtime.accelerator=cpu: leave out one of them.",
    ),
)
SWEEP_ONLY = re.compile(r"runtime\.gpus_per_trial|comparison\..+")


def check_unused(
    config: DictConfig,
    overrides: Sequence[str],
    command: str,
    compose: Callable[[list[str]], DictConfig],
    swept: Collection[str] | None = None,
) -> list[str]:
    """Refuse overrides that the command would not use, and return the keys that only other stages read.

    Args:
        config: the composed configuration; of a sweep, with the overrides that all its trials share.
        overrides: of the command line, in Hydra's grammar.
        command: the name of the stage or script.
        compose: composes the configuration for other overrides.
        swept: of a sweep, the keys with several values, whose effect depends on the trial; None for a single run.

    Raises:
        UserError: an override has no effect.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    values = {str(key): value for key, value in plain.items()}
    keys = list(_typed_keys(overrides))
    for key, word in keys:
        group = re.split(r"[./]", key)[0]
        reader, takes_overrides = OTHER_READERS.get(group, (command, True))
        if reader != command:
            where = f"{reader}.py takes it" if takes_overrides else f"set it in {CONF}/{group}/ or params.yaml"
            raise UserError(f"{word} has no effect on {command}.py: {where}, for `python src/{reader}.py`.")
        if SWEEP_ONLY.fullmatch(key) and swept is None:
            raise UserError(f"{word} is for sweeps only: add -m, or leave it out.")
        if word.startswith("+") and key.startswith("data."):
            _require_data_key(key, word, compose([other for other in overrides if other != word]))
        for condition in CONDITIONS:
            is_fixed = not {"experiment", *condition.depends_on} & {*(swept or ())}
            if is_fixed and re.fullmatch(condition.key, key) and condition.is_unused(values):
                raise UserError(f"{word} has no effect {condition.reason.format_map(values)}")
    reads = STAGE_READS.get(command)
    others = [key for key, _ in keys if reads and re.split(r"[./]", key)[0] not in (*reads, "experiment", "hydra")]
    return list(dict.fromkeys(others))


def reject_values_without_effect(plain: Mapping[str, Any]) -> None:
    """Refuse values of a configuration that only have an effect together with another one that is not set."""
    trainer, averaging = plain["trainer"], plain["weight_averaging"]
    for name, unlimited in (("epochs", None), ("steps", -1)):
        least, most = trainer[f"min_{name}"], trainer[f"max_{name}"]
        if least is not None and most != unlimited and least > most:
            raise UserError(
                f"trainer.min_{name}={least} has no effect: trainer.max_{name}={most} ends the training before."
            )
    if trainer["gradient_clip_algorithm"] is not None and trainer["gradient_clip_val"] is None:
        raise UserError(
            f"trainer.gradient_clip_algorithm={trainer['gradient_clip_algorithm']} has no effect without a limit: set "
            "trainer.gradient_clip_val, or leave it out."
        )
    if averaging["_target_"] is None and (unused := [key for key in averaging if key != "_target_"]):
        raise UserError(
            f"weight_averaging.{unused[0]} has no effect without an average: choose weight_averaging=ema or swa, or "
            "leave it out."
        )


def _typed_keys(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each key or group that a command line sets, and how it was written."""
    for override in OverridesParser.create().parse_overrides([*overrides]):
        if not override.is_delete():
            yield override.get_key_element().lstrip("+"), str(override.input_line)


def _require_data_key(key: str, word: str, config: DictConfig) -> None:
    """Refuse a key of `data` that only other options have.

    Args:
        key: the key.
        word: as the command line adds it.
        config: the configuration without this override.
    """
    name = key.removeprefix("data.")
    if name not in config.data:
        raise UserError(
            f"{word} has no effect: this option of {CONF}/data/ has no such key; {suggest(name, [*config.data])}"
        )
