"""The learning rate finder, and trainer.batch_size=auto."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from mlflow import MlflowClient

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.stages.train import train
from cifar_pipeline.training import tuning
from cifar_pipeline.training.checkpoints import RunDir
from cifar_pipeline.training.compiled.engine import EAGER
from cifar_pipeline.training.distributed import SINGLE_PROCESS
from cifar_pipeline.training.hardware import Hardware
from cifar_pipeline.training.setup import build_training
from cifar_pipeline.training.tuning import CpuEstimator, RangeTest, RangeTestClassifier, suggest_lr
from find_lr import find_lr
from helpers.config_project import Project
from helpers.source_tree import EXPERIMENT

QUICK = ("data=digits", "trainer.max_epochs=1", "runtime.accelerator=cpu", "runtime.threads=1", "runtime.engine=eager")
AUTO = (*QUICK, "trainer.batch_size=auto", "runtime.auto_batch_min_steps=6")
TEST = ("trainer.batch_size=9", "lr_finder.min_images=900", "lr_finder.num_training=100", "lr_finder.min_lr=0.001")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.iterdir() if path.name != ".cache"}


def range_test(project: Project, dataset: Dataset, *overrides: str) -> RangeTest:
    config = project.compose("data=digits", *TEST, *overrides)
    hardware = Hardware("cpu", 1, 1, "32-true", "test")
    setup = build_training(config, dataset, hardware, EAGER, RunDir(Path("unused")), SINGLE_PROCESS, {})
    return tuning.find_lr(setup, config.optimizer.lr, config.lr_finder)


def test_find_lr_prints_the_suggestion_as_configuration_and_writes_only_its_reports(ready: Project) -> None:
    ready.edit("params.yaml", "overrides: {}", "overrides: {trainer: {max_epochs: 3}}")
    before = files(ready.folder)
    database = (ready.folder / "mlflow.db").read_bytes()
    ended = ready.start(find_lr, *QUICK, *TEST, "optimizer=adam")
    assert ended.code == 0, ended.err
    lr = float(ended.out.split("Suggested learning rate: ")[1].split()[0])
    assert 0.001 < lr < 0.1
    assert "params.yaml: optimizer: adam\n" in ended.out
    overrides = f"{{trainer: {{max_epochs: 1, batch_size: 9}}, optimizer: {{lr: {lr:g}}}}}"
    assert f"params.yaml: overrides: {overrides}\n" in ended.out
    assert f"optimizer.lr={lr:g}\n" in ended.out and "lr_finder.min" not in ended.out
    assert files(ready.folder) - before == {"reports"}
    assert files(ready.folder / "reports") == {"lr_finder.png", "lr_finder.csv"}
    assert not (ready.folder / ".cache" / "trainings").exists()
    assert (ready.folder / "mlflow.db").read_bytes() == database


def test_the_same_test_gives_the_same_losses(project: Project, digits: Dataset) -> None:
    first = range_test(project, digits, "model=airbench", "lr_finder.num_training=20", "lr_finder.min_images=0")
    seed_everything(7, verbose=False)
    torch.rand(3)
    again = range_test(project, digits, "model=airbench", "lr_finder.num_training=20", "lr_finder.min_images=0")
    assert first == again and len(first.losses) == 20


def test_the_learning_rates_of_a_test_are_the_finders_in_the_ratios_of_the_recipe(
    project: Project, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def record(self: RangeTestClassifier, *_: object) -> None:
        seen.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])

    monkeypatch.setattr(RangeTestClassifier, "on_before_optimizer_step", record)
    overrides = ("optimizer=normed_muon", "scheduler=one_cycle", "lr_finder.num_training=20", "lr_finder.min_images=0")
    test = range_test(project, digits, *overrides)
    assert [rates[0] for rates in seen] == pytest.approx(test.lrs)
    assert test.lrs[0] == pytest.approx(0.001) and test.lrs == sorted(test.lrs)
    options = project.compose("optimizer=normed_muon").optimizer
    for rates in seen:
        assert rates == pytest.approx([rates[0], *(rates[0] * rate / options.lr for rate in (100.0, 5.0))])


def test_all_learning_rates_of_an_optimizer_are_suggested(ready: Project) -> None:
    small = ("lr_finder.min_lr=1e-7", "lr_finder.max_lr=1e-2", "lr_finder.num_training=200")
    ended = ready.start(find_lr, *QUICK, *TEST, "optimizer=normed_muon", *small)
    assert ended.code == 0, ended.err
    command = dict(word.split("=") for word in ended.out.splitlines()[-1].split() if "=" in word)
    lr, bias_lr = float(command["optimizer.lr"]), float(command["optimizer.bias_lr"])
    assert bias_lr == pytest.approx(lr * 100 / 0.24, rel=0.05)
    assert "multiplied all of them" in ended.out


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (("lr_finder.num_training=5", "lr_finder.min_images=0"), ("No suggestion", "5 steps", "num_training")),
        (("lr_finder.min_lr=1e-9", "lr_finder.max_lr=1e-8"), ("No suggestion", "does not fall")),
        (("lr_finder.min_lr=2.0",), ("lr_finder.min_lr=2", "below")),
    ],
)
def test_without_a_suggestion_a_sentence_says_why(
    ready: Project, overrides: tuple[str, ...], fragments: tuple[str, ...]
) -> None:
    ready.start(find_lr, *QUICK, *TEST, *overrides).assert_refused(*fragments)


def test_a_loss_that_becomes_nan_ends_the_test(project: Project, digits: Dataset) -> None:
    test = range_test(project, digits, "lr_finder.max_lr=1e30", "lr_finder.early_stop_threshold=null")
    assert len(test.losses) < 100 and not np.isfinite(test.losses[-1])


def test_the_suggestion_is_the_steepest_point_of_a_noisy_curve(project: Project) -> None:
    options = project.compose().lr_finder
    lrs = np.geomspace(options.min_lr, options.max_lr, 500)
    curve = 2.3 - 1.5 / (1 + (1e-2 / lrs) ** 3)
    noise = np.random.default_rng(0).normal(0, 0.2, len(lrs))
    _, suggestion = suggest_lr(lrs.tolist(), (curve + noise).tolist(), options)
    assert suggestion == pytest.approx(1e-2, rel=0.3)
    _, none = suggest_lr(lrs.tolist(), (2.3 + noise).tolist(), options)
    assert none is None


def runs(project: Project) -> list:
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def test_auto_trains_with_the_number_that_it_prints_and_is_the_training_with_that_number(ready: Project) -> None:
    ended = ready.start(train, *AUTO)
    assert ended.code == 0, ended.err
    assert "trainer.batch_size=auto: 8 images (0.00" in ended.out and "fewer than 6 steps an epoch" in ended.out
    (run,) = runs(ready)
    assert run.data.params["trainer.batch_size"] == "8" and run.data.tags["trainer.batch_size"] == "auto"
    metadata = json.loads((ready.folder / "models" / "metadata.json").read_text())
    assert metadata["recipe"]["trainer"]["batch_size"] == 8 and metadata["timing"]["images_per_step"] == "8"
    weights = (ready.folder / "models" / "last" / "weights.safetensors").read_bytes()
    ended = ready.start(train, *QUICK, "trainer.batch_size=8", "rerun=true")
    assert ended.code == 0, ended.err
    assert json.loads((ready.folder / "models" / "metadata.json").read_text())["fingerprint"] == metadata["fingerprint"]
    assert (ready.folder / "models" / "last" / "weights.safetensors").read_bytes() == weights


def test_an_interrupted_training_resumes_with_the_number_that_was_found(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifar_pipeline.training.module import Classifier

    original = Classifier.on_train_epoch_start

    def stop(self: Classifier) -> None:
        if self.current_epoch == 1 and self.trainer.max_epochs == 3:
            raise KeyboardInterrupt
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_start", stop)
        assert ready.start(train, *AUTO, "trainer.max_epochs=3").code == 130
    monkeypatch.setattr(tuning, "available_memory", lambda _: 1)
    ended = ready.start(train, *AUTO, "trainer.max_epochs=3")
    assert ended.code == 0, ended.err
    assert "8 images" in ended.out and "as found before" in ended.out and "Resuming from checkpoint" in ended.out
    assert len(runs(ready)) == 1


def test_the_memory_limits_the_batch(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.open(ready.folder / "data" / "processed")
    config = ready.compose(*AUTO, "runtime.auto_batch_min_steps=1")
    estimate = CpuEstimator(config, dataset, Hardware("cpu", 1, 1, "32-true", "test"))
    needed = {size: estimate(size) for size in (2, 16, 32, 64)}
    assert sorted(needed.values()) == list(needed.values()) and needed[64] > needed[16]
    middle = (needed[16] + needed[32]) // 2
    monkeypatch.setattr(tuning, "available_memory", lambda _: int(middle / config.runtime.auto_batch_ram) + 1)
    found = tuning.resolve_batch_size(config, dataset, "cpu", SINGLE_PROCESS)
    assert found.trainer.batch_size == 16 and config.trainer.batch_size == "auto"
    monkeypatch.setattr(tuning, "available_memory", lambda _: 1000)
    config.runtime.auto_batch_ram = 0.4
    with pytest.raises(tuning.UserError, match="not even 2 images fit"):
        tuning.resolve_batch_size(config, dataset, "cpu", SINGLE_PROCESS)


def test_memory_for_larger_batches_is_extrapolated_and_never_used(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset.open(ready.folder / "data" / "processed")
    estimate = CpuEstimator(ready.compose(*AUTO), dataset, Hardware("cpu", 1, 1, "32-true", "test"))
    estimate(64)
    monkeypatch.setattr(estimate, "run", lambda *_: pytest.fail("it must not train with this batch"))
    one, other = estimate(128), estimate(256)
    assert other > one > estimate(64)
    assert other - one == pytest.approx(2 * (one - estimate(64)), rel=0.01)


@pytest.mark.long
def test_on_a_gpu_the_largest_batch_below_the_limit_is_taken(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.open(ready.folder / "data" / "processed")
    hardware = Hardware("cuda", 1, 1, "32-true", "test")
    config = ready.compose("data=digits", "trainer.batch_size=auto", "runtime.auto_batch_min_steps=1")
    monkeypatch.setattr(tuning, "select_hardware", lambda *_: hardware)
    monkeypatch.setattr(tuning, "available_memory", lambda _: 100)
    for name, value in {"empty_cache": None, "reset_peak_memory_stats": None, "max_memory_reserved": 10}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)

    def run(self: tuning.CudaEstimator, batch_size: int) -> None:
        if batch_size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(tuning.CudaEstimator, "run", run)
    found = tuning.resolve_batch_size(config, dataset, "cuda", SINGLE_PROCESS)
    assert found.trainer.batch_size == 16


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("trainer.micro_batch_size=2", "trainer.micro_batch_size=2: leave one of them out"),
        ("optimizer=gradient_descent", "optimizer.full_batch"),
    ],
)
def test_auto_is_refused_where_the_batch_is_split_otherwise(ready: Project, override: str, fragment: str) -> None:
    ready.start(train, *AUTO, override).assert_refused("trainer.batch_size=auto", fragment)
