"""JSON schemas of conf/ and params.yaml, made of conf/ itself, for editors that complete, explain and underline.

Types and bounds are the rules' of src/cifar_pipeline/config/check.py, choices are the files of the groups, descriptions
are the comments. An option that names a `_target_` which no file of conf/ names yet may have any keys: its arguments.
"""

from pathlib import Path
from typing import Any

from cifar_pipeline.config.check import RULES
from cifar_pipeline.config.choices import NO_CHOICES, OF_SWEEPS
from cifar_pipeline.reference.kinds import Schema, kind, kind_of_values
from cifar_pipeline.reference.options import Group, read_groups

DRAFT = "http://json-schema.org/draft-07/schema#"
HYDRAS: Schema = {
    "defaults": {"type": "array", "description": "Hydra's: the files that this one is made of, the last one wins."},
    "_target_": {"type": "string", "description": "The class or function, by its full name."},
    "_partial_": {"type": "boolean", "description": "Hydra's: the pipeline gives the arguments that are missing."},
}
# A value that is another key's: `${data.size}`.
INTERPOLATED: Schema = {"type": "string", "pattern": r"^\$\{"}


def schemas(conf: Path) -> dict[str, Schema]:
    """The schema of params.yaml, of conf/config.yaml and of each group's files, by name."""
    groups = read_groups(conf)
    chosen = {name: group for name, group in groups.items() if name not in NO_CHOICES}
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
                "anyOf": [kind(RULES["seed"]), {"type": "null"}],
                "description": "What everything random follows from.",
            },
            "pictures": kind(RULES["pictures"]) | {"description": "The folder of your own pictures."},
            **choices,
            "overrides": {
                "description": "Any further values, nested as in composed.yaml.",
                "type": ["object", "null"],
                "properties": {**_values(groups), "rerun": kind(RULES["rerun"])},
                "additionalProperties": False,
            },
        },
    )


def _sweep(groups: dict[str, Group], chosen: dict[str, Group]) -> Schema:
    keys = ["seed", *(name for name in groups if name not in OF_SWEEPS), *dotted_keys(chosen)]
    swept = {"type": "object", "propertyNames": {"enum": keys}, "additionalProperties": {"type": ["string", "number"]}}
    sweeper = {"type": "object", "properties": {"params": swept}}
    hydra = {"type": "object", "properties": {"sweeper": sweeper}}
    return _file("A ready-made sweep", {"defaults": HYDRAS["defaults"], "hydra": hydra})


def _launcher() -> Schema:
    """The keys of a launcher are those of its package."""
    hydra = {"type": "object", "properties": {"launcher": {}, "sweep": {}}, "additionalProperties": False}
    return _file("Who starts a sweep's points", {"defaults": HYDRAS["defaults"], "hydra": hydra})


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
        return _file(title, {"defaults": HYDRAS["defaults"], **_properties(group)})
    cases: list[Schema] = [{"if": {"required": ["_target_"]}, "else": _only(group.keys)}]
    for target in targets:
        known = {"required": ["_target_"], "properties": {"_target_": {"const": target}}}
        cases.append({"if": known, "then": _only(_keys_of(group, target))})
    return {"title": title, "type": "object", "properties": HYDRAS | _properties(group), "allOf": cases}


def _keys_of(group: Group, target: str) -> list[str]:
    return list(dict.fromkeys(key for option in group.options if option.target == target for key in option.keys))


def _only(keys: list[str]) -> Schema:
    return {"propertyNames": {"enum": [*HYDRAS, *keys]}}


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
    values = {key: kind(rule) for key, rule in RULES.items() if key in ("seed", "pictures", "rerun")}
    return {"defaults": HYDRAS["defaults"] | {"items": entries}, **values}


def _values(groups: dict[str, Group]) -> Schema:
    """The values of each group, whichever of its options is chosen."""
    return {
        name: {"type": "object", "properties": _properties(group), "additionalProperties": False}
        for name, group in groups.items()
    }


def _properties(group: Group) -> Schema:
    return {key: _described(group, key) for key in group.keys}


def _described(group: Group, key: str) -> Schema:
    rule, inner = group.rule(key), group.inside(key)
    values = list(group.given(key).values())
    schema = kind(rule) if rule else kind_of_values(values)
    if any(str(value).startswith("${") for value in values):
        schema = {"anyOf": [schema, INTERPOLATED]}
    if inner:
        schema = {"type": ["object", "null"], "properties": HYDRAS | _properties(inner), "additionalProperties": False}
    words = [group.comment(key), f"It must be {rule.allowed}." if rule else ""]
    description = " ".join(filter(None, words))
    return schema | ({"description": description} if description else {})


def _choice(group: Group, description: str) -> Schema:
    return {"enum": [*group.names, None], "description": description}


def _file(title: str, properties: dict[str, Any]) -> Schema:
    return {"title": title, "type": "object", "properties": properties, "additionalProperties": False}
