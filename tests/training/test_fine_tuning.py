"""Fine-tune a tiny pretrained network: which layers train in which epoch, learning rates, cached features, resuming."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from small_training import CPU, Training, start, without_speed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.models.pretrained import load_pretrained
from cifar_pipeline.stages.train import train
from cifar_pipeline.tracking.model_uri import resolve_model
from cifar_pipeline.training import features
from cifar_pipeline.training.checkpoints import RunDir
from cifar_pipeline.training.compiled.engine import EAGER
from cifar_pipeline.training.distributed import DistributedContext
from cifar_pipeline.training.features import FeatureCache
from cifar_pipeline.training.setup import TrainingSetup, build_training
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.process import Interrupted
from helpers.config_project import Project
from helpers.tiny_networks import VIT, options, save_network, tiny_network

EPOCHS, BATCHES, DECAY = 3, 6, 0.5
WEIGHTS = Path("net.safetensors")
BASE = (
    *options(WEIGHTS),
    "model.input_size=32",
    "optimizer=adamw",
    "optimizer.lr=0.01",
    "scheduler=one_cycle",
    "trainer.batch_size=15",
    "trainer.eval_batch_size=12",
    f"trainer.max_epochs={EPOCHS}",
    "runtime.threads=1",
)
GRADUAL = ("finetune=gradual", "finetune.unfreeze_backbone_at_epoch=2", f"finetune.layer_decay={DECAY}")
FULL = ("finetune=full", f"finetune.layer_decay={DECAY}")
NOT_CACHED = ("finetune=head", "finetune.cache_features=false")
AFTER_EACH_STEP = 1e-9  # seconds


@pytest.fixture
def tuned(project: Project, digits: Dataset) -> Callable[..., Training]:
    """Return a function that builds a training of the tiny network with overrides."""
    save_network(tiny_network(), WEIGHTS)

    def build(*overrides: str, folder: str = "training", seconds: float | None = None) -> Training:
        config = project.compose(*BASE, *overrides)
        return start(project, config, digits, project.folder / folder, checkpoint_interval_seconds=seconds)

    return build


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Return the names of the tensors that differ in any bit."""
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


HEAD = {"net.net.fc.weight", "net.net.fc.bias"}


class Watcher(Callback):
    """Record the tensors at the end of each epoch, and in each step the layers in training mode and the groups."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.training_layers: list[tuple[int, set[str]]] = []
        self.groups: list[list[dict[str, Any]]] = []
        self.validations = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validations += 1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        layers = {name for name, layer in pl_module.net.named_modules() if layer.training}  # type: ignore[union-attr]
        self.training_layers.append((trainer.current_epoch, layers))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.groups.append([{key: group[key] for key in ("lr", "weight_decay")} for group in optimizer.param_groups])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append(state_of(pl_module))


# Which layers train.


@pytest.mark.parametrize("overrides", [("finetune=head",), NOT_CACHED], ids=["cached", "not cached"])
def test_the_head_alone_changes_in_any_bit(tuned: Callable[..., Training], overrides: tuple[str, ...]) -> None:
    training = tuned(*overrides)
    before = state_of(training.module)
    rows = training.run().rows
    assert changed(before, state_of(training.module)) == HEAD
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


@pytest.mark.parametrize("keeps_statistics", [True, False])
def test_all_layers_change_from_the_epoch_of_unfreezing_on(
    tuned: Callable[..., Training], keeps_statistics: bool
) -> None:
    training, watcher = tuned(*GRADUAL, f"finetune.freeze_batch_norm={keeps_statistics}"), Watcher()
    before = state_of(training.module)
    training.run([watcher])
    first, second, third = watcher.states
    assert changed(before, first) == changed(first, second) == HEAD
    trained = {name for name, _ in training.module.named_parameters()}
    statistics = {name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert statistics
    assert changed(second, third) == (trained if keeps_statistics else trained | statistics)


@pytest.mark.parametrize("overrides", [NOT_CACHED, GRADUAL], ids=["head", "gradual"])
@pytest.mark.parametrize("validation", ["trainer.val_check_interval=0.5", "trainer.val_check_interval=2"])
def test_frozen_layers_stay_in_evaluation_mode_after_a_validation_within_an_epoch(
    tuned: Callable[..., Training], overrides: tuple[str, ...], validation: str
) -> None:
    watcher = Watcher()
    training = tuned(*overrides, validation)
    training.run([watcher])
    assert watcher.validations > EPOCHS
    assert len(watcher.training_layers) == EPOCHS * BATCHES
    layers = {name for name, layer in training.module.net.named_modules() if not isinstance(layer, _BatchNorm)}
    for epoch, training_layers in watcher.training_layers:
        assert training_layers == (layers if overrides == GRADUAL and epoch == 2 else {"net.fc"})


def test_validating_within_an_epoch_changes_no_weights(tuned: Callable[..., Training]) -> None:
    expected, actual = tuned(*GRADUAL), tuned(*GRADUAL, "trainer.val_check_interval=2", folder="other")
    expected.run()
    actual.run()
    assert not changed(state_of(expected.module), state_of(actual.module))


# Learning rates and optimizers.

# Layers of the network by the first part of their names, in their order, and of the one before the pooling.
LAYERS = {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4, "fc": 5}


def groups_by_parameter(training: Training) -> dict[str, dict[str, Any]]:
    """Return the optimizer's group of each parameter of the network."""
    optimizer: Any = training.module.configure_optimizers()
    names = {id(parameter): name for name, parameter in training.module.net.net.named_parameters()}  # type: ignore
    found = {names[id(parameter)]: group for group in optimizer.param_groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups)
    return found


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "rmsprop"])
def test_layers_have_learning_rates_by_their_distance_from_the_head(
    tuned: Callable[..., Training], optimizer: str
) -> None:
    training = tuned(*FULL, f"optimizer={optimizer}", "optimizer.lr=0.01", "optimizer.weight_decay=0.1")
    groups = groups_by_parameter(training)
    assert groups.keys() == {name for name, _ in training.module.net.net.named_parameters()}  # type: ignore
    for name, group in groups.items():
        layer = LAYERS[name.split(".")[0]]
        assert group["lr"] == group["initial_lr"] == pytest.approx(0.01 * DECAY ** (5 - layer)), name
        assert group["weight_decay"] == (0.1 if training.module.net.net.get_parameter(name).ndim > 1 else 0.0), name


