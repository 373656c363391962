"""Read a search space in Hydra's override grammar as Optuna's distributions, and write proposed values as overrides.

`interval(a, b)` is a range of numbers, of whole ones with `int(...)` or `tag(int, ...)`; `choice(...)` and `a,b,c` are
alternatives; `range(...)` are evenly spaced numbers; `tag(log, ...)` makes a range logarithmic.
"""

from collections.abc import Mapping
from itertools import chain, islice, repeat
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import one_line

# Types of the bounds of Optuna's distributions.
Number = int | float


def distribution(override: Override) -> BaseDistribution:
    """Convert the values of a swept override to a distribution. Raises UserError if Optuna rejects them."""
    sweep = override.value()
    try:
        if isinstance(sweep, IntervalSweep):
            assert sweep.start is not None and sweep.end is not None
            is_int = "int" in sweep.tags or (isinstance(sweep.start, int) and isinstance(sweep.end, int))
            return _range(sweep.start, sweep.end, is_int, "log" in sweep.tags)
        if isinstance(sweep, RangeSweep):
            values: list[Any] = sorted(override.sweep_iterator())
            is_int, is_log = all(isinstance(value, int) for value in values), "log" in sweep.tags
            step = None if is_log or len(values) < 2 else values[1] - values[0]
            return _range(values[0], values[-1], is_int, is_log, step)
        return CategoricalDistribution([_plain(value) for value in override.sweep_iterator(Transformer.encode)])
    except (ValueError, IndexError) as error:
        key, _, text = str(override.input_line).partition("=")
        reason = "it has no values" if isinstance(error, IndexError) else one_line(error).rstrip(".")
        raise UserError(f"{key.lstrip('+')}={text} cannot be searched: {reason}.") from None


def _range(low: Number, high: Number, is_int: bool, is_log: bool, step: Number | None = None) -> BaseDistribution:
    if is_int:
        return IntDistribution(int(low), int(high), log=is_log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=is_log, step=step)


def _plain(value: Any) -> Any:
    """Return a choice as Optuna stores it: a number, a bool, or text as on the command line."""
    return value if isinstance(value, bool | int | float | str) else str(value)


def format_value(value: Any) -> str:
    """Format a proposed value as on the command line."""
    return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else repr(value)


def corners(space: Mapping[str, BaseDistribution]) -> list[dict[str, str]]:
    """Return proposals that contain, together, the bounds of each range and all alternatives of each choice."""
    values = {key: _extremes(entry) for key, entry in space.items()}
    count = max(map(len, values.values()))
    columns = {key: list(islice(chain(known, repeat(known[-1])), count)) for key, known in values.items()}
    return [{key: format_value(column[row]) for key, column in columns.items()} for row in range(count)]


def _extremes(entry: BaseDistribution) -> list[Any]:
    if isinstance(entry, CategoricalDistribution):
        return list(entry.choices)
    assert isinstance(entry, FloatDistribution | IntDistribution)
    return list(dict.fromkeys([entry.low, entry.high]))
