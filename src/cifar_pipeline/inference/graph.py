"""Export a network to ONNX: its graph once, then each checkpoint's weights into a copy of it."""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cifar_pipeline.console import Refusal
from cifar_pipeline.inference.facts import FACTS
from cifar_pipeline.inference.graph_check import Damaged, Unsafe, check_model
from cifar_pipeline.inference.probabilities import by_name
from cifar_pipeline.inference.session import LOGITS, PICTURES, PROBABILITIES, open_checked
from cifar_pipeline.models.pixels import RawPixels

# A batch of two, because torch.export makes sizes of 1 constants.
EXAMPLES = 2
# Between torch's probabilities and ONNX Runtime's, of the network before its training.
TOLERANCE = 1e-4


class Answering(nn.Module):
    """Raw pictures `[N, H, W, C] uint8` to logits and probabilities, both `[N, K] float32`."""

    def __init__(self, network: RawPixels, way: str) -> None:
        super().__init__()
        self.network, self.way = network, way

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        # In their plain order: torch writes other operations for channels_last.
        logits = self.network.net(self.network.normalise(pictures).contiguous()).float()
        return logits, by_name(self.way)(logits)


@dataclass(frozen=True)
class NetworkGraph:
    """A network's graph, whose initializers have the names of its state dict behind `network.`."""

    model: ModelProto

    @staticmethod
    def of(net: nn.Module, shape: tuple[int, int, int], way: str) -> "NetworkGraph":
        """Export `net` (a `RawPixels`), for any number of pictures of `shape` `(H, W, C)`; `net` stays as it is.

        `way` names the function from logits to probabilities (inference/probabilities.py).

        Raises:
            Refusal: it can't be exported, or its graph does not answer as it does itself.
        """
        network = _exportable(net, way)
        try:
            graph = NetworkGraph(_exported(network, shape))
            checked = check_model(graph.model)
            session = open_checked(checked, threads=1)
        except Refusal:
            raise
        except (Damaged, Unsafe) as error:
            raise _refusal(str(error)) from None
        except Exception as error:  # torch's exporter raises errors of many kinds, over many lines
            raise _refusal(_first_line(error)) from error
        images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
        with torch.inference_mode():
            _, expected = network(torch.from_numpy(images))
        _, found = session.answers(images, len(images))
        apart = float(np.abs(found - expected.numpy()).max())
        if not apart <= TOLERANCE:
            raise _refusal(f"ONNX Runtime's probabilities differ from torch's by {apart:.1g}")
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
        entry.key, entry.value = FACTS, json.dumps(dict(facts), ensure_ascii=False)
        return model


def exported_program(net: nn.Module, shape: tuple[int, int, int], way: str) -> ExportedProgram:
    """`net` as torch's own format has it, for any number of pictures."""
    return _program(_exportable(net, way), shape)


def _exportable(net: nn.Module, way: str) -> Answering:
    plain = copy.deepcopy(net).cpu().eval().to(memory_format=torch.contiguous_format)
    assert isinstance(plain, RawPixels)
    return Answering(plain, way)


def _program(network: nn.Module, shape: tuple[int, int, int]) -> ExportedProgram:
    example = torch.zeros((EXAMPLES, *shape), dtype=torch.uint8)
    # What can't be followed torch prints, some fifty lines of it, before it raises an error that says the same.
    with torch.random.fork_rng(devices=[]), torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        return torch.export.export(network, (example,), dynamic_shapes={PICTURES: {0: Dim("N")}})


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


def _exported(network: Answering, shape: tuple[int, int, int]) -> ModelProto:
    import onnx_ir
    from onnxscript import optimizer

    for name in ("torch.export", "torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            _without_strides(_program(network, shape)),
            dynamo=True,
            input_names=[PICTURES],
            output_names=[LOGITS, PROBABILITIES],
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
    return proto


def _refusal(reason: str) -> Refusal:
    return Refusal(
        f"model: this network can't be exported as an ONNX model ({reason}): choose another one, or write its forward "
        "with operations that torch.onnx.export knows and sizes that don't depend on the pixels."
    )


def _first_line(error: BaseException) -> str:
    """What the exporter says first, of the error that lies behind its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".:")
