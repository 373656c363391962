"""A model for machines without this project: its folder copied, a page that asks it in a browser, and torch's format.

model.pt2 is torch's own format. torch trusts such a file: open one only if you know who made it.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_pipeline.console import doing
from cifar_pipeline.files import whole_file, whole_files
from cifar_pipeline.inference.facts import FACTS
from cifar_pipeline.inference.predictor import Predictor
from cifar_pipeline.inference.session import MODEL, WEIGHTS

if TYPE_CHECKING:
    from cifar_pipeline.models.pixels import RawPixels

PAGE, PT2 = "index.html", "model.pt2"
TEMPLATE = Path(__file__).with_name("browser.html")


def write_portable(model: Path, folder: Path) -> list[Path]:
    """Copy the model in a folder to another folder, with a page for browsers; returns what was written.

    Raises:
        Refusal: there is no such model.
    """
    predictor = Predictor.open(model)
    with whole_files(folder) as part:
        for name in sorted(path.name for path in model.iterdir() if path.is_file()):
            shutil.copyfile(model / name, part / name)
        page = browser_page(json.loads(predictor.session.texts[FACTS]))
        (part / PAGE).write_text(page, encoding="utf-8")
    return [folder / MODEL, folder / PAGE]


def browser_page(facts: Mapping[str, Any]) -> str:
    """The page that loads model.onnx beside it in a browser, with these facts of the model."""
    # Class names come with the model: as JSON in which nothing ends the script that holds it.
    text = json.dumps(dict(facts), ensure_ascii=False)
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return TEMPLATE.read_text(encoding="utf-8").replace("{{FACTS}}", text)


def write_pt2(model: Path, net: "RawPixels", folder: Path) -> Path:
    """Write the model in a folder as `folder`/model.pt2: raw pictures to logits and probabilities.

    `net` is the network whose weights the folder holds, with any weights. The facts are in the file as facts.json.

    Raises:
        Refusal: the folder holds another network's weights.
    """
    import torch

    from cifar_pipeline.inference.graph import exported_program
    from cifar_pipeline.inference.weights import load_weights

    predictor = Predictor.open(model)
    load_weights(net, (model / WEIGHTS).read_bytes(), model / WEIGHTS)
    doing("Writing the model as pt2")
    program = exported_program(net, predictor.facts.shape, predictor.facts.probabilities)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names this machine's folders
    with whole_file(folder / PT2) as part:
        torch.export.save(program, part, extra_files={"facts.json": predictor.session.texts[FACTS]})
    return folder / PT2
