"""Export a network to ONNX: its graph once, then each checkpoint's weights into a copy of it.

Write a trained network as a model folder: an MLflow model of flavor onnx, with the weights beside the graph.

A model for machines without this project: its folder copied, a page that asks it in a browser, and torch's format.

model.pt2 is torch's own format. torch trusts such a file: open one only if you know who made it.
"""

import contextlib
import copy
import io
import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, numpy_helper, shape_inference
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cifar_pipeline.inference.metadata import METADATA_KEY, to_onnx_metadata
from cifar_pipeline.inference.onnx_check import CorruptModel, UnsafeModel, check_model
from cifar_pipeline.inference.onnx_session import (
    INPUT_NAME,
    LOGITS_NAME,
    MODEL_FILE,
    PROBABILITIES_NAME,
    WEIGHTS_FILE,
    open_checked,
)
from cifar_pipeline.inference.predictor import Predictor
from cifar_pipeline.inference.torch_model import save_weights
from cifar_pipeline.models.wrappers import NormalizedModel, get_activation
from cifar_pipeline.utils.atomic import atomic_update_dir, atomic_write
from cifar_pipeline.utils.console import status
from cifar_pipeline.utils.errors import UserError

if TYPE_CHECKING:
    from cifar_pipeline.models.wrappers import NormalizedModel

# A batch of two, because torch.export makes sizes of 1 constants.
EXAMPLE_BATCH = 2
# Between torch's probabilities and ONNX Runtime's, of the network before its training.
TOLERANCE = 1e-4
# The initializer that holds the axis 0.
FIRST_AXIS = "first_axis"


class ModelWithProbabilities(nn.Module):
    """Raw images `[N, H, W, C] uint8` to logits and probabilities, both `[N, K] float32`."""

    def __init__(self, network: NormalizedModel, way: str) -> None:
        super().__init__()
        self.network, self.way = network, way

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # In their plain order: torch writes other operations for channels_last.
        logits = self.network.net(self.network.normalize(images).contiguous()).float()
        return logits, get_activation(self.way)(logits)


@dataclass(frozen=True)
class OnnxTemplate:
    """A network's graph, whose initializers have the names of its state dict behind `network.`."""

    model: ModelProto

    @staticmethod
    def of(net: nn.Module, shape: tuple[int, int, int], way: str) -> "OnnxTemplate":
        """Export `net` (a `RawPixels`), for any number of images of `shape` `(H, W, C)`; `net` stays as it is.

        `way` names the function from logits to probabilities (inference/probabilities.py).

        Raises:
            Refusal: it can't be exported, or its graph does not answer as it does itself.
        """
        network = _exportable(net, way)
        try:
            graph = OnnxTemplate(_exported(network, shape))
            checked = check_model(graph.model)
            session = open_checked(checked, threads=1)
        except UserError:
            raise
        except (CorruptModel, UnsafeModel) as error:
            raise _export_error(str(error)) from None
        except Exception as error:  # torch's exporter raises errors of many kinds, over many lines
            raise _export_error(_first_line(error)) from error
        images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
        with torch.inference_mode():
            _, expected = network(torch.from_numpy(images))
        _, found = session.predict(images, len(images))
        apart = float(np.abs(found - expected.numpy()).max())
        if not apart <= TOLERANCE:
            raise _export_error(f"ONNX Runtime's probabilities differ from torch's by {apart:.1g}")
        return graph

    def filled(self, weights: Mapping[str, Tensor], facts: Mapping[str, object]) -> ModelProto:
        """A copy of the graph with these weights, named as in the network's state dict, and `facts` as JSON."""
        model = ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            name = tensor.name.removeprefix("network.")
            # Buffers that no state dict has are the same in every checkpoint.
            if name != tensor.name and name in weights:
                values = weights[name].detach().cpu().contiguous().numpy()
                assert list(values.shape) == list(tensor.dims), name
                tensor.raw_data = values.astype(values.dtype.newbyteorder("<")).tobytes()
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA_KEY, json.dumps(dict(facts), ensure_ascii=False)
        return model


def exported_program(net: nn.Module, shape: tuple[int, int, int], way: str) -> ExportedProgram:
    """`net` as torch's own format has it, for any number of images."""
    return _program(_exportable(net, way), shape)


def _exportable(net: nn.Module, way: str) -> ModelWithProbabilities:
    plain = copy.deepcopy(net).cpu().eval().to(memory_format=torch.contiguous_format)
    assert isinstance(plain, NormalizedModel)
    return ModelWithProbabilities(plain, way)


def _program(network: nn.Module, shape: tuple[int, int, int]) -> ExportedProgram:
    example = torch.zeros((EXAMPLE_BATCH, *shape), dtype=torch.uint8)
    # What can't be followed torch prints, some fifty lines of it, before it raises an error that says the same.
    with torch.random.fork_rng(devices=[]), torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        return torch.export.export(network, (example,), dynamic_shapes={INPUT_NAME: {0: Dim("N")}})


