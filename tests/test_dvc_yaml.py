"""dvc.yaml is honest: what a stage depends on is what its script imports and reads, no less and no more."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cifar_pipeline.config.compose import NON_RESULT_GROUPS
from cifar_pipeline.config.fingerprint import FINGERPRINT_KEYS as IDENTITY
from cifar_pipeline.config.source_files import IMPORTED_AS, NON_RESULT_PACKAGES, PACKAGES
from cifar_pipeline.data.dataset import DATASET_KEYS as ASKED
from helpers.source_tree import FILES, PACKAGE, ROOT, SRC, imported_files, imported_packages, name_of, package_of

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Where a user's own code lies that a stage uses: data sources before the training, everything from there on.
OWN_SOURCES, OWN = {"src/project/__init__.py", "src/project/data"}, {"src/project"}
OF_USERS = {"download": OWN_SOURCES, "preprocess": OWN_SOURCES, "train": OWN, "evaluate": OWN}
# Packages that bring, keep, show or check: what they do changes no number, no image and no table.
NOT_COMPUTING_PACKAGES = {
    "filelock", "google", "hydra", "jinja2", "markupsafe", "mlflow", "omegaconf", "pooch", "psutil", "requests", "rich",
    "safetensors", "yaml",
}  # fmt: skip
# What is imported in a stage and can't change what it leaves: a training reads no image files, and its table of
# epochs is the same by any pandas; ONNX Runtime checks what it exports, and onnx what is
# measured. (`preprocess` depends on pillow-heif where there are images that it may read.)
UNUSED = {
    "preprocess": {"pillow-heif"},
    "train": {"onnxruntime", "pandas", "pillow", "pillow-heif"},
    "evaluate": {"onnx", "pillow-heif"},
}
# Functions of ours that take the configuration, or a part of it, and read the keys that a table of theirs names.
BY_TABLE = {
    "fingerprint": IDENTITY,
    "require_matching_config": [f"data.{key}" for key in ASKED],
    "dataset_config": [f"data.{key}" for key in ASKED],
    # These refuse values, or write all of them down: they read everything and decide nothing.
    "check_targets": [],
    "result_config": [],
    "write_composed": [],
    "require_tracked_inputs": [],
}

each_stage = pytest.mark.parametrize("stage", STAGES)


def script(stage: str) -> Path:
    return ROOT / STAGES[stage]["cmd"].removeprefix("python ")


def body(stage: str) -> Path:
    """The file with the function of the stage: in stages/, or the script itself."""
    path = SRC / PACKAGE / "stages" / f"{stage}.py"
    return path if path.is_file() else script(stage)


def params(stage: str) -> set[str]:
    listed = STAGES[stage].get("params", [])
    return {key for entry in listed for key in entry["composed.yaml"]}


@each_stage
def test_a_stage_depends_on_the_code_that_computes_in_it(stage):
    named = {dependency for dependency in STAGES[stage]["deps"] if dependency.startswith("src/")}
    packages = computing_packages(script(stage)) | ({"config"} if stage == "configure" else set())
    stages = {"stages"} & packages
    ours = {f"src/{name_of(script(stage))}", *(f"src/{PACKAGE}/{package}" for package in packages - stages)}
    ours |= {f"src/{PACKAGE}/stages/{stage}.py" for _ in stages}
    assert named == ours | OF_USERS.get(stage, set())


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
    if stage == "train":  # and what conf/ chooses from there
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
        for word in key.split("."):
            assert word in node, f"composed.yaml has no {key}"
            node = node[word]


def test_stages_take_and_give_the_same_files():
    """What a stage takes that is no code of ours is written by another one, or by a person."""
    written = {path for stage in STAGES.values() for path in outputs(stage)}
    for name, stage in STAGES.items():
        taken = {path for path in stage["deps"] if not path.startswith("src/")}
        assert taken <= written | {"conf", "constraints.txt", "params.yaml", "${image_dir}"}, name


def test_every_output_survives_until_it_is_replaced():
    for name, stage in STAGES.items():
        for path, options in outputs(stage).items():
            assert options.get("persist") is True, f"{name}: DVC would delete {path} before the stage runs"


def outputs(stage: dict) -> dict[str, dict]:
    return {path: options for entry in [*stage["outs"], *stage.get("metrics", [])] for path, options in entry.items()}


def computing_packages(start: Path) -> set[str]:
    """The packages whose code a script runs to come to its result."""
    return {package_of(path) for path in computing_files(start)} - {"", "__init__"}


def computing_files(start: Path) -> set[Path]:
    """Our files that a script uses, itself among them; imports are not followed through what computes nothing."""
    seen, waiting = set(), [start]
    while waiting:
        path = waiting.pop()
        if path not in seen and package_of(path) not in NON_RESULT_PACKAGES:
            seen.add(path)
            waiting += imported_files(path)
    return seen


def keys_read(path: Path, function: str, parameter: str, prefix: str = "") -> Iterator[str]:
    """The keys below `prefix` that a function reads of its parameter, itself or by handing it to a function of ours."""
    tree = ast.parse(path.read_text())
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(definition(tree, function)):
        if not (isinstance(node, ast.Name) and node.id == parameter and isinstance(node.ctx, ast.Load)):
            continue
        key, outer = chain(node, parents)
        key = ".".join(filter(None, [prefix, key]))
        call = parents[outer]
        handed = call.value if isinstance(call, ast.keyword) else outer
        call = parents[call] if isinstance(call, ast.keyword) else call
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            yield key
        elif call.func.id == "result_config" and isinstance(parents[call], ast.Subscript):
            yield ast.literal_eval(parents[call].slice) if isinstance(parents[call].slice, ast.Constant) else ""
        elif call.func.id in BY_TABLE:
            yield from BY_TABLE[call.func.id]
        elif (found := defined(tree, path, call.func.id)) is None or is_record(*found):
            yield key  # Python's, Hydra's or OmegaConf's, or a record that is handed on: all of it may be read
        else:
            yield from keys_read(*found, parameter_of(*found, call, handed), key)


def chain(node: ast.expr, parents: dict[ast.AST, ast.AST]) -> tuple[str, ast.expr]:
    """`a.b` for `config.a["b"]`, and the whole of that expression; a method that is called is no key."""
    words: list[str] = []
    while True:
        parent = parents[node]
        if isinstance(parent, ast.Attribute):
            grandparent = parents[parent]
            if isinstance(grandparent, ast.Call) and grandparent.func is parent:
                if parent.attr == "get" and isinstance(grandparent.args[0], ast.Constant):
                    words.append(grandparent.args[0].value)
                return ".".join(words), grandparent
            words.append(parent.attr)
        elif isinstance(parent, ast.Subscript) and parent.value is node and isinstance(parent.slice, ast.Constant):
            words.append(parent.slice.value)
        else:
            return ".".join(words), node
        node = parent


def defined(tree: ast.Module, path: Path, name: str) -> tuple[Path, str] | None:
    """The file and name of the function or class of ours that `name` stands for in this file."""
    if any(getattr(node, "name", None) == name for node in tree.body):
        return path, name
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return SRC.joinpath(*node.module.split(".")).with_suffix(".py"), alias.name
    return None


def is_record(path: Path, name: str) -> bool:
    """Whether this is a class without a constructor of its own: a dataclass."""
    node = next(node for node in ast.parse(path.read_text()).body if getattr(node, "name", None) == name)
    return isinstance(node, ast.ClassDef) and not any(getattr(inner, "name", "") == "__init__" for inner in node.body)


def definition(tree: ast.Module, name: str) -> ast.FunctionDef:
    """The function of this name; of a class, what makes it."""
    node = next(node for node in tree.body if getattr(node, "name", None) == name)
    if isinstance(node, ast.ClassDef):
        node = next(inner for inner in node.body if getattr(inner, "name", None) == "__init__")
    assert isinstance(node, ast.FunctionDef)
    return node


def parameter_of(path: Path, name: str, call: ast.Call, handed: ast.expr) -> str:
    """What the called function calls the argument that it was handed."""
    for keyword in call.keywords:
        if keyword.value is handed:
            assert keyword.arg
            return keyword.arg
    names = [argument.arg for argument in definition(ast.parse(path.read_text()), name).args.args]
    return [argument for argument in names if argument != "self"][call.args.index(handed)]
