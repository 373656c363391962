"""CI, hooks, containers and metadata files: they parse, agree, and request no more permissions than needed."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import yaml

from helpers.docs import ROOT, SHELL_ENV, read

PROJECT = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
WORKFLOW = yaml.safe_load(read(ROOT / ".github" / "workflows" / "ci.yml"))
TARGETS = set(re.findall(r"^\.PHONY: (\S+)", read(ROOT / "Makefile"), re.MULTILINE))


def test_the_workflow_runs_what_a_person_runs_and_may_comment_only_where_it_does():
    jobs = WORKFLOW["jobs"]
    ran = [step["run"] for step in jobs["test"]["steps"] if "run" in step]
    assert ran == ["make setup", "make check", "make test"]
    assert {line.removeprefix("make ") for line in ran} <= TARGETS
    assert WORKFLOW["permissions"] == {"contents": "read"} and "permissions" not in jobs["test"]
    assert jobs["differences"]["permissions"] == {"contents": "read", "pull-requests": "write"}
    script = "\n".join(step.get("run", "") for step in jobs["differences"]["steps"])
    assert "dvc metrics diff" in script and "dvc params diff" in script
    # Text of strangers (a title, a branch name) must not be inserted into a script.
    assert "${{" not in script


def test_other_systems_run_the_pipeline_and_the_quick_tests():
    matrix = WORKFLOW["jobs"]["systems"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert f">={matrix['python'][0]}" == PROJECT["requires-python"]
    ran = [step["run"] for step in WORKFLOW["jobs"]["systems"]["steps"] if "run" in step]
    extras = re.search(r"\.\[[\w,]+\]", read(ROOT / "Makefile"))
    assert extras and extras[0] in ran[0]
    (slow,) = re.findall(r"^SLOW_TESTS := (.*)$", read(ROOT / "Makefile"), re.MULTILINE)
    assert re.findall(r"--ignore=tests/(\w+)", ran[-1]) == slow.split()


def test_actions_are_pinned():
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in used)


def test_hooks_run_the_projects_own_environment():
    hooks = [hook for repo in yaml.safe_load(read(ROOT / ".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert all(hook["entry"].startswith(".venv/bin/") for hook in hooks)


def test_the_container_is_set_up_as_a_clone_is():
    container = json.loads(read(ROOT / ".devcontainer" / "devcontainer.json"))
    assert container["postCreateCommand"] == "make setup"
    assert PROJECT["requires-python"] == ">=" + re.findall(r"python:(\d+\.\d+)", container["image"])[0]


def test_the_license_is_the_declared_one():
    assert read(ROOT / "LICENSE").startswith(f"{PROJECT['license']} License")


def test_the_image_runs_as_a_user_and_keeps_its_dependencies_in_a_layer_of_their_own():
    instructions = [
        line.split(maxsplit=1) for line in read(ROOT / "Dockerfile").splitlines() if re.match("[A-Z]", line)
    ]
    names = [name for name, _ in instructions]
    (base,) = (rest for name, rest in instructions if name == "FROM")
    assert PROJECT["requires-python"] == ">=" + re.findall(r"python:(\d+\.\d+)", base)[0]
    setup_index = next(index for index, (_, rest) in enumerate(instructions) if "make setup" in rest)
    copy_all_index = next(
        index for index, (name, rest) in enumerate(instructions) if name == "COPY" and " . " in f"{rest} "
    )
    assert names.index("USER") < setup_index < copy_all_index
    assert all(rest != "root" for name, rest in instructions if name == "USER")
    copied = " ".join(rest for name, rest in instructions[:setup_index] if name == "COPY").split()
    for file in ("pyproject.toml", "constraints.txt", "Makefile", PROJECT["readme"], *PROJECT["license-files"]):
        assert file in copied
    ignored = read(ROOT / ".dockerignore").split()
    assert {".git", ".venv", "data", "models", "mlflow.db*"} <= set(ignored)


def test_an_environment_that_was_moved_is_made_again(tmp_path: Path) -> None:
    project = tmp_path / "the first"
    (project / ".venv").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, project)

    def planned(root: Path) -> str:
        return subprocess.run(
            ["make", "--dry-run", "setup"], cwd=root, capture_output=True, text=True, check=True
        ).stdout

    assert "-m venv  .venv" in planned(project)
    (project / ".venv" / ".set-up").write_text(f"{(project / '.venv').resolve()}\n")
    assert "venv" not in planned(project)
    moved = project.rename(tmp_path / "the second")
    assert "-m venv --clear .venv" in planned(moved)
    # Created by hand and marked with `touch`: its location is unknown.
    (moved / ".venv" / ".set-up").write_text("")
    assert "venv" not in planned(moved)


def test_help_names_every_target() -> None:
    files = [path for path in (ROOT / "Makefile", ROOT / "benchmarks" / "targets.mk") if path.exists()]
    targets = [name for path in files for name in re.findall(r"^\.PHONY: (\S+)", read(path), re.MULTILINE)]
    output = subprocess.run(
        ["make", "help"], cwd=ROOT, env=SHELL_ENV, capture_output=True, text=True, check=True
    ).stdout
    listed = re.findall(r"^make (\S+)", output, re.MULTILINE)
    assert sorted(listed) == sorted(targets)
    assert len(output.splitlines()) == len(listed)
