"""Random generators for torch that follow from a seed and a purpose, and never share a stream.

torch seeds its CPU generator (a Mersenne Twister) with the low 32 bits of the number it is given, whatever else is in
it. Two of several thousand such seeds are likely to be equal: the birthday problem. So the generator's whole state, 624
words, is set from NumPy's `SeedSequence`, which hashes all of the seed, the purpose and the numbers into 128 bits. CUDA
and Apple's GPUs have counter-based generators (Philox) with keys of 64 bits, which `SeedSequence` fills.
"""

from enum import IntEnum

import numpy as np
import torch
from numpy.random import SeedSequence
from torch import Generator, Tensor

# The beginning of `Generator.get_state()` on a CPU: `CPUGeneratorImplStateLegacy` in ATen/CPUGeneratorImpl.cpp. What
# follows, a kept second normal number, is empty in a new generator. tests/data/test_seeds.py compares it with NumPy.
CPU_STATE = np.dtype([("seed", "u8"), ("left", "i4"), ("seeded", "i4"), ("next", "u8"), ("words", "u8", 624)])


class Purpose(IntEnum):
    """What random numbers are drawn for; each has streams of its own."""

    ORDER = 0
    AUGMENTATION = 1
    TURNS = 2
    NETWORK = 3


def generator(device: torch.device | str, seed: int, purpose: Purpose, *numbers: int) -> Generator:
    """A generator on `device`; `numbers` (each below 2^32) tell the streams of a purpose apart: an epoch, a rank."""
    sequence = _sequence(seed, purpose, numbers)
    made = Generator(device)
    if made.device.type == "cpu":
        return made.set_state(_cpu_state(sequence))
    return made.manual_seed(_word(sequence))


def seed_torch(seed: int, purpose: Purpose, *numbers: int) -> None:
    """Seed torch's own generators, of the CPU and of each GPU, as `generator` does: layers such as dropout use them."""
    sequence = _sequence(seed, purpose, numbers)
    torch.manual_seed(_word(sequence))
    torch.set_rng_state(_cpu_state(sequence))


def _sequence(seed: int, purpose: Purpose, numbers: tuple[int, ...]) -> SeedSequence:
    # As a spawn key and not as a list with the seed, which is padded with zeros: [7] and [7, 0] are one sequence.
    return SeedSequence(seed, spawn_key=(purpose, *numbers))


def _word(sequence: SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0])


def _cpu_state(sequence: SeedSequence) -> Tensor:
    """The state of a CPU generator that is about to mix its words for the first time."""
    state = Generator().get_state()
    content = state.numpy()[: CPU_STATE.itemsize].view(CPU_STATE)
    content["left"], content["seeded"], content["next"] = 1, 1, 0
    content["words"] = sequence.generate_state(624)
    content["words"][0, 0] = 2**31  # as NumPy's own MT19937 has it: only this bit counts, and not all may be 0
    return state
