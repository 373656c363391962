"""Check that an ONNX file holds a network and nothing else, before ONNX Runtime opens it.

The file is parsed once, fields that this version does not know are dropped, and what was checked is serialized again:
ONNX Runtime gets those bytes, so no second parser can read anything else in the file.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, shape_inference

from cifar_pipeline.utils.safe_io import open_regular

# Protocol buffers hold no more.
MAX_FILE_BYTES = 2**31 - 1
MAX_NODES = 50_000
# Of one image: bytes of all values that the graph computes, and multiplications (ViT-Huge takes 2e11).
MAX_VALUE_BYTES = 2**34
MAX_MULTIPLICATIONS = 10**13
INPUT_SHAPE = 2  # for which sizes are computed

TYPES: dict[int, int] = {TensorProto.FLOAT: 4, TensorProto.INT64: 8, TensorProto.BOOL: 1, TensorProto.UINT8: 1}
ATTRIBUTES = {
    AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.TENSOR, AttributeProto.FLOATS,
    AttributeProto.INTS, AttributeProto.STRINGS,
}  # fmt: skip
# What networks are made of. Nothing that loops, branches, reads files, draws random numbers or decodes images, and
# nothing whose output's size depends on the pixels.
OPERATORS = {
    "Abs", "Add", "And", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip",
    "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "CumSum", "DepthToSpace", "Div", "Elu",
    "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GroupNormalization", "HardSigmoid",
    "HardSwish", "Identity", "InstanceNormalization", "LRN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "LogSoftmax", "LpNormalization", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mish", "Mod", "Mul", "Neg",
    "Not", "Or", "PRelu", "Pad", "Pow", "RMSNormalization", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu",
    "Reshape", "Resize", "Round", "ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Size",
    "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh",
    "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
}  # fmt: skip

Shape = tuple[int, ...]


class CorruptModel(Exception):
    """The file is not whole, or is no ONNX file at all."""


class UnsafeModel(Exception):
    """The file holds something that a network does not need, or more than this machine should compute."""


@dataclass(frozen=True)
class CheckedGraph:
    """The bytes to open, the shape `(H, W, C)` of the images, the number of classes, and the texts kept in the file.

    `image_bytes` is what all values that are computed for one image take.
    """

    content: bytes
    shape: Shape
    classes: int
    metadata: dict[str, str]
    bytes_per_image: int


def check_file(path: Path) -> CheckedGraph:
    """Read and check the ONNX file at `path`.

    Raises:
        OSError: it can't be read; Irregular where it is a pipe, a device or a folder.
        Damaged: it is cut off, altered, or of another format; the message says what is wrong.
        Unsafe: it holds more than a network needs; the message names it.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise UnsafeModel("it is larger than 2 GB")
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:  # it has grown
        raise UnsafeModel("it is larger than 2 GB")
    return check_content(content)


def check_content(content: bytes) -> CheckedGraph:
    """Check the bytes of an ONNX file. Raises as `check_file` does."""
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, RuntimeError) as error:
        raise CorruptModel("it is cut off, or no ONNX file") from error
    model.DiscardUnknownFields()
    try:
        return check_model(model)
    except UnicodeDecodeError:
        raise CorruptModel("a name in it is no text") from None


def check_model(model: ModelProto) -> CheckedGraph:
    """Check a parsed model. Raises as `check_file` does."""
    graph = model.graph
    if not graph.node:
        raise CorruptModel("it has no graph")
    if model.functions or model.training_info or graph.sparse_initializer:
        raise UnsafeModel("it has functions, training steps or sparse tensors")
    if [opset.domain for opset in model.opset_import] not in ([""], ["ai.onnx"]):
        raise UnsafeModel("it uses operators other than ONNX's own")
    if len(graph.node) > MAX_NODES:
        raise UnsafeModel(f"it has more than {MAX_NODES:,} operations")
    for tensor in graph.initializer:
        _check_tensor(tensor)
    for node in graph.node:
        _check_node(node)
    shape, classes = _outputs(graph)
    sizes = _sizes(model)
    values = sum(size * prod(dims) for size, dims in sizes.values()) // INPUT_SHAPE
    if values > MAX_VALUE_BYTES:
        raise UnsafeModel(f"one image would take {values / 1e9:,.0f} GB of memory")
    work = sum(_multiplications(node, sizes, _shapes(graph.initializer)) for node in graph.node) // INPUT_SHAPE
    if work > MAX_MULTIPLICATIONS:
        raise UnsafeModel(f"one image would take {work:.0e} multiplications")
    try:
        serialized = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise UnsafeModel("it is larger than 2 GB") from error
    texts = {entry.key: entry.value for entry in model.metadata_props}
    return CheckedGraph(serialized, shape, classes, texts, max(1, values))


