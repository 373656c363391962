"""Parse the comments of conf/ and render docs/configuration.md, the reference of all options and keys."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cifar_pipeline.config.params import (
    LIST_GROUPS,
    LOCAL_FOLDER,
    NON_PARAM_GROUPS,
    SEARCH_GROUPS,
    SWEEP_GROUPS,
    to_yaml_inline,
)
from cifar_pipeline.config.schema import JsonSchema, field_schemas
from cifar_pipeline.utils.text import describe_allowed, one_line

KEY = re.compile(r"(\w+):")
# Keys of an option's file that Hydra reads.
HYDRA_KEYS = ("defaults", "_target_", "_partial_", "_self_")


@dataclass(frozen=True)
class Option:
    """File of conf/: `head` is its opening comment, `comments` maps each key of `values` to the comment above it."""

    name: str
    path: Path
    head: str
    values: dict[str, Any]
    comments: dict[str, str]

    @property
    def target(self) -> str | None:
        """The name of its class or function."""
        return self.values.get("_target_")

    @property
    def keys(self) -> list[str]:
        """Its keys without those that Hydra reads."""
        return [key for key in self.values if key not in HYDRA_KEYS]

    def section(self, label: str) -> str:
        """Return the text after a label of the head, such as "Pick it:"; empty if the head lacks it."""
        labels = "|".join(("Source", "Pick it", "Cost", "On", "Result", "Command"))
        match = re.search(rf"{label} (.*?)(?= (?:{labels}): |$)", self.head)
        return match[1].strip() if match else ""

    @property
    def summary(self) -> str:
        """The head's text before its first label."""
        return re.split(r" (?:Source|Pick it|Cost): ", self.head)[0]


@dataclass(frozen=True)
class Group:
    """Folder of conf/: its `name` as on the command line (`data/source`), options, and nested groups."""

    name: str
    options: tuple[Option, ...]
    nested: dict[str, "Group"] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of its options."""
        return [option.name for option in self.options]

    @property
    def keys(self) -> list[str]:
        """The keys in its files and in its model in schema.py."""
        declared = [key.removeprefix(f"{self.name}.") for key in field_schemas() if key.startswith(f"{self.name}.")]
        in_files = [key for option in self.options for key in option.keys]
        return list(dict.fromkeys([*in_files, *(key for key in declared if key not in HYDRA_KEYS and "." not in key)]))

    def schema(self, key: str) -> JsonSchema | None:
        """Return the JSON schema of a key's values, if schema.py declares the key."""
        return field_schemas().get(f"{self.name.replace('/', '.')}.{key}")

    def values_by_option(self, key: str) -> dict[str, Any]:
        """Return the key's value in each option that has it."""
        return {option.name: option.values[key] for option in self.options if key in option.values}

    def nested_group(self, key: str) -> "Group | None":
        """Return the nested group whose options are the values of a key: the key's name, or as in `source@fallback`."""
        defaults = [entry for option in self.options for entry in option.values.get("defaults", [])]
        names = [str(name) for entry in defaults if isinstance(entry, dict) for name in entry]
        group_by_key = {name.partition("@")[2] or name: name.partition("@")[0] for name in names}
        return self.nested.get(group_by_key.get(key, key))

    def comment(self, key: str) -> str:
        """Return the comment above the key in the first option that has one."""
        return next((option.comments[key] for option in self.options if key in option.comments), "")


def read_groups(conf: Path) -> dict[str, Group]:
    """Read the groups of conf/ by name."""
    folders = (path for path in sorted(conf.iterdir()) if path.is_dir() and path.name != LOCAL_FOLDER)
    return {folder.name: _read_group(folder, folder.name) for folder in folders}


def read_option(path: Path) -> Option:
    """Read a file of conf/ with its comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lines = lines[1:] if lines and lines[0].startswith("# @package") else lines
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    head = list(takewhile(lambda line: line.startswith("#"), lines))
    body = lines[len(head) :]
    if path.parent.name in LIST_GROUPS and isinstance(values.get(path.stem), dict):
        values, body = values[path.stem], [line.removeprefix("  ") for line in body[1:]]
    comments = {key: text for key, text in _comments(body) if text}
    return Option(path.stem, path, _join_comment(head), {str(key): value for key, value in values.items()}, comments)


def _read_group(folder: Path, name: str) -> Group:
    nested = {path.name: _read_group(path, f"{name}/{path.name}") for path in sorted(folder.iterdir()) if path.is_dir()}
    return Group(name, tuple(read_option(path) for path in sorted(folder.glob("*.yaml"))), nested)


def _comments(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each top-level key with the comment directly above it."""
    comment: list[str] = []
    for line in lines:
        if line.startswith("#"):
            comment.append(line)
            continue
        key = KEY.match(line)
        if key:
            yield key[1], _join_comment(comment)
        comment = []


def _join_comment(lines: list[str]) -> str:
    return one_line(" ".join(line.removeprefix("#") for line in lines))


