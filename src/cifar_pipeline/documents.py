"""Parse YAML and JSON that nobody vouches for: what would cost far more than its size is an error of the format."""

import json
from typing import Any

import yaml

# Far more than any file here needs, and far less than Python's limit for recursion.
DEEPEST = 50
# Values that stand in a document by an alias (`*name`), all those below it included: OmegaConf copies each.
MOST_ALIASED = 10_000


def json_of(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError where it is none, or nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def yaml_of(text: str | bytes) -> Any:
    """Parse YAML of plain values. Raises yaml.YAMLError as `require_bounded` does, and where it is none."""
    require_bounded(text)
    return yaml.safe_load(text)


def require_bounded(text: str | bytes, name: str = "") -> None:
    """Raise yaml.YAMLError, with the place, where a document of YAML is nested too deep or larger than it looks.

    `name` is that of the file, for the message. Anchors in anchors ("billion laughs") make a document of a few hundred
    bytes into millions of values, and one that holds itself has no end.
    """
    stream = yaml.SafeLoader(text)
    stream.name = name or stream.name
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    count = aliased = 0
    try:
        while stream.check_event():
            event: yaml.Event = stream.get_event()  # type: ignore[no-untyped-call]
            fault = None
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, before = opened.pop()
                if anchor:
                    sizes[anchor] = count - before
            elif isinstance(event, yaml.AliasEvent):
                size = sizes.get(event.anchor or "", 0)
                count, aliased = count + size, aliased + size
                if any(event.anchor == anchor for anchor, _ in opened):
                    fault = f"the value `{event.anchor}` holds itself"
                elif aliased > MOST_ALIASED:
                    fault = f"its aliases stand for more than {MOST_ALIASED:,} values"
            elif isinstance(event, yaml.NodeEvent):
                count += 1
                if isinstance(event, yaml.CollectionStartEvent):
                    opened.append((event.anchor, count - 1))
                    fault = f"it is nested deeper than {DEEPEST} values" if len(opened) > DEEPEST else None
                elif event.anchor:
                    sizes[event.anchor] = 1
            if fault:
                raise yaml.MarkedYAMLError(None, None, fault, event.start_mark)  # type: ignore[arg-type]
    finally:
        stream.dispose()
