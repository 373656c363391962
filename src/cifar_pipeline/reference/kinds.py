"""What a value may be, in the words of JSON Schema: found out by asking the rule of src/cifar_pipeline/config/check.py.

A rule is a function, which no editor can call. It is asked about numbers on both sides of each bound that its sentence
names, about each word of it, and about lists and nothing; what it answers is written down.
"""

import re
from collections.abc import Callable
from typing import Any

from cifar_pipeline.config.check import Rule

Schema = dict[str, Any]
Holds = Callable[[Any], bool]

FAR = 1e15
NEAR = 1e-9
ANY_WORD = "xyzzy"
LENGTHS = (1, 2, 3)


def kind(rule: Rule) -> Schema:
    """The schema of the values that a rule allows."""
    bounds = sorted({0.0, 1.0, *map(float, re.findall(r"(?<![\w-])\d+(?![\w-])", rule.allowed))})
    return _any_of(_kinds(rule.holds, bounds, re.findall(r"[\w-]+", rule.allowed)))


def kind_of_values(values: list[Any]) -> Schema:
    """The schema of values that no rule is about, by what stands in conf/ for them."""
    found = {_type(value) for value in values}
    if not found or "null" in found:
        return {}
    return {"type": "number" if found == {"number", "integer"} else sorted(found)[0]} if found <= _ALIKE else {}


_ALIKE = {"boolean", "integer", "number", "string", "array", "object"}


def _type(value: Any) -> str:
    types = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return types.get(type(value), "null")


def _kinds(holds: Holds, bounds: list[float], words: list[str]) -> list[Schema]:
    kinds: list[Schema] = []
    if holds(True) and holds(False):
        kinds.append({"type": "boolean"})
    kinds += _number(holds, bounds)
    if holds(ANY_WORD):
        kinds.append({"type": "string"} | ({} if holds("") else {"minLength": 1}))
    elif accepted := [word for word in words if holds(word)]:
        kinds.append({"enum": accepted})
    kinds += _list(holds, bounds)
    if holds({"_target_": ANY_WORD}):
        kinds.append({"type": "object"})
    if holds(None):
        kinds.append({"type": "null"})
    return kinds


def _number(holds: Holds, bounds: list[float]) -> list[Schema]:
    near = [-FAR + 0.5, *(bound + step for bound in bounds for step in (-0.5, -NEAR, NEAR, 0.5)), FAR + 0.5]
    fractions = [number for number in near if not number.is_integer()]  # near a large bound there is none
    whole = [int(-FAR), *(int(bound) + step for bound in bounds for step in (-1, 0, 1)), int(FAR)]
    accepted = [number for number in (*fractions, *whole) if holds(number)]
    if not accepted:
        return []
    schema: Schema = {"type": "number" if any(number in accepted for number in fractions) else "integer"}
    below = [bound for bound in bounds if all(number >= bound for number in accepted)]
    above = [bound for bound in bounds if all(number <= bound for number in accepted)]
    if below:
        schema["minimum" if holds(int(below[-1])) else "exclusiveMinimum"] = int(below[-1])
    if above:
        schema["maximum" if holds(int(above[0])) else "exclusiveMaximum"] = int(above[0])
    return [schema]


def _list(holds: Holds, bounds: list[float]) -> list[Schema]:
    def items(length: int) -> list[Schema]:
        def holds_each(value: Any) -> bool:
            return holds([value] * length)

        return [*_number(holds_each, bounds), *([{"type": "string"}] if holds_each(ANY_WORD) else [])]

    lengths = [length for length in LENGTHS if items(length)]
    if not lengths:
        return []
    schema: Schema = {"type": "array", "items": _any_of(items(lengths[0]))}
    return [schema if lengths == list(LENGTHS) else schema | {"minItems": lengths[0], "maxItems": lengths[-1]}]


def _any_of(kinds: list[Schema]) -> Schema:
    if len(kinds) == 1:
        return kinds[0]
    if [list(kind) for kind in kinds] == [["type"]] * len(kinds):
        return {"type": [kind["type"] for kind in kinds]}
    return {"anyOf": kinds}
