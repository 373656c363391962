"""A model from elsewhere is opened only where nothing in its file could be run; each trick here would run something."""

import contextlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import Change, rewrite

from cifar_pipeline.console import Refusal
from cifar_pipeline.inference.export import WEIGHTS, load_model
from cifar_pipeline.inference.safe_archive import Damaged, Unsafe, check_archive

GRAPH, WEIGHT_LIST = "models/model.json", "data/weights/model_weights_config.json"
EXAMPLE = "data/sample_inputs/model.pt"


@pytest.fixture
def model(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a model's folder to change; a trap that goes off leaves a file in the working directory."""
    shutil.copytree(exported, tmp_path / "last")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "last"


class Trap:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


def saved_trap() -> bytes:
    content = io.BytesIO()
    torch.save(Trap(), content)
    return content.getvalue()


CALL = "__import__('pathlib').Path('sprung').touch()"


def graph(edit: Callable[[dict[str, Any]], None]) -> Change:
    def change(content: bytes) -> bytes:
        values = json.loads(content)
        edit(values)
        return json.dumps(values).encode()

    return change


def expression(text: str) -> Change:
    """The size of the batch, everywhere in the graph, as this expression."""
    return lambda content: content.replace(b"\"Symbol('s", f'"{text}"'.encode() + b', "was": "Symbol(\'s')


def nodes(values: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = values["graph_module"]["graph"]["nodes"]
    return found


def retarget(target: str) -> Change:
    return graph(lambda values: nodes(values)[0].update(target=target))


def pickled_weight(content: bytes) -> bytes:
    values = json.loads(content)
    next(iter(values["config"].values()))["use_pickle"] = True
    return json.dumps(values).encode()


def spec(content: str) -> Change:
    calls = f'[1, {{"type": "builtins.dict", "context": {json.dumps(content)}, "children_spec": []}}]'
    return graph(lambda values: values["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=calls))


ENUM = json.dumps([{"__enum__": True, "fqn": "antigravity:x", "name": "y"}])
# What is changed, and what is added.
TRICKS: dict[str, tuple[dict[str, Change], dict[str, bytes]]] = {
    "a pickle as example input": ({EXAMPLE: lambda _: saved_trap()}, {}),
    "a bare pickle as example input": ({EXAMPLE: lambda _: pickle.dumps(Trap())}, {}),
    "a pickle as weights of the old kind": ({}, {"data/weights/model.pt": saved_trap()}),
    "a pickle as constants of the old kind": ({}, {"data/constants/model.pt": saved_trap()}),
    "a pickle as one weight": ({"data/weights/weight_0": lambda _: saved_trap(), WEIGHT_LIST: pickled_weight}, {}),
    "an object as constant": ({}, {"data/constants/opaque_obj_0": pickle.dumps(Trap())}),
    "a compiled library": ({}, {"data/aotinductor/model/model.so": b"\x7fELF"}),
    "an evaluated size": ({GRAPH: expression(CALL)}, {}),
    "a size that is a method": ({GRAPH: expression("().__class__.__base__.__subclasses__()")}, {}),
    "a size that fills the memory": ({GRAPH: expression("Pow(Integer(9), Pow(Integer(9), Integer(99)))")}, {}),
    "a guard that is run": ({GRAPH: graph(lambda values: values.update(guards_code=[CALL]))}, {}),
    "a name that becomes code": ({GRAPH: lambda content: content.replace(b"images", b"x=print(1)")}, {}),
    "an operator that writes a file": ({GRAPH: retarget("torch.ops.aten.save.default")}, {}),
    "an operator that maps a file": ({GRAPH: retarget("torch.ops.aten.from_file.default")}, {}),
    "a function that is no operator": ({GRAPH: retarget("torch.hub.load")}, {}),
    "an import through a container": ({GRAPH: spec(ENUM)}, {}),
    "a second record of another case": ({}, {"Models/Model.json": b"{}"}),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_what_would_run_something_is_refused_and_not_run(model: Path, trick: str) -> None:
    changes, new = TRICKS[trick]
    rewrite(model / WEIGHTS, changes, new)
    with pytest.raises(Refusal, match=r"model\.pt2 is not opened, because .*: use a model that this project made"):
        load_model(model)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("trick", ["a pickle as example input", "an evaluated size"])
def test_the_traps_are_real(model: Path, trick: str) -> None:
    """They go off in torch's own way to open such a file."""
    changes, new = TRICKS[trick]
    rewrite(model / WEIGHTS, changes, new)
    with contextlib.suppress(Exception):
        torch.export.load(model / WEIGHTS)
    assert [path.name for path in Path.cwd().iterdir()] == ["sprung"]


def test_a_flipped_bit_is_found(model: Path) -> None:
    content = bytearray((model / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (model / WEIGHTS).write_bytes(content)
    with pytest.raises(Refusal, match=r"model\.pt2 is damaged \(.*weight.* is not what its checksum says\)"):
        load_model(model)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_archive_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt2").write_bytes(content)
    with pytest.raises(Damaged):
        check_archive(tmp_path / "model.pt2")


def test_an_archive_of_something_else_is_damaged(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("folder/file", "text")
    for name in ("model.pt", "model.zip"):
        with pytest.raises(Damaged, match=r"no file of torch\.export\.save"):
            check_archive(tmp_path / name)


@pytest.mark.parametrize("content", [b"[]", b'{"config": []}', b"{", b'{"config": {"a": 1}}'])
def test_a_list_of_weights_that_is_none_is_damaged(model: Path, content: bytes) -> None:
    rewrite(model / WEIGHTS, {WEIGHT_LIST: lambda _: content})
    with pytest.raises(Damaged):
        check_archive(model / WEIGHTS)


def test_a_graph_nested_without_end_is_refused(model: Path) -> None:
    rewrite(model / WEIGHTS, {GRAPH: lambda _: b'{"a":' * 100_000 + b"1" + b"}" * 100_000})
    with pytest.raises((Damaged, Unsafe)):
        check_archive(model / WEIGHTS)


class Halving(torch.nn.Module):
    """Sizes that are computed: their sums, quotients and bounds stand in the file."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        doubled = torch.cat([images, images.flip(0)]).reshape(-1, 2, images.shape[1]).sum(1)
        return torch.nn.functional.pad(doubled[: images.shape[0] // 2 + 1], (1, 1), mode="constant")


@pytest.mark.parametrize(
    "net",
    [Halving(), torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU("tanh"), torch.nn.LayerNorm(4))],
    ids=["computed sizes", "named layers"],
)
def test_networks_of_ones_own_pass(tmp_path: Path, net: torch.nn.Module) -> None:
    program = torch.export.export(net, (torch.zeros(4, 3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "model.pt2", extra_files={"notes.txt": "any text"})
    check_archive(tmp_path / "model.pt2")
