"""The house keeps its order: which package may know which, and what no file of src/ does."""

import ast
import json
from graphlib import TopologicalSorter

import pytest
from source import (
    FILES,
    PACKAGE,
    ROOT,
    SRC,
    STAGES,
    imported_files,
    imported_names,
    imported_packages,
    name_of,
    package_of,
)

# Each package with those that it may import from.
MAY_KNOW = {
    "redaction": {"visible"},
    "visible": set(),
    "documents": set(),
    "console": {"redaction", "visible"},
    "files": {"console", "locks", "places"},
    "locks": {"console", "places"},
    "places": set(),
    "git": {"console"},
    "faults": set(),
    "memory": set(),
    "interruption": set(),
    "nested": set(),
    "regular": {"console"},
    "config": {"console", "files", "redaction", "documents"},
    "commands": {"config", "console", "faults", "files", "interruption", "memory", "redaction", "documents"},
    "data": {"config", "console", "files", "nested", "regular", "redaction", "documents", "visible"},
    "models": {"config", "console", "files"},
    "training": {"config", "console", "faults", "files", "interruption", "data", "models"},
    "inference": {"config", "console", "files", "regular", "data", "models", "documents"},
    "tracking": {"config", "console", "files", "git", "nested", "regular", "redaction", "documents"},
    "reporting": {"console", "files", "git", "nested", "visible", "documents"},
    "reference": {"config", "console", "files"},
    "sweeps": {
        "config",
        "console",
        "faults",
        "files",
        "git",
        "interruption",
        "tracking",
        "reporting",
        "redaction",
        "documents",
    },
}
# Packages that a package does without.
NEVER = {
    "config": {"lightning", "mlflow"},
    "console": {"torch", "lightning", "mlflow", "hydra"},
    "files": {"torch", "lightning", "mlflow", "hydra"},
    "locks": {"torch", "lightning", "mlflow", "hydra"},
    "places": {"torch", "lightning", "mlflow", "hydra"},
    "git": {"torch", "lightning", "mlflow", "hydra"},
    "models": {"lightning", "mlflow", "hydra"},
    "data": {"lightning", "mlflow", "hydra"},
    "tracking": {"torch", "lightning", "torchmetrics"},
    "reference": {"torch", "lightning", "mlflow"},
    "reporting": {"hydra", "omegaconf", "lightning", "mlflow"},
}
MOST_LINES = 300


def test_every_package_has_its_place():
    assert {package_of(path) for path in FILES} - {"", "__init__"} == set(MAY_KNOW)


@pytest.mark.parametrize("package", MAY_KNOW)
def test_a_package_imports_from_those_it_may_know(package):
    for path in FILES:
        if package_of(path) == package:
            known = {package_of(file) for file in imported_files(path)} - {package, "__init__"}
            assert known <= MAY_KNOW[package], f"{name_of(path)} imports from {sorted(known - MAY_KNOW[package])}"
            forbidden = imported_packages(path) & NEVER.get(package, set())
            assert not forbidden, f"{name_of(path)} imports {sorted(forbidden)}"


def test_nothing_imports_a_stage():
    stages = {path.stem for path in STAGES}
    for path in FILES:
        assert not imported_packages(path) & stages, f"{name_of(path)} imports a script"


def test_there_are_no_circles():
    tuple(TopologicalSorter({path: imported_files(path) for path in FILES}).static_order())  # it raises CycleError


def test_every_module_of_ours_that_is_imported_exists():
    for path in FILES:
        for name in imported_names(path):
            if name.startswith(f"{PACKAGE}."):
                module = SRC.joinpath(*name.split("."))
                found = (module.with_suffix(".py"), module / "__init__.py", module.parent.with_suffix(".py"))
                assert any(file.is_file() for file in found), f"{name_of(path)} imports {name}"


def code_of(path):
    """The Python in a file: a notebook's cells, one after the other."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


EVERYWHERE = [path for folder in ("src", "tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
EVERYWHERE += sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", EVERYWHERE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_unpickles_what_it_does_not_know(path):
    for node in ast.walk(ast.parse(code_of(path))):
        if not isinstance(node, ast.Call):
            continue
        called, where = ast.unparse(node.func), f"{path}:{node.lineno}"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert called not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load"), where
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", where
        if called.endswith("load"):
            assert keywords.get("allow_pickle", "False") == "False", where
        if called.endswith(".fit") and "ckpt_path" in keywords:
            assert keywords.get("weights_only") == "True", where


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_no_longer_than_a_person_reads_at_once(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES
