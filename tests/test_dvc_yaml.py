"""dvc.yaml lists exactly the code, the configuration keys and the package versions that each stage uses."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cifar_pipeline.config.compose import FINGERPRINT_KEYS, NON_RESULT_GROUPS
from cifar_pipeline.config.source_files import IMPORTED_AS, NON_RESULT_PACKAGES, PACKAGES
from cifar_pipeline.data.dataset import DATASET_KEYS
from helpers.source_tree import FILES, PACKAGE, ROOT, SRC, imported_files, imported_packages, name_of, package_of

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Folders of a user's own code that a stage may use: data sources before the training, everything from there on.
USER_SOURCES, USER_CODE = {"src/project/__init__.py", "src/project/data"}, {"src/project"}
USER_DEPENDENCIES = {
    "download": USER_SOURCES, "preprocess": USER_SOURCES, "train": USER_CODE, "evaluate": USER_CODE,
}  # fmt: skip
# Packages that download, store, display or check: they change no number, no image and no table.
NOT_COMPUTING_PACKAGES = {
    "filelock", "google", "hydra", "jinja2", "markupsafe", "mlflow", "omegaconf", "pooch", "psutil", "requests", "rich",
    "safetensors", "yaml",
}  # fmt: skip
# Packages that a stage imports, but which cannot change its outputs: the contact sheet and the list of skipped files
# are made without torch and pandas; a training reads no image files, attributes nothing, and writes the same table of
# epochs with any pandas; ONNX Runtime checks what is exported, and onnx what is evaluated. (`preprocess` depends on
# pillow-heif where there are images that it may read.)
UNUSED = {
    "preprocess": {"pandas", "pillow-heif", "torch", "torchmetrics"},
    "train": {"captum", "onnxruntime", "pandas", "pillow", "pillow-heif"},
    "evaluate": {"onnx", "pillow-heif"},
}
# Functions that take the configuration, or a section of it, and read the keys of a table.
BY_TABLE = {
    "fingerprint": FINGERPRINT_KEYS,
    "require_matching_config": [f"data.{key}" for key in DATASET_KEYS],
    "dataset_config": [f"data.{key}" for key in DATASET_KEYS],
    # These validate values or record all of them: they read everything without affecting a result.
    "check_targets": [],
    "result_config": [],
    "write_composed": [],
    "require_tracked_inputs": [],
}

each_stage = pytest.mark.parametrize("stage", STAGES)


def script(stage: str) -> Path:
    return ROOT / STAGES[stage]["cmd"].removeprefix("python ")


def body(stage: str) -> Path:
    """Return the file with the function of the stage: in stages/, or the script itself."""
    path = SRC / PACKAGE / "stages" / f"{stage}.py"
    return path if path.is_file() else script(stage)


def params(stage: str) -> set[str]:
    entries = STAGES[stage].get("params", [])
    return {key for entry in entries for key in entry["composed.yaml"]}


@each_stage
def test_a_stage_depends_on_the_code_that_computes_in_it(stage):
    named = {dependency for dependency in STAGES[stage]["deps"] if dependency.startswith("src/")}
    packages = computing_packages(script(stage)) | ({"config"} if stage == "configure" else set())
    stages = {"stages"} & packages
    ours = {f"src/{name_of(script(stage))}", *(f"src/{PACKAGE}/{package}" for package in packages - stages)}
    ours |= {f"src/{PACKAGE}/stages/{stage}.py" for _ in stages}
    # The loss that `evaluate` reports is a class of training/ that the metadata of the model names.
    ours |= {f"src/{PACKAGE}/training"} if stage == "evaluate" else set()
    assert named == ours | USER_DEPENDENCIES.get(stage, set())


@each_stage
def test_a_stage_names_the_keys_that_it_reads(stage):
    read, named = set(keys_read(body(stage), stage, "config")), params(stage) - {f"versions.{stage}"}
    read = {key for key in read if key.partition(".")[0] not in NON_RESULT_GROUPS}

    def within(key: str, other: str) -> bool:
        return key == other or key.startswith(f"{other}.")

    unnamed = {key for key in read if not any(within(key, name) for name in named)}
    assert not unnamed, f"{stage} reads {sorted(unnamed)}, which dvc.yaml does not name"
    unread = {name for name in named if not any(within(key, name) for key in read)}
    assert not unread, f"dvc.yaml names {sorted(unread)} for {stage}, which does not read them"


@pytest.mark.parametrize("stage", PACKAGES)
def test_a_stage_depends_on_the_versions_of_the_packages_that_compute_in_it(stage):
    files = computing_files(script(stage))
    if stage == "train":  # and the classes that conf/ names
        files |= {path for path in FILES if package_of(path) in ("models", "training")}
    imported = {IMPORTED_AS.get(name, name) for path in files for name in imported_packages(path)}
    imported -= {PACKAGE, *sys.stdlib_module_names, *NOT_COMPUTING_PACKAGES, *UNUSED.get(stage, ())}
    assert imported == set(PACKAGES[stage])
    for other in STAGES:
        assert (f"versions.{stage}" in params(other)) == (other == stage)


def test_every_key_that_is_named_is_in_the_composed_configuration():
    composed = yaml.safe_load((ROOT / "composed.yaml").read_text())
    for key in set().union(*(params(stage) for stage in STAGES)):
        node = composed
        for name in key.split("."):
            assert name in node, f"composed.yaml has no {key}"
            node = node[name]


def test_stages_take_and_give_the_same_files():
    """A stage's inputs are outputs of another stage, or files written by users."""
    written = {path for stage in STAGES.values() for path in outputs(stage)}
    for name, stage in STAGES.items():
        inputs = {path for path in stage["deps"] if not path.startswith("src/")}
        assert inputs <= written | {"conf", "constraints.txt", "params.yaml", "${image_dir}"}, name


def test_every_output_survives_until_it_is_replaced():
    for name, stage in STAGES.items():
        for path, options in outputs(stage).items():
            assert options.get("persist") is True, f"{name}: DVC would delete {path} before the stage runs"


def outputs(stage: dict) -> dict[str, dict]:
    return {path: options for entry in [*stage["outs"], *stage.get("metrics", [])] for path, options in entry.items()}


def computing_packages(start: Path) -> set[str]:
    """Return the packages whose code contributes to a script's result."""
    return {package_of(path) for path in computing_files(start)} - {"", "__init__"}


def computing_files(start: Path) -> set[Path]:
    """Return the files that contribute to a script's result, itself included, by following imports."""
    seen, queue = set(), [start]
    while queue:
        path = queue.pop()
        if path not in seen and package_of(path) not in NON_RESULT_PACKAGES:
            seen.add(path)
            queue += imported_files(path)
    return seen


def keys_read(path: Path, function: str, parameter: str, prefix: str = "") -> Iterator[str]:
    """Yield the keys below `prefix` that a function reads from `parameter`, also in our functions that it calls."""
    tree = ast.parse(path.read_text())
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(definition(tree, function)):
        if not (isinstance(node, ast.Name) and node.id == parameter and isinstance(node.ctx, ast.Load)):
            continue
        key, outer = key_chain(node, parents)
        key = ".".join(filter(None, [prefix, key]))
        call = parents[outer]
        argument = call.value if isinstance(call, ast.keyword) else outer
        call = parents[call] if isinstance(call, ast.keyword) else call
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            yield key
        elif call.func.id == "result_config" and isinstance(parents[call], ast.Subscript):
            yield ast.literal_eval(parents[call].slice) if isinstance(parents[call].slice, ast.Constant) else ""
        elif call.func.id in BY_TABLE:
            yield from BY_TABLE[call.func.id]
        elif (callee := find_definition(tree, path, call.func.id)) is None or is_dataclass(*callee):
            yield key  # a function of a library, or a dataclass: all of it may be read
        else:
            yield from keys_read(*callee, parameter_of(*callee, call, argument), key)


def key_chain(node: ast.expr, parents: dict[ast.AST, ast.AST]) -> tuple[str, ast.expr]:
    """Return `a.b` for `config.a["b"]`, and the outermost expression; called methods are no keys."""
    names: list[str] = []
    while True:
        parent = parents[node]
        if isinstance(parent, ast.Attribute):
            grandparent = parents[parent]
            if isinstance(grandparent, ast.Call) and grandparent.func is parent:
                if parent.attr == "get" and isinstance(grandparent.args[0], ast.Constant):
                    names.append(grandparent.args[0].value)
                return ".".join(names), grandparent
            names.append(parent.attr)
        elif isinstance(parent, ast.Subscript) and parent.value is node and isinstance(parent.slice, ast.Constant):
            names.append(parent.slice.value)
        else:
            return ".".join(names), node
        node = parent


def find_definition(tree: ast.Module, path: Path, name: str) -> tuple[Path, str] | None:
    """Return the file and the name of the function or class that `name` refers to; None if it is not ours."""
    if any(getattr(node, "name", None) == name for node in tree.body):
        return path, name
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return SRC.joinpath(*node.module.split(".")).with_suffix(".py"), alias.name
    return None


def is_dataclass(path: Path, name: str) -> bool:
    """Whether this is a class without an `__init__`: a dataclass."""
    node = next(node for node in ast.parse(path.read_text()).body if getattr(node, "name", None) == name)
    return isinstance(node, ast.ClassDef) and not any(getattr(inner, "name", "") == "__init__" for inner in node.body)


def definition(tree: ast.Module, name: str) -> ast.FunctionDef:
    """Return the function of this name; for a class, its `__init__`."""
    node = next(node for node in tree.body if getattr(node, "name", None) == name)
    if isinstance(node, ast.ClassDef):
        node = next(inner for inner in node.body if getattr(inner, "name", None) == "__init__")
    assert isinstance(node, ast.FunctionDef)
    return node


def parameter_of(path: Path, name: str, call: ast.Call, argument: ast.expr) -> str:
    """Return the name of the parameter that receives `argument`."""
    for keyword in call.keywords:
        if keyword.value is argument:
            assert keyword.arg
            return keyword.arg
    names = [parameter.arg for parameter in definition(ast.parse(path.read_text()), name).args.args]
    return [name for name in names if name != "self"][call.args.index(argument)]
