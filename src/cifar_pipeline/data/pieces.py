"""An array that may be larger than memory, a piece at a time."""

from collections.abc import Iterator

PIECE_BYTES = 16 << 20


def slices(count: int, item_bytes: int) -> Iterator[slice]:
    """Consecutive slices of `count` items, each of some 16 MB and of at least one item."""
    step = items_in_a_piece(item_bytes)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def items_in_a_piece(item_bytes: int) -> int:
    """How many items of so many bytes make a piece, at least one."""
    return max(1, PIECE_BYTES // item_bytes)
