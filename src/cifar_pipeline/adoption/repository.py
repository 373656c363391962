"""Git's objects and states for the adoption: files of a commit, a tree made of another, checks before a change.

Trees and commits are made in a temporary index, so the working tree is as it was until a commit is complete.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.git import GitError, Kind, find_repository, folder_in_repository, git_bytes, git_output
from cifar_pipeline.utils.text import list_names, one_line

log = logging.getLogger(__name__)

# By the file or folder in .git that shows it: what is unfinished, and git's word for it.
OPERATIONS = {
    "MERGE_HEAD": "merge", "CHERRY_PICK_HEAD": "cherry-pick", "REVERT_HEAD": "revert", "rebase-merge": "rebase",
    "rebase-apply": "rebase", "BISECT_LOG": "bisect",
}  # fmt: skip
FILE_MODE = "100644"


class Entry(NamedTuple):
    """A file of a commit: its mode and the hash of its content."""

    mode: str
    blob: str


def require_repository() -> str:
    """Return the commit of the repository whose root is the working directory, on a branch, with nothing unfinished.

    Raises UserError with what to do first.
    """
    repository = find_repository()
    if repository.kind is Kind.MISSING:
        raise UserError("The result is a commit, so git is needed: install it.")
    if repository.kind is Kind.REFUSED:
        raise UserError(f"git cannot read this repository: {repository.reason}.")
    if repository.kind is not Kind.FOUND or folder_in_repository():
        raise UserError(
            "The result is a commit, and this folder is not the root of a git repository with a commit: clone the "
            "project, or run `git init && git add --all && git commit -m start` here."
        )
    if operation := next((word for name, word in OPERATIONS.items() if git_path(name).exists()), None):
        end = "git bisect reset" if operation == "bisect" else f"git {operation} --abort"
        raise UserError(f"A {operation} is unfinished: finish it, or undo it with `{end}`, then try again.")
    try:
        git_output("symbolic-ref", "--quiet", "HEAD")
    except GitError:
        raise UserError("HEAD is on no branch: `git switch main`, or `git switch -c NAME`, then try again.") from None
    return repository.commit


def require_ready_to_commit() -> None:
    """Raise UserError where there are uncommitted changes, or git does not know whose commit it would be."""
    status = git_bytes("status", "--porcelain", "-z", "--untracked-files=no", "--no-renames").decode(errors="replace")
    if changed := [entry[3:] for entry in status.split("\0") if entry]:
        raise UserError(
            f"There are uncommitted changes ({list_names(changed)}): commit them, put them aside with `git stash`, or "
            "drop them with `git restore`, then try again."
        )
    try:
        git_output("var", "GIT_COMMITTER_IDENT")
        git_output("var", "GIT_AUTHOR_IDENT")
    except GitError:
        raise UserError(
            "git does not know who you are: `git config user.name 'Your Name'` and `git config user.email you@host`, "
            "then try again."
        ) from None


def git_path(name: str) -> Path:
    """Return the path of a file in .git, also in a linked worktree."""
    return Path(os.fsdecode(git_output("rev-parse", "--git-path", name)))


def files_of(commit: str) -> dict[str, Entry]:
    """Return the files of a commit or tree by their paths."""
    files = {}
    for line in git_bytes("ls-tree", "-r", "-z", "--full-tree", commit).split(b"\0"):
        if line:
            facts, _, path = line.partition(b"\t")
            mode, _, blob = facts.decode("ascii").split()
            files[os.fsdecode(path)] = Entry(mode, blob)
    return files


def read_blob(blob: str) -> str:
    """Return the content of a text file by its hash."""
    return git_bytes("cat-file", "blob", blob).decode("utf-8", "surrogateescape")


def tree_of(commit: str) -> str:
    """Return the hash of a commit's tree."""
    return git_output("rev-parse", f"{commit}^{{tree}}").decode("ascii")


def change_tree(commit: str, removed: set[str], written: Mapping[str, str]) -> str:
    """Return the tree of a commit without the removed files and with the written ones, which keep their modes."""
    files = files_of(commit)
    lines = [f"0 {'0' * 40}\t{path}" for path in removed & set(files)]
    for path, text in written.items():
        blob = git_output("hash-object", "-w", "--stdin", stdin=text.encode("utf-8", "surrogateescape")).decode("ascii")
        lines.append(f"{files[path].mode if path in files else FILE_MODE} {blob}\t{path}")
    with temporary_index(commit) as index:
        listing = "".join(f"{line}\0" for line in lines)
        git_bytes("update-index", "-z", "--index-info", stdin=os.fsencode(listing), variables=index)
        return git_bytes("write-tree", variables=index).strip().decode("ascii")


@contextmanager
def exported(tree: str) -> Iterator[Path]:
    """Yield a temporary folder with the files of a tree."""
    with tempfile.TemporaryDirectory(prefix="adopted-") as name, temporary_index(tree) as index:
        git_bytes("checkout-index", "--all", f"--prefix={name}/", variables=index)
        yield Path(name)


@contextmanager
def temporary_index(tree: str) -> Iterator[Mapping[str, str]]:
    """Yield the variables with which git commands use an index of their own, which holds a tree."""
    with tempfile.TemporaryDirectory(prefix="index-") as name:
        variables = {"GIT_INDEX_FILE": str(Path(name) / "index")}
        git_bytes("read-tree", tree, variables=variables)
        yield variables


def make_commit(tree: str, parents: list[str], message: str) -> str:
    """Return the hash of a new commit, which no branch has yet."""
    arguments = [word for parent in parents for word in ("-p", parent)]
    return git_output("commit-tree", *arguments, tree, stdin=message.encode("utf-8")).decode("ascii")


def describe_git_error(error: GitError) -> str:
    """Return git's message as the end of a sentence."""
    return one_line(error).rstrip(".")
