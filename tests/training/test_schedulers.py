"""The learning rate factors of each scheduler of conf/scheduler/."""

from collections.abc import Callable

import hydra
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.training.schedulers import constant, cosine, one_cycle
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import ROOT, options_of

STEPS = 200


def load_options(name: str) -> DictConfig:
    """Load the file of an option."""
    loaded = OmegaConf.load(ROOT / "conf" / "scheduler" / f"{name}.yaml")
    assert isinstance(loaded, DictConfig)
    return loaded


def curve(scheduler: Callable[..., float], steps: int = STEPS, **options: float) -> np.ndarray:
    return np.array([scheduler(step, steps, **options) for step in range(steps)])


@pytest.mark.parametrize("name", [name for name in options_of("scheduler", own=True) if name != "plateau"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("warmup", [None, 0.0, 0.05, 0.5, 1.0])
def test_every_scheduler_stays_above_zero_and_at_most_one(name: str, steps: int, warmup: float | None) -> None:
    options = load_options(name)
    if warmup is not None:
        OmegaConf.update(options, "warmup_fraction", warmup)
    factors = curve(hydra.utils.instantiate(options), steps)
    assert (factors > 0).all()
    assert (factors <= 1).all()


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_a_single_step_without_warmup_has_the_full_learning_rate(name: str) -> None:
    assert hydra.utils.instantiate(load_options(name))(0, 1) == 1.0


def test_constant_without_warm_up_is_one() -> None:
    assert (curve(constant, warmup_fraction=0.0) == 1).all()


def test_constant_warms_up_linearly_and_stays() -> None:
    factors = curve(constant, steps=10, warmup_fraction=0.4)
    np.testing.assert_allclose(factors, [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])


def test_the_cosine_is_torchs() -> None:
    rate, final = 0.3, 0.1
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS, eta_min=final * rate)
    expected: list[float] = []
    for _ in range(STEPS):
        expected.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rate * curve(cosine, warmup_fraction=0.0, final_factor=final), expected, rtol=1e-10)


def test_cosine_after_its_warm_up_is_the_cosine_of_the_steps_left() -> None:
    factors = curve(cosine, warmup_fraction=0.25, final_factor=0.0)
    assert factors[0] == pytest.approx(1 / 51)
    assert (np.diff(factors[:51]) > 0).all()
    np.testing.assert_allclose(factors[50:], curve(cosine, steps=150, warmup_fraction=0.0, final_factor=0.0))


def test_cosine_falls_from_one_through_the_middle_to_its_final_factor() -> None:
    factors = curve(cosine, warmup_fraction=0.0, final_factor=0.2)
    assert factors[0] == 1
    assert factors[STEPS // 2] == pytest.approx(0.6)
    assert factors[-1] == pytest.approx(0.2, abs=1e-4)
    assert (np.diff(factors) < 0).all()


def test_one_cycle_is_two_lines() -> None:
    factors = curve(one_cycle, warmup_fraction=0.25, initial_factor=0.04, final_factor=0.0)
    assert factors[0] == pytest.approx(0.04)
    assert factors.argmax() == 50
    assert factors[50] == 1
    np.testing.assert_allclose(np.diff(factors[:51]), 0.96 / 50)
    np.testing.assert_allclose(np.diff(factors[50:]), -1 / 150)
    assert factors[-1] == pytest.approx(1 / 150)


@pytest.mark.parametrize(
    ("scheduler", "options", "key"),
    [
        (constant, {"warmup_fraction": 1.5}, "warmup_fraction"),
        (cosine, {"warmup_fraction": -0.1, "final_factor": 0.0}, "warmup_fraction"),
        (cosine, {"warmup_fraction": 0.0, "final_factor": -0.5}, "final_factor"),
        (one_cycle, {"warmup_fraction": 0.25, "initial_factor": 0.0, "final_factor": 0.0}, "initial_factor"),
    ],
)
def test_invalid_fractions_are_refused(scheduler: Callable[..., float], options: dict[str, float], key: str) -> None:
    with pytest.raises(UserError, match=rf"scheduler\.{key}="):
        scheduler(0, STEPS, **options)
