"""Whether a pt2 file holds a network and nothing else: asked before torch opens it, because torch trusts such a file.

`torch.export.load` unpickles records, has sympy evaluate symbolic sizes, runs guards and names as Python code, and
opens compiled libraries. A file that passes here offers none of that: its records are texts, graphs and bare numbers.
"""

import ast
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

# torch writes records side by side, under one folder named after the file, and never packs or encrypts them.
RECORD = re.compile(r"(?P<root>[^/]+)/(?P<name>.+)")
FORMAT = ("archive_format", b"pt2")
# Records that are read as texts and never run.
TEXT = re.compile(r"archive_version|byteorder|\.data/version|\.data/serialization_id|extra/[\w./-]+")
TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
TENSOR_LIST = re.compile(r"data/(weights|constants)/\w+_(weights|constants)_config\.json")
GRAPH = re.compile(r"models/\w+\.json")
EXAMPLE = re.compile(r"data/sample_inputs/\w+\.pt")

# Names of values, weights and classes: some become Python code, in which these characters can call nothing.
NAME = re.compile(r"[\w.:+-]*", re.ASCII)
OPERATOR = re.compile(r"torch\.ops\.aten\.(?P<name>\w+)\.\w+|_operator\.\w+|torch\.sym_\w+", re.ASCII)
# Operators of aten that read or write files.
FILES = {"save", "load", "from_file"}
CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
# What symbolic sizes and the guards on them are made of; without powers, whose results could fill the memory.
FUNCTIONS = {"Symbol", "Integer", "Add", "Mul", "FloorDiv", "CleanDiv", "Mod", "PythonMod", "Max", "Min"}
ASSUMPTIONS = {"positive", "nonnegative", "integer"}
ARITHMETIC = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.Attribute, ast.Subscript, ast.UnaryOp,
    ast.USub, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.BoolOp, ast.And, ast.Or, ast.Compare,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
LONGEST_EXPRESSION = 2000


class Damaged(Exception):
    """The file is not whole, or no pt2 file at all."""


class Unsafe(Exception):
    """The file holds something that would be run, or that is none of a network's."""


def check_archive(path: Path) -> None:
    """Look at every record of the pt2 file at `path`, without running anything of it.

    Raises:
        Damaged: it is cut off, altered, or of another format; the message says what is wrong.
        Unsafe: a record is more than a network needs; the message names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = _records(archive)
            broken = archive.testzip()
            if broken is not None:
                raise Damaged(f"{broken} is not what its checksum says")
            for name, info in records.items():
                _check_record(name, partial(archive.read, info))
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, ValueError) as error:
        raise Damaged(" ".join(str(error).split()) or type(error).__name__) from None
    except (KeyError, TypeError, AttributeError):
        raise Damaged("its lists are not those of torch.export.save") from None
    except RecursionError:
        raise Unsafe("its graph is nested too deeply") from None


def _records(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The records by their names below the archive's one folder."""
    found: dict[str, zipfile.ZipInfo] = {}
    roots, seen = set(), set()
    for info in archive.infolist():
        match = RECORD.fullmatch(info.filename)
        if match is None or info.compress_type != zipfile.ZIP_STORED:
            raise Damaged(f"{info.filename} is no record of torch's")
        # torch finds records whatever their case, and the first of two: it might read another than is checked here.
        if info.filename.lower() in seen:
            raise Unsafe(f"{info.filename} is there twice")
        seen.add(info.filename.lower())
        roots.add(match["root"])
        found[match["name"]] = info
    if len(roots) != 1 or archive.comment or FORMAT[0] not in found or not any(map(GRAPH.fullmatch, found)):
        raise Damaged("it is no file of torch.export.save")
    return found


def _check_record(name: str, read: Callable[[], bytes]) -> None:
    if name == FORMAT[0]:
        if read() != FORMAT[1]:
            raise Damaged("it is no file of torch.export.save")
    elif GRAPH.fullmatch(name):
        _check_graph(json.loads(read()), "")
    elif TENSOR_LIST.fullmatch(name):
        _check_tensors(json.loads(read()))
    elif EXAMPLE.fullmatch(name):
        _check_example(name, read())
    elif not (TENSOR.fullmatch(name) or TEXT.fullmatch(name)):
        raise Unsafe(f"{name} is nothing that a network needs")


def _check_example(name: str, content: bytes) -> None:
    """An example of the input: a pickle, which may hold tensors and plain containers, or nothing."""
    if content:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:
            raise Unsafe(f"{name} would run code") from None


def _check_tensors(content: Any) -> None:
    """The list of weights or constants: each a bare tensor in a record of its own."""
    for name, entry in content["config"].items():
        _check_text("", name)
        where = str(entry["path_name"])
        if entry["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", where):
            raise Unsafe(f"{name} is no bare tensor")


def _check_graph(node: Any, key: str) -> None:
    """A graph, or a part of it that stands under `key`."""
    if isinstance(node, dict):
        for name, value in node.items():
            _check_text("", name)
            # What torch tells of where an operation comes from: looked up and shown, never run.
            if name != "metadata":
                _check_graph(value, name)
    elif isinstance(node, list):
        for value in node:
            _check_graph(value, key)
    elif isinstance(node, str):
        _check_text(key, node)


def _check_text(key: str, text: str) -> None:
    """A text of a graph, by the key that it stands under."""
    if key in ("target", "as_operator"):
        match = OPERATOR.fullmatch(text)
        well = match is not None and match["name"] not in FILES
    elif key in ("expr_str", "guards_code"):
        well = _is_arithmetic(text)
    elif key in ("in_spec", "out_spec"):
        well = not text or all(map(_is_container, json.loads(text)[1:]))
    else:
        well = key == "as_string" or NAME.fullmatch(text) is not None
    if not well:
        raise Unsafe(f"its graph has {text[:60]!r} where that has no business")


def _is_container(spec: Any) -> bool:
    """Whether this describes tuples, lists and dictionaries of tensors, which torch can build without an import."""
    context = json.loads(spec["context"] or "null")
    keys = context if isinstance(context, list) else []
    plain = context is None or all(isinstance(name, str) and NAME.fullmatch(name) for name in keys)
    known = spec["type"] in CONTAINERS and (context is None or isinstance(context, list))
    return known and plain and all(map(_is_container, spec["children_spec"]))


def _is_arithmetic(text: str) -> bool:
    """Whether this is arithmetic with sizes, as `Mul(Integer(2), Symbol('s0', integer=True))` or `L['x'].size()[0]`."""
    if len(text) > LONGEST_EXPRESSION:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return False
    return all(isinstance(node, ARITHMETIC) and _is_plain(node) for node in ast.walk(tree))


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
        return named or (isinstance(node.func, ast.Attribute) and not node.args and not node.keywords)
    if isinstance(node, ast.Attribute):
        return node.attr == "size"
    if isinstance(node, ast.Name):
        return node.id in FUNCTIONS or re.fullmatch(r"L|[a-z]+\d+", node.id) is not None
    if isinstance(node, ast.keyword):
        return node.arg in ASSUMPTIONS
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int) or (isinstance(node.value, str) and node.value.isidentifier())
    return True
