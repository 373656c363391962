"""The average of the weights is what its formula says, what is kept, and what is validated."""

import pytest
import torch
from small_training import Training, start

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.checkpoints import load_weights
from cifar_pipeline.training.weight_averaging import ExponentialMovingAverage, StochasticWeightAveraging
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project

NAME = "net.net.fc3.weight"


def followed(project: Project, digits: Dataset, *overrides: str) -> tuple[Training, list[torch.Tensor]]:
    """A training of ten steps an epoch, and a weight after each of its steps."""
    config = project.compose("trainer.batch_size=9", "trainer.max_epochs=2", "optimizer.lr=0.1", *overrides)
    training = start(project, config, digits, project.folder / overrides[0])
    seen: list[torch.Tensor] = []
    usual = training.module.on_before_zero_grad
    training.module.on_before_zero_grad = lambda *given: (
        seen.append(training.module.state_dict()[NAME].clone()),
        usual(*given),
    )[1]  # type: ignore[method-assign]
    training.run()
    # Gradients are cleared before each step, and so the first is seen before any was taken.
    return training, [*seen[1:], training.module.state_dict()[NAME]]


def kept(training: Training, name: str = "last") -> torch.Tensor:
    return load_weights(training.folder.checkpoint(name))[NAME]


def test_the_exponential_average_is_its_formula(project: Project, digits: Dataset) -> None:
    _, steps = followed(project, digits, "weight_averaging=none")
    training, _ = followed(project, digits, "weight_averaging=ema", "weight_averaging.decay=0.8")
    average = steps[0]
    for weights in steps[1:]:
        average = 0.8 * average + 0.2 * weights
    torch.testing.assert_close(kept(training), average)
    torch.testing.assert_close(training.module.state_dict()[NAME], average)


def test_the_equal_average_is_the_mean_of_the_last_steps(project: Project, digits: Dataset) -> None:
    _, steps = followed(project, digits, "weight_averaging=none")
    training, _ = followed(project, digits, "weight_averaging=swa", "weight_averaging.start_fraction=0.5")
    torch.testing.assert_close(kept(training), torch.stack(steps[10:]).mean(0))


def test_the_best_weights_are_averages_too(project: Project, digits: Dataset) -> None:
    """With an average that stays near the first step's weights, the best epoch's are there as well."""
    _, steps = followed(project, digits, "weight_averaging=none")
    training, _ = followed(project, digits, "weight_averaging=ema", "weight_averaging.decay=0.999999")
    torch.testing.assert_close(kept(training, "best"), steps[0], rtol=0, atol=1e-4)
    assert (steps[-1] - steps[0]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("make", "key"),
    [(lambda: ExponentialMovingAverage(1.0), "decay"), (lambda: StochasticWeightAveraging(-0.1), "start_fraction")],
)
def test_what_is_no_average_is_refused(make: object, key: str) -> None:
    with pytest.raises(UserError, match=rf"weight_averaging\.{key}="):
        make()  # type: ignore[operator]
