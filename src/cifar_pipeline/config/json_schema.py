"""What a value may be, in the words of JSON Schema: found out by asking the rule of src/cifar_pipeline/config/schema.py.

A rule is a function, which no editor can call. It is asked about numbers on both sides of each bound that its sentence
names, about each word of it, and about lists and nothing; what it answers is written down.

JSON schemas of conf/ and params.yaml, made of conf/ itself, for editors that complete, explain and underline.

Types and bounds are the rules' of src/cifar_pipeline/config/schema.py, choices are the files of the groups, descriptions
are the comments. An option that names a `_target_` which no file of conf/ names yet may have any keys: its arguments.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cifar_pipeline.config.params import NON_PARAM_GROUPS, SWEEP_GROUPS
from cifar_pipeline.config.reference import Group, read_groups
from cifar_pipeline.config.schema import SCHEMA, Constraint

Schema = dict[str, Any]
Predicate = Callable[[Any], bool]

PROBE_FAR = 1e15
PROBE_NEAR = 1e-9
PROBE_WORD = "xyzzy"
LENGTHS = (1, 2, 3)


def to_json_schema(rule: Constraint) -> Schema:
    """The schema of the values that a rule allows."""
    bounds = sorted({0.0, 1.0, *map(float, re.findall(r"(?<![\w-])\d+(?![\w-])", rule.description))})
    return _any_of(_kinds(rule.is_valid, bounds, re.findall(r"[\w-]+", rule.description)))


def infer_schema(values: list[Any]) -> Schema:
    """The schema of values that no rule is about, by what stands in conf/ for them."""
    found = {_type(value) for value in values}
    if not found or "null" in found:
        return {}
    return {"type": "number" if found == {"number", "integer"} else sorted(found)[0]} if found <= _ALIKE else {}


_ALIKE = {"boolean", "integer", "number", "string", "array", "object"}


def _type(value: Any) -> str:
    types = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return types.get(type(value), "null")


def _kinds(holds: Predicate, bounds: list[float], words: list[str]) -> list[Schema]:
    kinds: list[Schema] = []
    if holds(True) and holds(False):
        kinds.append({"type": "boolean"})
    kinds += _number(holds, bounds)
    if holds(PROBE_WORD):
        kinds.append({"type": "string"} | ({} if holds("") else {"minLength": 1}))
    elif accepted := [word for word in words if holds(word)]:
        kinds.append({"enum": accepted})
    kinds += _list(holds, bounds)
    if holds({"_target_": PROBE_WORD}):
        kinds.append({"type": "object"})
    if holds(None):
        kinds.append({"type": "null"})
    return kinds


def _number(holds: Predicate, bounds: list[float]) -> list[Schema]:
    near = [
        -PROBE_FAR + 0.5,
        *(bound + step for bound in bounds for step in (-0.5, -PROBE_NEAR, PROBE_NEAR, 0.5)),
        PROBE_FAR + 0.5,
    ]
    fractions = [number for number in near if not number.is_integer()]  # near a large bound there is none
    whole = [int(-PROBE_FAR), *(int(bound) + step for bound in bounds for step in (-1, 0, 1)), int(PROBE_FAR)]
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


def _list(holds: Predicate, bounds: list[float]) -> list[Schema]:
    def items(length: int) -> list[Schema]:
        def holds_each(value: Any) -> bool:
            return holds([value] * length)

        return [*_number(holds_each, bounds), *([{"type": "string"}] if holds_each(PROBE_WORD) else [])]

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


DRAFT = "http://json-schema.org/draft-07/schema#"
HYDRA_SCHEMA: Schema = {
    "defaults": {"type": "array", "description": "Hydra's: the files that this one is made of, the last one wins."},
    "_target_": {"type": "string", "description": "The class or function, by its full name."},
    "_partial_": {"type": "boolean", "description": "Hydra's: the pipeline gives the arguments that are missing."},
}
# A value that is another key's: `${data.size}`.
INTERPOLATED: Schema = {"type": "string", "pattern": r"^\$\{"}


def schemas(conf: Path) -> dict[str, Schema]:
    """The schema of params.yaml, of conf/config.yaml and of each group's files, by name."""
    groups = read_groups(conf)
    chosen = {name: group for name, group in groups.items() if name not in NON_PARAM_GROUPS}
    made = {
        "params": _params(groups["experiment"], chosen),
        "config": _file("conf/config.yaml: what every stage composes", _top(groups) | _values(chosen) | {"hydra": {}}),
        "experiment": _file("An experiment: a recipe of its own", _top(groups) | _values(chosen)),
        "sweep": _sweep(groups, chosen),
        "launcher": _launcher(),
    }
    for group in [*chosen.values(), *(inner for outer in chosen.values() for inner in outer.inner.values())]:
        made[group.name.replace("/", "-")] = _option(group)
    return {name: {"$schema": DRAFT, **schema} for name, schema in made.items()}


