"""Make a clone of this project one's own, in one commit: name, README, and without what tells CIFAR-10's story.

The commit is complete before the branch and the working tree take it over in one step of git, so a killed command has
changed nothing.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from cifar_pipeline.adoption import repository
from cifar_pipeline.adoption.plan import OUR_NAME, RECORD, TABLE, Changes, Plan, Record, read_changes, read_record
from cifar_pipeline.config.params import read_params
from cifar_pipeline.data.image_paths import iter_files
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.git import GitError, git_bytes, git_output
from cifar_pipeline.utils.text import list_names, one_line

log = logging.getLogger(__name__)

# A distribution's name that is an experiment's name in MLflow, a folder's and a text in YAML as well.
NAME = re.compile(r"[A-Za-z]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
NUMBER_WORDS = {"nan", "inf", "infinity"}
# The experiment of params.yaml that is replaced where there are images, and its replacement.
OUR_EXPERIMENT, IMAGES_EXPERIMENT = "tutorial", "finetune"
SET_UP = Path(".venv/.set-up")


@dataclass(frozen=True)
class Adopted:
    """A commit that adopts the project, which no branch has yet; `changes` are its paths with git's letters A, D, M."""

    commit: str
    base: str
    changes: list[tuple[str, str]]
    has_images: bool
    image_dir: str


def require_adoptable(name: str, keep: Iterable[str]) -> Record:
    """Return the record of an adoption under this name. Raises UserError with the first reason against it."""
    commit = repository.require_repository()
    if record := read_record():
        raise UserError(f"This project was adopted as {record.name} before: `make update` brings a newer upstream.")
    files = repository.files_of(commit)
    if TABLE not in files or "params.yaml" not in files:
        raise UserError("This is not the root folder of a clone of cifar-pipeline: change to it, then try again.")
    changes = read_changes(files)
    if unknown := [word for word in keep if word not in changes.words()]:
        raise UserError(f"--keep {','.join(unknown)} is unknown: choose among {list_names(changes.words())}.")
    require_valid_name(name)
    repository.require_ready_to_commit()
    kept = changes.kept(keep)
    experiment = IMAGES_EXPERIMENT if is_left_as_published() and next(images(), None) else None
    return Record(name=name, keep=kept, experiment=experiment, commit=commit, tree=repository.tree_of(commit))


def require_valid_name(name: str) -> None:
    """Raise UserError where a name cannot be that of a distribution and of an experiment."""
    is_text = NAME.fullmatch(name) and name.lower() not in NUMBER_WORDS and isinstance(yaml.safe_load(name), str)
    if not is_text:
        raise UserError(
            f"{name!r} cannot be the name of a distribution and of MLflow's experiment: begin with a letter, go on "
            "with letters, digits, - _ or ., and end with a letter or digit, as in flowers or bird-songs2."
        )
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {}).values()
    requirements = [*project["dependencies"], *(text for extra in extras for text in extra)]
    if normalized(name) in {normalized(re.split(r"[^\w.-]", text)[0]) for text in (*requirements, OUR_NAME)}:
        raise UserError(
            f"{name} is the name of a package that this project needs, and two packages cannot have one name: choose "
            "another."
        )


