"""A training computes the same as a plain PyTorch loop."""

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from small_training import Training, batch_limit, start
from torch import Tensor, nn

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training import schedulers
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project


def batches_of(training: Training, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches that the training will see, epoch by epoch."""
    for epoch in range(epochs):
        loader = training.datamodule.train_dataloader()
        loader.set_epoch(epoch)
        yield from loader


def assert_same_weights(actual: nn.Module, expected: nn.Module, tolerance: float) -> None:
    for (name, one), (_, other) in zip(actual.state_dict().items(), expected.state_dict().items(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance, msg=name)


def test_fifty_steps_are_those_of_a_plain_loop(project: Project, digits: Dataset) -> None:
    config = project.compose("trainer.batch_size=9", "trainer.max_epochs=5", "optimizer.lr=0.02")
    training = start(project, config, digits)
    net = copy.deepcopy(training.module.net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    steps = 0
    for images, labels in batches_of(training, epochs=5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        steps += 1
    training.run()
    assert training.steps == steps == 50
    assert_same_weights(training.module.net, net, tolerance=1e-6)


@pytest.mark.parametrize("micro_batch", [90, 45, 40, 7])
def test_a_full_batch_in_micro_batches_is_one_step_over_all_images(
    project: Project, digits: Dataset, micro_batch: int
) -> None:
    config = project.compose(
        "optimizer=gradient_descent",
        f"trainer.eval_batch_size={micro_batch}",
        "trainer.max_epochs=2",
        "optimizer.lr=0.5",
    )
    training = start(project, config, digits)
    net = copy.deepcopy(training.module.net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    images, labels = (torch.from_numpy(array) for array in digits.split("train"))
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    training.run()
    assert training.steps == 2
    assert_same_weights(training.module.net, net, tolerance=1e-5)


@pytest.mark.parametrize("options", [{}, {"optimizer": "gradient_descent"}])
def test_each_step_has_the_learning_rate_of_the_scheduler(
    project: Project, digits: Dataset, options: dict[str, str]
) -> None:
    choices = [f"{group}={option}" for group, option in options.items()]
    config = project.compose(
        *choices, "scheduler=one_cycle", "trainer.batch_size=30", "trainer.max_epochs=4", "optimizer.lr=0.1"
    )
    training = start(project, config, digits)
    rows = training.run().rows
    steps = 4 if options else 12
    expected = [
        0.1 * schedulers.one_cycle(step, steps, warmup_fraction=0.25, initial_factor=0.04, final_factor=0.0)
        for step in range(steps)
    ]
    assert training.rates == pytest.approx(expected, rel=1e-12)
    assert [row["lr"] for row in rows] == pytest.approx(expected[steps // 4 - 1 :: steps // 4], abs=1e-6)


def test_rows_are_the_measured_numbers(project: Project, digits: Dataset) -> None:
    """Validation uses the weights at the epoch's end, and weights its last, smaller batch by its images."""
    config = project.compose("trainer.batch_size=45", "trainer.max_epochs=1", "trainer.eval_batch_size=13")
    training = start(project, config, digits)
    rows = training.run().rows
    images, labels = (torch.from_numpy(array) for array in digits.split("val"))
    with torch.no_grad():
        logits = training.module.net(images)
    assert rows[0]["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=2e-6)
    assert rows[0]["val/accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)
    assert training.logger.epochs == {1: {key: value for key, value in rows[0].items() if key != "epoch"}}


@pytest.mark.parametrize("optimizer", ["sgd", "gradient_descent"])
def test_a_nan_loss_is_refused_with_its_learning_rate(project: Project, digits: Dataset, optimizer: str) -> None:
    config = project.compose(f"optimizer={optimizer}", "optimizer.lr=1e12", "trainer.batch_size=9")
    training = start(project, config, digits)
    with pytest.raises(UserError, match=r"NaN or infinite.*\(lr 1e\+12\)\. Lower optimizer\.lr"):
        training.run()
    assert all(math.isfinite(value) for row in training.logger.epochs.values() for value in row.values())


def test_a_batch_larger_than_the_data_is_refused_before_training(project: Project, digits: Dataset) -> None:
    with pytest.raises(UserError, match=r"trainer\.batch_size=91 is larger than the 90 training images of digits"):
        start(project, project.compose("trainer.batch_size=91"), digits)


def test_a_full_batch_ignores_the_batch_size(project: Project, digits: Dataset) -> None:
    config = project.compose("optimizer=gradient_descent", "trainer.eval_batch_size=1000", "trainer.max_epochs=1")
    training = start(project, config, digits)
    training.run()
    assert training.steps == 1


def test_a_limit_limits_the_full_batch_too(project: Project, digits: Dataset) -> None:
    config = project.compose(
        "optimizer=gradient_descent", "trainer.eval_batch_size=40", "trainer.max_epochs=1", *batch_limit(2)
    )
    training = start(project, config, digits)
    net = copy.deepcopy(training.module.net)
    micro_batches = list(batches_of(training, epochs=1))[:2]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    images, labels = torch.cat([batch[0] for batch in micro_batches]), torch.cat([batch[1] for batch in micro_batches])
    nn.functional.cross_entropy(net(images), labels).backward()
    optimizer.step()
    training.run()
    assert_same_weights(training.module.net, net, tolerance=1e-5)


def test_micro_batches_take_the_same_step_as_the_batch(project: Project, digits: Dataset) -> None:
    """The last step of an epoch has 42 images, in micro-batches of 16, 16 and 10."""
    weights = []
    for micro_batch in ("null", 16):
        config = project.compose(
            "trainer.batch_size=48",
            f"trainer.micro_batch_size={micro_batch}",
            "trainer.max_epochs=2",
            "optimizer.lr=0.1",
        )
        training = start(project, config, digits, project.folder / str(micro_batch))
        training.run()
        assert training.steps == 4
        weights.append(training.module.state_dict())
    expected, accumulated = weights
    for name, value in expected.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-4, atol=1e-6)


def test_micro_batches_that_do_not_divide_the_batch_are_refused(project: Project, digits: Dataset) -> None:
    config = project.compose("trainer.batch_size=48", "trainer.micro_batch_size=20")
    with pytest.raises(UserError, match=r"micro_batch_size=20 does not divide trainer\.batch_size=48"):
        start(project, config, digits)
