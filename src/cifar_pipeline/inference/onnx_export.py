"""Export a network to ONNX and save it as an MLflow model: one graph, copied with each checkpoint's weights."""

import contextlib
import copy
import hashlib
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, numpy_helper, shape_inference
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cifar_pipeline.config.source_files import loaded_sources
from cifar_pipeline.inference.graph_cache import GraphCache
from cifar_pipeline.inference.metadata import METADATA_KEY, to_onnx_metadata
from cifar_pipeline.inference.onnx_check import CorruptModel, UnsafeModel, check_model
from cifar_pipeline.inference.onnx_session import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME, open_checked
from cifar_pipeline.models.build import NormalizedModel, get_activation, save_weights
from cifar_pipeline.utils.console import propagate_library_logs
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.file_hashes import write_hashes
from cifar_pipeline.utils.paths import MODEL_FILE, WEIGHTS_FILE

# torch.export treats sizes of 1 as constants.
EXAMPLE_BATCH = 2
# Largest difference of the untrained network's probabilities between torch and ONNX Runtime.
TOLERANCE = 1e-4
# This file, in the hashes of the code that this process has loaded.
CODE = Path(__file__).relative_to(Path(__file__).parents[2]).as_posix()
# Name of the initializer that contains the axis 0.
FIRST_AXIS = "first_axis"


class ModelWithProbabilities(nn.Module):
    """Map raw images `[N, H, W, C] uint8` to logits and probabilities, both `[N, K] float32`."""

    def __init__(self, network: NormalizedModel, activation: str) -> None:
        super().__init__()
        self.network, self.activation = network, activation

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # Contiguous, because torch exports additional operations for channels_last.
        logits = self.network.net(self.network.normalize(images).contiguous()).float()
        return logits, get_activation(self.activation)(logits)


NO_CACHE = GraphCache(0)


@dataclass(frozen=True)
class OnnxTemplate:
    """A network's graph whose initializers are named `network.` plus the name in the state dict."""

    model: ModelProto

    @staticmethod
    def of(
        net: nn.Module, shape: tuple[int, int, int], activation: str, cache: GraphCache = NO_CACHE
    ) -> "OnnxTemplate":
        """Export a copy of `net` (a `NormalizedModel`), for any number of images of `shape` `(H, W, C)`.

        `activation` is the name of an output activation (models/build.py). `cache` has the graphs of earlier exports.

        Raises:
            UserError: the network can't be exported, or ONNX Runtime's outputs differ from torch's.
        """
        network = _exportable(net, activation)
        _vary_constant_tensors(network)
        try:
            graph = OnnxTemplate(_export(network, shape, cache))
            checked = check_model(graph.model)
            session = open_checked(checked, threads=1)
        except UserError:
            raise
        except (CorruptModel, UnsafeModel) as error:
            raise _export_error(str(error)) from None
        except Exception as error:  # torch's exporter raises many exception classes, with messages of many lines
            raise _export_error(_first_line(error)) from error
        images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
        with torch.inference_mode():
            _, expected = network(torch.from_numpy(images))
        _, probabilities = session.predict(images, len(images))
        difference = float(np.abs(probabilities - expected.numpy()).max())
        if not difference <= TOLERANCE:
            raise _export_error(f"ONNX Runtime's probabilities differ from torch's by {difference:.1g}")
        return graph

    def filled(self, weights: Mapping[str, Tensor], metadata: Mapping[str, object]) -> ModelProto:
        """Return a copy of the graph with the weights of a state dict, and with `metadata` as JSON."""
        model = ModelProto()
        model.CopyFrom(self.model)
        _fill(model, {f"network.{name}": tensor for name, tensor in weights.items()})
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA_KEY, json.dumps(dict(metadata), ensure_ascii=False)
        return model


def _fill(model: ModelProto, weights: Mapping[str, Tensor]) -> None:
    """Set the initializers with these names, in place. Non-persistent buffers are the same in every checkpoint."""
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            values = weights[tensor.name].detach().cpu().contiguous().numpy()
            assert list(values.shape) == list(tensor.dims), tensor.name
            tensor.raw_data = values.astype(values.dtype.newbyteorder("<")).tobytes()


def exported_program(net: nn.Module, shape: tuple[int, int, int], activation: str) -> ExportedProgram:
    """Export `net` with torch.export, for any number of images."""
    return _program(_exportable(net, activation), shape)


def _exportable(net: nn.Module, activation: str) -> ModelWithProbabilities:
    contiguous = copy.deepcopy(net).cpu().eval().to(memory_format=torch.contiguous_format)
    assert isinstance(contiguous, NormalizedModel)
    return ModelWithProbabilities(contiguous, activation)


def _vary_constant_tensors(network: nn.Module) -> None:
    """Add small positive numbers to weights that are all equal, in place.

    The optimizer of the graph removes a bias of zeros, such as that of a new classifier; training would not bring it
    back. And with a classifier of zeros, outputs are equal whatever the layers before it compute.
    """
    generator = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and bool((tensor == tensor.flatten()[:1]).all()):
            tensor += 0.1 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)


