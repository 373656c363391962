"""Clones of the project, and the checks that pass in an adopted one."""

import sys
from dataclasses import dataclass
from pathlib import Path

from helpers.workspace import PERSON, Workspace

NAME = "flowers"


@dataclass(frozen=True)
class Repository(Workspace):
    """A repository with the project's files."""

    def git(self, *arguments: str, code: int = 0) -> str:
        return self.run("git", *PERSON, *arguments, code=code).strip()

    def commit_all(self, message: str) -> str:
        """Commit everything, and return the commit."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "-m", message)
        return self.git("rev-parse", "HEAD")

    def state(self) -> tuple[str, str]:
        """Return the commit and the uncommitted changes."""
        return self.git("rev-parse", "HEAD"), self.git("status", "--porcelain")

    def files(self) -> set[str]:
        return set(self.git("ls-files").splitlines())

    def clone(self, root: Path) -> "Repository":
        self.run("git", "clone", "--quiet", "--local", str(self.root), str(root))
        return Repository.at(root)

    @staticmethod
    def at(root: Path) -> "Repository":
        """Return the repository with a committer."""
        repository = Repository(root)
        repository.git("config", "user.name", "tests")
        repository.git("config", "user.email", "tests@localhost")
        return repository


@dataclass(frozen=True)
class Adopted:
    """The adopted clone, and what the dry run before and the adoption printed."""

    repository: Repository
    dry_run: str
    output: str


def assert_tests_pass(project: Repository, *files: str) -> None:
    """Run tests of the project in another process."""
    project.run(sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files)


def assert_checks_pass(project: Repository) -> None:
    """Run what `make check` runs and tests of files, documents and configuration; collect all others."""
    for command in ("ruff format --check", "ruff check", "mypy src"):
        project.run(*command.split())
    assert_tests_pass(project, "--collect-only", "-m", "")
    assert_tests_pass(project, "tests/test_layout.py", "tests/test_docs.py", "tests/test_project_files.py")
    assert_tests_pass(project, "tests/test_dvc_yaml.py", "tests/config/test_schemas.py", "tests/commands")
