"""Generate JSON schemas of conf/ and params.yaml, with which editors complete, explain and check them.

Types and bounds come from the pydantic models in schema.py, enums from the file names of the groups, descriptions from
the comments. An option whose `_target_` occurs in no file of conf/ may have any keys: that target's arguments.
"""

from pathlib import Path
from typing import Any

from cifar_pipeline.config import local_settings
from cifar_pipeline.config.params import (
    LIST_GROUPS,
    NON_PARAM_GROUPS,
    SEARCH_GROUPS,
    SINGLE_ENTRY_GROUPS,
    SWEEP_GROUPS,
    TOP_LEVEL_KEYS,
)
from cifar_pipeline.config.reference import Group, read_groups
from cifar_pipeline.config.schema import JsonSchema as Schema
from cifar_pipeline.config.schema import field_schemas
from cifar_pipeline.utils.text import describe_allowed


def infer_schema(values: list[Any]) -> Schema:
    """Infer the schema of a key that schema.py does not declare from its values in conf/."""
    types = {_json_type(value) for value in values}
    if not types or "null" in types:
        return {}
    return {"type": "number" if types == {"number", "integer"} else sorted(types)[0]}


def _json_type(value: Any) -> str:
    types = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return types.get(type(value), "null")


DRAFT = "http://json-schema.org/draft-07/schema#"
HYDRA_SCHEMA: Schema = {
    "defaults": {
        "type": "array",
        "description": "Hydra's defaults list: the files to compose, in this order; the last one wins.",
    },
    "_target_": {"type": "string", "description": "The dotted name of the class or function."},
    "_partial_": {"type": "boolean", "description": "Hydra's flag: the pipeline passes the missing arguments."},
}
# A reference to another key's value: `${data.size}`.
INTERPOLATED: Schema = {"type": "string", "pattern": r"^\$\{"}


def schemas(conf: Path) -> dict[str, Schema]:
    """Generate the schemas of params.yaml, conf/config.yaml and each group's files, by name."""
    groups = read_groups(conf)
    param_groups = {name: group for name, group in groups.items() if name not in NON_PARAM_GROUPS}
    values = _ungrouped_keys(groups) | _group_values(param_groups)
    by_name = {
        "params": _params_schema(groups["experiment"], param_groups),
        "config": _file_schema("conf/config.yaml: the configuration of every stage", values | {"hydra": {}}),
        "experiment": _file_schema("An experiment", values),
        "sweep": _sweep_schema(groups, param_groups),
        "launcher": _launcher_schema(),
        "local": _local_schema(groups, param_groups),
        **{name: _option_schema(groups[name]) for name in SEARCH_GROUPS},
    }
    for group in [
        *param_groups.values(),
        *(nested for outer in param_groups.values() for nested in outer.nested.values()),
    ]:
        by_name[group.name.replace("/", "-")] = _option_schema(group)
    return {name: {"$schema": DRAFT, **schema} for name, schema in by_name.items()}


def _params_schema(experiments: Group, groups: dict[str, Group]) -> Schema:
    options = {
        name: _option_enum(group, f"The option of conf/{name}/; null: the experiment's.")
        for name, group in groups.items()
    }
    return _file_schema(
        "params.yaml: the configuration to run",
        {
            "experiment": _option_enum(experiments, "The experiment, a file of conf/experiment/."),
            "seed": {
                "anyOf": [field_schemas()["seed"], {"type": "null"}],
                "description": "Seed of all random numbers.",
            },
            "monitor": {
                "anyOf": [field_schemas()["monitor"], {"type": "null"}],
                "description": "The metric that decides; null: val/accuracy.",
            },
            "mode": {"enum": ["max", "min", None], "description": "Whether larger or smaller values of it are better."},
            "image_dir": field_schemas()["image_dir"] | {"description": "The folder of your own images."},
            **options,
            "overrides": {
                "description": "Any other values, nested as in composed.yaml.",
                "type": ["object", "null"],
                "properties": {**_group_values(groups), "rerun": field_schemas()["rerun"]},
                "additionalProperties": False,
            },
        },
    )


def _sweep_schema(groups: dict[str, Group], param_groups: dict[str, Group]) -> Schema:
    keys = ["seed", *(name for name in groups if name not in SWEEP_GROUPS), *dotted_keys(param_groups)]
    params = {"type": "object", "propertyNames": {"enum": keys}, "additionalProperties": {"type": ["string", "number"]}}
    sweeper = {"type": "object", "properties": {"params": params}}
    hydra = {"type": "object", "properties": {"sweeper": sweeper}}
    return _file_schema("A sweep", {"defaults": HYDRA_SCHEMA["defaults"], "hydra": hydra})


def _launcher_schema() -> Schema:
    # A launcher's keys are defined by its package.
    hydra = {"type": "object", "properties": {"launcher": {}, "sweep": {}}, "additionalProperties": False}
    return _file_schema("A launcher of a sweep's trials", {"defaults": HYDRA_SCHEMA["defaults"], "hydra": hydra})


def _local_schema(groups: dict[str, Group], param_groups: dict[str, Group]) -> Schema:
    """Return the schema of conf/local/default.yaml."""
    trainer = {name: field_schemas()[key] for key in local_settings.KEYS for _, _, name in [key.partition(".")]}
    return _file_schema(
        "conf/local/default.yaml: the settings of this machine",
        {
            **_group_values({name: param_groups[name] for name in local_settings.GROUPS}),
            "trainer": {"type": "object", "properties": trainer, "additionalProperties": False},
            "launcher": {"enum": [*groups["launcher"].names, None], "description": "The launcher of sweeps."},
            "logger": _option_enum(groups["logger"], "Loggers besides MLflow."),
            "hydra": _launcher_schema()["properties"]["hydra"],
            "paths": {
                "type": "object",
                "additionalProperties": {"type": ["string", "null"]},
                "description": "Where the store of MLflow's runs and copies of data sets are on this machine.",
            },
        },
    )


