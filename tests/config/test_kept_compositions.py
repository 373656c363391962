"""A configuration that the tests take from an earlier composition is the one that Hydra composes."""

from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from cifar_pipeline.config import compose
from helpers import compositions
from helpers.config_project import Project

WORDS = ["data=digits", "optimizer.lr=0.5"]


def composed(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Return what Hydra composes and what the tests take instead, and append to `calls` if Hydra composed that too."""
    with monkeypatch.context() as patch:
        patch.setattr(compose, "compose", hydra.compose)
        expected = compose.compose_with_hydra(WORDS)
    with monkeypatch.context() as patch:
        patch.setattr(hydra, "compose", lambda *args, original=hydra.compose: calls.append("Hydra") or original(*args))
        kept = compose.compose_with_hydra(WORDS)
    return tuple(OmegaConf.to_container(config, resolve=False) for config in (expected, kept))  # type: ignore[return-value]


def test_it_is_equal_in_another_folder_and_composed_anew_after_a_change(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compositions, "_kept", {})
    calls: list[str] = []
    expected, kept = composed(calls, monkeypatch)
    assert kept == expected and calls == ["Hydra"]
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    other = Project.made(tmp_path / "other")
    expected, kept = composed(calls, monkeypatch)
    assert kept == expected and calls == ["Hydra"]
    assert kept["hydra"]["runtime"]["cwd"] == str(tmp_path / "other")
    for path, old, new in [
        ("params.yaml", "seed: 0", "seed: 7"),
        ("conf/evaluation/default.yaml", "bins: 15", "bins: 10"),
    ]:
        other.edit(path, old, new)
        expected, kept = composed(calls, monkeypatch)
        assert kept == expected
    assert calls == ["Hydra"] * 3 and (kept["seed"], kept["evaluation"]["calibration_bins"]) == (7, 10)
    kept["seed"] = 8
    assert composed(calls, monkeypatch)[1]["seed"] == 7
