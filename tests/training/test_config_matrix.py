"""Train two steps with every option of every group that a training reads."""

import math

import pytest
import torch
from small_training import batch_limit, start

from cifar_pipeline.data.dataset import Dataset
from helpers.config_project import Project, options_of
from helpers.tiny_networks import install_as_package

GROUPS = (
    "model",
    "optimizer",
    "loss",
    "scheduler",
    "augmentation",
    "weight_averaging",
    "normalization",
    "precision",
    "trainer",
    "tta",
    "finetune",
    "experiment",
)
OPTIONS = [f"{group}={option}" for group in GROUPS for option in options_of(group)]
NEED_WEIGHTS = ("normalization=model", "experiment=finetune")


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_trains_for_two_steps(
    project: Project, digits: Dataset, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    limits = ("trainer.batch_size=2", "trainer.eval_batch_size=2", "trainer.max_epochs=1")
    monkeypatch.syspath_prepend(str(project.folder))
    # A large step, because the new classifier is zero and the first gradients of the layers before it are small.
    weights = [*install_as_package(project.folder), "optimizer.lr=0.01"] if option in NEED_WEIGHTS else []
    config = project.compose(option, *weights, *batch_limit(2), *limits)
    if option.startswith("experiment="):
        # bfloat16 takes a minute on a processor without it; precision=bf16 and optimizer=muon test it on LeNet.
        config.precision.cpu = "32-true"
        config.optimizer.update({"ns_steps": 1} if "ns_steps" in config.optimizer else {})
    if config.optimizer.get("full_batch"):
        config.trainer.max_epochs = 2  # a step is an epoch
    training = start(project, config, digits)
    fine_tuning = training.module.fine_tuning
    layer = f"net.net.{fine_tuning.head}" if fine_tuning.is_frozen(epoch=0) else "conv"
    before = {name: value.clone() for name, value in training.module.state_dict().items() if layer in name}
    rows = training.run().rows
    assert training.steps == 2
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert before
    for name, value in training.module.state_dict().items():
        if name in before:
            assert not torch.equal(value, before[name]), name
