"""Declare and validate the configuration as pydantic models: the keys, types, ranges and allowed words of conf/.

The same declarations give the JSON schemas for editors and the column "allowed" of docs/configuration.md. A group of
conf/ without a model here may have any keys. A group with a `_target_` may have keys that its model lacks: they are
arguments of that target, checked by `validation.check_targets`.
"""

import copy
import functools
import operator
import re
import shlex
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from cifar_pipeline.config.params import (
    CONF,
    LIST_GROUPS,
    OTHER_PLACES,
    SINGLE_ENTRY_GROUPS,
    check_entry_names,
    format_override,
    groups,
    image_dir_problem,
    named_if_in_params,
    options,
    suggest,
    to_yaml_inline,
)
from cifar_pipeline.config.unused_values import reject_values_without_effect
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import allowed_words, describe_allowed

JsonSchema = dict[str, Any]

# Default of a key that only some options of a group have; null is not allowed for it.
ABSENT: Any = None

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
HalfOpenUnit = Annotated[float, Field(ge=0, lt=1)]
OpenUnit = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Text = Annotated[str, Field(min_length=1)]
# MLflow allows more characters, but not in a model URI: models:/NAME@ALIAS.
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", description="a name of letters, digits, - and _")]
# The tags that the pipeline and MLflow set on the runs of trainings and sweeps.
RESERVED_TAGS = re.compile(
    r"(mlflow|git|dvc|env|trial|version)\..*|sweep(\.rerun)?|fingerprint|dataset|experiment|workspace|command|python|rerun"
    r"|seconds|failure|crashes|crash_epoch|swept|base|folder|device|gpu|processor|engine|cores|threads|processes|precision"
    r"|strategy|images_per_step|weights(\.sha256)?|stopped|trainer\.batch_size|monitor|mode|evaluation\.checkpoint"
    r"|pruned|objectives|study|comparison\.significance_level"
)
# MLflow's rule for the names of tags, which are also paths.
TAG_NAME = re.compile(r"(?!.*//)[\w.:-][\w.: /-]{0,248}(?<!/)")
AutoOrCount = Literal["auto"] | Count
Precision = Literal[
    "32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true", "transformer-engine",
    "transformer-engine-float16",
]  # fmt: skip
Mode = Literal["max", "min"]
SEVERAL_OBJECTIVES = "; only a search (sweep=search) has a list of several objectives"
BatchLimit = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] | None,
    Field(description="a number of batches, a fraction of them above 0 and of at most 1.0, or null"),
]
# As Lightning reads a duration: days, hours, minutes and seconds, or arguments of datetime.timedelta.
DURATION = r"^\d+:\d\d:\d\d:\d\d$"
Duration = (
    Annotated[str, Field(pattern=DURATION)]
    | dict[Literal["weeks", "days", "hours", "minutes", "seconds"], Annotated[int | float, Field(ge=0)]]
)


class Options(BaseModel):
    """Options of a group: no other keys, and no conversion between types."""

    # Built when values are validated, because `--help` and some scripts validate none.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


class TargetOptions(Options):
    """Options of a group whose files name a class or function as `_target_`; other keys are its arguments."""

    model_config = ConfigDict(extra="allow")
    target: str = Field(alias="_target_", description="a class or function to import")


class Source(TargetOptions):
    """Data source, conf/data/source."""

    test_fraction: OpenUnit = ABSENT
    size: Count = ABSENT


class Data(Options):
    """Data set and its splits; `mirrors` and `timeout` belong to downloads, the keys from `group` on to own images."""

    source: Source
    fallback: Source | None
    mirrors: Annotated[list[str], Field(description="a list of URLs")] = ABSENT
    timeout: Positive = ABSENT
    val_fraction: HalfOpenUnit
    folds: Annotated[int, Field(ge=2)]
    fold: NonNegativeInt | None
    split_seed: Seed
    group: Text | None = ABSENT
    root: Text = ABSENT
    csv_file: Text = ABSENT
    size: Count = ABSENT
    resize_mode: Literal["crop", "pad", "stretch"] = ABSENT
    test_fraction: OpenUnit = ABSENT
    max_unreadable: NonNegativeInt = ABSENT
    max_megapixels: Positive = ABSENT


