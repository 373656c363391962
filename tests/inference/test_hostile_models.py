"""Test untrusted model files: no code in them is executed, and expensive graphs are refused before they are opened."""

import contextlib
import dataclasses
import json
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image
from small_model import CLASSES, SHAPE, training_metadata

from cifar_pipeline.inference.metadata import METADATA_KEY, to_onnx_metadata
from cifar_pipeline.inference.onnx_check import MAX_VALUE_BYTES, NUM_IMAGES, UnsafeModel, check_content, check_model
from cifar_pipeline.inference.onnx_session import OnnxSession, open_checked
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.file_hashes import HASHES_FILE
from cifar_pipeline.utils.paths import MODEL_FILE
from helpers.config_project import ROOT, Project, run
from predict import predict


class Trap:
    """Creates a file when unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def constant(name: str, values: Any, dtype: type = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def model_of(nodes: list[Any], constants: list[TensorProto], inputs: list[Any] | None = None) -> ModelProto:
    """Make a model with valid metadata whose `nodes` compute `scores` `[N, 10]` from `images`."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *SHAPE])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(CLASSES)]) for name in OUTPUTS]
    ends = [helper.make_node("Identity", ["scores"], ["logits"]), helper.make_node("Softmax", ["scores"], [OUTPUTS[1]])]
    graph = helper.make_graph([*nodes, *ends], "graph", [images, *(inputs or [])], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: json.dumps(to_onnx_metadata(training_metadata()))})
    return model


OUTPUTS = ("logits", "probabilities")
FLOATS = helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT)
# The mean of an image, and ten copies of it.
MEAN = [FLOATS, helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0)]
TEN = [helper.make_node("Unsqueeze", ["means", "one"], ["column"]), helper.make_node("Mul", ["column", "row"], ["sum"])]
BASE = [constant("axes", [1, 2, 3]), constant("one", [1]), constant("zero", [0])]
BASE += [constant("row", np.ones((1, len(CLASSES))), np.float32)]
HUGE = 25_000_000_000


def plain() -> ModelProto:
    return model_of([*MEAN, *TEN, helper.make_node("Identity", ["sum"], ["scores"])], BASE)


def allocating(numbers: int = HUGE) -> ModelProto:
    """Add the mean of ones, 100 GB by default."""
    nodes = [
        helper.make_node("Expand", ["row_one", "huge"], ["ones"]),
        helper.make_node("ReduceMean", ["ones", "zero"], ["mean"]),
        helper.make_node("Add", ["sum", "mean"], ["scores"]),
    ]
    constants = [constant("row_one", [1], np.float32), constant("huge", [numbers])]
    return model_of([*MEAN, *TEN, *nodes], [*BASE, *constants])


def tiling() -> ModelProto:
    nodes = [
        helper.make_node("Tile", ["means", "huge"], ["tiled"]),
        helper.make_node("ReduceMean", ["tiled", "zero"], ["mean"]),
        helper.make_node("Add", ["sum", "mean"], ["scores"]),
    ]
    return model_of([*MEAN, *TEN, *nodes], [*BASE, constant("huge", [HUGE])])


def sized_by_the_pixels() -> ModelProto:
    nodes = [
        helper.make_node("Cast", ["means"], ["count"], to=TensorProto.INT64),
        helper.make_node("Expand", ["row_one", "count"], ["many"]),
        helper.make_node("ReduceMean", ["many", "zero"], ["mean"]),
        helper.make_node("Add", ["sum", "mean"], ["scores"]),
    ]
    return model_of([*MEAN, *TEN, *nodes], [*BASE, constant("row_one", [1], np.float32)])


def looping() -> ModelProto:
    """Make a loop of 2^62 iterations."""
    outputs = [helper.make_tensor_value_info("more_out", TensorProto.BOOL, [])]
    inputs = [helper.make_tensor_value_info("i", TensorProto.INT64, [])]
    inputs += [helper.make_tensor_value_info("more", TensorProto.BOOL, [])]
    inputs += [helper.make_tensor_value_info("state", TensorProto.FLOAT, ["N", len(CLASSES)])]
    body = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["more_out"]), helper.make_node("Sin", ["state"], ["next"])],
        "body", inputs, [*outputs, helper.make_tensor_value_info("next", TensorProto.FLOAT, ["N", len(CLASSES)])],
    )  # fmt: skip
    nodes = [helper.make_node("Loop", ["most", "always", "sum"], ["scores"], body=body)]
    return model_of([*MEAN, *TEN, *nodes], [*BASE, constant("most", 2**62), constant("always", True, bool)])


