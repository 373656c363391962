"""Select parameters of a test for the default test run."""

from collections.abc import Iterable
from typing import Any

import pytest


def some_of(values: Iterable[Any], *indices: int) -> list[Any]:
    """Return parameters, of which all but those at `indices` are long."""
    values = list(values)
    kept = {range(len(values))[index] for index in indices}
    return [
        value if number in kept else pytest.param(*as_tuple(value), marks=pytest.mark.long)
        for number, value in enumerate(values)
    ]


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
