"""The files of conf/ as a reader sees them: what each says about itself, its keys, and the comment above each key.

docs/configuration.md: every option and every key of conf/, with its values, what they may be, and its comment.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cifar_pipeline.config.params import NON_PARAM_GROUPS, SWEEP_GROUPS, to_yaml_inline
from cifar_pipeline.config.schema import SCHEMA, Constraint

KEY = re.compile(r"(\w+):")
# Hydra's own words in an option's file.
HYDRA_KEYS = ("defaults", "_target_", "_partial_", "_self_")


@dataclass(frozen=True)
class Option:
    """A file of conf/: `head` is its opening comment, `comments` has that above each key of `values`."""

    name: str
    path: Path
    head: str
    values: dict[str, Any]
    comments: dict[str, str]

    @property
    def target(self) -> str | None:
        """The class or function that it names."""
        return self.values.get("_target_")

    @property
    def keys(self) -> list[str]:
        """Its own keys, without Hydra's."""
        return [key for key in self.values if key not in HYDRA_KEYS]

    def said(self, word: str) -> str:
        """What the head says after `word`, such as "Pick it:"; empty where it says nothing of the kind."""
        others = "|".join(("Source", "Pick it", "Cost", "On", "Result", "Command"))
        found = re.search(rf"{word} (.*?)(?= (?:{others}): |$)", self.head)
        return found[1].strip() if found else ""

    @property
    def about(self) -> str:
        """What the head says before anything else."""
        return re.split(r" (?:Source|Pick it|Cost): ", self.head)[0]


@dataclass(frozen=True)
class Group:
    """A folder of conf/: `name` as on the command line (`data/source`), its options, and the groups inside it."""

    name: str
    options: tuple[Option, ...]
    inner: dict[str, "Group"] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Its options, by name."""
        return [option.name for option in self.options]

    @property
    def keys(self) -> list[str]:
        """The keys that its files or the rules know, each once."""
        ruled = [key.removeprefix(f"{self.name}.") for key in SCHEMA if re.fullmatch(rf"{self.name}\.\w+", key)]
        named = [key for option in self.options for key in option.keys]
        return list(dict.fromkeys([*named, *ruled]))

    def rule(self, key: str) -> Constraint | None:
        """What the values of a key may be."""
        path = f"{self.name.replace('/', '.')}.{key}"
        return next((rule for pattern, rule in SCHEMA.items() if fnmatch(path, pattern)), None)

    def given(self, key: str) -> dict[str, Any]:
        """The key's value in each option that has one."""
        return {option.name: option.values[key] for option in self.options if key in option.values}

    def inside(self, key: str) -> "Group | None":
        """The group inside this one whose options stand under the key: by its name, or as in `source@fallback`."""
        listed = [entry for option in self.options for entry in option.values.get("defaults", [])]
        named = [str(name) for entry in listed if isinstance(entry, dict) for name in entry]
        places = {name.partition("@")[2] or name: name.partition("@")[0] for name in named}
        return self.inner.get(places.get(key, key))

    def comment(self, key: str) -> str:
        """The first comment that an option's file has above the key."""
        return next((option.comments[key] for option in self.options if key in option.comments), "")


def read_groups(conf: Path) -> dict[str, Group]:
    """The groups of conf/, by name."""
    return {folder.name: _group(folder, folder.name) for folder in sorted(conf.iterdir()) if folder.is_dir()}


def read_option(path: Path) -> Option:
    """A file of conf/."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lines = lines[1:] if lines and lines[0].startswith("# @package") else lines
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    head = list(takewhile(lambda line: line.startswith("#"), lines))
    comments = {key: text for key, text in _comments(lines[len(head) :]) if text}
    named = {str(key): value for key, value in values.items()}
    return Option(path.stem, path, _joined(head), named, comments)


def _group(folder: Path, name: str) -> Group:
    inner = {path.name: _group(path, f"{name}/{path.name}") for path in sorted(folder.iterdir()) if path.is_dir()}
    return Group(name, tuple(read_option(path) for path in sorted(folder.glob("*.yaml"))), inner)


def _comments(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Each key of the top level with the comment lines right above it."""
    comment: list[str] = []
    for line in lines:
        if line.startswith("#"):
            comment.append(line)
            continue
        key = KEY.match(line)
        if key:
            yield key[1], _joined(comment)
        comment = []


