"""Create random generators whose streams follow from a seed, a purpose and counters, and are never shared.

torch seeds its CPU generator (a Mersenne Twister) with only the low 32 bits of a number, so that two of several
thousand such seeds are likely to be equal (the birthday problem). Therefore its whole state, 624 words, is set from
NumPy's `SeedSequence`, which hashes the seed, the purpose and the counters into 128 bits. CUDA and MPS have
counter-based generators (Philox) with 64-bit keys, which `SeedSequence` fills.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.random import SeedSequence
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

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
        return result.set_state(_cpu_state(sequence))
    return result.manual_seed(_uint64(sequence))


def seed_torch(seed: int, purpose: RandomStream, *counters: int) -> None:
    """Seed torch's default generators, of the CPU and each GPU, like `generator`; layers such as dropout use them."""
    sequence = _sequence(seed, purpose, counters)
    torch.manual_seed(_uint64(sequence))
    torch.set_rng_state(_cpu_state(sequence))


def seed_all(seed: int, purpose: RandomStream, *counters: int) -> None:
    """Seed the default generators of torch, NumPy and Python."""
    seed_torch(seed, purpose, *counters)
    words = _sequence(seed, purpose, counters).generate_state(8)
    np.random.seed(words[:4])
    random.seed(words[4:].tobytes())


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


class DrawFrom(TorchFunctionMode):
    """Let torch's random functions in this block, on this thread, draw from own generators instead of the default ones.

    Args:
        seed, purpose, counters: see `generator`.
    """

    def __init__(self, seed: int, purpose: RandomStream, *counters: int) -> None:
        super().__init__()
        self.key = (seed, purpose, *counters)
        self.generators: dict[torch.device, Generator] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in RANDOM_FUNCTIONS or kwargs.get("generator") is not None:
            return function(*args, **kwargs)
        like = args[0] if args and isinstance(args[0], Tensor) else None
        device = torch.device(kwargs.get("device") or (like.device if like is not None else "cpu"))
        if device not in self.generators:
            self.generators[device] = generator(device, *self.key)
        if (sample := RANDOM_LIKE.get(function)) is not None:
            assert like is not None
            options = {"dtype": like.dtype, "device": device, **kwargs}
            return sample(like.shape, generator=self.generators[device], **options)
        return function(*args, **kwargs, generator=self.generators[device])


# torch's functions that take no generator, with those that do.
RANDOM_LIKE: dict[Callable[..., Any], Callable[..., Any]] = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}
# torch's functions that draw from a default generator unless they are given one.
RANDOM_FUNCTIONS: set[Callable[..., Any]] = {
    torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli, torch.multinomial,
    torch.poisson, Tensor.bernoulli, Tensor.multinomial, Tensor.uniform_, Tensor.normal_, Tensor.random_,
    Tensor.bernoulli_, Tensor.exponential_, Tensor.geometric_, Tensor.cauchy_, Tensor.log_normal_,
    torch._sample_dirichlet, torch._standard_gamma, *RANDOM_LIKE,
}  # fmt: skip


def _sequence(seed: int, purpose: RandomStream, counters: tuple[int, ...]) -> SeedSequence:
    # A spawn key, because a list with the seed is padded with zeros: [7] and [7, 0] give the same sequence.
    return SeedSequence(seed, spawn_key=(purpose, *counters))


def _uint64(sequence: SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0])


def _cpu_state(sequence: SeedSequence) -> Tensor:
    """Return the state of a CPU generator before it mixes its words for the first time."""
    state = Generator().get_state()
    content = state.numpy()[: CPU_STATE.itemsize].view(CPU_STATE)
    content["left"], content["seeded"], content["next"] = 1, 1, 0
    content["words"] = sequence.generate_state(624)
    content["words"][0, 0] = 2**31  # as in NumPy's MT19937: only this bit is used, and not all words may be 0
    return state
