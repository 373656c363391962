"""What the code in src/ says about itself, read without running it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
PACKAGE = "cifar_pipeline"
STAGES = sorted(path for path in SRC.glob("*.py"))
FILES = sorted(SRC.rglob("*.py"))


def name_of(path: Path) -> str:
    """As a person would point to it: `training/fit.py`, `train.py`."""
    return path.relative_to(SRC).as_posix().removeprefix(f"{PACKAGE}/")


def package_of(path: Path) -> str:
    """`training` for cifar_pipeline/training/fit.py, `console` for cifar_pipeline/console.py, empty for a script."""
    parts = path.relative_to(SRC).parts
    return parts[1].removesuffix(".py") if parts[0] == PACKAGE else ""


def imported_names(path: Path) -> set[str]:
    """The dotted modules that a file imports, and the dotted names that it imports from them, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and node.level == 0, f"{name_of(path)}: relative imports are not used here"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_packages(path: Path) -> set[str]:
    """The first words of what a file imports: `torch`, `pathlib`, `cifar_pipeline`."""
    return {name.partition(".")[0] for name in imported_names(path)}


def imported_files(path: Path) -> set[Path]:
    """Those of our files that a file imports itself."""
    files = {SRC.joinpath(*name.split(".")).with_suffix(".py") for name in imported_names(path)}
    return {file for file in files if file.is_file() and file != path}
