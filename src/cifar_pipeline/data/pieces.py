"""An array that may be larger than memory, a piece at a time."""

from collections.abc import Iterator
from math import prod

import numpy as np

PIECE_BYTES = 16 << 20


def pieces(array: np.ndarray) -> Iterator[slice]:
    """Consecutive slices of an array's rows, each of some 16 MB and of at least one row."""
    count, step = len(array), items_in_a_piece(array.itemsize * prod(array.shape[1:]))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def items_in_a_piece(item_bytes: int) -> int:
    """How many items of so many bytes make a piece, at least one."""
    return max(1, PIECE_BYTES // item_bytes)