def _params(experiments: Group, groups: dict[str, Group]) -> Schema:
    choices = {
        name: _choice(group, f"The option of conf/{name}/; null: the experiment's.") for name, group in groups.items()
    }
    return _file(
        "params.yaml: what to run",
        {
            "experiment": _choice(experiments, "The recipe, a file of conf/experiment/."),
            "seed": {
                "anyOf": [to_json_schema(SCHEMA["seed"]), {"type": "null"}],
                "description": "What everything random follows from.",
            },
            "image_dir": to_json_schema(SCHEMA["image_dir"]) | {"description": "The folder of your own images."},
            **choices,
            "overrides": {
                "description": "Any further values, nested as in composed.yaml.",
                "type": ["object", "null"],
                "properties": {**_values(groups), "rerun": to_json_schema(SCHEMA["rerun"])},
                "additionalProperties": False,
            },
        },
    )


def _sweep(groups: dict[str, Group], chosen: dict[str, Group]) -> Schema:
    keys = ["seed", *(name for name in groups if name not in SWEEP_GROUPS), *dotted_keys(chosen)]
    swept = {"type": "object", "propertyNames": {"enum": keys}, "additionalProperties": {"type": ["string", "number"]}}
    sweeper = {"type": "object", "properties": {"params": swept}}
    hydra = {"type": "object", "properties": {"sweeper": sweeper}}
    return _file("A ready-made sweep", {"defaults": HYDRA_SCHEMA["defaults"], "hydra": hydra})


def _launcher() -> Schema:
    """The keys of a launcher are those of its package."""
    hydra = {"type": "object", "properties": {"launcher": {}, "sweep": {}}, "additionalProperties": False}
    return _file("Who starts a sweep's points", {"defaults": HYDRA_SCHEMA["defaults"], "hydra": hydra})


def dotted_keys(groups: dict[str, Group]) -> list[str]:
    """Every key below a group, as on the command line: `optimizer.lr`, `data.source.size`."""
    keys = []
    for name, group in groups.items():
        for key in group.keys:
            inner = group.inside(key)
            keys += [f"{name}.{key}", *(f"{name}.{key}.{one}" for one in (inner.keys if inner else []))]
    return keys


def _option(group: Group) -> Schema:
    """The schema of a group's files: one that names a target which conf/ knows has the keys that conf/ knows of it."""
    title = f"An option of conf/{group.name}/"
    targets = sorted({option.target for option in group.options if option.target})
    if not targets:
        return _file(title, {"defaults": HYDRA_SCHEMA["defaults"], **_properties(group)})
    cases: list[Schema] = [{"if": {"required": ["_target_"]}, "else": _restrict_keys(group.keys)}]
    for target in targets:
        known = {"required": ["_target_"], "properties": {"_target_": {"const": target}}}
        cases.append({"if": known, "then": _restrict_keys(_keys_of(group, target))})
    return {"title": title, "type": "object", "properties": HYDRA_SCHEMA | _properties(group), "allOf": cases}


def _keys_of(group: Group, target: str) -> list[str]:
    return list(dict.fromkeys(key for option in group.options if option.target == target for key in option.keys))


def _restrict_keys(keys: list[str]) -> Schema:
    return {"propertyNames": {"enum": [*HYDRA_SCHEMA, *keys]}}


def _top(groups: dict[str, Group]) -> Schema:
    """What stands beside the groups: the defaults, which choose options, and the values of no group."""
    choose: Schema = {
        f"{word}{name}": {"enum": [*group.names, None]}
        for name, group in groups.items()
        for word in ("", "/", "override /")
    }
    for name in ("hydra/job_logging", "hydra/hydra_logging", "hydra/launcher", "hydra/sweeper"):
        choose |= {f"{word}{name}": {"type": "string"} for word in ("override ", "override /")}
    entries: Schema = {
        "anyOf": [
            {"enum": [*groups["experiment"].names, "_self_", "choices"]},
            {"type": "object", "properties": choose, "additionalProperties": False},
        ]
    }
    values = {key: to_json_schema(rule) for key, rule in SCHEMA.items() if key in ("seed", "image_dir", "rerun")}
    return {"defaults": HYDRA_SCHEMA["defaults"] | {"items": entries}, **values}


def _values(groups: dict[str, Group]) -> Schema:
    """The values of each group, whichever of its options is chosen."""
    return {
        name: {"type": "object", "properties": _properties(group), "additionalProperties": False}
        for name, group in groups.items()
    }


def _properties(group: Group) -> Schema:
    return {key: _property_schema(group, key) for key in group.keys}


def _property_schema(group: Group, key: str) -> Schema:
    rule, inner = group.rule(key), group.inside(key)
    values = list(group.given(key).values())
    schema = to_json_schema(rule) if rule else infer_schema(values)
    if any(str(value).startswith("${") for value in values):
        schema = {"anyOf": [schema, INTERPOLATED]}
    if inner:
        schema = {
            "type": ["object", "null"],
            "properties": HYDRA_SCHEMA | _properties(inner),
            "additionalProperties": False,
        }
    words = [group.comment(key), f"It must be {rule.description}." if rule else ""]
    description = " ".join(filter(None, words))
    return schema | ({"description": description} if description else {})


def _choice(group: Group, description: str) -> Schema:
    return {"enum": [*group.names, None], "description": description}


def _file(title: str, properties: dict[str, Any]) -> Schema:
    return {"title": title, "type": "object", "properties": properties, "additionalProperties": False}
