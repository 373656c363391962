"""Nested values under one name each: the way down to them."""

from collections.abc import Mapping
from typing import Any


def flat(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """What lies at the ends of nested mappings, under names as they are written on a command line: `optimizer.lr`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{key}{separator}{inner}": end for inner, end in flat(value, separator).items()}
        else:
            found[str(key)] = value
    return found
