"""Check an untrusted ONNX file before ONNX Runtime opens it: allowed operators only, with bounded memory and work.

The file is parsed once, unknown fields are dropped, and the checked model is serialized again. ONNX Runtime gets those
bytes, so that a second parser cannot interpret the file differently.
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
from cifar_pipeline.utils.text import one_line

# The limit of protocol buffers.
MAX_FILE_BYTES = 2**31 - 1
MAX_NODES = 50_000
# For one image: bytes of all values that the graph computes, summed although most are freed early (Swin-T at 224 pixels
# with six augmented copies: 2.3e9; onnx_session.py limits what is allocated), and multiplications (ViT-Huge: 2e11).
MAX_VALUE_BYTES = 2**34
MAX_MULTIPLICATIONS = 10**13
# Number of images for which the sizes of all values are computed.
NUM_IMAGES = 2

ELEMENT_BYTES: dict[int, int] = {TensorProto.FLOAT: 4, TensorProto.INT64: 8, TensorProto.BOOL: 1, TensorProto.UINT8: 1}
ATTRIBUTES = {
    AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.TENSOR, AttributeProto.FLOATS,
    AttributeProto.INTS, AttributeProto.STRINGS,
}  # fmt: skip
# Allowed operators: none that loops, branches, reads files, draws random numbers or decodes images, and none whose
# output size depends on the pixels.
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
    """The file is truncated, altered, or not an ONNX file."""


class UnsafeModel(Exception):
    """The file contains something that is not allowed, or exceeds a limit."""


@dataclass(frozen=True)
class CheckedGraph:
    """A checked model: its bytes, the image shape `(H, W, C)`, the number of classes, and its metadata properties.

    `bytes_per_image` is the sum of the sizes of all values computed for one image.
    """

    content: bytes
    shape: Shape
    classes: int
    metadata: dict[str, str]
    bytes_per_image: int


def check_file(path: Path) -> CheckedGraph:
    """Read and check the ONNX file at `path`.

    Raises:
        OSError: it can't be read, or is not a regular file.
        CorruptModel: it is truncated, altered, or in another format; the message has the reason.
        UnsafeModel: it contains something that is not allowed; the message names it.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise UnsafeModel("it is larger than 2 GB")
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:  # it grew after the check above
        raise UnsafeModel("it is larger than 2 GB")
    return check_content(content)


def check_content(content: bytes) -> CheckedGraph:
    """Check the bytes of an ONNX file. Raises `CorruptModel` or `UnsafeModel`, as `check_file`."""
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, RuntimeError) as error:
        raise CorruptModel("it is truncated or not an ONNX file") from error
    model.DiscardUnknownFields()
    try:
        return check_model(model)
    except UnicodeDecodeError:
        raise CorruptModel("a name in it is not UTF-8") from None


def check_model(model: ModelProto) -> CheckedGraph:
    """Check a parsed model. Raises `CorruptModel` or `UnsafeModel`, as `check_file`."""
    graph = model.graph
    if not graph.node:
        raise CorruptModel("it has no graph")
    if model.functions or model.training_info or graph.sparse_initializer:
        raise UnsafeModel("it has functions, training steps or sparse tensors")
    if [opset.domain for opset in model.opset_import] not in ([""], ["ai.onnx"]):
        raise UnsafeModel("it uses operators other than those of ONNX")
    if len(graph.node) > MAX_NODES:
        raise UnsafeModel(f"it has more than {MAX_NODES:,} operations")
    for tensor in graph.initializer:
        _check_tensor(tensor)
    for node in graph.node:
        _check_node(node)
    shape, classes = _outputs(graph)
    sizes = _sizes(model)
    value_bytes = sum(size * prod(dims) for size, dims in sizes.values()) // NUM_IMAGES
    if value_bytes > MAX_VALUE_BYTES:
        raise UnsafeModel(f"one image would take {value_bytes / 1e9:,.0f} GB of memory")
    multiplications = (
        sum(_multiplications(node, sizes, _shapes(graph.initializer)) for node in graph.node) // NUM_IMAGES
    )
    if multiplications > MAX_MULTIPLICATIONS:
        raise UnsafeModel(f"one image would take {multiplications:.0e} multiplications")
    try:
        serialized = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise UnsafeModel("it is larger than 2 GB") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return CheckedGraph(serialized, shape, classes, metadata, max(1, value_bytes))


def _check_tensor(tensor: TensorProto) -> None:
    if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
        raise UnsafeModel(f"the values of {tensor.name[:60]!r} are in another file")
    if tensor.data_type not in ELEMENT_BYTES:
        raise UnsafeModel(f"{tensor.name[:60]!r} has a type that is not allowed")
    if min(tensor.dims, default=0) < 0 or len(tensor.raw_data) != ELEMENT_BYTES[tensor.data_type] * prod(tensor.dims):
        raise CorruptModel(f"{tensor.name[:60]!r} has another number of values than its shape")


