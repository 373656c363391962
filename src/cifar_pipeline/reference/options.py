"""The files of conf/ as a reader sees them: what each says about itself, its keys, and the comment above each key."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cifar_pipeline.config.check import RULES, Rule

KEY = re.compile(r"(\w+):")
# Hydra's own words in an option's file.
HYDRAS = ("defaults", "_target_", "_partial_", "_self_")


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
        return [key for key in self.values if key not in HYDRAS]

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
        ruled = [key.removeprefix(f"{self.name}.") for key in RULES if re.fullmatch(rf"{self.name}\.\w+", key)]
        named = [key for option in self.options for key in option.keys]
        return list(dict.fromkeys([*named, *ruled]))

    def rule(self, key: str) -> Rule | None:
        """What the values of a key may be."""
        path = f"{self.name.replace('/', '.')}.{key}"
        return next((rule for pattern, rule in RULES.items() if fnmatch(path, pattern)), None)

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
