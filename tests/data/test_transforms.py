"""Transforms of conf/augmentation: what each image gets, in which order, after an interruption and on several ranks."""

import gc
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Mapping
from contextlib import chdir
from functools import cache
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.data import loader as loader_module
from cifar_pipeline.data import transforms as module
from cifar_pipeline.data.loader import TensorLoader
from cifar_pipeline.data.random_streams import RandomStream, Streams
from cifar_pipeline.data.transforms import Augmentation, build_augmentation
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import options_of
from helpers.parameters import some_of
from helpers.source_tree import PUBLISHED

OPTIONS = options_of("augmentation")
SIZE, NETWORK_SIZE, CLASSES = 40, 32, 5
V2 = "torchvision.transforms.v2"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a chunk be a few batches, so that a few images fill several."""
    monkeypatch.setattr(loader_module, "GATHER_SIZE", 16)


@cache
def options(name: str) -> Mapping[str, Any]:
    """Return the transforms of an option, as Hydra composes them."""
    with chdir(PUBLISHED):
        transforms: Mapping[str, Any] = compose_config([f"augmentation={name}"]).augmentation
    return transforms


def build(transforms: Mapping[str, Any], network_size: int = NETWORK_SIZE, processes: int = 1) -> Augmentation:
    return build_augmentation(transforms, network_size, CLASSES, processes)


def one(target: str, **values: Any) -> Augmentation:
    """Return the augmentation by one transform named `mine`."""
    return build({"mine": {"_target_": target, **values}})


def images(count: int = 43, size: int = SIZE, channels: int = 3) -> Tensor:
    seeded = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, size, size, channels), generator=seeded).to(torch.uint8)


def loader(augmentation: Augmentation, count: int = 43, size: int = SIZE, **changed: Any) -> TensorLoader:
    values: dict[str, Any] = {"seed": 0, "shuffle": True, "augmentation": augmentation, **changed}
    return TensorLoader(images(count, size), torch.arange(count) % CLASSES, 5, **values)


def epoch(augmentation: Augmentation, number: int = 1, **changed: Any) -> list[tuple[Tensor, Tensor]]:
    batches = loader(augmentation, **changed)
    batches.set_epoch(number)
    return list(batches)


def equal(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("stop", some_of([1, 4, 8], 1))
def test_an_epoch_resumes_with_the_same_pixels(option: str, stop: int) -> None:
    whole, interrupted, resumed = (loader(build(options(option))) for _ in range(3))
    for batches in (whole, interrupted):
        batches.set_epoch(3)
    iterator = iter(interrupted)
    for _ in range(stop):
        next(iterator)
    torch.rand(5), random.random(), np.random.rand()
    resumed.load_state_dict(interrupted.state_dict())
    assert equal(list(resumed), list(whole)[stop:])


@pytest.mark.parametrize("option", [option for option in OPTIONS if option != "none"])
def test_seed_and_epoch_decide_and_the_data_stays(option: str) -> None:
    augmentation = build(options(option))
    batches = loader(augmentation, shuffle=False)
    before = batches.images.clone()
    assert equal(list(batches), epoch(augmentation, 0, shuffle=False))
    assert torch.equal(batches.images, before)
    assert not equal(epoch(augmentation, 0, shuffle=False), epoch(augmentation, 1, shuffle=False))
    assert not equal(epoch(augmentation, 1, shuffle=False), epoch(augmentation, 1, shuffle=False, seed=1))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("world_size", some_of([2, 3], 1))
def test_ranks_share_the_batches_of_a_single_process(option: str, world_size: int) -> None:
    augmentation = build(options(option))
    alone = epoch(augmentation)
    ranks = [epoch(augmentation, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, (expected, labels) in enumerate(alone):
        joined, joined_labels = torch.empty_like(expected), torch.empty_like(labels)
        for rank, batches in enumerate(ranks):
            share = len(range(rank, len(labels), world_size))
            joined[rank::world_size] = batches[number][0][:share]
            joined_labels[rank::world_size] = batches[number][1][:share]
        assert torch.equal(joined, expected) and torch.equal(joined_labels, labels)


@pytest.fixture
def few_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let several processes share even a few images."""
    monkeypatch.setattr(module, "MIN_IMAGES_FOR_WORKERS", 2)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


