"""The small convolutions of compiled steps equal torch's, for every shape they replace."""

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import conv2d

from cifar_pipeline.training.compiled.small_conv import load_ops, use_small_convolutions

SHAPES = [
    (4, 3, 32, 32, 6, 5, 5),
    (4, 6, 14, 14, 16, 5, 5),
    (1, 1, 7, 9, 1, 1, 1),
    (3, 5, 20, 37, 9, 3, 2),
    (16, 2, 8, 8, 11, 7, 7),
]


def random_tensor(*shape: int, channels_last: bool) -> Tensor:
    tensor = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    return tensor.to(memory_format=torch.channels_last) if channels_last else tensor


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_small_convolution_and_its_gradients_are_those_of_torch(shape: tuple[int, ...], channels_last: bool) -> None:
    load_ops()
    n, c, h, w, o, kh, kw = shape
    x, weight = (
        random_tensor(n, c, h, w, channels_last=channels_last),
        random_tensor(o, c, kh, kw, channels_last=channels_last),
    )
    gradient = random_tensor(n, o, h - kh + 1, w - kw + 1, channels_last=channels_last)
    operators = torch.ops.small_convolution
    double = [tensor.double().contiguous() for tensor in (x, weight, gradient)]
    expected = (
        conv2d(double[0], double[1]),
        torch.nn.grad.conv2d_input(x.shape, double[1], double[2]),
        torch.nn.grad.conv2d_weight(double[0], weight.shape, double[2]),
    )
    actual = (
        operators.forward(x, weight),
        operators.input_gradient(gradient, weight),
        operators.weight_gradient(x, gradient),
    )
    for actual_tensor, expected_tensor in zip(actual, expected, strict=True):
        torch.testing.assert_close(actual_tensor, expected_tensor.float(), rtol=1e-4, atol=1e-4)


def traced(padding: int, images: int) -> tuple[GraphModule, tuple[Tensor, ...]]:
    """Trace a convolution with bias and the gradients of all its inputs."""

    def gradients(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return torch.func.grad(lambda *args: conv2d(*args, padding=padding).square().sum(), (0, 1, 2))(x, w, b)

    arguments = (
        random_tensor(images, 3, 10, 10, channels_last=False),
        random_tensor(4, 3, 3, 3, channels_last=False),
        random_tensor(4, channels_last=False),
    )
    return make_fx(gradients, tracing_mode="fake")(*arguments), arguments


def replaced_nodes(graph: GraphModule) -> list[str]:
    return sorted(node.target.name() for node in graph.graph.nodes if "small_convolution" in str(node.target))


def test_a_graph_with_small_convolutions_computes_the_same() -> None:
    graph, arguments = traced(padding=0, images=4)
    expected = graph(*arguments)
    use_small_convolutions(graph)
    assert replaced_nodes(graph) == [
        f"small_convolution::{name}" for name in ("forward", "input_gradient", "weight_gradient")
    ]
    assert not [node for node in graph.graph.nodes if "aten.convolution" in str(node.target)]
    for actual_tensor, expected_tensor in zip(graph(*arguments), expected, strict=True):
        torch.testing.assert_close(actual_tensor, expected_tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("padding", "images"), [(1, 4), (0, 17)])
def test_convolutions_of_other_shapes_stay_torchs(padding: int, images: int) -> None:
    graph, _ = traced(padding, images)
    use_small_convolutions(graph)
    assert replaced_nodes(graph) == []