def computing() -> ModelProto:
    """Make a convolution that would take a month: a kernel as large as the padded image."""
    kernel = 3000
    nodes = [
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["map"], pads=[2 * kernel] * 4),
        helper.make_node("ReduceMean", ["map", "last"], ["mean"], keepdims=0),
        helper.make_node("Add", ["sum", "mean"], ["scores"]),
    ]
    wide = helper.make_tensor("kernel", TensorProto.FLOAT, [1, 3, kernel, kernel], bytes(4 * 3 * kernel**2), raw=True)
    return model_of([*MEAN, *TEN, *nodes], [*BASE, constant("last", [2, 3]), wide])


def external(location: str) -> ModelProto:
    """Store a weight in another file."""
    model = plain()
    tensor = model.graph.initializer[3]
    assert tensor.name == "row"
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "40"}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return model


def in_a_constant() -> ModelProto:
    values = external("../secret").graph.initializer[3]
    nodes = [
        helper.make_node("Constant", [], ["more"], value=values),
        helper.make_node("Add", ["sum", "more"], ["scores"]),
    ]
    return model_of([*MEAN, *TEN, *nodes], BASE)


def foreign() -> ModelProto:
    model = model_of([*MEAN, *TEN, helper.make_node("Run", ["sum"], ["scores"], domain="com.evil")], BASE)
    model.opset_import.add(domain="com.evil", version=1)
    return model


def microsofts() -> ModelProto:
    model = model_of([*MEAN, *TEN, helper.make_node("Gelu", ["sum"], ["scores"], domain="com.microsoft")], BASE)
    model.opset_import.add(domain="com.microsoft", version=1)
    return model


def function() -> ModelProto:
    model = plain()
    body = helper.make_node("Identity", ["a"], ["b"])
    model.functions.add().CopyFrom(
        helper.make_function("", "Softmax", ["a"], ["b"], [body], [helper.make_opsetid("", 20)])
    )
    return model


def branching() -> ModelProto:
    out = [helper.make_tensor_value_info("o", TensorProto.FLOAT, ["N", len(CLASSES)])]
    body = helper.make_graph([helper.make_node("Identity", ["sum"], ["o"])], "then", [], out)
    node = helper.make_node("If", ["always"], ["scores"], then_branch=body, else_branch=body)
    return model_of([*MEAN, *TEN, node], [*BASE, constant("always", True, bool)])


def lying() -> ModelProto:
    """State that 100 GB are one number."""
    model = allocating()
    model.graph.value_info.append(helper.make_tensor_value_info("ones", TensorProto.FLOAT, [1]))
    return model


def decoding() -> ModelProto:
    nodes = [helper.make_node("ImageDecoder", ["bytes"], ["image"]), helper.make_node("Identity", ["sum"], ["scores"])]
    return model_of([*MEAN, *TEN, *nodes], [*BASE, constant("bytes", [1, 2], np.uint8)])


HOSTILE: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "100 GB by Expand": (allocating, "GB of memory"),
    "100 GB by Tile": (tiling, "GB of memory"),
    "100 GB stated to be one number": (lying, "GB of memory"),
    "a size that depends on the pixels": (sized_by_the_pixels, "cannot be computed in advance"),
    "a loop without end": (looping, "it uses 'Loop'"),
    "a branch": (branching, "it uses 'If'"),
    "a month of arithmetic": (computing, "multiplications"),
    "external data in the folder above": (lambda: external("../secret"), "in another file"),
    "external data by an absolute path": (lambda: external("/etc/passwd"), "in another file"),
    "external data in a constant": (in_a_constant, "in another file"),
    "a custom operator": (foreign, "operators other than those of ONNX"),
    "an operator of Microsoft": (microsofts, "operators other than those of ONNX"),
    "a function named as an operator": (function, "functions"),
    "a decoder of images": (decoding, "it uses 'ImageDecoder'"),
}


def saved(model: ModelProto | bytes, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    (folder / "MLmodel").write_text("flavors: {}\n")
    return folder


def test_the_graphs_without_attack_are_valid_models(tmp_path: Path) -> None:
    _, probabilities = OnnxSession.open(saved(plain(), tmp_path), threads=1).predict(np.zeros((3, *SHAPE), np.uint8), 2)
    np.testing.assert_allclose(probabilities, np.full((3, len(CLASSES)), 0.1))


@pytest.mark.parametrize("trick", HOSTILE)
def test_a_hostile_graph_is_refused_in_a_sentence_at_once(tmp_path: Path, trick: str) -> None:
    make, reason = HOSTILE[trick]
    folder, before = saved(make(), tmp_path / "model"), time.perf_counter()
    (tmp_path / "secret").write_bytes(bytes(40))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        UserError, match=r"model\.onnx was not opened because .*\. Use a model made by this project"
    ) as refusal:
        OnnxSession.open(folder, threads=1)
    assert reason in str(refusal.value) and "\n" not in str(refusal.value)
    assert time.perf_counter() - before < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1_000_000  # kB