class Normalization(Options):
    """Mean and standard deviation of the pixels."""

    mean: Annotated[
        float | list[float] | Literal["model"] | None,
        Field(description="a number, or one for each channel, or null, or model"),
    ]
    std: Annotated[
        Positive | list[Positive] | Literal["model"] | None,
        Field(description="a number above 0, or one for each channel, or null, or model"),
    ]


class TransformOptions(TargetOptions):
    """Transform of the training images."""

    per_batch: bool | None = None
    mixes_labels: bool | None = None
    pil_on_cpu: bool | None = None


class Model(TargetOptions):
    """Network."""

    name: Text = ABSENT
    weights: Annotated[
        Text | None,
        Field(description="null, default, a path, models:/NAME@ALIAS or runs:/RUN/best"),
    ] = None
    input_size: Count | None = None
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = ABSENT
    max_upscaling: Annotated[float, Field(ge=1)] = ABSENT
    min_input_size: Count = ABSENT
    reset_classifier: bool = ABSENT
    depth: Count = ABSENT
    norm_momentum: Fraction = ABSENT
    widths: list[Count] = ABSENT


class Finetune(Options):
    """Layers of the network that train, and their learning rates."""

    unfreeze_backbone_at_epoch: NonNegativeInt | None
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    freeze_batch_norm: bool
    cache_features: bool


class Loss(TargetOptions):
    """Loss, and the activation that turns its logits into probabilities."""

    output_activation: Text
    class_weights: Annotated[
        Literal["balanced"] | list[Positive] | None,
        Field(description="balanced, a list of numbers above 0 (one for each class), or null"),
    ] = ABSENT
    label_smoothing: HalfOpenUnit = ABSENT
    gamma: NonNegative = ABSENT
    alpha: float = ABSENT


class Optimizer(TargetOptions):
    """Optimizer."""

    lr: Positive = ABSENT
    fallback_lr_scale: Positive = ABSENT
    bias_lr: Positive = ABSENT
    linear_lr: Positive = ABSENT
    sgd_momentum: HalfOpenUnit = ABSENT
    ns_steps: Count = ABSENT
    momentum: HalfOpenUnit = ABSENT
    alpha: HalfOpenUnit = ABSENT
    betas: Annotated[
        list[HalfOpenUnit], Field(min_length=2, max_length=2, description="two numbers of at least 0 and below 1")
    ] = ABSENT
    eps: Positive = ABSENT
    weight_decay: NonNegative = ABSENT
    nesterov: bool = ABSENT
    full_batch: bool = ABSENT


class Scheduler(TargetOptions):
    """Factor of the learning rate, a function of the step."""

    warmup_fraction: Fraction = ABSENT
    initial_factor: Fraction = ABSENT
    final_factor: Fraction = ABSENT
    monitor: Text = ABSENT
    mode: Mode = ABSENT
    factor: OpenUnit = ABSENT
    patience: NonNegativeInt = ABSENT
    threshold: NonNegative = ABSENT
    cooldown: NonNegativeInt = ABSENT
    min_factor: Fraction = ABSENT


class WeightAveraging(Options):
    """Average of the weights over the training; without one, `_target_` is null."""

    model_config = ConfigDict(extra="allow")
    target: str | None = Field(alias="_target_", description="a class or function to import, or null")
    decay: HalfOpenUnit = ABSENT
    start_fraction: HalfOpenUnit = ABSENT


class CallbackOptions(TargetOptions):
    """Callback of Lightning."""

    needs_single_batches: bool | None = None


class PrecisionOptions(Options):
    """Precision of the arithmetic on each device."""

    cpu: Precision | Literal["auto"]
    cuda: Precision
    mps: Precision
    cpu_bf16_min_parameters: Count = ABSENT


