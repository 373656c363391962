"""`make bench-finetuning`: the images that it writes, the trials that it runs, its table, and a smoke test."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import finetuning
import numpy as np
import pytest
from finetuning import (
    METHODS,
    Result,
    Trial,
    parse_arguments,
    read_results,
    require_enough_images,
    run_trials,
    table,
    trials,
    write_image_folder,
    write_results,
)
from measure import CommandFailed, FinishedCommand, Workspace
from scripts import output_of
from train_and_evaluate import require_cifar10
from workload_sizes import TINY, Sizes

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.data.images import load_image

TRIAL = Trial(10, "scratch", ("trainer.max_epochs=3",), 0)
SIZES = {"train": 130, "val": 20, "test": 30}
RESULT = Result(TRIAL, 4.0, 20.0, 8.5, 2.0, 62.0, "abc", "abacus")


@pytest.fixture
def workspace(tmp_path: Path, digits: Dataset) -> Workspace:
    """A workspace with a processed data set."""
    shutil.copytree(digits.folder, tmp_path / "project" / "data" / "processed")
    return Workspace(tmp_path / "project", {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")})


@pytest.fixture
def dataset(digits: Dataset, tmp_path: Path) -> Dataset:
    """A data set of random pixels with two classes in turn."""
    generator = np.random.default_rng(0)
    for split, size in SIZES.items():
        (tmp_path / "dataset" / split).mkdir(parents=True)
        images = generator.integers(0, 256, (size, *digits.shape), np.uint8)
        np.save(tmp_path / "dataset" / split / "images.npy", images)
        np.save(tmp_path / "dataset" / split / "labels.npy", np.arange(size) % 2)
    return replace(digits, folder=tmp_path / "dataset", classes=("cat", "dog"), sizes=SIZES)


@pytest.mark.parametrize(("count", "val"), [(1, 5), (60, 6)])
def test_the_folder_has_the_first_images_of_each_class_pixel_for_pixel(
    count: int, val: int, dataset: Dataset, tmp_path: Path
) -> None:
    write_image_folder(dataset, tmp_path / "images", count)
    found: list[bytes] = []
    for split, size in (("train", count), ("val", val), ("test", SIZES["test"] // 2)):
        images, labels = dataset.split(split)
        for label, name in enumerate(dataset.classes):
            files = sorted((tmp_path / "images" / split / name).iterdir())
            written = [load_image(file, dataset.shape) for file in files]
            assert len(written) == size
            np.testing.assert_array_equal(written, images[labels == label][:size])
            found += [image.tobytes() for image in written]
    assert len(found) == len(set(found)), "an image is in two splits"


@pytest.mark.parametrize("counts", [[1, 66], [0]])
def test_more_images_than_there_are_end_it_with_a_sentence(counts: list[int], dataset: Dataset) -> None:
    require_enough_images(dataset, [1, 65])
    with pytest.raises(SystemExit, match="--images takes numbers from 1 to 65, "):
        require_enough_images(dataset, counts)


def test_without_cifar10_only_a_smoke_test_runs(tmp_path: Path) -> None:
    require_cifar10(Workspace(tmp_path, {}), TINY)
    with pytest.raises(SystemExit, match="run `make cifar10`"):
        require_cifar10(Workspace(tmp_path, {}), Sizes())


def test_the_command_line_overrides_the_table_of_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(finetuning.OVERRIDES, ("full", 10), ("trainer.max_epochs=20", "optimizer.lr=0.001"))
    first, second, other = trials([10], ["full", "head"], [3, 4], ["trainer.max_epochs=5"])[:3]
    assert first == Trial(10, "full", ("trainer.max_epochs=5", "optimizer.lr=0.001"), 3) and second.seed == 4
    assert other.words == ["experiment=finetune", "finetune=head", "data.size=32", "trainer.max_epochs=5"]


def test_an_override_replaces_the_methods_own_value_and_repeated_trials_count_once() -> None:
    (trial,) = trials([10, 10], ["head"], [0, 0], ["data.size=96"])
    assert trial.words == ["experiment=finetune", "finetune=head", "data.size=96"]


def test_a_trial_that_fails_does_not_stop_the_others_and_each_starts_without_caches(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = [workspace.root / ".cache" / "features", Path(workspace.variables["TORCHINDUCTOR_CACHE_DIR"])]
    commands: list[str] = []

    def run(_: Workspace, *words: str) -> FinishedCommand:
        commands.append(" ".join(words[1:]))
        if "src/train.py" in words:
            assert not any(cache.exists() for cache in caches)
            if "seed=0" in words:
                raise CommandFailed("out of memory")
            (workspace.root / "models").mkdir(exist_ok=True)
            (workspace.root / "models" / "metadata.json").write_text('{"timing": {"seconds": 0.5}}')
            (workspace.root / "reports").mkdir(exist_ok=True)
            (workspace.root / "reports" / "metrics.json").write_text('{"test": {"accuracy": 0.75}}')
            for cache in caches:
                cache.mkdir(parents=True)
        if "src/preprocess.py" in words and "finetune=full" in words:
            raise CommandFailed("disk full")
        return FinishedCommand(2.0, 0.1, "", [(1.5, "Test accuracy: 75.00%")])

    monkeypatch.setattr(Workspace, "run", run)
    wanted = trials([2], ["full", "head"], [0, 1, 2], [])
    full_disk, out_of_memory, *measured = run_trials(workspace, wanted, warm=False)
    assert [str(full_disk), str(out_of_memory)] == ["disk full", "out of memory"]
    expected = [(trial.seed, 2.0, 2.0, 0.5, 1.5, 75.0) for trial in trials([2], ["head"], [1, 2], [])]
    assert [
        (one.trial.seed, one.preprocess, one.train, one.training, one.evaluate, one.accuracy) for one in measured
    ] == expected
    assert [command.split()[0].removeprefix("src/") for command in commands] == [
        *("download.py", "preprocess.py", "preprocess.py", "train.py"),
        *("train.py", "evaluate.py", "train.py", "evaluate.py"),
    ]
    assert commands[-1] == "src/evaluate.py experiment=finetune finetune=head data.size=32 seed=2"
    assert json.dumps(str(workspace.root.parent / "cifar10-2")) in (workspace.root / "params.yaml").read_text()


def test_the_table_has_a_row_for_each_number_of_images_method_and_overrides() -> None:
    results = [
        RESULT,
        replace(RESULT, trial=Trial(10, "head", (), 0), accuracy=70.5),
        replace(RESULT, trial=replace(TRIAL, seed=1), train=24.0, training=9.5, evaluate=3.0, accuracy=63.0),
        replace(RESULT, trial=Trial(2, "full", (), 0), preprocess=3.0),
    ]
    _, _, *rows, _, machine = table(results).splitlines()
    pretrained = "experiment=finetune finetune"
    assert rows == [
        f"| 2 | `{pretrained}=full data.size=32` | 62.00 % of 1 seed (62.00) | 3.0 s | 20.0 s | 8.5 s | 2.0 s |",
        "| 10 | `experiment=custom_images trainer.max_epochs=3` | 62.50 ± 0.71 % of 2 seeds (62.00, 63.00) "
        "| 4.0 s | 22.0 s [20.0 - 24.0] | 9.0 s | 2.5 s [2.0 - 3.0] |",
        f"| 10 | `{pretrained}=head data.size=32` | 70.50 % of 1 seed (70.50) | 4.0 s | 20.0 s | 8.5 s | 2.0 s |",
    ]
    assert machine == "Measured at abc on abacus."


def test_finished_results_are_kept_and_not_measured_again(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    (trial,) = trials([5], ["scratch"], [0], finetuning.TINY_WORDS)
    results = [RESULT, replace(RESULT, trial=trial)]
    write_results(output, results)
    printed = output_of("finetuning", "--tiny", "--methods", "scratch", "--output", str(output), "--append")
    assert "trainings to measure: 0" in printed and "| 62.00 % of 1 seed (62.00) |" in printed
    assert read_results(output) == results and read_results(tmp_path / "none.json") == []


def test_results_are_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_results(tmp_path / "results.json", [RESULT])
    monkeypatch.setattr(sys, "argv", ["finetuning.py", "--output", str(tmp_path / "results.json")])
    with pytest.raises(SystemExit, match=r"results\.json has results: add --append"):
        parse_arguments()


@pytest.mark.long
def test_every_method_is_trained(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    output_of("finetuning", "--tiny", "--output", str(output))
    assert [result.trial.method for result in read_results(output)] == list(METHODS)
