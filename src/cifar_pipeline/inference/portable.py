"""Export a model folder for machines without this project: the folder, a browser page that runs it, and pt2 on request."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cifar_pipeline.inference.metadata import METADATA_KEY
from cifar_pipeline.inference.onnx_export import exported_program
from cifar_pipeline.inference.onnx_session import (
    MODEL_FILE,
    WEIGHTS_FILE,
)
from cifar_pipeline.inference.predictor import Predictor
from cifar_pipeline.models.wrappers import NormalizedModel
from cifar_pipeline.utils.atomic import atomic_update_dir, atomic_write
from cifar_pipeline.utils.console import status

PAGE, PT2 = "index.html", "model.pt2"
TEMPLATE = Path(__file__).with_name("browser.html")


def export_portable(model: Path, folder: Path) -> list[Path]:
    """Copy the model in a folder to another folder, with a page for browsers; returns what was written.

    Raises:
        Refusal: there is no such model.
    """
    predictor = Predictor.open(model)
    with atomic_update_dir(folder) as part:
        for name in sorted(path.name for path in model.iterdir() if path.is_file()):
            shutil.copyfile(model / name, part / name)
        page = write_browser_page(json.loads(predictor.session.metadata[METADATA_KEY]))
        (part / PAGE).write_text(page, encoding="utf-8")
    return [folder / MODEL_FILE, folder / PAGE]


def write_browser_page(facts: Mapping[str, Any]) -> str:
    """The page that loads model.onnx beside it in a browser, with these facts of the model."""
    # Class names come with the model: as JSON in which nothing ends the script that holds it.
    text = json.dumps(dict(facts), ensure_ascii=False)
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return TEMPLATE.read_text(encoding="utf-8").replace("{{FACTS}}", text)


def write_pt2(model: Path, net: "NormalizedModel", folder: Path) -> Path:
    """Write the model in a folder as `folder`/model.pt2: raw images to logits and probabilities.

    `net` is the network whose weights the folder holds, with any weights. The facts are in the file as facts.json.

    Raises:
        Refusal: the folder holds another network's weights.
    """

    from cifar_pipeline.inference.torch_model import load_weights

    predictor = Predictor.open(model)
    load_weights(net, (model / WEIGHTS_FILE).read_bytes(), model / WEIGHTS_FILE)
    status("Writing the model as pt2")
    program = exported_program(net, predictor.metadata.shape, predictor.metadata.output_activation)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names this machine's folders
    with atomic_write(folder / PT2) as part:
        torch.export.save(program, part, extra_files={"facts.json": predictor.session.metadata[METADATA_KEY]})
    return folder / PT2
