"""A model for machines without this project: ONNX and pt2 files, raw pictures in, probabilities out.

Class names and what a picture must be travel inside each file, as JSON under the name `facts`.
"""

import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cifar_pipeline.console import Refusal, doing
from cifar_pipeline.data.pictures import CROP, PAD
from cifar_pipeline.files import whole_files
from cifar_pipeline.inference.export import save_program
from cifar_pipeline.inference.facts import ModelFacts
from cifar_pipeline.inference.predictor import Predictor
from cifar_pipeline.inference.probabilities import by_name

FACTS = "facts"
PICTURES, PROBABILITIES = "pictures", "probabilities"
# What each way to bring a picture to its size does.
BROUGHT = {
    CROP: "bring the shorter side to the size (bicubic, antialiased), cut out the middle",
    PAD: "bring the longer side to the size (bicubic, antialiased), fill the rest with black",
}
# A batch of two, because sizes of 1 become constants.
EXAMPLES = 2


class Answering(nn.Module):
    """A network with its way to probabilities: raw pictures `[N, H, W, C] uint8` in, probabilities `[N, K]` out."""

    def __init__(self, network: nn.Module, way: str) -> None:
        super().__init__()
        self.network, self.way = network, way

    def forward(self, pictures: Tensor) -> Tensor:
        return by_name(self.way)(self.network(pictures))


def write_portable(model: Path, folder: Path) -> list[Path]:
    """Write model.pt2 and model.onnx of the model in a folder to another folder, for any number of pictures.

    Raises:
        Refusal: there is no such model, or the packages for ONNX are not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise Refusal(f"ONNX takes {' and '.join(missing)}: `pip install --editable '.[export]'`.")
    predictor = Predictor.open(model)
    facts = json.dumps(_facts(predictor.facts), ensure_ascii=False)
    program = _program(predictor)
    doing("Writing the model as ONNX and pt2")
    with whole_files(folder) as part:
        _save_onnx(program, part / "model.onnx", facts)
        save_program(program, part / "model.pt2", {f"{FACTS}.json": facts})
    return [folder / "model.pt2", folder / "model.onnx"]


def _program(predictor: Predictor) -> ExportedProgram:
    example = torch.zeros((EXAMPLES, *predictor.facts.shape), dtype=torch.uint8)
    network = Answering(predictor.network, predictor.facts.probabilities)
    return torch.export.export(network, (example,), dynamic_shapes={PICTURES: {0: Dim("N")}})


def _save_onnx(program: ExportedProgram, path: Path, facts: str) -> None:
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program, dynamo=True, input_names=[PICTURES], output_names=[PROBABILITIES], verbose=False
        )
    assert exported is not None
    # torch's notes on each operation name this machine's folders.
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()
    exported.model.metadata_props[FACTS] = facts
    exported.save(path)


def _facts(facts: ModelFacts) -> dict[str, object]:
    """What somebody with the file alone has to know."""
    height, width, channels = facts.shape
    colours = {1: "grey", 3: "red, green, blue"}[channels]
    return {
        "classes": facts.classes,
        "input": f"pictures [N, {height}, {width}, {channels}] uint8: {colours}, 0 to 255, not normalised",
        "output": f"probabilities [N, {len(facts.classes)}] float32, in the order of the classes",
        "preprocessing": (
            f"turn as EXIF says, lay transparency over white, {BROUGHT[facts.fit]}; normalisation is inside the model"
        ),
        "dataset": facts.dataset,
        "dataset_hash": facts.dataset_hash,
        "identity": facts.identity,
        "commit": facts.commit,
    }