INTRODUCTION = """\
# Every option and every key

<!-- Written by `make docs` from conf/ and src/cifar_pipeline/config/schema.py: edit those. -->

`params.yaml` chooses an option of each group (`optimizer: adam`) and can change single values (`overrides: {optimizer:
{lr: 0.002}}`); so can the command line (`optimizer=adam optimizer.lr=0.002`). The command line overrides `params.yaml`,
which overrides the experiment, which overrides the option's own file. `python src/train.py --cfg job` prints the
composed configuration, and an invalid value is refused before any work. Editors that support JSON schemas complete and
check these files: `make setup` writes one for each folder to schema/, and `.vscode/settings.json` maps them.
"""


def render_page(conf: Path, folder: Path) -> str:
    """Render the page as Markdown with links relative to `folder`."""
    groups = read_groups(conf)
    order = [
        "experiment",
        *(name for name in _composed_groups(conf) if name in groups and name not in NON_PARAM_GROUPS),
        *SWEEP_GROUPS,
    ]
    sections = [_section(group, folder) for name in order for group in (groups[name], *groups[name].nested.values())]
    return "\n".join([INTRODUCTION, _ungrouped_keys(conf), *sections])


def _composed_groups(conf: Path) -> list[str]:
    """Return the groups in the order in which conf/config.yaml composes them."""
    defaults = read_option(conf / "config.yaml").values["defaults"]
    return [str(name) for entry in defaults if isinstance(entry, dict) for name in entry]


def _ungrouped_keys(conf: Path) -> str:
    option = read_option(conf / "config.yaml")
    rows = [
        [
            f"`{key}`",
            f"`{_shown(value)}`",
            escape_markdown(describe_allowed(field_schemas()[key])),
            escape_markdown(option.comments.get(key, "")),
        ]
        for key, value in option.values.items()
        if key in field_schemas()
    ]
    return "## Top-level keys\n\n" + _table(["key", "value", "allowed", "description"], rows)


def _section(group: Group, folder: Path) -> str:
    options = [
        [_link(option, folder), escape_markdown(option.summary), escape_markdown(option.section("Pick it:"))]
        for option in group.options
    ]
    titles = ["option", "description", "pick it"]
    if not any(row[2] for row in options):
        options, titles = [row[:2] for row in options], titles[:2]
    lines = [f"## {group.name}\n", _table(titles, options)]
    if group.name in LIST_GROUPS:
        lines.append(_table(["key", "value", "description"], list(_entry_rows(group))))
    # An experiment and a sweep set the keys of other groups.
    elif (group.name not in NON_PARAM_GROUPS or group.name in SEARCH_GROUPS) and group.keys:
        lines.append(
            _table(["key", "value by option", "allowed", "description"], [_row(group, key) for key in group.keys])
        )
    return "\n".join(lines)


def _entry_rows(group: Group) -> Iterator[list[str]]:
    """Yield a row for each key of a group from which several options can be chosen."""
    for option in group.options:
        for key in option.keys:
            value = escape_markdown(f"`{_shown(option.values[key])}`")
            yield [f"`{group.name}.{option.name}.{key}`", value, escape_markdown(option.comments.get(key, ""))]


def _row(group: Group, key: str) -> list[str]:
    schema, nested = group.schema(key), group.nested_group(key)
    name = f"{'hydra.sweeper.' * (group.name in SEARCH_GROUPS)}{group.name.replace('/', '.')}.{key}"
    if nested:
        return [f"`{name}`", "see below", f"an option of `conf/{nested.name}/`, chosen in `defaults`", ""]
    return [
        f"`{name}`",
        _format_values(group, key),
        escape_markdown(describe_allowed(schema) if schema else ""),
        escape_markdown(group.comment(key)),
    ]


def _format_values(group: Group, key: str) -> str:
    """Format the key's values, with the names of their options if the values differ."""
    by_value: dict[str, list[str]] = {}
    for option, value in group.values_by_option(key).items():
        by_value.setdefault(f"`{_shown(value)}`", []).append(option)
    if len(by_value) == 1 and (len(group.options) == 1 or len(next(iter(by_value.values()))) > 1):
        return escape_markdown(next(iter(by_value)))
    return ", ".join(
        f"{escape_markdown(value)} ({', '.join(map(escape_markdown, options))})" for value, options in by_value.items()
    )


def _link(option: Option, folder: Path) -> str:
    return f"[`{option.name}`]({Path(os.path.relpath(option.path, folder)).as_posix()})"


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def escape_markdown(text: str) -> str:
    """Escape a comment for a cell of a Markdown table, except for its `code`."""
    segments = one_line(text).split("`")
    if len(segments) % 2 == 0:
        segments = ["".join(segments)]
    # Every second segment is code.
    escaped = [
        segment.replace("|", r"\|") if index % 2 else re.sub(r"([\\*_<>|\[\]])", r"\\\1", segment)
        for index, segment in enumerate(segments)
    ]
    return "`".join(escaped)


def _shown(value: Any) -> str:
    """Format a value as in a file, where an interpolation needs no quotes."""
    return value if isinstance(value, str) and "${" in value else to_yaml_inline(value)
