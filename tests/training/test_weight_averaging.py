"""Weight averages follow their formulas, and are what is saved and validated."""

import pytest
import torch
from small_training import Training, start

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.checkpoints import load_weights
from cifar_pipeline.training.weight_averaging import ExponentialMovingAverage, StochasticWeightAveraging
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project

NAME = "net.net.fc3.weight"


def train_and_record(project: Project, digits: Dataset, *overrides: str) -> tuple[Training, list[torch.Tensor]]:
    """Train ten steps per epoch, and return the training and a weight after each step."""
    config = project.compose("trainer.batch_size=9", "trainer.max_epochs=2", "optimizer.lr=0.1", *overrides)
    training = start(project, config, digits, project.folder / overrides[0])
    seen: list[torch.Tensor] = []
    original = training.module.on_before_zero_grad
    training.module.on_before_zero_grad = lambda *args: (
        seen.append(training.module.state_dict()[NAME].clone()),
        original(*args),
    )[1]  # type: ignore[method-assign]
    training.run()
    # Gradients are cleared before each step, so the first recorded weights are those before any step.
    return training, [*seen[1:], training.module.state_dict()[NAME]]


def saved_weight(training: Training, name: str = "last") -> torch.Tensor:
    return load_weights(training.run_dir.checkpoint(name))[NAME]


def test_ema_is_its_formula(project: Project, digits: Dataset) -> None:
    _, steps = train_and_record(project, digits, "weight_averaging=none")
    training, _ = train_and_record(project, digits, "weight_averaging=ema", "weight_averaging.decay=0.8")
    average = steps[0]
    for weights in steps[1:]:
        average = 0.8 * average + 0.2 * weights
    torch.testing.assert_close(saved_weight(training), average)
    torch.testing.assert_close(training.module.state_dict()[NAME], average)


def test_swa_is_the_mean_of_the_last_steps(project: Project, digits: Dataset) -> None:
    _, steps = train_and_record(project, digits, "weight_averaging=none")
    training, _ = train_and_record(project, digits, "weight_averaging=swa", "weight_averaging.start_fraction=0.5")
    torch.testing.assert_close(saved_weight(training), torch.stack(steps[10:]).mean(0))


def test_the_best_weights_are_averages_too(project: Project, digits: Dataset) -> None:
    """With an average that stays near the weights after the first step, those of the best epoch are near them too."""
    _, steps = train_and_record(project, digits, "weight_averaging=none")
    training, _ = train_and_record(project, digits, "weight_averaging=ema", "weight_averaging.decay=0.999999")
    torch.testing.assert_close(saved_weight(training, "best"), steps[0], rtol=0, atol=1e-4)
    assert (steps[-1] - steps[0]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("make", "key"),
    [(lambda: ExponentialMovingAverage(1.0), "decay"), (lambda: StochasticWeightAveraging(-0.1), "start_fraction")],
)
def test_invalid_values_are_refused(make: object, key: str) -> None:
    with pytest.raises(UserError, match=rf"weight_averaging\.{key}="):
        make()  # type: ignore[operator]
