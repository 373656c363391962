"""Damage files as a disk, a copy or a crash would."""

from pathlib import Path


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    """Flip a bit in the middle, which in a checkpoint is inside the largest tensor, where torch does not notice it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
