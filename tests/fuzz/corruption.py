"""Draw corrupted bytes, and set the number of examples of a test."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

LONG_EXAMPLES = 1000


def num_examples(examples: int) -> pytest.MarkDecorator:
    """Parametrize a test with the number of examples, and with `LONG_EXAMPLES` in the long suite."""
    return pytest.mark.parametrize("examples", [examples, pytest.param(LONG_EXAMPLES, marks=pytest.mark.long)])


def run_examples(examples: int, *strategies: Any, **options: Any) -> Callable[[Callable[..., None]], None]:
    """Run the decorated function immediately with drawn values, `examples` times."""
    return lambda function: settings(settings(), max_examples=examples)(given(*strategies, **options)(function))()


@st.composite
def corrupted(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a corruption: a flipped bit, overwritten, inserted, removed or repeated bytes, truncation, other content."""
    corruption = draw(st.sampled_from(["flip", "write", "cut", "insert", "remove", "double", "replace"]))
    # Headers and tables are at both ends.
    anywhere = st.integers(0, len(content) - 1)
    edge = st.integers(0, min(200, len(content) - 1))
    position = draw(anywhere | edge | edge.map(lambda distance: len(content) - 1 - distance))
    if corruption == "flip":
        changed = bytearray(content)
        changed[position] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    if corruption == "write":
        changed = bytearray(content)
        new = draw(st.binary(min_size=1, max_size=16))
        changed[position : position + len(new)] = new
        return bytes(changed[: len(content)])
    if corruption == "cut":
        return content[:position]
    if corruption == "insert":
        return content[:position] + draw(st.binary(min_size=1, max_size=16)) + content[position:]
    if corruption == "remove":
        return content[:position] + content[position + draw(st.integers(1, 16)) :]
    if corruption == "double":
        return content[:position] + content
    return draw(st.binary(max_size=300))
