"""A training never starts on other data than its configuration says."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from cifar_pipeline.config.compose import stage_config
from cifar_pipeline.data.dataset import dataset_config, effective_dataset_config, require_matching_config
from cifar_pipeline.utils.errors import UserError

CIFAR10 = {"_target_": "cifar_pipeline.data.sources.cifar.Cifar10"}
DIGITS = {"_target_": "cifar_pipeline.data.sources.digits.Digits", "test_fraction": 0.2, "size": 32}


def data(**changes):
    values = {"source": CIFAR10, "fallback": DIGITS, "val_fraction": 0.1}
    return OmegaConf.create(values | {"split_seed": 0} | changes)


def made(**changes):
    return SimpleNamespace(folder=Path("data/processed"), requested=dataset_config(data(**changes)))


def test_data_from_another_mirror_is_the_same_data(project):
    changed = project.compose("data.mirrors=[]", "data.timeout=1")
    for stage in ("preprocess", "train"):
        assert stage_config(changed, stage)["data"] == stage_config(project.compose(), stage)["data"]


def test_the_fallback_replaces_the_source():
    asked = dataset_config(data())
    assert effective_dataset_config(asked, by_fallback=False) == asked
    assert effective_dataset_config(asked, by_fallback=True) == asked | {"source": DIGITS}


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ({}, {"val_fraction": 0.2}, ["val_fraction=0.1", "val_fraction=0.2", "{data: {val_fraction: 0.2}}"]),
        ({}, {"split_seed": 7}, ["split_seed=0", "split_seed=7", "{data: {split_seed: 7}}"]),
        ({}, {"source": DIGITS, "fallback": None}, ["source=cifar10,", "source=digits:", "`data: digits`"]),
        ({"source": DIGITS}, {}, ["source=digits,", "source=cifar10:", "`data: cifar10`"]),
        ({"source": DIGITS}, {"source": DIGITS | {"size": 8}}, ["size=32", "size=8", "{data: {source: {size: 8}}}"]),
        ({}, {"fallback": None}, ["fallback=digits,", "fallback=null:", "{data: {fallback: null}}"]),
    ],
)
def test_other_values_are_refused_with_both_and_the_remedy(then, now, words):
    with pytest.raises(UserError) as refusal:
        require_matching_config(made(**then), data(**now))
    for word in [*words, "params.yaml", "dvc repro preprocess"]:
        assert word in str(refusal.value)
