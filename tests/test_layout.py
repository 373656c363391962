"""Layout of src/: layers of packages, number and size of modules, and no unpickling of untrusted data."""

import ast
import json
import re
from graphlib import TopologicalSorter

import pytest

from helpers.source_tree import (
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

# From the bottom up: a package imports only from packages in lines above its own.
LAYERS = [
    ["utils"],
    ["config"],
    ["data"],
    ["models"],
    ["training", "inference", "tracking"],
    ["reporting"],
    ["sweeps"],
    ["cli"],
    ["stages"],
    ["adoption"],
]
LAYER = {package: number for number, packages in enumerate(LAYERS) for package in packages}
# Libraries that a package must not import.
FORBIDDEN_PACKAGES = {
    "utils": {"torch", "lightning", "mlflow", "hydra"},
    "config": {"lightning", "mlflow"},
    "models": {"lightning", "mlflow"},
    "data": {"lightning", "mlflow", "hydra"},
    "tracking": {"torch", "lightning", "torchmetrics"},
    "reporting": {"hydra", "omegaconf", "lightning", "mlflow"},
}
MAX_MODULES, MAX_LINES, MIN_LINES, MAX_TRAIN_IMPORTS = 146, 600, 40, 89


def test_every_package_has_a_layer():
    assert {package_of(path) for path in FILES} - {"", "__init__"} == set(LAYER)


@pytest.mark.parametrize("package", LAYER)
def test_imports_go_down_the_layers(package):
    for path in FILES:
        if package_of(path) == package:
            imported = {package_of(file) for file in imported_files(path)} - {package, "__init__"}
            upwards = {name for name in imported if LAYER.get(name, 99) >= LAYER[package]}
            assert not upwards, f"{name_of(path)} imports from {sorted(upwards)}"
            forbidden = imported_packages(path) & FORBIDDEN_PACKAGES.get(package, set())
            assert not forbidden, f"{name_of(path)} imports {sorted(forbidden)}"


def test_nothing_imports_a_stage():
    stages = {path.stem for path in STAGES}
    for path in FILES:
        assert not imported_packages(path) & stages, f"{name_of(path)} imports a script"


def test_there_are_no_import_cycles():
    tuple(TopologicalSorter({path: imported_files(path) for path in FILES}).static_order())  # it raises CycleError


def test_every_module_of_ours_that_is_imported_exists():
    for path in FILES:
        for name in imported_names(path):
            if name.startswith(f"{PACKAGE}."):
                module = SRC.joinpath(*name.split("."))
                candidates = (module.with_suffix(".py"), module / "__init__.py", module.parent.with_suffix(".py"))
                assert any(file.is_file() for file in candidates), f"{name_of(path)} imports {name}"


def code_of(path):
    """Return the Python code in a file; for a notebook, that of all code cells, without commands of the shell."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"^[!%].*$", "", code, flags=re.MULTILINE)


CODE_FOLDERS = ("src", "tests", "benchmarks", "notebooks")


@pytest.mark.parametrize("folder", CODE_FOLDERS)
def test_nothing_unpickles_what_it_does_not_know(folder):
    files = [*sorted((ROOT / folder).rglob("*.py")), *sorted((ROOT / folder).glob("*.ipynb"))]
    for path, node in ((file, node) for file in files for node in ast.walk(ast.parse(code_of(file)))):
        if not isinstance(node, ast.Call):
            continue
        called, location = ast.unparse(node.func), f"{path}:{node.lineno}"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert called not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load"), location
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", location
        if called.endswith("load"):
            assert keywords.get("allow_pickle", "False") == "False", location
        if called.endswith(".fit") and "ckpt_path" in keywords:
            assert keywords.get("weights_only") == "True", location


# Users add what they want to src/project/.
MODULES = [path for path in FILES if path.stat().st_size and not path.is_relative_to(SRC / "project")]


def test_there_are_few_modules_of_a_fair_size():
    assert len(MODULES) <= MAX_MODULES
    importers = {path: [other for other in FILES if path in imported_files(other)] for path in MODULES}
    for path in MODULES:
        lines = len(path.read_text().splitlines())
        assert lines <= MAX_LINES, f"{name_of(path)} has {lines} lines"
        mergeable = lines < MIN_LINES and len(importers[path]) == 1
        assert not mergeable, f"{name_of(path)} has {lines} lines and one importer, {name_of(importers[path][0])}"


def test_train_needs_few_of_our_files():
    seen, queue = set(), [SRC / "train.py"]
    while queue:
        path = queue.pop()
        if path not in seen:
            seen.add(path)
            queue += imported_files(path)
    assert len([path for path in seen if path.stat().st_size]) <= MAX_TRAIN_IMPORTS
