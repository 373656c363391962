"""Query git about the repository around the working directory: its commit, its diff, files of a commit.

A missing repository is distinguished from an error of git. Neither the user's git configuration nor the variables of a
hook affect the output, and no program that they name is run.
"""

import logging
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cifar_pipeline.utils.text import one_line

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60
RESTORE_COMMAND = "git restore params.yaml composed.yaml dvc.lock reports"
# Set by git for hooks, for a repository that may be another one, or by users; they change what git prints.
HOOK_VARIABLES = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_DIFF_OPTS", "GIT_DIR", "GIT_EXTERNAL_DIFF",
    "GIT_GRAFT_FILE", "GIT_ICASE_PATHSPECS", "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX", "GIT_SHALLOW_FILE", "GIT_WORK_TREE",
)  # fmt: skip
GIT_OPTIONS = {"LC_ALL": "C", "LANGUAGE": "", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_PAGER": "cat"}
SETTINGS = ("-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "-c", "log.follow=false")
DIFF = (
    "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-relative", "--unified=3", "--src-prefix=a/",
    "--dst-prefix=b/", "--submodule=diff", "--ignore-submodules=none",
)  # fmt: skip
# A longer diff is truncated.
MAX_DIFF_BYTES = 8_000_000
# Untracked files of these types are included in the diff; others are only listed, as they may be private or large.
CODE_PATHS, MAX_NEW_FILES = {".py", ".yaml", ".yml", ".cpp", ".cu", ".h"}, 100


class Kind(StrEnum):
    """State of git in the working directory."""

    MISSING = "git is not installed"
    OUTSIDE = "no repository"
    EMPTY = "no commit yet"
    REFUSED = "refused"
    FOUND = "found"


@dataclass(frozen=True)
class Repository:
    """The repository around the working directory: its commit, or the reason why it is unknown."""

    kind: Kind
    commit: str = ""
    reason: str = ""

    @property
    def error(self) -> str:
        """Why the commit is unknown; empty where it is known, and outside of any repository."""
        return "" if self.kind in (Kind.FOUND, Kind.OUTSIDE) else self.reason or str(self.kind)


class GitError(Exception):
    """A git command failed; the message is git's."""


def find_repository() -> Repository:
    """Return the repository around the working directory; warn once where git fails.

    A repository that ignores this folder counts as another project's.
    """
    try:
        git_output("rev-parse", "--git-dir")
        if _run("check-ignore", "--quiet", ".").returncode == 0:
            return Repository(Kind.OUTSIDE)
        if _run("rev-parse", "--verify", "--quiet", "HEAD").returncode == 1 and _is_unborn():
            return Repository(Kind.EMPTY)
        return Repository(Kind.FOUND, git_output("rev-parse", "--verify", "HEAD^{commit}").decode("ascii"))
    except FileNotFoundError:
        return Repository(Kind.MISSING)
    except GitError as error:
        if str(error).startswith("not a git repository (or any") and not Path(".git").exists():
            return Repository(Kind.OUTSIDE)
        return Repository(Kind.REFUSED, reason=warn_git_failed(error))


def is_in_repository() -> bool:
    """Whether there is a repository with a commit, as `git restore` and `dvc exp run` need it."""
    return find_repository().kind is Kind.FOUND


def folder_in_repository() -> str:
    """Return the working directory relative to the repository's root, `projects/images/`; empty at the root.

    Raises:
        GitError: git fails.
    """
    return os.fsdecode(git_output("rev-parse", "--show-prefix"))


def git_diff(folders: tuple[str, ...]) -> bytes:
    """Return the uncommitted changes in the folders, new code included, as a patch for `git apply`.

    Other new files are listed at its end.

    Raises:
        GitError: git fails.
    """
    chunks = [_bounded((*DIFF, "HEAD", "--", *folders), MAX_DIFF_BYTES)]
    untracked = git_output("ls-files", "-z", "--others", "--exclude-standard", "--", *folders)
    new = [os.fsdecode(name) for name in untracked.split(b"\0") if name]
    code = [name for name in new if Path(name).suffix in CODE_PATHS and not Path(name).is_symlink()][:MAX_NEW_FILES]
    prefix = folder_in_repository()
    as_new = (*DIFF, "--no-index", f"--src-prefix=a/{prefix}", f"--dst-prefix=b/{prefix}", "--", os.devnull)
    for name in code:
        chunks.append(_bounded((*as_new, name), MAX_DIFF_BYTES - sum(map(len, chunks))))
    chunks += [f"New file: {name}\n".encode(errors="surrogateescape") for name in new if name not in code]
    return b"".join(chunks)


_warned: set[str] = set()


def warn_git_failed(error: GitError) -> str:
    """Return git's error message in one line, and print it as a warning the first time."""
    reason = one_line(error)
    if reason not in _warned:
        _warned.add(reason)
        log.warning(f"Git failed, so the commit and uncommitted changes are not recorded: {reason}")
    return reason


def git_output(*arguments: str, stdin: bytes = b"") -> bytes:
    """Return what a git command prints on standard output, without the whitespace around it.

    Raises:
        FileNotFoundError: git is not installed.
        GitError: it fails.
    """
    return git_bytes(*arguments, stdin=stdin).strip()


def git_bytes(
    *arguments: str, stdin: bytes = b"", variables: Mapping[str, str] | None = None, timeout: float = TIMEOUT_SECONDS
) -> bytes:
    """Return the standard output of a git command unchanged; `variables` are added to its environment.

    Raises:
        FileNotFoundError: git is not installed.
        GitError: it fails.
    """
    completed = _run(*arguments, stdin=stdin, variables=variables, timeout=timeout)
    if completed.returncode:
        raise GitError(_reason(completed.stderr) or f"`git {arguments[0]}` exited with code {completed.returncode}")
    return completed.stdout


def _is_unborn() -> bool:
    """Whether HEAD names a branch that has no commit yet."""
    symbolic = _run("symbolic-ref", "--quiet", "HEAD")
    if symbolic.returncode:
        return False
    branch = symbolic.stdout.decode(errors="surrogateescape").strip()
    return not git_output("for-each-ref", "--format=%(refname)", branch)


def _run(
    *arguments: str, stdin: bytes = b"", variables: Mapping[str, str] | None = None, timeout: float = TIMEOUT_SECONDS
) -> subprocess.CompletedProcess[bytes]:
    environment = _environment() | dict(variables or {})
    try:
        return subprocess.run(_command(arguments), input=stdin, capture_output=True, env=environment, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise GitError(f"`git {arguments[0]}` timed out after {timeout:.0f} seconds") from None
    except PermissionError as error:
        raise GitError(f"git could not be started ({error})") from None


def _bounded(arguments: Iterable[str], max_bytes: int) -> bytes:
    """Return at most `max_bytes` of a diff, and a closing line where it was truncated."""
    if max_bytes <= 0:
        return b""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(_command(arguments), stdout=subprocess.PIPE, stderr=errors, env=_environment()) as process,
    ):
        assert process.stdout is not None
        content = process.stdout.read(max_bytes + 1)
        if len(content) > max_bytes:
            process.kill()
            return (
                content[:max_bytes]
                + f"\n(The difference is longer than {MAX_DIFF_BYTES:,} bytes: cut here.)\n".encode()
            )
        # With --no-index, exit code 1 means that there is a difference.
        if process.wait() > 1:
            errors.seek(0)
            raise GitError(_reason(errors.read()))
    return content


def _reason(errors: bytes) -> str:
    return errors.decode(errors="backslashreplace").strip().removeprefix("fatal: ").removeprefix("error: ")


def _command(arguments: Iterable[str]) -> list[str]:
    return ["git", "--no-pager", *SETTINGS, *arguments]


def _environment() -> dict[str, str]:
    inherited = {key: os.environ.get(key, "") for key in list(os.environ) if key not in HOOK_VARIABLES}
    return inherited | GIT_OPTIONS
