"""Analyze the code in src/ without running it: files, packages, imports."""

import ast
import functools
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
# Seconds after which a command hangs: the longest take minutes on a slow machine that does other things too.
HANGS_AFTER = 900
# A folder with conf/ and the published params.yaml, in which tests compose: users edit the params.yaml of the project.
PUBLISHED = ROOT / "tests" / "published"
# The name of the experiment in MLflow that conf/mlflow/ sets: `make adopt` changes it.
EXPERIMENT = (
    yaml.safe_load((ROOT / "conf" / "mlflow" / "default.yaml").read_text(encoding="utf-8"))["experiment_name"]
    .rpartition(",")[2]
    .removesuffix("}")
)
SRC = ROOT / "src"
PACKAGE = "cifar_pipeline"
STAGES = sorted(path for path in SRC.glob("*.py"))
FILES = sorted(SRC.rglob("*.py"))


def name_of(path: Path) -> str:
    """Return a short name for messages: `training/trainer.py`, `train.py`."""
    return path.relative_to(SRC).as_posix().removeprefix(f"{PACKAGE}/")


def package_of(path: Path) -> str:
    """Return `training` for cifar_pipeline/training/trainer.py, and an empty string for a script."""
    parts = path.relative_to(SRC).parts
    return parts[1].removesuffix(".py") if parts[0] == PACKAGE else ""


def imported_names(path: Path) -> set[str]:
    """Return the modules that a file imports when it runs, and the names that it imports from them, with dots."""
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_typing = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in only_typing:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                # Only in a user's own code.
                parts = path.relative_to(SRC).parts
                assert parts[0] != PACKAGE, f"{name_of(path)}: relative imports are not used here"
                module = ".".join([*parts[: -node.level], *filter(None, [module])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def imported_packages(path: Path) -> set[str]:
    """Return the top-level packages that a file imports: `torch`, `pathlib`, `cifar_pipeline`."""
    return {name.partition(".")[0] for name in imported_names(path)}


@functools.cache
def imported_files(path: Path) -> set[Path]:
    """Return the files of src/ that a file imports directly."""
    files = {SRC.joinpath(*name.split(".")).with_suffix(".py") for name in imported_names(path)}
    return {file for file in files if file.is_file() and file != path}
