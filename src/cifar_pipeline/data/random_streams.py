"""Create random generators whose streams follow from a seed, a purpose and counters, and are never shared.

torch seeds its CPU generator (a Mersenne Twister) with only the low 32 bits of a number, so that two of several
thousand such seeds are likely to be equal (the birthday problem). Therefore its whole state, 624 words, is set from
NumPy's `SeedSequence`, which hashes the seed, the purpose and the counters into 128 bits. CUDA and MPS have
counter-based generators (Philox) with 64-bit keys, which `SeedSequence` fills.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np
import torch
from numpy.random import SeedSequence
from torch import Generator, Tensor

# The beginning of `Generator.get_state()` on a CPU: `CPUGeneratorImplStateLegacy` in ATen/CPUGeneratorImpl.cpp. The
# rest, a cached normal number, is empty in a new generator. tests/data/test_seeds.py compares it with NumPy.
CPU_STATE = np.dtype([("seed", "u8"), ("left", "i4"), ("seeded", "i4"), ("next", "u8"), ("words", "u8", 624)])


class RandomStream(IntEnum):
    """Purposes of random numbers; each has its own streams."""

    ORDER = 0
    AUGMENTATION = 1
    FLIP = 2
    NETWORK = 3
    TRANSFORM = 4


def generator(device: torch.device | str, seed: int, purpose: RandomStream, *counters: int) -> Generator:
    """Create a generator on `device`; `counters` (epoch, rank; each below 2^32) distinguish streams of a purpose."""
    sequence = _sequence(seed, purpose, counters)
    result = Generator(device)
    if result.device.type == "cpu":
        return result.set_state(_cpu_state(sequence.generate_state(624)))
    return result.manual_seed(_uint64(sequence))


def seed_torch(seed: int, purpose: RandomStream, *counters: int) -> None:
    """Seed torch's default generators, of the CPU and each GPU, like `generator`; layers such as dropout use them."""
    sequence = _sequence(seed, purpose, counters)
    torch.manual_seed(_uint64(sequence))
    torch.set_rng_state(_cpu_state(sequence.generate_state(624)))


@contextmanager
def preserved_generators(device: torch.device) -> Iterator[None]:
    """Give the default generators of torch (CPU and `device`), NumPy and Python their states back after the block."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@dataclass(frozen=True)
class Streams:
    """Streams of one key, one for each index: of the images or batches of an epoch.

    The words of a stream come from a block of the output of Philox, which is numbered by the index: cheaper than a
    `SeedSequence` for each image. Source: J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.

    Args:
        key: two words, the hash of a seed, a purpose and counters.
    """

    key: tuple[int, int]

    @staticmethod
    def of(seed: int, purpose: RandomStream, *counters: int) -> "Streams":
        """Return the streams of a seed, a purpose and counters."""
        first, second = _sequence(seed, purpose, counters).generate_state(2, np.uint64).tolist()
        return Streams((first, second))

    def seed_defaults(self, index: int, device: torch.device, torch_only: bool = False) -> None:
        """Seed torch's default generators, on the CPU and `device`, and unless `torch_only` NumPy's and Python's."""
        raw: np.ndarray = np.random.Philox(key=self.key, counter=[0, index, 0, 0]).random_raw(312)
        words = raw.view(np.uint32)
        torch.set_rng_state(_cpu_state(words))
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(int(raw[0]))
        if not torch_only:
            np.random.seed(words[:4])
            random.seed(words[4:8].tobytes())


def _sequence(seed: int, purpose: RandomStream, counters: tuple[int, ...]) -> SeedSequence:
    # A spawn key, because a list with the seed is padded with zeros: [7] and [7, 0] give the same sequence.
    return SeedSequence(seed, spawn_key=(purpose, *counters))


def _uint64(sequence: SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0])


@cache
def _new_cpu_state() -> Tensor:
    return Generator().get_state()


def _cpu_state(words: np.ndarray) -> Tensor:
    """Return the state of a CPU generator of 624 words before it mixes them for the first time."""
    state = _new_cpu_state().clone()
    content = state.numpy()[: CPU_STATE.itemsize].view(CPU_STATE)
    content["left"], content["seeded"], content["next"] = 1, 1, 0
    content["words"] = words
    content["words"][0, 0] = 2**31  # as in NumPy's MT19937: only this bit is used, and not all words may be 0
    return state