def _joined(comment: list[str]) -> str:
    return " ".join(" ".join(line.removeprefix("#") for line in comment).split())


INTRODUCTION = """\
# Every option and every key

<!-- Written by `make docs` from conf/ and the rules of src/cifar_pipeline/config/schema.py: change those. -->

`params.yaml` chooses an option of each group (`optimizer: adam`) and may change single values (`overrides: {optimizer:
{lr: 0.002}}`); so does the command line (`optimizer=adam optimizer.lr=0.002`). The command line goes before
`params.yaml`, that before the experiment, that before the option's own file. `python src/train.py --cfg job` shows what
it comes to, and a value that is not allowed is refused before any work. Editors that know JSON schemas complete and
check these files: [schema/](../schema/) has one for each folder, and `.vscode/settings.json` says which is whose.
"""


def render_page(conf: Path, folder: Path) -> str:
    """The page, for a file in `folder`, from which its links go."""
    groups = read_groups(conf)
    order = [
        "experiment",
        *(name for name in _listed(conf) if name in groups and name not in NON_PARAM_GROUPS),
        *SWEEP_GROUPS,
    ]
    sections = [_section(group, folder) for name in order for group in (groups[name], *groups[name].inner.values())]
    return "\n".join([INTRODUCTION, _ungrouped_keys(conf), *sections])


def _listed(conf: Path) -> list[str]:
    """The groups in the order in which conf/config.yaml composes them."""
    return [str(name) for entry in read_option(conf / "config.yaml").values["defaults"] for name in _names(entry)]


def _names(entry: Any) -> list[Any]:
    return list(entry) if isinstance(entry, dict) else []


def _ungrouped_keys(conf: Path) -> str:
    option = read_option(conf / "config.yaml")
    rows = [
        [
            f"`{key}`",
            f"`{to_yaml_inline(value)}`",
            escape_markdown(SCHEMA[key].description),
            escape_markdown(option.comments.get(key, "")),
        ]
        for key, value in option.values.items()
        if key in SCHEMA
    ]
    return "## Of no group\n\n" + _table(["key", "value", "may be", "what it is"], rows)


def _section(group: Group, folder: Path) -> str:
    options = [
        [_link(option, folder), escape_markdown(option.about), escape_markdown(option.said("Pick it:"))]
        for option in group.options
    ]
    titles = ["option", "what it is", "pick it"]
    if not any(row[2] for row in options):
        options, titles = [row[:2] for row in options], titles[:2]
    parts = [f"## {group.name}\n", _table(titles, options)]
    # The keys of a recipe and of a sweep are those of the other groups.
    if group.name not in NON_PARAM_GROUPS and group.keys:
        parts.append(_table(["key", "in the files", "may be", "what it is"], [_row(group, key) for key in group.keys]))
    return "\n".join(parts)


def _row(group: Group, key: str) -> list[str]:
    rule, inner = group.rule(key), group.inside(key)
    name = f"{group.name.replace('/', '.')}.{key}"
    if inner:
        return [f"`{name}`", "see below", f"an option of `conf/{inner.name}/`, named in `defaults`", ""]
    return [
        f"`{name}`",
        _given(group, key),
        escape_markdown(rule.description if rule else ""),
        escape_markdown(group.comment(key)),
    ]


def _given(group: Group, key: str) -> str:
    """The key's values with the options that have them; the options only where they differ."""
    by_value: dict[str, list[str]] = {}
    for option, value in group.given(key).items():
        by_value.setdefault(f"`{to_yaml_inline(value)}`", []).append(option)
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
    """A comment as a cell of a Markdown table: what would be markup stands for itself, but for `code`."""
    parts = " ".join(text.split()).split("`")
    if len(parts) % 2 == 0:
        parts = ["".join(parts)]
    escaped = [
        part.replace("|", r"\|") if place % 2 else re.sub(r"([\\*_<>|\[\]])", r"\\\1", part)
        for place, part in enumerate(parts)
    ]
    return "`".join(escaped)