def normalized(name: str) -> str:
    """Return the spelling of a distribution's name by which package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_left_as_published() -> bool:
    """Return whether params.yaml still selects the published experiment and its data."""
    values = read_params()
    return values.get("experiment") == OUR_EXPERIMENT and values.get("data") is None


def images() -> Iterator[Path]:
    """Yield the images in the folder that params.yaml names."""
    folder = Path(str(read_params().get("image_dir", "images")))
    return (file.path for file in iter_files(folder) if not file.reason) if folder.is_dir() else iter(())


def build(record: Record) -> Adopted:
    """Return the commit that adopts the project. It is not on the branch, and the working tree is as it was."""
    has_images = next(images(), None) is not None
    plan = Plan.of(record.commit, record)
    written = {**plan.edited, **plan.written(record, has_images)}
    gone = plan.removed | (plan.owned - set(plan.changes.generate))
    tree = repository.change_tree(record.commit, gone, written)
    with repository.exported(tree) as folder:
        generate(plan.changes, folder)
        generated = {path: (folder / path).read_text(encoding="utf-8") for path in plan.changes.generate}
        if Path("schema").is_dir():
            shutil.copytree(folder / "schema", "schema", dirs_exist_ok=True)
    tree = repository.change_tree(record.commit, gone, {**written, **generated})
    words = f"\n\nKept: {', '.join(record.keep)}." if record.keep else ""
    message = f"Adopt the project as {record.name}\n\nMade by `make adopt`, from {record.commit}.{words}\n"
    lines = git_bytes("diff-tree", "-r", "-z", "--no-renames", "--name-status", record.tree, tree).split(b"\0")[:-1]
    changes = [(os.fsdecode(letter), os.fsdecode(path)) for letter, path in zip(lines[::2], lines[1::2], strict=True)]
    commit = repository.make_commit(tree, [record.commit], message)
    return Adopted(commit, record.commit, changes, has_images, str(read_params().get("image_dir", "images")))


def generate(changes: Changes, folder: Path) -> None:
    """Make the generated files of a folder with the project's files again, with its own code.

    Raises UserError with the message of a script that fails.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DVC_STAGE")}
    processes = {
        (path, script): subprocess.Popen(
            [sys.executable, script, "-q"],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for path, script in changes.generate.items()
    }
    errors = {key: process.communicate()[1] for key, process in processes.items()}
    for (path, script), process in processes.items():
        if process.returncode:
            last = one_line(errors[path, script].strip().rpartition("\n")[2])
            raise UserError(f"{path} could not be made again by {script}: {last or f'exit code {process.returncode}'}")


def apply(adopted: Adopted) -> None:
    """Move the branch and the working tree to the commit. Raises UserError where git refuses."""
    is_set_up = SET_UP.exists() and SET_UP.stat().st_mtime >= Path("pyproject.toml").stat().st_mtime
    try:
        git_output("merge", "--ff-only", "--quiet", adopted.commit)
    except GitError as error:
        raise UserError(
            f"git did not change the files ({repository.describe_git_error(error)}): see to it, then try again."
        ) from None
    for letter, path in adopted.changes:
        if letter == "D":
            remove_left_folders(Path(path).parent)
    if is_set_up:  # The new name needs no other packages, so there is nothing to install.
        SET_UP.touch()


def remove_left_folders(folder: Path) -> None:
    """Remove a folder of the project in which only Python's bytecode is left, and the folders above it likewise."""
    while folder != Path() and folder.is_dir():
        if any(entry.name != "__pycache__" for entry in folder.iterdir()):
            return
        shutil.rmtree(folder)
        folder = folder.parent


def describe(adopted: Adopted, record: Record) -> list[str]:
    """Return the lines that say what was done, and what `make` trains on now."""
    counts = {letter: sum(1 for each, _ in adopted.changes if each == letter) for letter in "DAM"}
    kept = f"; kept: {', '.join(record.keep)}" if record.keep else ""
    lines = [
        f"This project is {record.name}, in commit {adopted.commit[:10]}: {counts['D']} files removed, "
        f"{counts['A'] + counts['M']} written{kept}."
    ]
    if record.experiment:
        lines.append(
            f"`make` trains on the images in {adopted.image_dir}/ (params.yaml: experiment: {record.experiment})."
        )
    elif adopted.has_images:
        lines.append("`make` trains on what params.yaml selects, which was left as it was.")
    else:
        lines.append(
            f"There are no images in {adopted.image_dir}/, so `make` still trains on what params.yaml selects, "
            "CIFAR-10 as published: put a folder for each class there, and write "
            f"`experiment: {IMAGES_EXPERIMENT}` in params.yaml."
        )
    return [*lines, f"README.md is yours to edit; {RECORD} belongs to `make update` (docs/your-project.md)."]


def listing(adopted: Adopted) -> list[str]:
    """Return a line for each path that the commit changes."""
    verbs = {"D": "remove", "A": "write", "M": "write"}
    return [f"{verbs[letter]:6} {path}" for letter, path in adopted.changes]
