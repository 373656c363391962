"""docs/configuration.md: every option and every key of conf/, with its values, what they may be, and its comment."""

import os
import re
from pathlib import Path
from typing import Any

from cifar_pipeline.config.check import RULES
from cifar_pipeline.config.choices import NO_CHOICES, OF_SWEEPS, shown
from cifar_pipeline.reference.options import Group, Option, read_groups, read_option

INTRODUCTION = """\
# Every option and every key

<!-- Written by `make docs` from conf/ and the rules of src/cifar_pipeline/config/check.py: change those. -->

`params.yaml` chooses an option of each group (`optimizer: adam`) and may change single values (`overrides: {optimizer:
{lr: 0.002}}`); so does the command line (`optimizer=adam optimizer.lr=0.002`). The command line goes before
`params.yaml`, that before the experiment, that before the option's own file. `python src/train.py --cfg job` shows what
it comes to, and a value that is not allowed is refused before any work. Editors that know JSON schemas complete and
check these files: [schema/](../schema/) has one for each folder, and `.vscode/settings.json` says which is whose.
"""


def page(conf: Path, folder: Path) -> str:
    """The page, for a file in `folder`, from which its links go."""
    groups = read_groups(conf)
    order = ["experiment", *(name for name in _listed(conf) if name in groups and name not in NO_CHOICES), *OF_SWEEPS]
    sections = [_section(group, folder) for name in order for group in (groups[name], *groups[name].inner.values())]
    return "\n".join([INTRODUCTION, _top(conf), *sections])


def _listed(conf: Path) -> list[str]:
    """The groups in the order in which conf/config.yaml composes them."""
    return [str(name) for entry in read_option(conf / "config.yaml").values["defaults"] for name in _names(entry)]


def _names(entry: Any) -> list[Any]:
    return list(entry) if isinstance(entry, dict) else []


def _top(conf: Path) -> str:
    option = read_option(conf / "config.yaml")
    rows = [
        [f"`{key}`", f"`{shown(value)}`", plain(RULES[key].allowed), plain(option.comments.get(key, ""))]
        for key, value in option.values.items()
        if key in RULES
    ]
    return "## Of no group\n\n" + _table(["key", "value", "may be", "what it is"], rows)


def _section(group: Group, folder: Path) -> str:
    options = [[_link(option, folder), plain(option.about), plain(option.said("Pick it:"))] for option in group.options]
    titles = ["option", "what it is", "pick it"]
    if not any(row[2] for row in options):
        options, titles = [row[:2] for row in options], titles[:2]
    parts = [f"## {group.name}\n", _table(titles, options)]
    # The keys of a recipe and of a sweep are those of the other groups.
    if group.name not in NO_CHOICES and group.keys:
        parts.append(_table(["key", "in the files", "may be", "what it is"], [_row(group, key) for key in group.keys]))
    return "\n".join(parts)


def _row(group: Group, key: str) -> list[str]:
    rule, inner = group.rule(key), group.inside(key)
    name = f"{group.name.replace('/', '.')}.{key}"
    if inner:
        return [f"`{name}`", "see below", f"an option of `conf/{inner.name}/`, named in `defaults`", ""]
    return [f"`{name}`", _given(group, key), plain(rule.allowed if rule else ""), plain(group.comment(key))]


def _given(group: Group, key: str) -> str:
    """The key's values with the options that have them; the options only where they differ."""
    by_value: dict[str, list[str]] = {}
    for option, value in group.given(key).items():
        by_value.setdefault(f"`{shown(value)}`", []).append(option)
    if len(by_value) == 1 and (len(group.options) == 1 or len(next(iter(by_value.values()))) > 1):
        return plain(next(iter(by_value)))
    return ", ".join(f"{plain(value)} ({', '.join(map(plain, options))})" for value, options in by_value.items())


def _link(option: Option, folder: Path) -> str:
    return f"[`{option.name}`]({Path(os.path.relpath(option.path, folder)).as_posix()})"


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def plain(text: str) -> str:
    """A comment as a cell of a Markdown table: what would be markup stands for itself, but for `code`."""
    parts = " ".join(text.split()).split("`")
    if len(parts) % 2 == 0:
        parts = ["".join(parts)]
    escaped = [
        part.replace("|", r"\|") if place % 2 else re.sub(r"([\\*_<>|\[\]])", r"\\\1", part)
        for place, part in enumerate(parts)
    ]
    return "`".join(escaped)
