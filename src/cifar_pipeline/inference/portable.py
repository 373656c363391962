"""Export a model for machines without this project: the model folder, a browser page, and torch's pt2 format."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cifar_pipeline.inference.metadata import METADATA_KEY
from cifar_pipeline.inference.onnx_export import exported_program
from cifar_pipeline.inference.predictor import Predictor
from cifar_pipeline.inference.trained_model import read_model_file
from cifar_pipeline.models.build import NormalizedModel
from cifar_pipeline.utils.atomic import atomic_update_dir, atomic_write
from cifar_pipeline.utils.console import status
from cifar_pipeline.utils.paths import MODEL_FILE, WEIGHTS_FILE

PAGE, PT2 = "index.html", "model.pt2"
TEMPLATE = Path(__file__).with_name("browser.html")


def export_portable(model: Path, folder: Path) -> list[Path]:
    """Copy a model folder to `folder` and add the browser page; return the paths of the model and the page.

    Raises:
        UserError: there is no such model.
    """
    predictor = Predictor.open(model)
    with atomic_update_dir(folder) as tmp:
        for name in sorted(path.name for path in model.iterdir() if path.is_file()):
            shutil.copyfile(model / name, tmp / name)
        page = write_browser_page(json.loads(predictor.session.metadata[METADATA_KEY]))
        (tmp / PAGE).write_text(page, encoding="utf-8")
    return [folder / MODEL_FILE, folder / PAGE]


def write_browser_page(metadata: Mapping[str, Any]) -> str:
    """Return the HTML page that loads model.onnx from its own folder, with the model's metadata inserted."""
    # Class names are untrusted: escaped so that they can't end the script element.
    text = json.dumps(dict(metadata), ensure_ascii=False)
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return TEMPLATE.read_text(encoding="utf-8").replace("{{METADATA}}", text)


def write_pt2(model: Path, net: NormalizedModel, folder: Path) -> Path:
    """Write a model as `folder`/model.pt2, which maps raw images to logits and probabilities.

    `net` has the architecture of the model; its weights are loaded from the model folder. The file contains
    the metadata as facts.json. torch.export.load trusts such a file: open one only if you know who made it.

    Raises:
        UserError: the folder contains another network's weights.
    """
    from cifar_pipeline.models.build import load_weights

    predictor = Predictor.open(model)
    load_weights(net, read_model_file(model / WEIGHTS_FILE), model / WEIGHTS_FILE)
    status("Writing model.pt2")
    program = exported_program(net, predictor.metadata.shape, predictor.metadata.output_activation)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    with atomic_write(folder / PT2) as tmp:
        torch.export.save(program, tmp, extra_files={"facts.json": predictor.session.metadata[METADATA_KEY]})
    return folder / PT2
