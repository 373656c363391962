"""Stages started as a user does: in processes, in a copy of the project."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cifar_pipeline.config.source_files import NON_RESULT_PACKAGES, SourceTree
from helpers.config_project import ROOT, Project
from helpers.parameters import some_of

SCRIPTS = ["configure", "download", "preprocess", "train", "evaluate"]
# Runs a script as `python script ...` does, then prints the loaded modules.
LOADED = """
import json, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = str(__import__("pathlib").Path(sys.argv[0]).parent)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def copy(project: Project) -> Project:
    """Return a project with src/, in the working directory."""
    shutil.copytree(ROOT / "src", project.folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return project


@pytest.mark.parametrize("script", some_of(SCRIPTS, SCRIPTS.index("train")))
def test_showing_the_configuration_loads_nothing_heavy(copy: Project, script: str) -> None:
    ended = start("-c", LOADED, f"src/{script}.py", "--cfg", "job", "optimizer.lr=0.5")
    assert ended.returncode == 0, ended.stderr
    shown = OmegaConf.create(ended.stdout)
    assert shown == copy.compose("optimizer.lr=0.5")
    modules = json.loads(ended.stderr.splitlines()[-1])
    assert not {"torch", "lightning", "mlflow", "torchvision", "sklearn", "pandas", "matplotlib"} & set(modules)
    assert sorted(path.name for path in copy.folder.iterdir()) == ["conf", "params.yaml", "src"]


# A value is refused in half a second, with 575 modules (asyncio, which unittest.mock imports, would add 60).
MAX_MODULES_TO_REFUSE = 650


@pytest.mark.parametrize("word", ["optimizer.lr=x", "optimizer=sgdd", "--help"])
def test_a_refused_value_and_help_load_few_modules(copy: Project, word: str) -> None:
    ended = start("-c", LOADED, "src/train.py", word)
    assert ended.returncode == (0 if word == "--help" else 2)
    modules = json.loads(ended.stderr.splitlines()[-1])
    assert "cifar_pipeline.config.schema" in modules and "asyncio" not in modules
    assert len(modules) <= MAX_MODULES_TO_REFUSE


@pytest.mark.parametrize(
    ("script", "heavy"),
    [
        ("configure", {"lightning", "mlflow", "torchvision", "torch._dynamo"}),
        ("download", {"torch", "lightning", "mlflow", "sklearn"}),
    ],
)
def test_a_stage_imports_no_slow_library_that_it_does_not_use(copy: Project, script: str, heavy: set[str]) -> None:
    ended = start("-c", LOADED, f"src/{script}.py", "data=digits")
    assert ended.returncode == 0, ended.stderr
    modules = json.loads(ended.stderr.splitlines()[-1])
    assert "cifar_pipeline.cli.entrypoint" in modules
    assert not heavy & set(modules)


def test_a_user_error_is_one_line_and_exit_code_2(copy: Project) -> None:
    ended = start("src/train.py", "optimizer.lr=-1")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "optimizer.lr=-1 is not allowed; it must be a number above 0.\n"


def test_a_stage_started_outside_of_the_root_folder_is_refused(copy: Project) -> None:
    ended = subprocess.run(
        [sys.executable, str(copy.folder / "src" / "configure.py")],
        cwd=copy.folder / "src",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "run this from the project's root folder" in ended.stderr


@pytest.mark.parametrize("scripts", some_of([["train"], SCRIPTS], 0), ids=len)
def test_the_shell_completes_the_keys_and_options_of_every_stage(copy: Project, scripts: list[str]) -> None:
    typed = [f"python src/{script}.py optimizer=ad" for script in scripts] + ["python src/train.py trainer.max_e"]
    shell = """
    eval "$(python src/train.py -sc install=bash)"
    for COMP_LINE in "$@"; do
        COMP_POINT=${#COMP_LINE} COMP_WORDS=($COMP_LINE) COMP_CWORD=2
        hydra_bash_completion
        echo "${COMPREPLY[@]}"
    done
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", shell, "bash", *typed],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"PATH": path},
    )  # fmt: skip
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["optimizer=adam optimizer=adamw"] * len(scripts) + ["trainer.max_epochs="]


def test_a_class_that_fails_shows_a_traceback(copy: Project) -> None:
    """An error in a user's own class needs its traceback, unlike an invalid value."""
    copy.write(
        "src/cifar_pipeline/data/sources/broken.py", "class Broken:\n    def __init__(self):\n        self.x.y\n"
    )
    copy.write("conf/data/source/broken.yaml", "# Broken.\n_target_: cifar_pipeline.data.sources.broken.Broken\n")
    ended = start("src/download.py", "data/source=broken")
    assert ended.returncode == 1
    assert "broken.py" in ended.stderr
    assert "has no attribute 'x'" in ended.stderr


@pytest.mark.long
def test_followed_imports_are_what_a_process_loads(copy: Project) -> None:
    modules = [
        "cifar_pipeline.training.trainer",
        "cifar_pipeline.training.checkpoints",
        "cifar_pipeline.inference.onnx_export",
        "cifar_pipeline.models.lenet",
    ]
    followed = {f"src/{name}" for name in SourceTree(Path("src")).used("configure", modules).paths}
    code = f"import sys; sys.path.insert(0, 'src'); import {', '.join(modules)}\n" + (
        "for module in list(sys.modules.values()):\n"
        "    if module.__name__.startswith('cifar_pipeline.'): print(module.__file__)"
    )
    ended = start("-c", code)
    assert ended.returncode == 0, ended.stderr
    loaded = {Path(line).resolve().relative_to(copy.folder.resolve()).as_posix() for line in ended.stdout.split()}

    def computing(paths: set[str]) -> set[str]:
        packages = {
            path: path.removeprefix("src/cifar_pipeline/").partition("/")[0].removesuffix(".py") for path in paths
        }
        others = {*NON_RESULT_PACKAGES, "__init__", "src"}
        return {path for path, package in packages.items() if package not in others and path.endswith(".py")}

    assert computing(loaded) == computing(followed)


def test_train_records_the_commit_before_it_loads_libraries(copy: Project) -> None:
    """A commit made during the seconds of the imports must not be recorded as that of the process's code."""
    code = """
import sys
sys.path.insert(0, "src")
import train
from cifar_pipeline.tracking import provenance
provenance.record_commit = lambda: sys.exit(7 if not {"torch", "mlflow", "lightning"} & set(sys.modules) else 8)
train.train(None)
"""
    assert start("-c", code).returncode == 7