class Trainer(Options):
    """Length of the training, its batches and its processes; most keys are arguments of Lightning's Trainer."""

    max_epochs: Count
    batch_size: AutoOrCount
    micro_batch_size: Count | None
    accumulate_grad_batches: Count
    eval_batch_size: Count
    min_epochs: Count | None
    min_steps: Count | None
    max_steps: Annotated[Count | Literal[-1], Field(description="a whole number of at least 1, or -1 for no limit")]
    max_time: Annotated[
        Duration | None,
        Field(description='"DD:HH:MM:SS" in quotes, a mapping such as {minutes: 30}, or null'),
    ]
    gradient_clip_val: Positive | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    limit_train_batches: BatchLimit
    limit_val_batches: BatchLimit
    overfit_batches: Annotated[
        Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)],
        Field(description="a number of batches, or a fraction of them from 0 to 1.0; 0: off"),
    ]
    fast_dev_run: Annotated[bool | Count, Field(description="true, false, or a number of batches")]
    val_check_interval: Annotated[
        Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] | Duration,
        Field(
            description="a fraction of an epoch above 0 and of at most 1.0, a number of batches, or a time such as "
            '"00:00:05:00" in quotes'
        ),
    ]
    check_val_every_n_epoch: Count | None
    deterministic: Annotated[bool | Literal["warn"] | None, Field(description="true, false, warn, or null")]
    benchmark: bool | None
    num_sanity_val_steps: Annotated[int, Field(ge=-1)]
    detect_anomaly: bool
    inference_mode: bool
    reload_dataloaders_every_n_epochs: NonNegativeInt
    enable_autolog_hparams: bool
    strategy: Literal["auto", "ddp", "fsdp"]
    devices: AutoOrCount
    num_nodes: AutoOrCount


class Tta(Options):
    """Test-time augmentation."""

    flip: bool
    shift: NonNegativeInt


class Evaluation(Options):
    """Measurement on the test split, and the report."""

    checkpoint: Literal["last", "best"]
    batch_size: Count
    calibration_bins: Count
    num_error_images: Count
    num_attributions: NonNegativeInt
    many_classes: Count
    num_confused_pairs: Count
    num_listed_classes: Count
    sample_seed: NonNegativeInt


class Runtime(Options):
    """Device, threads, engine and checkpoints of this machine."""

    accelerator: Text
    gpus_per_trial: Annotated[
        Count | OpenUnit,
        Field(description="a whole number of GPUs of at least 1, or a fraction of one such as 0.5"),
    ]
    threads: AutoOrCount
    min_images_per_thread: Count
    engine: Literal["auto", "eager", "compiled"]
    steps_per_chunk: Count
    compile_min_steps: Count
    compile_max_batch_size: Count
    cuda_graph_steps: Count
    cuda_graph_min_steps: Count
    cuda_graph_max_batch_size: Count
    checkpoint_interval_seconds: Positive | None
    log_every_n_steps: Count | None
    profiler: Literal["simple", "pytorch"] | None
    max_cached_runs: NonNegativeInt
    max_cached_features: NonNegativeInt
    max_cached_graphs: NonNegativeInt
    max_cached_datasets: Count
    auto_batch_gpu_memory: OpenUnit
    auto_batch_ram: OpenUnit
    auto_batch_min_steps: Count


class LRFinder(Options):
    """Learning rate range test."""

    min_lr: Positive
    max_lr: Positive
    num_training: Count
    min_images: NonNegativeInt
    mode: Literal["exponential", "linear"]
    early_stop_threshold: Annotated[float, Field(gt=1)] | None


def _require_free_tag(name: str) -> str:
    if RESERVED_TAGS.fullmatch(name):
        raise PydanticCustomError("tag", "the pipeline or MLflow sets this tag itself; choose another name")
    if not TAG_NAME.fullmatch(name):
        raise PydanticCustomError("tag", "a name has at most 249 letters, digits and any of `_-.:/` and spaces")
    return name


TagName = Annotated[str, AfterValidator(_require_free_tag)]


def _check_image_dir(path: str) -> str:
    if problem := image_dir_problem(path):
        raise PydanticCustomError("folder", problem)
    return path


class Mlflow(Options):
    """Experiment in MLflow, and what is recorded with its runs."""

    experiment_name: Annotated[
        str,
        Field(
            pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,500}$",
            description="a name of at most 500 characters without control characters",
        ),
    ]
    tags: Annotated[
        dict[TagName, Annotated[str, Field(max_length=8000)] | int | float | bool],
        Field(description="a mapping of names to text, numbers, true or false"),
    ]
    description: Annotated[
        Annotated[str, Field(max_length=8000)] | None, Field(description="a text of at most 8000 characters, or null")
    ]
    # MLflow's variable may also be 1 or 0.
    log_system_metrics: Annotated[bool | Literal[0, 1], Field(description="true or false")]


class Comparison(Options):
    """Comparison of a sweep's trials, and of two models on the same images."""

    significance_level: OpenUnit
    num_differing_images: NonNegativeInt


