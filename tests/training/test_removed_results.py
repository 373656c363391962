"""A training of which files were removed or damaged makes them again, or says so."""

import shutil

import pytest
from broken_files import cut_off, flip_a_bit

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.stages.evaluate import evaluate
from cifar_pipeline.stages.train import train
from cifar_pipeline.training import tuning
from cifar_pipeline.training.distributed import SINGLE_PROCESS
from cifar_pipeline.utils.file_hashes import hash_files
from helpers.config_project import Project

SMALL = ("data=digits", "optimizer=adam", "trainer.batch_size=9", "runtime.threads=1", "runtime.accelerator=cpu")


def test_a_damaged_result_is_made_again_and_removed_weights_are_restored(ready: Project) -> None:
    def models() -> dict[str, str]:
        hashes = hash_files(ready.folder / "models")
        return {name: value for name, value in hashes.items() if name.endswith((".onnx", ".safetensors"))}

    start = (*SMALL, "trainer.max_epochs=2", "evaluation=best")
    assert ready.start(train, *start).code == 0
    made = models()
    assert set(made) == {
        f"{name}/{file}" for name in ("last", "best") for file in ("model.onnx", "weights.safetensors")
    }

    shutil.rmtree(ready.folder / "models" / "best")
    read = [word for word in start if not word.startswith(("optimizer", "trainer"))]
    ready.start(evaluate, *read).assert_refused("models/best is missing: `dvc repro -f train` restores it")
    (result,) = (ready.folder / ".cache" / "trainings").glob("*/result")
    flip_a_bit(result / "best" / "weights.safetensors")
    again = ready.start(train, *start)
    assert again.code == 0 and "best/weights.safetensors has changed since it was written: making" in again.err
    assert "epoch 2/2" not in again.out and models() == made
    assert "already finished" in ready.start(train, *start).out and models() == made


def test_a_damaged_record_of_the_batch_size_is_searched_again(
    ready: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, config = (
        Dataset.open(ready.folder / "data" / "processed"),
        ready.compose(*SMALL, "trainer.batch_size=auto"),
    )
    monkeypatch.setattr(tuning, "_search_batch_size", lambda *_: tuning.BatchSearch(16, 1, 2, 0))
    for _ in range(2):
        assert tuning.resolve_batch_size(config, dataset, "cpu", SINGLE_PROCESS).trainer.batch_size == 16
        for record in (ready.folder / ".cache" / "batch_sizes").glob("*.json"):
            cut_off(record)
    assert f"{record.name} is damaged: searching the batch size again" in capsys.readouterr().err