def _check_node(node: NodeProto) -> None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        name = f"{node.domain}.{node.op_type}".lstrip(".")
        raise UnsafeModel(f"it uses {name[:60]!r}, an operator that is not allowed")
    for attribute in node.attribute:
        if attribute.type not in ATTRIBUTES or attribute.ref_attr_name or attribute.HasField("g"):
            raise UnsafeModel(f"an operation {node.op_type} contains another graph")
        if attribute.type == AttributeProto.TENSOR:
            _check_tensor(attribute.t)


def _outputs(graph: GraphProto) -> tuple[Shape, int]:
    """Return the image shape `(H, W, C)` and the number of classes.

    Raises `UnsafeModel` unless the graph maps raw images to logits and probabilities.
    """
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    outputs = {value.name: value.type.tensor_type for value in graph.output}
    try:
        (images,), probabilities = inputs, outputs["probabilities"]
        assert "logits" in outputs
        _, *shape = (dim.dim_value for dim in images.type.tensor_type.shape.dim)
        _, classes = (dim.dim_value for dim in probabilities.shape.dim)
        assert images.type.tensor_type.elem_type == TensorProto.UINT8
        assert len(shape) == 3 and min(shape) > 0 and classes > 0
        assert all(output.elem_type == TensorProto.FLOAT for output in outputs.values())
    except (KeyError, ValueError, AssertionError):
        raise UnsafeModel("it does not map images [N, H, W, C] uint8 to logits and probabilities [N, K]") from None
    return tuple(shape), classes


def _sizes(model: ModelProto) -> dict[str, tuple[int, Shape]]:
    """Compute the element size in bytes and the shape of each value for `NUM_IMAGES` images, by name.

    The shapes stated in the file are ignored.
    """
    inferred = _infer_shapes(model)
    sizes: dict[str, tuple[int, Shape]] = {}
    for value in [*inferred.value_info, *inferred.output]:
        tensor_type = value.type.tensor_type
        if tensor_type.elem_type not in ELEMENT_BYTES:
            raise UnsafeModel(f"{value.name[:60]!r} has a type that is not allowed")
        dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor_type.shape.dim)
        if tensor_type.HasField("shape") and min(dims, default=0) >= 0:
            sizes[value.name] = ELEMENT_BYTES[tensor_type.elem_type], dims
    for node in model.graph.node:
        for name in filter(None, node.output):
            if name not in sizes:
                raise UnsafeModel(f"the output size of {node.op_type} cannot be computed in advance")
    return sizes


def _infer_shapes(model: ModelProto) -> GraphProto:
    skeleton = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = skeleton.graph
    graph.name = "graph"
    graph.node.extend(model.graph.node)
    initializers = {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        # The values of integers are needed, because they may be sizes.
        if tensor.data_type == TensorProto.INT64:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for value in model.graph.input:
        if value.name not in initializers:
            images = graph.input.add()
            images.CopyFrom(value)
            images.type.tensor_type.shape.dim[0].dim_value = NUM_IMAGES
    for value in model.graph.output:
        graph.output.append(onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None))
    try:
        return shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True, data_prop=True).graph
    except Exception as error:  # onnx raises errors of several kinds, RuntimeError among them
        raise CorruptModel(f"its operations are inconsistent: {one_line(error)[:100]}") from None


def _shapes(tensors: Iterable[TensorProto]) -> dict[str, Shape]:
    return {tensor.name: tuple(tensor.dims) for tensor in tensors}


def _multiplications(node: NodeProto, sizes: Mapping[str, tuple[int, Shape]], weights: Mapping[str, Shape]) -> int:
    """Return an upper bound of the multiplications of an operation for `NUM_IMAGES` images."""
    outputs = sum(prod(sizes[name][1]) for name in node.output if name)
    shapes = [weights[name] if name in weights else sizes.get(name, (0, ()))[1] for name in node.input]
    per_output = 1
    if node.op_type in ("Conv", "ConvTranspose") and len(shapes) > 1:
        per_output = prod(shapes[1]) // max(1, min(shapes[1][:2], default=1))
    elif node.op_type in ("MatMul", "Gemm"):
        per_output = max(shapes[0], default=1)
    elif node.op_type in ("MaxPool", "AveragePool"):
        per_output = prod(
            size for attribute in node.attribute if attribute.name == "kernel_shape" for size in attribute.ints
        )
    elif node.op_type == "LRN":
        per_output = max((attribute.i for attribute in node.attribute if attribute.name == "size"), default=1)
    return outputs * max(1, per_output)
