"""Whatever is drawn at random has a stream of its own: no two purposes, seeds, epochs or processes share one."""

from itertools import product

import numpy as np
import pytest
import torch
from numpy.random import MT19937, SeedSequence

from cifar_pipeline.data.loader import TensorLoader
from cifar_pipeline.data.random_streams import RandomStream, generator, seed_torch
from cifar_pipeline.data.transforms import Augmentation

SEEDS = (0, 1, 4096, 8192, 2**32 - 1)


def test_the_cpu_generator_has_the_complete_state_of_numpys() -> None:
    """The layout of torch's state is not documented: whether this torch reads it so is seen in what it draws."""
    expected = MT19937(SeedSequence(7, spawn_key=(RandomStream.NETWORK, 3, 1)))
    state = expected.state
    state["state"]["pos"] = 624  # torch, too, mixes the words before it hands out the first
    expected.state = state
    words = torch.empty(2000, dtype=torch.int64).random_(
        0, 2**27, generator=generator("cpu", 7, RandomStream.NETWORK, 3, 1)
    )
    assert np.array_equal(words.numpy(), expected.random_raw(2000) % 2**27)


def test_no_two_streams_begin_alike() -> None:
    epochs, ranks = range(40), range(4)
    keys = [(purpose, *numbers) for purpose in RandomStream for numbers in product(epochs, ranks)]
    keys += [(purpose, number) for purpose in RandomStream for number in epochs] + [
        (purpose,) for purpose in RandomStream
    ]
    begun = {tuple(torch.rand(4, generator=generator("cpu", seed, *key)).tolist()) for seed in SEEDS for key in keys}
    assert len(begun) == len(SEEDS) * len(keys)


def test_torchs_own_generator_is_seeded_alike() -> None:
    seed_torch(3, RandomStream.NETWORK, 5, 1)
    assert torch.equal(torch.rand(9), torch.rand(9, generator=generator("cpu", 3, RandomStream.NETWORK, 5, 1)))


@pytest.mark.parametrize("normal", [True, False])
def test_earlier_draws_change_nothing(normal: bool) -> None:
    seed_torch(3, RandomStream.NETWORK)
    first = torch.randn(1), torch.randn(3)
    # One normal number is drawn with another, which is kept for the next call.
    torch.randn(1) if normal else torch.rand(7)
    seed_torch(3, RandomStream.NETWORK)
    assert all(map(torch.equal, first, (torch.randn(1), torch.randn(3))))


def test_augmentation_uses_all_bits_of_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of 64 bits would lose half of them on a CPU."""
    seen = []

    def keep(images: torch.Tensor, chance: torch.Generator, turns: torch.Tensor) -> torch.Tensor:
        seen.append(chance.get_state()[24 : 24 + 624 * 8].view(torch.int64).clone())
        return images

    pixels = torch.zeros(8, 2, 2, 1, dtype=torch.uint8)
    batches = TensorLoader(pixels, torch.zeros(8), 4, seed=0, shuffle=True, augmentation=Augmentation.of(keep))
    list(batches)
    # A generator seeded by a number computes its words from it: the second word tells the first.
    (words,) = seen
    seeded = torch.Generator().manual_seed(int(words[0])).get_state()[24 : 24 + 624 * 8].view(torch.int64)
    assert not torch.equal(seeded[1:], words[1:])
