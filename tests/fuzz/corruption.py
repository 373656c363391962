"""Ways in which bytes go wrong, and how often each test tries."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

LONG = 1000


def tried(cases: int) -> pytest.MarkDecorator:
    """Run a test with so many cases, and with `LONG` in the long run."""
    return pytest.mark.parametrize("cases", [cases, pytest.param(LONG, marks=pytest.mark.long)])


def repeat(cases: int, *given: Any, **options: Any) -> Callable[[Callable[..., None]], None]:
    """Run the function below it at once, with values drawn so many times."""
    from hypothesis import given as drawn

    return lambda function: settings(settings(), max_examples=cases)(drawn(*given, **options)(function))()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a bit flipped, a byte or a stretch exchanged, cut off, doubled, or with more in it."""
    how = draw(st.sampled_from(["flip", "write", "cut", "insert", "remove", "double", "replace"]))
    # Headers and tables stand at both ends.
    places = st.integers(0, len(content) - 1)
    edges = st.integers(0, min(200, len(content) - 1))
    place = draw(places | edges | edges.map(lambda distance: len(content) - 1 - distance))
    if how == "flip":
        changed = bytearray(content)
        changed[place] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    if how == "write":
        changed = bytearray(content)
        new = draw(st.binary(min_size=1, max_size=16))
        changed[place : place + len(new)] = new
        return bytes(changed[: len(content)])
    if how == "cut":
        return content[:place]
    if how == "insert":
        return content[:place] + draw(st.binary(min_size=1, max_size=16)) + content[place:]
    if how == "remove":
        return content[:place] + content[place + draw(st.integers(1, 16)) :]
    if how == "double":
        return content[:place] + content
    return draw(st.binary(max_size=300))
