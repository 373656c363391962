"""Plan the changes of an adoption to the files of a commit, by the table changes.yaml of that commit."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, ValidationError

from cifar_pipeline.adoption.repository import Entry, change_tree, files_of, read_blob
from cifar_pipeline.utils.errors import UserError

TABLE = "src/cifar_pipeline/adoption/changes.yaml"
TEMPLATES = Path(__file__).parent / "templates"
# The adoption: under which name and from which commit. `make update` reads and writes it.
RECORD = Path(".adopted.yaml")
RECORD_HEADER = (
    "# Written by `make adopt`; `make update` reads it, and notes the commit of the upstream that it merged.\n"
)
OUR_NAME = "cifar-pipeline"
ALWAYS = "always"
# The version with which every adopted project begins; it is the project's own from then on.
FIRST_VERSION = 'version = "0.1.0"'
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


class Record(BaseModel):
    """The adoption of a project: its name, what it keeps, and the commit of the upstream that it has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    keep: tuple[str, ...] = ()
    # The experiment that params.yaml selects since the adoption; null: it was left as it was.
    experiment: str | None = None
    commit: str
    tree: str

    def text(self) -> str:
        return RECORD_HEADER + yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read_record() -> Record | None:
    """Return the record of this project's adoption, or None. Raises UserError where the file is damaged."""
    if not RECORD.exists():
        return None
    try:
        return Record.model_validate(yaml.safe_load(RECORD.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError):
        raise UserError(f"{RECORD} is damaged: `git restore {RECORD}` brings its committed content back.") from None


class Changes(BaseModel):
    """The table changes.yaml, which explains its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    remove: dict[str, list[str]]
    needs: dict[str, list[str]]
    write: list[str]
    rename: list[str]
    generate: dict[str, str]

    def words(self) -> list[str]:
        """Return the words that `--keep` takes."""
        return [word for word in self.remove if word != ALWAYS]

    def kept(self, words: Iterable[str]) -> tuple[str, ...]:
        """Return the words and those that they need, in the order of the table."""
        chosen = set(words)
        chosen |= {needed for word in chosen for needed in self.needs.get(word, [])}
        return tuple(word for word in self.words() if word in chosen)

    def removed(self, files: Iterable[str], keep: tuple[str, ...]) -> set[str]:
        """Return those of the files that are taken away."""
        entries = [entry for word, paths in self.remove.items() if word not in keep for entry in paths]
        exact, folders = set(entries), tuple(entry for entry in entries if entry.endswith("/"))
        return {path for path in files if path in exact or path.startswith(folders)}


def read_changes(files: Mapping[str, Entry]) -> Changes:
    """Return the table of a commit. Raises UserError where the commit has none that this version can read."""
    try:
        return Changes.model_validate(yaml.safe_load(read_blob(files[TABLE].blob)))
    except (KeyError, yaml.YAMLError, ValidationError):
        raise UserError(
            f"{TABLE} of that commit is missing or of another format: merge a commit before it first, whose version of "
            "`make update` can read it."
        ) from None


@dataclass(frozen=True)
class Plan:
    """Changes to the files of a commit: removed paths, and edited ones with their new text.

    `owned` are the paths that the adopted project has as its own, or makes itself: no update touches them.
    """

    commit: str
    changes: Changes
    removed: set[str]
    edited: dict[str, str]
    owned: set[str]

    @staticmethod
    def of(commit: str, record: Record) -> "Plan":
        files = files_of(commit)
        changes = read_changes(files)
        removed = changes.removed(files, record.keep)
        owned = ({*changes.write, *changes.generate} & set(files)) - removed
        edited = {}
        for path in sorted(set(files) - removed - owned):
            if path in changes.rename or path == "params.yaml" or path.endswith(".md"):
                before = read_blob(files[path].blob)
                after = edit(path, before, record, path in changes.rename, removed, owned)
                if after != before:
                    edited[path] = after
        return Plan(commit, changes, removed, edited, owned)

    def tree(self) -> str:
        """Return the tree of the commit as the adopted project has it, without the files that are its own."""
        return change_tree(self.commit, self.removed | self.owned, self.edited)

    def written(self, record: Record, has_images: bool) -> dict[str, str]:
        """Return the texts of the files that the project has as its own from now on, by path."""
        templates = Environment(
            loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
        )
        values = {"name": record.name, "keep": record.keep, "has_images": has_images}
        paths = [path for path in self.changes.write if path in self.owned]
        return {
            **{path: templates.get_template(path).render(values) for path in paths},
            RECORD.as_posix(): record.text(),
        }


def edit(path: str, text: str, record: Record, is_renamed: bool, removed: set[str], owned: set[str]) -> str:
    """Return the text of a file as the adopted project has it."""
    if is_renamed:
        text = text.replace(OUR_NAME, record.name)
    if path == "pyproject.toml":
        text = re.sub(r'^version = ".*"$', FIRST_VERSION, text, count=1, flags=re.MULTILINE)
    if path == "params.yaml" and record.experiment:
        text = re.sub(r"^experiment: .*$", f"experiment: {record.experiment}", text, count=1, flags=re.MULTILINE)
    return unlink(path, text, removed, owned) if path.endswith(".md") else text


def unlink(page: str, text: str, removed: set[str], owned: set[str]) -> str:
    """Replace links to removed files by their text; a link into a page that was written anew loses its anchor."""

    def replaced(match: re.Match[str]) -> str:
        words, link, anchor = match.groups()
        target = os.path.normpath(PurePosixPath(page).parent / link)
        if target in removed:
            return words
        return f"[{words}]({link})" if anchor and target in owned and target.endswith("README.md") else match[0]

    return LINK.sub(replaced, text)