def dotted_keys(groups: dict[str, Group]) -> list[str]:
    """Return every key of the groups as on the command line: `optimizer.lr`, `data.source.size`."""
    keys = []
    for name, group in groups.items():
        if name in LIST_GROUPS:
            keys += [f"{name}.{option.name}.{key}" for option in group.options for key in option.keys]
            continue
        for key in group.keys:
            nested = group.nested_group(key)
            keys += [f"{name}.{key}", *(f"{name}.{key}.{child}" for child in (nested.keys if nested else []))]
    return keys


def _option_schema(group: Group) -> Schema:
    """Return the schema of a group's files: a known `_target_` allows only the keys that conf/ has for it."""
    title = f"An option of conf/{group.name}/"
    if group.name in LIST_GROUPS:
        return {"title": title} | _entries_schema(group) | {"minProperties": int(group.name in SINGLE_ENTRY_GROUPS)}
    targets: list[str | None] = [*sorted({option.target for option in group.options if option.target})]
    if not targets:
        return _file_schema(title, {"defaults": HYDRA_SCHEMA["defaults"], **_properties(group)})
    cases: list[Schema] = [{"if": {"required": ["_target_"]}, "else": _restrict_keys(group.keys)}]
    if _may_lack_target(group):
        targets.append(None)  # `_target_: null`, as in weight_averaging=none
    for target in targets:
        is_target = {"required": ["_target_"], "properties": {"_target_": {"const": target}}}
        cases.append({"if": is_target, "then": _restrict_keys(_target_keys(group, target))})
    return {
        "title": title,
        "type": "object",
        "properties": HYDRA_SCHEMA | _target(group) | _properties(group),
        "allOf": cases,
    }


def _entries_schema(group: Group) -> Schema:
    """Return the schema of a mapping of named entries, ours with comments, and a user's own with any arguments."""
    entries = {
        option.name: {
            "type": "object",
            "properties": HYDRA_SCHEMA
            | {key: {"description": option.comments[key]} if key in option.comments else {} for key in option.keys},
        }
        for option in group.options
    }
    properties = {"defaults": HYDRA_SCHEMA["defaults"]} | entries
    return {"type": "object", "properties": properties, "additionalProperties": {"type": "object"}}


def _target(group: Group) -> Schema:
    """Return the schema of `_target_` where the group allows null for it, as weight_averaging does."""
    return {"_target_": HYDRA_SCHEMA["_target_"] | {"type": ["string", "null"]}} if _may_lack_target(group) else {}


def _may_lack_target(group: Group) -> bool:
    return any(option.target is None and "_target_" in option.values for option in group.options)


def _target_keys(group: Group, target: str | None) -> list[str]:
    return list(dict.fromkeys(key for option in group.options if option.target == target for key in option.keys))


def _restrict_keys(keys: list[str]) -> Schema:
    return {"propertyNames": {"enum": [*HYDRA_SCHEMA, *keys]}}


def _ungrouped_keys(groups: dict[str, Group]) -> Schema:
    """Return the schema of `defaults`, which choose options, and of the top-level keys without a group."""
    option_by_group: Schema = {
        f"{prefix}{name}": _option_choice(group) for name, group in groups.items() for prefix in ("", "/", "override /")
    }
    for name in ("hydra/job_logging", "hydra/hydra_logging", "hydra/launcher", "hydra/sweeper"):
        option_by_group |= {f"{prefix}{name}": {"type": "string"} for prefix in ("override ", "override /")}
    entries: Schema = {
        "anyOf": [
            {"enum": [*groups["experiment"].names, "_self_", "params", "local_settings"]},
            {"type": "object", "properties": option_by_group, "additionalProperties": False},
        ]
    }
    values = {key: field_schemas()[key] for key in (*TOP_LEVEL_KEYS, "rerun")}
    return {"defaults": HYDRA_SCHEMA["defaults"] | {"items": entries}, **values}


def _group_values(groups: dict[str, Group]) -> Schema:
    """Return the schema of each group's values for any of its options."""
    return {
        name: _entries_schema(group)
        if name in LIST_GROUPS
        else {"type": "object", "properties": _properties(group), "additionalProperties": False}
        for name, group in groups.items()
    }


def _properties(group: Group) -> Schema:
    return {key: _property_schema(group, key) for key in group.keys}


def _property_schema(group: Group, key: str) -> Schema:
    declared, nested = group.schema(key), group.nested_group(key)
    values = list(group.values_by_option(key).values())
    schema = declared or infer_schema(values)
    if any(str(value).startswith("${") for value in values):
        schema = {"anyOf": [schema, INTERPOLATED]}
    if nested:
        schema = {
            "type": ["object", "null"],
            "properties": HYDRA_SCHEMA | _properties(nested),
            "additionalProperties": False,
        }
    sentences = [group.comment(key), f"It must be {describe_allowed(declared)}." if declared else ""]
    description = " ".join(filter(None, sentences))
    return schema | ({"description": description} if description else {})


def _option_enum(group: Group, description: str) -> Schema:
    return _option_choice(group) | {"description": description}


def _option_choice(group: Group) -> Schema:
    one: Schema = {"enum": [*group.names, None]}
    several = {"type": "array", "items": {"enum": group.names}}
    return {"anyOf": [one, several]} if group.name in LIST_GROUPS else one


def _file_schema(title: str, properties: dict[str, Any]) -> Schema:
    return {"title": title, "type": "object", "properties": properties, "additionalProperties": False}