@pytest.mark.parametrize("size", [SIZE, 120])
@pytest.mark.parametrize("option", ["photo", "color_jitter", "rand_augment", "random_erasing"])
def test_several_processes_give_the_pixels_of_one(option: str, size: int, few_are_shared: None) -> None:
    before = children()
    expected = epoch(build(options(option)), size=size)
    assert children() <= before
    augmentation = build(options(option), processes=3)
    assert equal(epoch(augmentation, size=size), expected)
    assert len(children() - before) == 3


def mine(name: str) -> Augmentation:
    return build({"mine": {"_target_": f"{__name__}.{name}", "_partial_": True}}, processes=2)


def test_own_code_in_several_processes_is_reproducible(few_are_shared: None) -> None:
    assert equal(epoch(mine("draws_everywhere")), epoch(mine("draws_everywhere")))


def fails_on_dark_images(image: Tensor) -> Tensor:
    if int(image.max()) < 9:
        raise ValueError("too dark")
    return image


def test_an_error_in_a_process_is_told_as_in_one(few_are_shared: None) -> None:
    batches = loader(mine("fails_on_dark_images"))
    batches.images[17] = 0
    with pytest.raises(UserError, match=r"augmentation.mine fails on a tensor .3, 40, 40. uint8: too dark"):
        list(batches)


def kills_its_process(image: Tensor) -> Tensor:
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return image


def test_a_process_that_is_killed_ends_the_training_with_a_sentence(few_are_shared: None) -> None:
    with pytest.raises(UserError, match="was killed, possibly for lack of memory: runtime.threads=1"):
        epoch(mine("kills_its_process"))


def test_the_processes_end_with_the_augmentation(few_are_shared: None) -> None:
    before = children()
    augmentation = build(options("random_resized_crop"), processes=2)
    epoch(augmentation)
    assert len(children() - before) == 2
    del augmentation
    gc.collect()
    for _ in range(100):
        if children() <= before:
            return
        time.sleep(0.05)
    raise AssertionError("processes are left")


def test_each_image_gets_a_draw_of_its_own() -> None:
    same = images(1).expand(20, -1, -1, -1).contiguous()
    batches = TensorLoader(
        same, torch.zeros(20).long(), 20, seed=0, shuffle=False, augmentation=build(options("photo"))
    )
    (augmented, _), *_ = batches
    assert augmented.shape == (20, NETWORK_SIZE, NETWORK_SIZE, 3)
    assert len({image.numpy().tobytes() for image in augmented}) == 20


def test_an_image_is_what_torchvision_makes_of_it() -> None:
    (augmented, _), *_ = epoch(one(f"{V2}.RandomResizedCrop", size=NETWORK_SIZE), 2, shuffle=False)
    for position in range(5):
        Streams.of(0, RandomStream.TRANSFORM, 2, 0).seed_defaults(position, torch.device("cpu"))
        expected = v2.RandomResizedCrop(NETWORK_SIZE)(images()[position].permute(2, 0, 1))
        assert torch.equal(augmented[position], expected.permute(1, 2, 0))