def _check_tensor(tensor: TensorProto) -> None:
    if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
        raise UnsafeModel(f"the values of {tensor.name[:60]!r} are in another file")
    if tensor.data_type not in TYPES:
        raise UnsafeModel(f"{tensor.name[:60]!r} is of a type that networks are not made of")
    if min(tensor.dims, default=0) < 0 or len(tensor.raw_data) != TYPES[tensor.data_type] * prod(tensor.dims):
        raise CorruptModel(f"{tensor.name[:60]!r} has fewer or more values than it says")


def _check_node(node: NodeProto) -> None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        name = f"{node.domain}.{node.op_type}".lstrip(".")
        raise UnsafeModel(f"it uses {name[:60]!r}, which networks do without")
    for attribute in node.attribute:
        if attribute.type not in ATTRIBUTES or attribute.ref_attr_name or attribute.HasField("g"):
            raise UnsafeModel(f"an operation {node.op_type} contains another graph")
        if attribute.type == AttributeProto.TENSOR:
            _check_tensor(attribute.t)


def _outputs(graph: GraphProto) -> tuple[Shape, int]:
    """Shape `(H, W, C)` of the images and the number of classes.

    Raises `Unsafe` where the graph takes or gives anything else than raw images, logits and probabilities.
    """
    given = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in given]
    outputs = {value.name: value.type.tensor_type for value in graph.output}
    try:
        (images,), probabilities = inputs, outputs["probabilities"]
        assert "logits" in outputs
        _, *shape = (dim.dim_value for dim in images.type.tensor_type.shape.dim)
        _, classes = (dim.dim_value for dim in probabilities.shape.dim)
        assert images.type.tensor_type.elem_type == TensorProto.UINT8
        assert len(shape) == 3 and min(shape) > 0 and classes > 0
        assert all(kind.elem_type == TensorProto.FLOAT for kind in outputs.values())
    except (KeyError, ValueError, AssertionError):
        raise UnsafeModel(
            "it does not take images [N, H, W, C] uint8 and give logits and probabilities [N, K]"
        ) from None
    return tuple(shape), classes


def _sizes(model: ModelProto) -> dict[str, tuple[int, Shape]]:
    """For each value that the graph computes for `IMAGES` images the bytes of an element, and its shape.

    Nothing that the file says about them is taken for granted.
    """
    inferred = _inferred(model)
    sizes: dict[str, tuple[int, Shape]] = {}
    for value in [*inferred.value_info, *inferred.output]:
        kind = value.type.tensor_type
        if kind.elem_type not in TYPES:
            raise UnsafeModel(f"{value.name[:60]!r} is of a type that networks are not made of")
        dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
        if kind.HasField("shape") and min(dims, default=0) >= 0:
            sizes[value.name] = TYPES[kind.elem_type], dims
    for node in model.graph.node:
        for name in filter(None, node.output):
            if name not in sizes:
                raise UnsafeModel(f"the size of what {node.op_type} gives is not known beforehand")
    return sizes


def _inferred(model: ModelProto) -> GraphProto:
    skeleton = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = skeleton.graph
    graph.name = "graph"
    graph.node.extend(model.graph.node)
    given = {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        # Numbers that may be sizes are needed, weights are not.
        if tensor.data_type == TensorProto.INT64:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for value in model.graph.input:
        if value.name not in given:
            images = graph.input.add()
            images.CopyFrom(value)
            images.type.tensor_type.shape.dim[0].dim_value = INPUT_SHAPE
    for value in model.graph.output:
        graph.output.append(onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None))
    try:
        return shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True, data_prop=True).graph
    except Exception as error:  # onnx raises errors of several kinds, RuntimeError among them
        raise CorruptModel(f"its operations do not fit together: {' '.join(str(error).split())[:100]}") from None


def _shapes(tensors: Iterable[TensorProto]) -> dict[str, Shape]:
    return {tensor.name: tuple(tensor.dims) for tensor in tensors}


def _multiplications(node: NodeProto, sizes: Mapping[str, tuple[int, Shape]], weights: Mapping[str, Shape]) -> int:
    """How many multiplications an operation takes at most, for `IMAGES` images."""
    outputs = sum(prod(sizes[name][1]) for name in node.output if name)
    shapes = [weights[name] if name in weights else sizes.get(name, (0, ()))[1] for name in node.input]
    each = 1
    if node.op_type in ("Conv", "ConvTranspose") and len(shapes) > 1:
        each = prod(shapes[1]) // max(1, min(shapes[1][:2], default=1))
    elif node.op_type in ("MatMul", "Gemm"):
        each = max(shapes[0], default=1)
    elif node.op_type in ("MaxPool", "AveragePool"):
        each = prod(size for attribute in node.attribute if attribute.name == "kernel_shape" for size in attribute.ints)
    elif node.op_type == "LRN":
        each = max((attribute.i for attribute in node.attribute if attribute.name == "size"), default=1)
    return outputs * max(1, each)
