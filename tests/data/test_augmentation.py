"""Augmentation against an image-by-image reference."""

import numpy as np
import pytest
import torch

from cifar_pipeline.data import augmentation
from cifar_pipeline.utils.errors import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flip_crop(images, generator, turns=None, **options):
    turns = torch.zeros(len(images), dtype=torch.bool) if turns is None else turns
    return augmentation.flip_crop(images, generator, turns, **options)


def pictures(count=64, height=9, width=7, channels=3):
    return torch.randint(0, 256, (count, height, width, channels), generator=generator(1)).to(torch.uint8)


def reference(images, flip, padding):
    """Each image by itself: mirrored, padded by reflection, cut out."""
    count, height, width, _ = images.shape
    random = generator()
    down, right = torch.randint(-padding, padding + 1, (2, count, 1), generator=random)
    mirrored = torch.randint(0, 2, (count, 1), generator=random)
    result = []
    for image, dy, dx, mirror in zip(images.numpy(), down, right, mirrored, strict=True):
        picture = image[:, ::-1] if flip and mirror else image
        padded = np.pad(picture, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
        top, left = padding - int(dy), padding - int(dx)
        result.append(padded[top : top + height, left : left + width])
    return torch.from_numpy(np.stack(result))


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 4, 6])
@pytest.mark.parametrize("channels", [1, 3])
def test_flip_crop_equals_the_reference(flip, padding, channels):
    images = pictures(channels=channels)
    found = flip_crop(images, generator(), flip=flip, padding=padding)
    assert found.dtype == torch.uint8
    assert torch.equal(found, reference(images, flip, padding))


def test_the_generator_alone_decides_and_the_images_stay():
    images = pictures()
    before = images.clone()
    torch.manual_seed(1)
    one = flip_crop(images, generator())
    torch.manual_seed(2)
    assert torch.equal(one, flip_crop(images, generator()))
    assert not torch.equal(one, flip_crop(images, generator(5)))
    assert torch.equal(images, before)


def test_about_half_are_flipped_and_every_shift_occurs():
    images = pictures(count=1)[:1].expand(2000, -1, -1, -1)
    mirrored = flip_crop(images, generator(), padding=0)
    assert 900 < (mirrored[:, 0, 0] != images[:, 0, 0]).any(1).sum() < 1100
    shifted = flip_crop(images, generator(), flip=False, padding=2)
    assert len({image.numpy().tobytes() for image in shifted}) == 25


@pytest.mark.parametrize("padding", [-1, 7])
def test_a_padding_beyond_the_image_is_refused(padding):
    with pytest.raises(UserError, match=f"padding={padding} .* from 0 to 6"):
        flip_crop(pictures(), generator(), padding=padding)


def test_without_shifts_and_flips_the_images_stay_as_they_are():
    images = pictures()
    assert torch.equal(flip_crop(images, generator(), padding=0, flip=False), images)


@pytest.mark.parametrize("alternating", [True, False])
def test_flip_is_flip_crop_without_shifts(alternating):
    images, turns = pictures(), torch.arange(64) % 3 == 0
    expected = flip_crop(images, generator(), turns, padding=0, alternating_flip=alternating)
    assert torch.equal(augmentation.flip(images, generator(), turns, alternating_flip=alternating), expected)


def test_alternating_flip_follows_the_mask():
    images, turns = pictures(), torch.arange(64) % 3 == 0
    found = flip_crop(images, generator(), turns, padding=0, alternating_flip=True)
    assert torch.equal(found[turns], images[turns].flip(2)) and torch.equal(found[~turns], images[~turns])
    assert torch.equal(flip_crop(images, generator(), turns, padding=0, alternating_flip=True, flip=False), images)