def test_values_of_16_gb_for_one_image_are_the_most_that_is_opened() -> None:
    largest = NUM_IMAGES * MAX_VALUE_BYTES // 4  # float32 numbers
    small_values = NUM_IMAGES * 1_000_000  # bytes: more than all the other values of the graph take
    checked = check_model(allocating(largest - small_values))
    assert MAX_VALUE_BYTES - 4 * small_values < checked.bytes_per_image <= MAX_VALUE_BYTES == 2**34
    with pytest.raises(UnsafeModel, match="one image would take 17 GB of memory"):
        check_model(allocating(largest))


@pytest.mark.parametrize("numbers", [HUGE, NUM_IMAGES * MAX_VALUE_BYTES // 5], ids=["unchecked", "checked"])
def test_onnx_runtime_allocates_no_more_than_its_limit(tmp_path: Path, numbers: int) -> None:
    """The second line of defense, with the check of sizes bypassed or passed."""
    model = allocating(numbers)
    checked = check_model(plain() if numbers == HUGE else model)
    checked = dataclasses.replace(checked, content=model.SerializeToString())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="needs more than 4 GB of memory"):
        open_checked(checked, threads=1).predict(np.zeros((1, *SHAPE), np.uint8), 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1_000_000


def pt2(changes: dict[str, bytes]) -> bytes:
    """Make a file of torch.export.save with some records replaced."""
    content, changed = BytesIO(), BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(2, 3),)), content)
    with zipfile.ZipFile(content) as archive, zipfile.ZipFile(changed, "w") as other:
        for name in archive.namelist():
            other.writestr(name, changes.get(name.partition("/")[2], archive.read(name)))
    return changed.getvalue()


def split_archive(archive: bytes) -> tuple[bytes, bytes, int]:
    """Return the records, the central directory and its number of entries."""
    entries, size, start = struct.unpack("<HII", archive[archive.rindex(b"PK\5\6") + 10 :][:10])
    return archive[:start], archive[start : start + size], entries


def shifted(directory: bytes, by: int) -> bytes:
    """Add an offset to the positions of the records in a central directory."""
    entries, at = bytearray(directory), 0
    while at < len(entries):
        (position,) = struct.unpack_from("<I", entries, at + 42)
        struct.pack_into("<I", entries, at + 42, position + by)
        at += 46 + sum(struct.unpack_from("<HHH", entries, at + 28))
    return bytes(entries)


@cache
def archive_of_two_directories() -> bytes:
    """Make a pt2 file that is harmless for Python's zipfile, and executes code when torch opens it.

    zipfile reads the central directory in front of the end record, torch the one at the position in the end record.
    Both have the same number of entries and bytes.
    """
    saved = BytesIO()
    torch.save(Trap(), saved)
    records, directory, entries = split_archive(pt2({}))
    others, other_directory, _ = split_archive(pt2({"data/sample_inputs/model.pt": saved.getvalue()}))
    assert len(directory) == len(other_directory)
    # So that no position in the harmless directory is negative.
    others += bytes(len(records) + len(directory))
    at = len(others)
    own_at = at + len(other_directory)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, entries, entries, len(directory), at, 0)
    # zipfile adds to each position the distance between its directory and the position in the end record.
    return others + other_directory + records + shifted(directory, own_at - (own_at + len(records) - at)) + end


def test_the_archive_of_two_directories_is_a_real_trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt2").write_bytes(archive_of_two_directories())
    with zipfile.ZipFile("model.pt2") as archive:
        assert archive.testzip() is None and not archive.read("archive/data/sample_inputs/model.pt").count(b"touch")
    with contextlib.suppress(Exception):
        torch.export.load("model.pt2")
    assert Path("executed").exists()


def test_nothing_else_in_a_models_folder_is_opened(exported: Path, project: Project) -> None:
    folder = project.folder / "elsewhere"
    shutil.copytree(exported, folder)
    (folder / "data").mkdir()
    for name in ("model.pt2", "data/model.pt2", "model.pkl", "python_model.pkl", "weights.safetensors"):
        (folder / name).write_bytes(archive_of_two_directories())
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save("black.png")
    assert run(predict, "black.png", "--model", folder).code == 0
    assert not (project.folder / "executed").exists()


