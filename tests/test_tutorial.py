"""The numbers of docs/tutorial.md are those of the network, the losses and the optimizers that it describes."""

import re

import pytest
import torch
from hydra.utils import instantiate
from torch.nn import Conv2d, Linear

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.config.validation import target_config
from cifar_pipeline.models.lenet import LeNet
from cifar_pipeline.training.setup import build_optimizer_config
from helpers.docs import ROOT, read

PAGE = read(ROOT / "docs" / "tutorial.md")


def table(heading: str) -> list[list[str]]:
    """Return the cells of the last table in a section, with its header."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    last = re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE)[-1]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in last.splitlines()]
    return [row for row in rows if not set("".join(row)) <= set("-: ")]


def number(cell: str) -> int:
    return int(cell.replace(",", ""))


def test_shapes_parameters_and_multiplications_are_those_of_the_network() -> None:
    net, measured = LeNet(channels=3, size=32, classes=10), {}
    for name, layer in net.named_children():

        def measure(layer, inputs, output, name=name):
            assert isinstance(layer, Conv2d | Linear)
            inputs_per_output = layer.weight[0].numel()
            measured[name] = (list(output.shape[1:]), output[0].numel() * inputs_per_output)

        layer.register_forward_hook(measure)
    net(torch.zeros(1, 3, 32, 32))
    rows = {row[0].partition("`")[0]: row for row in table("Network")}
    for name, (shape, multiplications) in measured.items():
        _, output, sum_of_products, parameters, products = rows[name]
        assert output == f"[N, {', '.join(map(str, shape))}]"
        assert number(parameters) == eval(sum_of_products.replace("x", "*"))
        assert number(parameters) == sum(weight.numel() for weight in getattr(net, name).parameters())
        assert number(products) == multiplications
    assert number(rows["all"][3]) == sum(weight.numel() for weight in net.parameters())
    assert number(rows["all"][4]) == sum(multiplications for _, multiplications in measured.values())


def test_the_example_of_the_losses_is_computed_with_conf() -> None:
    names, values = table("Loss")
    for name, value in zip(names, values, strict=True):
        loss = instantiate(target_config(compose_config([f"loss={name}"]).loss, "loss"))
        computed = loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        assert float(value) == pytest.approx(computed.item(), abs=5e-5), name


def test_the_steps_of_the_optimizers_are_those_of_conf() -> None:
    (_, *names), *rows = table("Optimizer")
    for column, name in enumerate((name.partition("`")[0] for name in names), start=1):
        options = compose_config([f"optimizer={name}", "optimizer.lr=0.1"]).optimizer
        theta = torch.tensor([1.0], requires_grad=True)
        optimizer = build_optimizer_config(options).build([theta])
        for row in rows:
            optimizer.zero_grad()
            (theta**2).sum().backward()
            optimizer.step()
            assert float(row[column]) == pytest.approx(theta.item(), abs=5e-5), name