class Registry(Options):
    """Registered model and the rule for its promotion."""

    name: Name | None
    alias: Name
    min_improvement: HalfOpenUnit


class Predict(Options):
    """Prediction of image files."""

    model: Text
    batch_size: Count
    top_k: Count
    max_megapixels: Positive
    max_unreadable: NonNegativeInt


class Serve(Options):
    """HTTP server."""

    host: Text
    port: Port
    max_images: Count


class Config(Options):
    """Configuration of every stage: its top-level keys, and one option of each group."""

    model_config = ConfigDict(extra="allow")
    seed: Seed
    monitor: Annotated[Text, Field(description=f"the name of a metric{SEVERAL_OBJECTIVES}")]
    mode: Annotated[Mode, Field(description=f"max or min{SEVERAL_OBJECTIVES}")]
    image_dir: Annotated[Text, AfterValidator(_check_image_dir)]
    rerun: bool
    data: Data
    normalization: Normalization
    augmentation: dict[str, TransformOptions]
    model: Model
    finetune: Finetune
    loss: Loss
    optimizer: Optimizer
    scheduler: Scheduler
    weight_averaging: WeightAveraging
    callbacks: dict[str, CallbackOptions]
    metrics: dict[str, TargetOptions]
    precision: PrecisionOptions
    trainer: Trainer
    tta: Tta
    evaluation: Evaluation
    runtime: Runtime
    logger: dict[str, TargetOptions]
    mlflow: Mlflow
    lr_finder: LRFinder
    comparison: Comparison
    registry: Registry
    predict: Predict
    serve: Serve


def validate(config: DictConfig, *only: str) -> None:
    """Raise UserError for an unknown key, a missing key, or a value that is not allowed, anywhere or in `only`.

    `only` are groups and top-level keys.
    """
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    plain = {str(key): value for key, value in container.items()}
    known = sorted({*Config.model_fields, *groups()})
    for key in plain:
        if key not in known:
            raise UserError(f"{key}: unknown key in {CONF}/; {suggest(key, known)}")
    for name in SINGLE_ENTRY_GROUPS:
        if plain.get(name):
            check_entry_names(name)
    try:
        Config.model_validate(plain)
    except ValidationError as error:
        errors = [entry for entry in error.errors(include_url=False) if not only or entry["loc"][0] in only]
        if errors:
            raise UserError(_describe_error(errors[0], plain, config)) from None
    if not only or "data" in only:
        _check_fold(plain["data"])
    if not only:
        reject_values_without_effect(plain)


def _check_fold(data: Mapping[str, Any]) -> None:
    fold, folds = data["fold"], data["folds"]
    if fold is not None and fold >= folds:
        raise UserError(
            f"data.fold={fold} is out of range: the folds of data.folds={folds} are numbered from 0 to {folds - 1}."
        )


def _describe_error(error: ErrorDetails, plain: Mapping[str, Any], config: DictConfig) -> str:
    """Describe a pydantic error in one sentence: the key, its value, and what is allowed."""
    group, *_ = error["loc"]
    if group in LIST_GROUPS and len(error["loc"]) > 1:
        return _describe_list_error(error, plain)
    *parents, name = error["loc"]
    prefix = "".join(f"{parent}." for parent in parents)
    if error["type"] == "missing" and name != "_target_":
        return f"{prefix}{name} is missing; a file of {CONF}/ must set it."
    if error["type"] == "extra_forbidden":
        if instead := OTHER_PLACES.get(f"{prefix}{name}"):
            return f"{prefix}{name} is not a key: {instead}."
        keys = [key.removeprefix(prefix) for key in field_schemas() if key.startswith(prefix)]
        return f"{prefix}{name}: unknown key in {CONF}/; {suggest(str(name), [key for key in keys if '.' not in key])}"
    if error["type"] == "folder":
        return f"{name}={plain[str(name)]}: {error['msg']}."
    if error["type"] == "tag":
        return f"{prefix.removesuffix('.')}: {error['msg']}."
    # The location of an error in a list or in a union is longer than the key's.
    names = error["loc"][:-1] if error["type"] == "missing" else error["loc"]
    prefixes = [".".join(map(str, names[:end])) for end in range(len(names), 0, -1)]
    key = next(prefix for prefix in prefixes if prefix in field_schemas())
    value: Any = plain
    for part in key.split("."):
        value = value[part]
    schema = field_schemas()[key]
    close = get_close_matches(value, allowed_words(schema), n=1) if isinstance(value, str) else []
    hint = f"; did you mean `{close[0]}`?" if close else "."
    hint = _how_to_write(key, value, plain, config) or hint
    shown = f"{named_if_in_params(key, value)}{key}={to_yaml_inline(value)}"
    return f"{shown} is not allowed; it must be {describe_allowed(schema)}{hint}"