NOT_ONNX: dict[str, Callable[[], bytes]] = {
    "a pickle": lambda: pickle.dumps(Trap()),
    "torch's pickle": lambda: (torch.save(Trap(), content := BytesIO()), content.getvalue())[1],
    "an archive with two directories": archive_of_two_directories,
    "an archive": lambda: pt2({}),
    "nothing": lambda: b"",
    "zeros": lambda: bytes(10_000),
    "noise": lambda: np.random.default_rng(0).bytes(10_000),
    "ONNX Runtime's other format": lambda: b"\x20\x00\x00\x00ORTM" + bytes(1000),
    "nested without end": lambda: b"\x3a\x80\x80\x04" * 5000,
}


@pytest.mark.parametrize("name", NOT_ONNX)
def test_a_file_that_is_no_onnx_is_refused_by_predict_and_not_executed(project: Project, name: str) -> None:
    folder = saved(NOT_ONNX[name](), project.folder / "elsewhere")
    ended = run(predict, "cat.png", "--model", folder)
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "model.onnx is damaged" in ended.err or "model.onnx was not opened" in ended.err
    assert not (project.folder / "executed").exists()


@pytest.mark.parametrize("rows", [1, 3])
def test_a_model_with_other_output_shapes_than_stated_is_refused(tmp_path: Path, rows: int) -> None:
    """Its sizes are correct for the number of images of the check, and incorrect for others."""
    nodes = [
        helper.make_node("Expand", ["row", "shape"], ["fixed"]),
        helper.make_node("Identity", ["fixed"], ["scores"]),
    ]
    model = model_of([*MEAN, *TEN, *nodes], [*BASE, constant("shape", [2, len(CLASSES)])])
    with pytest.raises(UserError, match="returned no output for some images|The model failed"):
        OnnxSession.open(saved(model, tmp_path), threads=1).predict(np.zeros((rows, *SHAPE), np.uint8), rows)


@pytest.mark.parametrize("keep", [10, 1000, 100_000, 200_000])
def test_a_truncated_file_is_damaged(exported: Path, tmp_path: Path, keep: int) -> None:
    folder = saved((exported / MODEL_FILE).read_bytes()[:keep], tmp_path)
    with pytest.raises(UserError, match=r"model\.onnx is damaged \(.*`dvc repro -f train` makes it again"):
        OnnxSession.open(folder, threads=1)


def test_what_is_opened_is_what_was_checked(exported: Path) -> None:
    """Unknown fields are dropped from the checked bytes."""
    content = (exported / MODEL_FILE).read_bytes()
    unknown = b"\xa2\x7d\x04evil"  # field 2004 of a message
    checked = check_content(content + unknown)
    assert b"evil" not in checked.content
    onnx.checker.check_model(onnx.load_from_string(checked.content))


def test_random_changes_are_refused_or_harmless(exported: Path, tmp_path: Path) -> None:
    generator, content = np.random.default_rng(5), (exported / MODEL_FILE).read_bytes()
    shutil.copytree(exported, tmp_path / "model")
    (tmp_path / "model" / HASHES_FILE).unlink()
    for _ in range(40):
        changed = bytearray(content)
        # The graph is at the beginning and end of the file, weights are in between.
        for position in generator.integers(0, 6000, 3) * generator.choice([1, -1]):
            changed[position] = generator.integers(256)
        (tmp_path / "model" / MODEL_FILE).write_bytes(changed)
        try:
            OnnxSession.open(tmp_path / "model", threads=1).predict(np.zeros((2, *SHAPE), np.uint8), 2)
        except UserError as refusal:
            assert "\n" not in str(refusal)


def test_a_file_of_more_than_two_gigabytes_is_not_read(tmp_path: Path) -> None:
    folder = saved(b"", tmp_path)
    with (folder / MODEL_FILE).open("r+b") as file:
        file.truncate(3 << 30)  # a hole: it takes no space
    code = (
        "import sys; sys.path.insert(0, 'src')\n"
        "from pathlib import Path\n"
        "from cifar_pipeline.inference.onnx_check import check_file, UnsafeModel\n"
        "try: check_file(Path(sys.argv[1]))\n"
        "except UnsafeModel as error: print(error)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder / MODEL_FILE)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    message, memory = ended.stdout.splitlines()
    assert message == "it is larger than 2 GB" and int(memory) < 500_000


def test_a_graph_of_too_many_operations_is_refused() -> None:
    model = plain()
    for number in range(50_001):
        model.graph.node.append(helper.make_node("Identity", ["sum"], [f"x{number}"]))
    with pytest.raises(UnsafeModel, match="more than 50,000 operations"):
        check_model(model)
