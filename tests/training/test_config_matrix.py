"""Train two steps with every option of every group that a training reads."""

import math
from itertools import cycle, islice

import pytest
import torch
from small_training import batch_limit, start

from cifar_pipeline.data.dataset import Dataset
from helpers.config_project import Project, options_of
from helpers.tiny_networks import install_as_package

NEED_WEIGHTS = ("normalization=model", "experiment=finetune")
# Options that do not train with each other option: the learning rates of normed_muon are those of one recipe.
NOT_COMBINED = (*NEED_WEIGHTS, "optimizer=normed_muon")
# Groups of which one training uses an option each. With `make test-long` each option is also trained alone.
COMBINED = ("optimizer", "loss", "scheduler", "augmentation", "normalization", "precision", "tta")
ALONE = ("model", "weight_averaging", "trainer", "finetune", "experiment")


def overrides_of(group: str) -> list[str]:
    return [f"{group}={option}" for option in options_of(group)]


CHOICES = [[text for text in overrides_of(group) if text not in NOT_COMBINED] for group in COMBINED]
COMBINATIONS = [
    *islice(zip(*map(cycle, CHOICES), strict=False), max(map(len, CHOICES))),
    *(
        (text,)
        for group in (*COMBINED, *ALONE)
        for text in overrides_of(group)
        if group in ALONE or text in NOT_COMBINED
    ),
    *(
        pytest.param((text,), marks=pytest.mark.long)
        for group in COMBINED
        for text in overrides_of(group)
        if text not in NOT_COMBINED
    ),
]


@pytest.mark.parametrize("options", COMBINATIONS, ids=" ".join)
def test_every_option_trains_for_two_steps(
    project: Project, digits: Dataset, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    limits = ("trainer.batch_size=2", "trainer.eval_batch_size=2", "trainer.max_epochs=1")
    monkeypatch.syspath_prepend(str(project.folder))
    # A large step, because the new classifier is zero and the first gradients of the layers before it are small.
    weights = [*install_as_package(project.folder), "optimizer.lr=0.01"] if options[0] in NEED_WEIGHTS else []
    config = project.compose(*options, *weights, *batch_limit(2), *limits)
    if options[0].startswith("experiment="):
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