def test_position_embeddings_have_no_weight_decay(project: Project, digits: Dataset) -> None:
    save_network(tiny_network(VIT), WEIGHTS)
    overrides = [*options(WEIGHTS, VIT), "model.input_size=32", "optimizer=adamw", "optimizer.weight_decay=0.1"]
    groups = groups_by_parameter(start(project, project.compose(*overrides, *FULL), digits))
    assert groups["pos_embed"]["weight_decay"] == 0.0
    assert groups["blocks.0.attn.qkv.weight"]["weight_decay"] == 0.1


@pytest.mark.parametrize(
    ("overrides", "first", "last"),
    [
        (("model=torchvision", "model.name=shufflenet_v2_x0_5"), "conv1.0.weight", "fc.weight"),
        (("model=lenet",), "conv1.weight", "fc3.weight"),
    ],
)
def test_layers_of_other_networks_than_those_of_timm_have_their_learning_rates_too(
    project: Project, digits: Dataset, overrides: tuple[str, ...], first: str, last: str
) -> None:
    groups = groups_by_parameter(start(project, project.compose(*overrides, *FULL, "optimizer.lr=0.01"), digits))
    rates = [group["lr"] for group in groups.values()]
    assert groups[last]["lr"] == max(rates) == 0.01
    assert groups[first]["lr"] == min(rates) <= 0.005
    assert rates == sorted(rates)