def _program(network: nn.Module, shape: tuple[int, int, int]) -> ExportedProgram:
    example = torch.zeros((EXAMPLE_BATCH, *shape), dtype=torch.uint8)
    # torch prints some fifty lines before it raises an error with the same content.
    with torch.random.fork_rng(devices=[]), torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        return torch.export.export(network, (example,), dynamic_shapes={INPUT_NAME: {0: Dim("N")}})


def _without_strides(program: ExportedProgram) -> ExportedProgram:
    """Replace adaptive average pooling to one pixel by a mean.

    For channels_last memory torch gives the pooling's result strides, which ONNX does not have: torch's exporter would
    write index computations whose sizes shape inference can't compute.
    """
    for node in program.graph.nodes:
        if node.target == torch.ops.aten.adaptive_avg_pool2d.default and list(node.args[1]) in ([1], [1, 1]):
            node.target, node.args = torch.ops.aten.mean.dim, (node.args[0], [-1, -2], True)
    program.graph_module.recompile()
    return program


# The last program that this process converted, by its hash, and its graph. Trials of a sweep often differ in their
# weights only, and the conversion takes longer than all the rest of a small trial.
_converted: tuple[str, ModelProto] | None = None


def _export(network: ModelWithProbabilities, shape: tuple[int, int, int], cache: GraphCache) -> ModelProto:
    """Return the graph of a network with its weights; an earlier conversion is reused for a network that is equal."""
    global _converted
    weights = network.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = _without_strides(_program(network, shape))
        key = _hash_program(program)
        if _converted is None or _converted[0] != key:
            _converted = key, cache.get(key, weights.keys(), lambda: _convert(program, set(weights)))
    model = ModelProto()
    model.CopyFrom(_converted[1])
    _fill(model, weights)
    return model


def _hash_program(program: ExportedProgram) -> str:
    """Hash a program without the values of its state dict, and the code that converts it.

    Of the program: operations, shapes, names, and all constants.
    """
    content = hashlib.sha256(str(program).encode())
    for package in ("torch", "onnx", "onnxscript", "onnx-ir"):
        content.update(f"{package} {version(package)}".encode())
    content.update(loaded_sources().hashes()[CODE].encode())
    for name, constant in sorted(program.constants.items()):
        content.update(f"{name} {constant.shape} {constant.dtype}".encode())
        content.update(constant.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _convert(program: ExportedProgram, weights: set[str]) -> ModelProto:
    import onnx_ir
    from onnxscript import optimizer

    propagate_library_logs()
    exported = torch.onnx.export(
        program,
        dynamo=True,
        input_names=[INPUT_NAME],
        output_names=[LOGITS_NAME, PROBABILITIES_NAME],
        optimize=False,
        verbose=False,
    )
    assert exported is not None
    model, graph = exported.model, exported.model.graph
    # As graph inputs, so that the optimizer does not fold constants computed from these weights.
    graph.inputs.extend([value for name, value in graph.initializers.items() if name in weights])
    optimizer.optimize_ir(model)
    del graph.inputs[1:]
    # torch's metadata of each operation contains paths of this machine.
    item: Any
    for item in (model, graph, *graph.all_nodes(), *graph.inputs, *graph.outputs, *graph.initializers.values()):
        item.metadata_props.clear()
        item.doc_string = None
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
        f"model: this network can't be exported as an ONNX model ({reason}). Choose another network, or write its "
        "forward with operations that torch.onnx.export supports and sizes that don't depend on the pixels."
    )


def _first_line(error: BaseException) -> str:
    """Return the first line of the root cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".:")


def save_model(graph: OnnxTemplate, net: nn.Module, metadata: Mapping[str, Any], folder: Path) -> None:
    """Write model.onnx, weights.safetensors and MLflow's files to `folder`, which must not exist.

    `graph` was exported from `net` and is filled with its weights. Of `metadata`, the training's metadata, the fields
    needed to use the model are stored in model.onnx (`ModelMetadata`).
    """
    # Imported here, because it takes two seconds.
    import mlflow.onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shape, classes = metadata["shape"], metadata["classes"]
    output = np.dtype(np.float32), (-1, len(classes))
    # Without a name for the input, so that a plain array can be passed.
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.uint8), (-1, *shape))]),
        Schema([TensorSpec(*output, LOGITS_NAME), TensorSpec(*output, PROBABILITIES_NAME)]),
    )
    onnx_metadata = to_onnx_metadata(metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.onnx.save_model(
            graph.filled(net.state_dict(), onnx_metadata),
            str(folder),
            signature=signature,
            input_example=np.zeros((1, *shape), np.uint8),
            metadata=onnx_metadata,
            # MLflow would take eight seconds to infer them.
            pip_requirements=[f"{package}=={version(package)}" for package in ("onnxruntime", "numpy")],
            save_as_external_data=False,
        )
    assert (folder / MODEL_FILE).is_file()
    save_weights(net, folder / WEIGHTS_FILE)
    write_hashes(folder, [MODEL_FILE, WEIGHTS_FILE])