def _how_to_write(key: str, value: Any, plain: Mapping[str, Any], config: DictConfig) -> str:
    """Say how to write a value of the wrong type so that it has the right one; empty if that is not its fault."""
    if isinstance(value, int | float):
        text = to_yaml_inline(value)
        return f"; in quotes it is text: {format_override(key, text)}." if _is_allowed(key, text, plain) else ""
    if not isinstance(value, str) or not value or to_yaml_inline(value) == value:
        return ""
    decoded = OmegaConf.create({"text": value, "decoded": "${oc.decode:${text}}"}).decoded
    if isinstance(decoded, str) or not _is_allowed(key, decoded, plain):
        schema = field_schemas()[key]
        takes_words = any(entry.get("type") == "string" for entry in schema.get("anyOf", [schema]))
        return "" if takes_words else ", but this is text."
    raw: Any = OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        raw = raw.get(part) if isinstance(raw, dict) else None
    if isinstance(raw, str) and re.fullmatch(r"\$\{oc\.env:[^{}]*\}", raw):
        word = format_override(key, f"${{oc.decode:{raw}}}")
        return f", but an environment variable is text; write {word}, which reads the value in it."
    return f", but in quotes it is text; write {shlex.quote(f'{key}={value}')}."


def _is_allowed(key: str, value: Any, plain: Mapping[str, Any]) -> bool:
    """Return whether a key may have another value."""
    changed = copy.deepcopy(dict(plain))
    *parents, name = key.split(".")
    functools.reduce(operator.getitem, parents, changed)[name] = value
    try:
        Config.model_validate(changed)
    except ValidationError as error:
        return not any(".".join(map(str, entry["loc"])).startswith(key) for entry in error.errors(include_url=False))
    return True


def _describe_list_error(error: ErrorDetails, plain: Mapping[str, Any]) -> str:
    """Describe an error in an entry of callbacks, metrics or logger."""
    group, entry, *rest = map(str, error["loc"])
    if rest and rest[0] in plain[group][entry]:
        value = to_yaml_inline(plain[group][entry][rest[0]])
        return f"{group}.{entry}.{rest[0]}={value} is not allowed; {error['msg'].lower()}."
    choose = f"choose {group}=[{entry}], or " if entry in options(group) else ""
    return f"{group}.{entry} names no class: {choose}write +{group}.{entry}._target_=package.module.Class."


@functools.cache
def field_schemas() -> dict[str, JsonSchema]:
    """Return the JSON schema of each declared key by its dotted name, without references, defaults and titles."""
    whole = Config.model_json_schema(by_alias=True)
    return dict(_field_schemas(whole, whole["$defs"]))


def _field_schemas(model: JsonSchema, definitions: JsonSchema, prefix: str = "") -> Iterator[tuple[str, JsonSchema]]:
    for name, schema in model["properties"].items():
        key = f"{prefix}{name}"
        alternatives = schema.get("anyOf", [schema])
        references = [entry["$ref"].rpartition("/")[2] for entry in alternatives if "$ref" in entry]
        if "$ref" in schema.get("additionalProperties", {}):
            description = f"options of {CONF}/{key}/, each with its name and a `_target_`"
            yield key, {"type": "object", "description": description}
            continue
        if not references:
            yield key, {word: value for word, value in schema.items() if word not in ("title", "default")}
            continue
        nested = definitions[references[0]]
        subject = f"an option of {CONF}/{key.replace('.', '/')}/".replace("fallback", "source")
        target = " that names a class or function as `_target_`" if "_target_" in nested["properties"] else ""
        null = ", or null" if {"type": "null"} in alternatives else ""
        types: Any = ["object", "null"] if null else "object"
        yield key, {"type": types, "description": f"{subject}{target}{null}"}
        yield from _field_schemas(nested, definitions, f"{key}.")
