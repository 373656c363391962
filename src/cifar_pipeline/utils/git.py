"""Questions to git about the repository around the working directory, with its absence told apart from its failure.

Neither the user's settings of git nor variables of a hook change an answer, and no program that they name is run.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cifar_pipeline.utils.console import warning

TIMEOUT_SECONDS = 60
# What a hook of git sets for its own repository, which may be another one; and what changes the form of an answer.
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
# More of a difference than that is not kept.
MAX_DIFF_BYTES = 8_000_000
# New files whose content is a part of the difference; others are named, because nobody chose to keep what they hold.
CODE_PATHS, MAX_NEW_FILES = {".py", ".yaml", ".yml", ".cpp", ".cu", ".h"}, 100


class Kind(StrEnum):
    """What git says about the working directory."""

    MISSING = "git is not installed"
    OUTSIDE = "no repository"
    EMPTY = "no commit yet"
    REFUSED = "refused"
    FOUND = "found"


@dataclass(frozen=True)
class Repository:
    """The repository around the working directory: its commit, or why there is none to be had."""

    kind: Kind
    commit: str = ""
    reason: str = ""

    @property
    def error(self) -> str:
        """Why no commit is known although one might be; empty where one is, and outside of any repository."""
        return "" if self.kind in (Kind.FOUND, Kind.OUTSIDE) else self.reason or str(self.kind)


class GitError(Exception):
    """What git said instead of an answer."""


def find_repository() -> Repository:
    """Ask git for the repository around the working directory, and warn once where it refuses an answer.

    A repository that ignores this folder is another project's.
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
    """Whether a command such as `git restore` or `dvc exp run` finds a repository with a commit here."""
    return find_repository().kind is Kind.FOUND


def folder_in_repository() -> str:
    """Return the working directory's path below the repository's top, `projects/images/`; empty at the top.

    Raises:
        GitError: git gives no answer.
    """
    return os.fsdecode(git_output("rev-parse", "--show-prefix"))


def git_diff(folders: tuple[str, ...]) -> bytes:
    """Return what the folders hold beyond the commit, as a patch for `git apply`, with new code.

    Other new files are named below it.

    Raises:
        GitError: git gives no answer.
    """
    parts = [_bounded((*DIFF, "HEAD", "--", *folders), MAX_DIFF_BYTES)]
    listed = git_output("ls-files", "-z", "--others", "--exclude-standard", "--", *folders)
    new = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    code = [name for name in new if Path(name).suffix in CODE_PATHS and not Path(name).is_symlink()][:MAX_NEW_FILES]
    below = folder_in_repository()
    as_new = (*DIFF, "--no-index", f"--src-prefix=a/{below}", f"--dst-prefix=b/{below}", "--", os.devnull)
    for name in code:
        parts.append(_bounded((*as_new, name), MAX_DIFF_BYTES - sum(map(len, parts))))
    parts += [f"New file: {name}\n".encode(errors="surrogateescape") for name in new if name not in code]
    return b"".join(parts)


def last_commit(path: Path) -> tuple[str, str]:
    """Return the newest commit that changed a file and its date, `7c78472` and `2026-11-25`; empty without one.

    Raises:
        GitError: git gives no answer.
    """
    told = git_output("log", "-1", "--no-show-signature", "--no-color", "--format=%h %cs", "--", path.as_posix())
    commit, _, date = told.decode("ascii").partition(" ")
    return commit, date


def in_commit(commit: str, path: Path) -> bytes | None:
    """Return the content of a file in a commit; None where the commit has no such file.

    Raises:
        GitError: git gives no answer.
    """
    if not git_output("ls-tree", "-z", commit, "--", path.as_posix()):
        return None
    return git_output("cat-file", "blob", f"{commit}:./{path.as_posix()}", stripped=False)


_warned: set[str] = set()


def warn_git_failed(error: GitError) -> str:
    """Return git's reason in one line, and show it once with what git advises."""
    reason = " ".join(str(error).split())
    if reason not in _warned:
        _warned.add(reason)
        warning(f"Git gives no answer here, so that commit and changes of the code are not noted: {reason}")
    return reason


def git_output(*arguments: str, stripped: bool = True) -> bytes:
    """Return what git prints.

    Raises:
        FileNotFoundError: git is not installed.
        GitError: it fails.
    """
    done = _run(*arguments)
    if done.returncode:
        raise GitError(_reason(done.stderr) or f"`git {arguments[0]}` ended with {done.returncode}")
    return done.stdout.strip() if stripped else done.stdout


def _is_unborn() -> bool:
    """Whether HEAD names a branch that has no commit yet."""
    named = _run("symbolic-ref", "--quiet", "HEAD")
    if named.returncode:
        return False
    return not git_output("for-each-ref", "--format=%(refname)", named.stdout.decode(errors="surrogateescape").strip())


def _run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(_one_line(arguments), capture_output=True, env=_environment(), timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise GitError(f"`git {arguments[0]}` did not answer within {TIMEOUT_SECONDS} seconds") from None
    except PermissionError as error:
        raise GitError(f"git may not be run ({error})") from None


def _bounded(arguments: Iterable[str], most: int) -> bytes:
    """Return at most so many bytes of a difference, and a line that says so where it is longer."""
    if most <= 0:
        return b""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(_one_line(arguments), stdout=subprocess.PIPE, stderr=errors, env=_environment()) as process,
    ):
        assert process.stdout is not None
        content = process.stdout.read(most + 1)
        if len(content) > most:
            process.kill()
            return content[:most] + f"\n(The difference is longer than {MAX_DIFF_BYTES:,} bytes: cut here.)\n".encode()
        # 1 says that there is a difference, with --no-index.
        if process.wait() > 1:
            errors.seek(0)
            raise GitError(_reason(errors.read()))
    return content


def _reason(errors: bytes) -> str:
    return errors.decode(errors="backslashreplace").strip().removeprefix("fatal: ").removeprefix("error: ")


def _one_line(arguments: Iterable[str]) -> list[str]:
    return ["git", "--no-pager", *SETTINGS, *arguments]


def _environment() -> dict[str, str]:
    inherited = {key: os.environ.get(key, "") for key in list(os.environ) if key not in HOOK_VARIABLES}
    return inherited | GIT_OPTIONS