# All of torchvision's that keep size and type, with arguments that make each change something.
TORCHVISION: dict[str, dict[str, Any]] = {
    "AugMix": {}, "AutoAugment": {}, "CenterCrop": {"size": None}, "ColorJitter": {"brightness": 0.9},
    "ElasticTransform": {}, "GaussianBlur": {"kernel_size": 3}, "GaussianNoise": {}, "JPEG": {"quality": [5, 50]},
    "RandAugment": {}, "RandomAdjustSharpness": {"sharpness_factor": 9}, "RandomAffine": {"degrees": 45},
    "RandomAutocontrast": {}, "RandomChannelPermutation": {}, "RandomCrop": {"size": None}, "RandomEqualize": {},
    "RandomErasing": {"value": "random"}, "RandomGrayscale": {"p": 0.5}, "RandomHorizontalFlip": {},
    "RandomInvert": {}, "RandomPerspective": {}, "RandomPhotometricDistort": {}, "RandomPosterize": {"bits": 2},
    "RandomResizedCrop": {"size": None}, "RandomRotation": {"degrees": 90}, "RandomSolarize": {"threshold": 9},
    "RandomVerticalFlip": {}, "Resize": {"size": None}, "TrivialAugmentWide": {},
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_transform_of_torchvision_is_reproducible(name: str) -> None:
    augmentation = one(f"{V2}.{name}", **TORCHVISION[name])
    augmentation.check((SIZE, SIZE, 3), NETWORK_SIZE)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = epoch(augmentation)
    assert torch.equal(torch.get_rng_state(), state), "the default generator has moved"
    torch.manual_seed(2)
    assert equal(epoch(augmentation), first)
    assert any(not torch.equal(a, b) for (a, _), (b, _) in zip(first, epoch(build({})), strict=True))


def draws_everywhere(image: Tensor) -> Tensor:
    """Draw from Python's, NumPy's and torch's default generators, as one's own code may."""
    noise = random.randint(0, 9) + np.random.randint(0, 9) + int(torch.randint(0, 9, ()))
    return (image + noise).clamp(0, 255).to(torch.uint8)


def test_ones_own_callable_is_reproducible_and_leaves_the_default_generators_alone() -> None:
    augmentation = build({"mine": {"_target_": f"{__name__}.draws_everywhere", "_partial_": True}})
    first = epoch(augmentation)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert equal(epoch(augmentation), first)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    changed = {int((a.int() - b.int()).max()) for (a, _), (b, _) in zip(first, epoch(build({})), strict=True)}
    assert len(changed) > 1


def test_a_list_of_transforms_is_chosen_from() -> None:
    choice = {
        "_target_": f"{V2}.RandomChoice",
        "transforms": [{"_target_": f"{V2}.RandomInvert", "p": 1}, {"_target_": f"{V2}.RandomVerticalFlip", "p": 1}],
    }
    (augmented, _), *_ = epoch(build({"choice": choice}), shuffle=False)
    inverted = [torch.equal(255 - image, new) for image, new in zip(images(), augmented, strict=False)]
    flipped = [torch.equal(image.flip(0), new) for image, new in zip(images(), augmented, strict=False)]
    assert all(a != b for a, b in zip(inverted, flipped, strict=True)) and any(inverted) and any(flipped)


def test_the_transforms_are_applied_in_their_order() -> None:
    invert = {"_target_": f"{V2}.RandomInvert", "p": 1}
    dark = {"_target_": f"{V2}.RandomErasing", "p": 1, "scale": [0.5, 0.5], "ratio": [1, 1]}
    (first, _), *_ = epoch(build({"invert": invert, "erase": dark}))
    (last, _), *_ = epoch(build({"erase": dark, "invert": invert}))
    assert (first == 0).float().mean() > 0.4 and (last == 255).float().mean() > 0.4


def test_two_functions_of_a_chunk_draw_different_numbers() -> None:
    twice = build({"one": options("flip")["flip"], "two": options("flip")["flip"]})
    mirrored = [
        torch.equal(image.flip(1), new)
        for (augmented, _), (plain, _) in zip(epoch(twice), epoch(build({})), strict=True)
        for image, new in zip(plain, augmented, strict=True)
    ]
    assert 8 < sum(mirrored) < 35


def darkened(images: Tensor, generator: torch.Generator, flip_mask: Tensor) -> Tensor:
    return images / 2


def test_a_function_of_a_chunk_must_keep_the_type() -> None:
    augmentation = build({"mine": {"_target_": f"{__name__}.darkened", "_partial_": True}})
    with pytest.raises(UserError, match=r"into a tensor .4, 40, 40, 3. float32: it must keep the type"):
        augmentation.check((SIZE, SIZE, 3), NETWORK_SIZE)


def test_a_transform_of_whole_batches_draws_once_for_each() -> None:
    augmentation = build({"invert": {"_target_": f"{V2}.RandomInvert", "per_batch": True}})
    inverted = []
    for (augmented, _), (plain, _) in zip(epoch(augmentation), epoch(build({})), strict=True):
        whole = {torch.equal(255 - a, b) for a, b in zip(plain, augmented, strict=True)}
        assert len(whole) == 1
        inverted += whole
    assert set(inverted) == {True, False}


def test_mixup_blends_images_and_labels_by_the_same_weight() -> None:
    for (augmented, labels), (plain, classes) in zip(epoch(build(options("mixup"))), epoch(build({})), strict=True):
        assert labels.dtype == torch.float32 and torch.allclose(labels.sum(1), torch.ones(len(labels)))
        one_hot = torch.nn.functional.one_hot(classes, CLASSES).float()
        different = classes != classes.roll(1)
        weight = labels[different, classes[different]][:1]
        weight = weight if len(weight) else torch.ones(1)
        assert torch.allclose(labels, weight * one_hot + (1 - weight) * one_hot.roll(1, 0), atol=1e-6)
        blended = weight * plain.float() + (1 - weight) * plain.roll(1, 0).float()
        assert (augmented.float() - blended).abs().max() <= 0.51


def test_cutmix_mixes_labels_by_the_area() -> None:
    mixed = 0
    for (augmented, labels), (plain, classes) in zip(epoch(build(options("cutmix"))), epoch(build({})), strict=True):
        kept = (augmented == plain).all(3)
        assert (kept | (augmented == plain.roll(1, 0)).all(3)).all()
        for index in range(len(labels)):
            if classes[index] != classes[index - 1]:
                share = labels[index, classes[index]]
                assert abs(float(kept[index].float().mean() - share)) < 0.01
                mixed += int(0.05 < share < 0.95)
    assert mixed > 5


@pytest.mark.parametrize("channels", [1, 3])
def test_pil_images_are_converted_back_and_forth(channels: int) -> None:
    image = images(1, 21, channels)[0].permute(2, 0, 1)
    for tensor in (image, image.contiguous()):
        assert torch.equal(module.to_tensor(module.to_pil(tensor)).permute(2, 0, 1), image)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"_target_": "torchvision.transforms.PILToTensor"}, "augmentation.mine fails on a tensor .*not PIL images"),
        ({"_target_": f"{V2}.ToDtype", "dtype": {"_target_": "hydra.utils.get_object", "path": "torch.float32"}},
         "into a tensor .3, 40, 40. float32: a transform must keep the type"),
        ({"_target_": f"{V2}.ToPILImage"}, "into Image: a transform must return a tensor"),
        ({"_target_": f"{V2}.Grayscale", "num_output_channels": 1}, "number of channels"),
        ({"_target_": f"{V2}.RandomCrop", "size": 64}, "mine fails on a tensor .*larger than input image size"),
        ({"_target_": f"{V2}.Resize", "size": 20}, "40x40 pixels into 20x20, but the network sees 32x32.*size: null"),
        ({"_target_": f"{V2}.RandomCrop", "size": [32, 40]}, "into 32x40"),
        ({"_target_": f"{V2}.GaussianNoise", "pil_on_cpu": True}, "fails on a PIL image: .*Without .pil_on_cpu"),
        ({"_target_": f"{V2}.PILToTensor", "pil_on_cpu": True}, "does not return a PIL image of mode RGB"),
        ({"_target_": f"{V2}.MixUp"}, "mixes labels .mixes_labels: true"),
        ({"_target_": f"{V2}.RandomResize", "min_size": 20, "max_size": 50}, "images of different sizes"),
    ],
)  # fmt: skip
def test_a_transform_that_does_not_fit_is_refused_in_a_sentence(transform: dict[str, Any], message: str) -> None:
    augmentation = build({"mine": transform})
    with pytest.raises(UserError, match=message):
        augmentation.check((SIZE, SIZE, 3), NETWORK_SIZE)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_fits_images_of_any_size(option: str, channels: int) -> None:
    for size, network_size in ((28, 28), (40, 32), (32, 128)):
        build(options(option), network_size).check((size, size, channels), network_size)


def test_the_preview_shows_what_is_trained_on() -> None:
    pixels = images(6).numpy()
    shown = build(options("photo")).preview(pixels, np.arange(6) % CLASSES)
    assert shown.shape == (6, NETWORK_SIZE, NETWORK_SIZE, 3) and shown.dtype == np.uint8
    assert np.array_equal(pixels, images(6).numpy())