def test_a_network_without_known_layers_is_refused(project: Project, digits: Dataset) -> None:
    project.write("own/parallel.py", PARALLEL)
    project.write("conf/model/parallel.yaml", "# Two classifiers.\n_target_: parallel.Parallel\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(project.folder / "own"))
        for option, message in (
            ("finetune=full", "finetune.layer_decay=0.8: Parallel has no single linear layer as its classifier"),
            ("finetune=head", "finetune: Parallel has no single linear layer as its classifier, which could train"),
        ):
            with pytest.raises(UserError, match=re.escape(message)):
                start(project, project.compose("model=parallel", option), digits)


PARALLEL = """
from torch import nn


class Parallel(nn.Module):
    def __init__(self, channels, size, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, classes), nn.BatchNorm1d(classes))

    def forward(self, images):
        return self.layers(images)
"""


@pytest.mark.parametrize("option", ["sgd", "adamw", "muon"])
def test_the_scheduler_multiplies_the_learning_rate_of_each_group(tuned: Callable[..., Training], option: str) -> None:
    training, watcher = tuned(*FULL, f"optimizer={option}", "optimizer.lr=0.001"), Watcher()
    training.run([watcher])
    assert len(watcher.groups) == EPOCHS * BATCHES
    initial = [group["initial_lr"] for group in training.module.configure_optimizers().param_groups]
    assert len(set(initial)) == len(set(LAYERS.values()))
    for step, groups in enumerate(watcher.groups):
        factor = training.module.scheduler(step, EPOCHS * BATCHES)
        assert [group["lr"] for group in groups] == pytest.approx([rate * factor for rate in initial])


def test_an_optimizer_that_takes_no_groups_is_refused(tuned: Callable[..., Training]) -> None:
    message = r"^finetune\.layer_decay=0\.5: this optimizer takes no groups of parameters \(.*; set "
    with pytest.raises(UserError, match=message):
        tuned(*FULL, "optimizer=normed_muon")
    assert tuned("finetune=head", "optimizer=normed_muon").run().rows


TIMM_OPTIMIZER = """
_target_: timm.optim.create_optimizer_v2
_partial_: true
opt: adamw
lr: 0.01
weight_decay: 0.1
layer_decay: 0.7
"""


def test_timms_own_layer_decay_makes_groups_and_does_not_combine_with_ours(
    project: Project, tuned: Callable[..., Training]
) -> None:
    project.write("conf/optimizer/by_timm.yaml", TIMM_OPTIMIZER)
    training, watcher = tuned("finetune=none", "optimizer=by_timm"), Watcher()
    rates = {round(group["lr"], 9) for group in groups_by_parameter(training).values()}
    assert rates == {round(0.01 * 0.7**layer, 9) for layer in set(LAYERS.values())}
    assert training.run([watcher]).rows
    assert {round(group["lr"] / watcher.groups[7][-1]["lr"], 6) for group in watcher.groups[7]} == {
        round(0.7**layer, 6) for layer in set(LAYERS.values())
    }
    with pytest.raises(
        UserError, match=r"finetune\.layer_decay=0\.5: this optimizer makes groups of the network itself"
    ):
        tuned(*FULL, "optimizer=by_timm")


def test_a_layer_decay_that_an_optimizer_would_ignore_is_refused(tuned: Callable[..., Training]) -> None:
    with pytest.raises(UserError, match=r"optimizer\.layer_decay would have no effect: write finetune\.layer_decay"):
        tuned("+optimizer.layer_decay=0.7")


# Features that are computed once.


def compare_with_uncached(tuned: Callable[..., Training], *overrides: str) -> tuple[Training, Training]:
    cached, slow = tuned("finetune=head", *overrides), tuned(*NOT_CACHED, *overrides, folder="slow")
    assert cached.module.takes_features and not slow.module.takes_features
    for fast_row, slow_row in zip(cached.run().rows, slow.run().rows, strict=True):
        for key in ("train/loss", "val/loss"):
            assert fast_row[key] == pytest.approx(slow_row[key], abs=1e-4), key
        for key in ("train/accuracy", "val/accuracy", "lr"):
            assert fast_row[key] == pytest.approx(slow_row[key], abs=1e-6), key
    assert cached.steps == slow.steps > 0
    return cached, slow


@pytest.mark.parametrize(
    "overrides",
    [
        ("augmentation=none",),
        ("augmentation=flip",),
        ("augmentation=flip", "augmentation.flip.alternating_flip=true"),
        ("augmentation=flip_crop", "augmentation.flip_crop.padding=0"),
        ("augmentation=flip", "trainer.accumulate_grad_batches=2", "weight_averaging=ema"),
    ],
    ids=["none", "flip", "alternating", "no crop", "accumulated"],
)
def test_cached_features_give_the_same_training_to_rounding(
    tuned: Callable[..., Training], overrides: tuple[str, ...]
) -> None:
    cached, slow = compare_with_uncached(tuned, *overrides)
    for name, value in slow.module.state_dict().items():
        torch.testing.assert_close(cached.module.state_dict()[name], value, atol=1e-4, rtol=1e-3)


def test_mirrored_images_train_on_the_features_of_mirrored_images(tuned: Callable[..., Training]) -> None:
    plain, mirrored = tuned("finetune=head"), tuned("finetune=head", "augmentation=flip", folder="flip")
    plain.run()
    mirrored.run()
    assert changed(state_of(plain.module), state_of(mirrored.module)) == HEAD


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the splits whose features are computed, which grows."""
    splits: list[str] = []
    original = FeatureCache._compute

    def compute(cache: FeatureCache, split: str, *rest: Any) -> None:
        splits.append(split)
        original(cache, split, *rest)

    monkeypatch.setattr(FeatureCache, "_compute", compute)
    return splits


def test_features_are_computed_once_for_all_trainings_of_a_head(
    tuned: Callable[..., Training], computed: list[str]
) -> None:
    tuned("finetune=head", "augmentation=flip").run()
    assert computed == ["train", "val"]
    for number, other in enumerate(("seed=7", "optimizer.lr=0.1", "trainer.batch_size=9", "loss=mse")):
        tuned("finetune=head", "augmentation=flip", other, folder=str(number)).run()
    assert computed == ["train", "val"]
    # Without mirror images the features of the training images are others, and those of the validation images are not.
    tuned("finetune=head", folder="plain").run()
    assert computed == ["train", "val", "train"]
    assert len(list(Path(".cache/features").glob("[!.]*.npy"))) == 3


@pytest.mark.parametrize("change", ["model.input_size=64", "normalization=per_channel", "weights", "bfloat16"])
def test_what_changes_the_features_computes_them_anew(
    tuned: Callable[..., Training], computed: list[str], change: str
) -> None:
    tuned("finetune=head").run()
    if change == "weights":
        save_network(tiny_network(seed=1), WEIGHTS)
        change = "seed=0"
    training = tuned("finetune=head", *([] if change == "bfloat16" else [change]), folder="other")
    if change == "bfloat16":
        cache = training.datamodule.features
        assert cache is not None
        training.datamodule.features = replace(cache, use_bfloat16=True)
    training.run()
    assert computed == ["train", "val", "train", "val"]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, flip_a_bit, lambda content: b"", lambda content: content[:-1]])
def test_a_damaged_file_of_features_is_made_again(
    tuned: Callable[..., Training],
    computed: list[str],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes], bytes],
) -> None:
    first = tuned("finetune=head")
    first.run()
    contents = {path: path.read_bytes() for path in Path(".cache/features").glob("[!.]*.npy")}
    for path, content in contents.items():
        path.unlink()  # whoever has mapped it keeps it
        path.write_bytes(damage(content))
    second = tuned("finetune=head", folder="second")
    second.run()
    assert computed == ["train", "val", "train", "val"]
    assert {path: path.read_bytes() for path in Path(".cache/features").glob("[!.]*.npy")} == contents
    assert not changed(state_of(first.module), state_of(second.module))
    assert capsys.readouterr().err.count("is damaged: computing the features again.") == 2


def test_features_in_bfloat16_are_near_those_in_single_precision(tuned: Callable[..., Training]) -> None:
    cache = tuned("finetune=head").datamodule.features
    assert cache is not None
    single, rounded = (replace(cache, use_bfloat16=value).open("train", torch.device("cpu")) for value in (False, True))
    assert single.dtype == rounded.dtype == torch.float32
    assert 0 < float((single - rounded).abs().mean() / single.abs().mean()) < 0.02


def test_processes_cannot_freeze_layers_for_some_epochs(project: Project, digits: Dataset) -> None:
    save_network(tiny_network(), WEIGHTS)

    def build(option: str, strategy: str) -> TrainingSetup:
        config = project.compose(*BASE, option)
        ranks = DistributedContext(local_world_size=2, strategy=strategy)
        weights = load_pretrained(config.model, resolve_model)
        hardware = replace(CPU, devices=2)
        return build_training(config, digits, hardware, EAGER, RunDir(Path("unused")), ranks, {}, weights)

    for option, strategy in (("finetune=gradual", "ddp"), ("finetune=head", "fsdp")):
        with pytest.raises(UserError, match=r"^finetune: freezing layers for some epochs, or under .* choose"):
            build(option, strategy)
    assert not build("finetune=head", "ddp").module.takes_features
    assert not build("finetune=full", "fsdp").module.fine_tuning.is_partial


def test_an_interrupted_computation_leaves_no_file(
    tuned: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = features.head_input
    calls: list[int] = []

    def stop_in_the_third_batch(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 4:  # the first one tries the network
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(features, "head_input", stop_in_the_third_batch)
    with pytest.raises(Interrupted):
        tuned("finetune=head").run()
    assert [path.name for path in Path(".cache/features").iterdir() if not path.name.endswith(".lock")] == []


def test_only_the_newest_files_of_features_are_kept(tuned: Callable[..., Training]) -> None:
    folder = Path(".cache/features")
    for number in range(3):
        save_network(tiny_network(seed=number), WEIGHTS)
        tuned("finetune=head", "runtime.max_cached_features=4", folder=str(number)).run()
        if not number:
            first = set(folder.glob("[!.]*.npy"))
    kept = set(folder.glob("[!.]*.npy"))
    assert len(kept) == 4 and len(first) == 2 and not kept & first


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("augmentation=flip_crop",), "the augmentation does more than mirror images"),
        (
            ("model=torchvision", "model.name=squeezenet1_1", "model.weights=null", "model.input_size=64"),
            "the classifier is not the last operation",
        ),
    ],
    ids=["augmentation", "network"],
)
def test_features_that_cannot_be_cached_are_computed_in_each_epoch(
    tuned: Callable[..., Training], capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], reason: str
) -> None:
    training = tuned("finetune=head", *overrides)
    assert f"Features are computed anew in each epoch: {reason}." in capsys.readouterr().out
    before = state_of(training.module)
    training.run()
    head = training.module.fine_tuning.head
    assert changed(before, state_of(training.module)) == {f"net.net.{head}.weight", f"net.net.{head}.bias"}
    assert not Path(".cache/features").exists()


# Interrupted and resumed.


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("finetune=head", "augmentation=flip"), id="cached"),
        pytest.param((*NOT_CACHED, "augmentation=flip"), id="head", marks=pytest.mark.long),
        pytest.param(FULL, id="full", marks=pytest.mark.long),
        pytest.param(GRADUAL, id="gradual"),
    ],
)
def test_stopped_at_any_step_and_resumed_it_ends_with_the_same_bits(
    tuned: Callable[..., Training], overrides: tuple[str, ...]
) -> None:
    expected = tuned(*overrides, folder="undisturbed", seconds=AFTER_EACH_STEP)
    rows = expected.run().rows
    # In the middle, at both sides of an epoch's end, and around the epoch from which all layers train.
    for step in (3, BATCHES, BATCHES + 1, 2 * BATCHES, 2 * BATCHES + 1, 2 * BATCHES + 2):
        stopped = tuned(*overrides, folder=str(step), seconds=AFTER_EACH_STEP)
        stop_at(stopped, step)
        with pytest.raises(Interrupted):
            stopped.run()
        resumed = tuned(*overrides, folder=str(step), seconds=AFTER_EACH_STEP)
        assert without_speed(resumed.run().rows) == without_speed(rows), step
        assert not changed(state_of(expected.module), state_of(resumed.module)), step
        assert stopped.steps + resumed.steps == expected.steps


def stop_at(training: Training, step: int) -> None:
    """Interrupt a training after a number of steps."""
    original, seen = training.module.on_train_batch_start, [0]

    def begin(batch: Any, index: int) -> None:
        seen[0] += 1
        if seen[0] > step:
            raise KeyboardInterrupt
        original(batch, index)

    training.module.on_train_batch_start = begin  # type: ignore[method-assign]


# The file of weights in the `train` stage.


@pytest.mark.long
def test_a_training_is_identified_by_the_content_of_its_file_of_weights(ready: Project) -> None:
    file = Path("pretrained/net.safetensors")
    arguments = ("data=digits", *BASE, f"model.weights={file}", "finetune=head", "runtime.accelerator=cpu")

    def run(seed: int) -> tuple[str, dict[str, Any]]:
        save_network(tiny_network(seed=seed), file)
        ended = ready.start(train, *arguments)
        assert ended.code == 0, ended.err
        return ended.out, json.loads(Path("models/metadata.json").read_text(encoding="utf-8"))

    (first_said, first), (again_said, again), (other_said, other) = run(0), run(0), run(1)
    net = tiny_network(classes=10)
    total, trained = (sum(value.numel() for value in layer.parameters()) for layer in (net, net.get_submodule("fc")))
    line = f"Model:  test_resnet, weights net.safetensors, {total:,} parameters, {trained:,} trained, 32 px"
    assert line in first_said.splitlines()
    assert "has already finished: its weights are reused" in again_said and again == first
    assert "has already finished" not in other_said
    assert other["fingerprint"] != first["fingerprint"]
    assert first["weights"]["address"] == str(file) and first["weights"]["title"] == file.name
    assert len({first["weights"]["sha256"], other["weights"]["sha256"]}) == 2
    assert other["weights"]["sha256"] == sha256(file.read_bytes()).hexdigest()