def _without_strides(program: ExportedProgram) -> ExportedProgram:
    """The program with plain means in place of poolings to one pixel.

    Where memory is channels_last, torch gives the pooling's result strides. ONNX has none: torch's exporter would
    compute the place of each number, and the size of that can't be told beforehand.
    """
    for node in program.graph.nodes:
        if node.target == torch.ops.aten.adaptive_avg_pool2d.default and list(node.args[1]) in ([1], [1, 1]):
            node.target, node.args = torch.ops.aten.mean.dim, (node.args[0], [-1, -2], True)
    program.graph_module.recompile()
    return program


def _exported(network: ModelWithProbabilities, shape: tuple[int, int, int]) -> ModelProto:
    import onnx_ir
    from onnxscript import optimizer

    for name in ("torch.export", "torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            _without_strides(_program(network, shape)),
            dynamo=True,
            input_names=[INPUT_NAME],
            output_names=[LOGITS_NAME, PROBABILITIES_NAME],
            optimize=False,
            verbose=False,
        )
        assert exported is not None
        model, graph = exported.model, exported.model.graph
        # As inputs the optimizer leaves them alone: what it computes of weights would stay those of this moment.
        weights = set(network.state_dict())
        graph.inputs.extend([value for name, value in graph.initializers.items() if name in weights])
        optimizer.optimize_ir(model)
        del graph.inputs[1:]
    # torch's notes on each operation name this machine's folders.
    noted: Any
    for noted in (model, graph, *graph.all_nodes(), *graph.inputs, *graph.outputs, *graph.initializers.values()):
        noted.metadata_props.clear()
        noted.doc_string = None
    for node in graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()
    proto = onnx_ir.to_proto(model)
    del proto.graph.value_info[:]
    for tensor in proto.graph.initializer:
        assert tensor.data_location == TensorProto.DEFAULT
    _unsqueeze_sizes(proto)
    return proto


def _unsqueeze_sizes(model: ModelProto) -> None:
    """Replace `Reshape(size, [-1])` of a scalar size by `Unsqueeze(size, [0])`, in place.

    Both give the same, but ONNX's shape inference follows computed sizes only through the second. A transformer
    behind test-time augmentation expands its class token to a computed number of copies.
    """
    flat = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.INT64 and list(tensor.dims) == [1] and numpy_helper.to_array(tensor)[0] == -1
    }
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    scalars = {
        value.name
        for value in inferred.value_info
        if value.type.tensor_type.elem_type == TensorProto.INT64
        and value.type.tensor_type.HasField("shape")
        and not value.type.tensor_type.shape.dim
    }
    nodes = [
        node
        for node in model.graph.node
        if node.op_type == "Reshape" and node.input[0] in scalars and node.input[1] in flat
    ]
    for node in nodes:
        node.op_type, node.input[1] = "Unsqueeze", FIRST_AXIS
        del node.attribute[:]
    if nodes:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), FIRST_AXIS))


def _export_error(reason: str) -> UserError:
    return UserError(
        f"model: this network can't be exported as an ONNX model ({reason}): choose another one, or write its forward "
        "with operations that torch.onnx.export knows and sizes that don't depend on the pixels."
    )


def _first_line(error: BaseException) -> str:
    """What the exporter says first, of the error that lies behind its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".:")


def save_model(graph: OnnxTemplate, net: nn.Module, facts: Mapping[str, Any], folder: Path) -> None:
    """Write model.onnx, weights.safetensors and MLflow's files to `folder`, which is not there yet.

    `graph` is that of `net`, whose weights it gets. `facts` are those of the training; what it takes to use the model
    is kept in the file itself (`ModelFacts`).
    """
    # Imported here, because it takes two seconds that only a training has to spare.
    import mlflow.onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shape, classes = facts["shape"], facts["classes"]
    answer = np.dtype(np.float32), (-1, len(classes))
    # The input has no name, so that an array can be passed as it is.
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.uint8), (-1, *shape))]),
        Schema([TensorSpec(*answer, LOGITS_NAME), TensorSpec(*answer, PROBABILITIES_NAME)]),
    )
    kept = to_onnx_metadata(facts)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.onnx.save_model(
            graph.filled(net.state_dict(), kept),
            str(folder),
            signature=signature,
            input_example=np.zeros((1, *shape), np.uint8),
            metadata=kept,
            # Given, because to find them out takes MLflow eight seconds.
            pip_requirements=[f"{package}=={version(package)}" for package in ("onnxruntime", "numpy")],
            save_as_external_data=False,
        )
    assert (folder / MODEL_FILE).is_file()
    save_weights(net, folder / WEIGHTS_FILE)


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
    import torch

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
