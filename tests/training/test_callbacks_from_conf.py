"""Callbacks, metrics, loggers and Trainer arguments of conf/, in trainings of a few steps."""

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score, top_k_accuracy_score
from small_training import Training, start, without_speed

from cifar_pipeline.config.compose import NON_RESULT_KEYS
from cifar_pipeline.config.params import OTHER_PLACES
from cifar_pipeline.config.schema import Trainer as TrainerModel
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.callbacks import GradientNorm
from cifar_pipeline.training.compiled import step
from cifar_pipeline.training.compiled.engine import EAGER, Engine, select_engine
from cifar_pipeline.training.hardware import Hardware
from cifar_pipeline.training.setup import build_callbacks, find_batch_callback
from cifar_pipeline.training.trainer import TRAINER_KEYS
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.process import Interrupted
from helpers.config_project import Project

CPU = Hardware("cpu", 1, 1, "32-true", "test")
COMPILED = Engine("compiled", "test", 2, 3)
BASE = ("optimizer=adam", "trainer.batch_size=9", "trainer.max_epochs=4")
# Keys of conf/trainer that no argument of Lightning's Trainer has, or that the pipeline converts.
OURS = {"batch_size", "micro_batch_size", "eval_batch_size"}
CONVERTED = {"accumulate_grad_batches", "limit_train_batches", "strategy", "devices", "num_nodes"}


@pytest.fixture(autouse=True)
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the compilation, which takes long and is tested in test_compiled_steps.py."""
    monkeypatch.setattr(step, "compile_graph", lambda graph, arguments: graph)


class InterruptAt(Callback):
    """Interrupt the training before a batch of an epoch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.moment = (epoch, batch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.moment:
            raise KeyboardInterrupt


class LabelReader(Callback):
    """Keep the labels of each batch."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch[1].tolist())


class NormReader(Callback):
    """Compute the norm of the gradient of each step from its definition."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        squares = [float((parameter.grad.double() ** 2).sum()) for parameter in pl_module.parameters()]
        self.norms.append(math.sqrt(sum(squares)))


def made(project: Project, digits: Dataset, *overrides: str, engine: Engine = EAGER) -> Training:
    return start(project, project.compose(*BASE, *overrides), digits, engine=engine)


def built(project: Project, *overrides: str) -> list[Callback]:
    return list(build_callbacks(project.compose(*BASE, *overrides).callbacks).values())


def weights(training: Training) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in training.module.parameters()]


def test_the_schema_has_every_argument_of_lightnings_trainer_that_the_pipeline_does_not_set() -> None:
    arguments = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    owned = {key.removeprefix("trainer.") for key in OTHER_PLACES if key.startswith("trainer.")}
    keys = set(TrainerModel.model_fields)
    assert keys - OURS | owned == arguments and not keys & owned
    assert set(TRAINER_KEYS) == keys - OURS - CONVERTED
    assert {key.removeprefix("trainer.") for key in NON_RESULT_KEYS if key.startswith("trainer.")} <= keys


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        (["trainer.max_steps=5"], [(5, 1)]),
        (["trainer.limit_train_batches=0.5"], [(5, 4)]),
        (["trainer.accumulate_grad_batches=3"], [(4, 4)]),
        (["trainer.overfit_batches=2"], [(2, 4)]),
        (["trainer.max_time={seconds: 0.000001}"], [(1, 1)]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_trainer_arguments_do_what_they_do_in_lightning(
    project: Project, digits: Dataset, overrides: list[str], counts: list[tuple[int, int]]
) -> None:
    """With 90 training images, batches of 9: steps of an epoch (or of all, where one was stopped) and epochs."""
    training = made(project, digits, *overrides)
    rows = training.run().rows
    ((steps, epochs),) = counts
    assert len(rows) == epochs
    assert training.steps == (steps if epochs == 1 else steps * epochs)
    assert {"val/loss", "val/accuracy"} <= set(rows[-1])


def test_overfitting_takes_the_same_batches_in_each_epoch(project: Project, digits: Dataset) -> None:
    training = made(project, digits, "trainer.overfit_batches=1", "trainer.max_epochs=3")
    reader = LabelReader()
    training.run([reader])
    assert len(reader.seen) == 3 and reader.seen[0] == reader.seen[1] == reader.seen[2]


@pytest.mark.parametrize(
    "overrides",
    [["trainer.val_check_interval=0.5"], ["trainer.check_val_every_n_epoch=2"], ["trainer.num_sanity_val_steps=1"]],
    ids=str,
)
def test_validating_more_or_less_often_changes_no_weights(
    project: Project, digits: Dataset, tmp_path: Path, overrides: list[str]
) -> None:
    expected, training = made(project, digits), made(project, digits, *overrides)
    training.run_dir = type(training.run_dir)(tmp_path / "other")
    rows, others = expected.run().rows, training.run().rows
    assert all(map(torch.equal, weights(training), weights(expected)))
    validated = [1, 3] if "every_n_epoch" in overrides[0] else [0, 1, 2, 3]
    assert [index for index, row in enumerate(others) if "val/loss" in row] == validated
    for index in validated:
        assert without_speed([others[index]]) == without_speed([rows[index]])
    assert training.run_dir.checkpoint("best").is_file()


def test_the_best_checkpoint_is_that_of_the_monitored_metric(project: Project, digits: Dataset, tmp_path: Path) -> None:
    for monitor, mode, pick in (("train/loss", "max", max), ("val/loss", "min", min), ("val/f1", "max", max)):
        training = made(
            project,
            digits,
            f"monitor={monitor}",
            f"mode={mode}",
            "+metrics.f1._target_=torchmetrics.F1Score",
            "+metrics.f1.task=multiclass",
            "+metrics.f1.average=macro",
        )
        training.run_dir = type(training.run_dir)(tmp_path / mode / monitor.replace("/", "-"))
        values = [row[monitor] for row in training.run().rows]
        best = torch.load(training.run_dir.checkpoint("best"), weights_only=True)
        assert best["epoch"] == values.index(pick(values)), monitor


def test_validation_metrics_are_scikit_learns(project: Project, digits: Dataset) -> None:
    training = made(
        project, digits, "metrics=[f1_macro,balanced_accuracy,auroc,top5_accuracy]", "trainer.eval_batch_size=4"
    )
    row = training.run().rows[-1]
    images, labels = map(torch.from_numpy, digits.split("val"))
    with torch.no_grad():
        probabilities = training.module.net.eval()(images).softmax(1).double().numpy()
    probabilities /= probabilities.sum(1, keepdims=True)
    predictions, classes = probabilities.argmax(1), range(10)
    expected = {
        "val/f1_macro": f1_score(labels, predictions, average="macro"),
        "val/balanced_accuracy": balanced_accuracy_score(labels, predictions),
        "val/auroc": roc_auc_score(labels, probabilities, average="macro", multi_class="ovr", labels=classes),
        "val/top5_accuracy": top_k_accuracy_score(labels, probabilities, k=5, labels=classes),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+metrics.f1._target_=torchmetrics.classification.MulticlassF1Score", "+metrics.f1.average=null"], "average"),
        (["+metrics.accuracy._target_=torchmetrics.classification.MulticlassAccuracy"], "accuracy is always measured"),
        (["+metrics.calibration_error._target_=torchmetrics.MeanMetric"], "another name, such as my_calibration_error"),
        (["metrics=[top5_accuracy]", "metrics.top5_accuracy.top_k=11"], "top5_accuracy does not work with 10 classes"),
    ],
)
def test_a_metric_that_cannot_be_logged_is_refused(
    project: Project, digits: Dataset, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        made(project, digits, *overrides)


def test_the_gradient_norm_is_logged_before_clipping_and_exact_after_a_resume(
    project: Project, digits: Dataset
) -> None:
    reader = NormReader()
    stopped = made(project, digits, "trainer.gradient_clip_val=0.01")
    with pytest.raises(Interrupted):
        stopped.run([GradientNorm(), reader, InterruptAt(1, 3)])
    assert (stopped.run_dir.path / "last.ckpt").is_file()
    resumed = made(project, digits, "trainer.gradient_clip_val=0.01")
    resumed.logger.epochs = stopped.logger.epochs
    again = NormReader()
    rows = resumed.run([GradientNorm(), again, InterruptAt(99, 0)]).rows
    norms = reader.norms[:10] + again.norms
    for epoch, row in enumerate(rows):
        of_epoch = norms[10 * epoch : 10 * epoch + 10]
        assert row["train/gradient_norm"] == pytest.approx(sum(of_epoch) / 10, rel=1e-5)
        assert row["train/gradient_norm_max"] == pytest.approx(max(of_epoch), rel=1e-5)
    assert min(norms) > 0.01


@pytest.mark.parametrize("engine", [EAGER, COMPILED], ids=["eager", "compiled"])
def test_the_loss_within_an_epoch_is_the_mean_since_the_value_before(
    project: Project, digits: Dataset, engine: Engine
) -> None:
    training = made(project, digits, "runtime.log_every_n_steps=5", "trainer.max_epochs=2", engine=engine)
    logged: dict[int, dict[str, float]] = {}
    training.logger.log_metrics = lambda metrics, step: logged.setdefault(step, {}).update(metrics)  # type: ignore
    rows = training.run().rows
    losses = {step: metrics["train/loss_step"] for step, metrics in logged.items() if "train/loss_step" in metrics}
    # Chunks of the compiled engine have three steps, the last of an epoch has one.
    assert list(losses) == ([5, 10, 15, 20] if engine is EAGER else [6, 10, 16, 20])
    first, second, third, fourth = losses.values()
    share = 5 if engine is EAGER else 6
    for row, before, after in zip(rows, (first, third), (second, fourth), strict=True):
        assert row["train/loss"] == pytest.approx((share * before + (10 - share) * after) / 10, abs=2e-6)


@pytest.mark.parametrize("engine", [EAGER, COMPILED], ids=["eager", "compiled"])
def test_plateau_reduces_the_learning_rate_and_survives_a_kill(
    project: Project, digits: Dataset, tmp_path: Path, engine: Engine
) -> None:
    plateau = ("scheduler=plateau", "scheduler.threshold=1.0", "scheduler.patience=0", "trainer.max_epochs=5")
    expected = made(project, digits, *plateau, engine=engine)
    expected.run_dir = type(expected.run_dir)(tmp_path / "expected")
    rows = expected.run().rows
    # No epoch improves on the first by 100 percentage points.
    assert [row["lr"] for row in rows] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-6], abs=1e-6)
    stopped = made(project, digits, *plateau, engine=engine)
    with pytest.raises(Interrupted):
        stopped.run([InterruptAt(3, 1)])
    resumed = made(project, digits, *plateau, engine=engine)
    resumed.logger.epochs = stopped.logger.epochs
    assert without_speed(resumed.run().rows) == without_speed(rows)
    assert all(map(torch.equal, weights(resumed), weights(expected)))


def test_early_stopping_killed_after_its_last_epoch_trains_no_further_one(project: Project, digits: Dataset) -> None:
    def stopping() -> EarlyStopping:
        return EarlyStopping("val/loss", mode="min", min_delta=1e9, patience=1)

    first = made(project, digits)
    result = first.run([stopping()])
    assert result.stopped == "epoch 2 of 4: val/loss has not improved for 1 epoch"
    again = made(project, digits)
    again.logger.epochs = first.logger.epochs
    resumed = again.run([stopping()])
    assert (again.steps, resumed.rows, resumed.stopped) == (0, result.rows, result.stopped)
    assert all(map(torch.equal, weights(again), weights(first)))


def test_a_monitor_that_nothing_logs_is_refused_with_the_names_that_are_logged(
    project: Project, digits: Dataset, digits_without_val: Dataset
) -> None:
    training = made(project, digits, "metrics=[f1_macro]", "monitor=val/f1")
    with pytest.raises(UserError, match=r"monitor=val/f1: nothing logs it; logged are .*val/accuracy, val/f1_macro\."):
        training.run()
    assert not training.steps
    training = start(project, project.compose(*BASE), digits_without_val)
    with pytest.raises(UserError, match=r"monitor=val/loss: nothing logs it \(data\.val_fraction=0 leaves no"):
        training.run([EarlyStopping("val/loss")])
    assert not training.steps


def test_a_monitor_that_a_users_callback_may_log_is_checked_after_the_first_epoch(
    project: Project, digits: Dataset
) -> None:
    class Own(Callback):
        def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.log("own/metric", 1.0)

    training = made(project, digits, "monitor=own/metrics")
    with pytest.raises(UserError, match=r"monitor=own/metrics: nothing has logged it; logged are own/metric, train/"):
        training.run([Own()])
    assert training.steps == 10


def test_callbacks_of_one_state_key_are_refused(project: Project) -> None:
    with pytest.raises(UserError, match=r"callbacks\.early_stopping and callbacks\.mine are both EarlyStopping"):
        built(
            project,
            "callbacks=[early_stopping]",
            "+callbacks.mine._target_=lightning.pytorch.callbacks.EarlyStopping",
            "+callbacks.mine.monitor=val/accuracy",
            "+callbacks.mine.mode=max",
        )
    with pytest.raises(UserError, match=r"callbacks\.mine: torch\.nn\.ReLU is no lightning"):
        built(project, "+callbacks.mine._target_=torch.nn.ReLU")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["callbacks=[early_stopping,lr_monitor,rich_summary]"], ""),
        (["callbacks=[early_stopping,gradient_norm]"], "gradient_norm"),
        (["callbacks=device_stats"], "device_stats"),
        (["callbacks=[lr_monitor]", "callbacks.lr_monitor.needs_single_batches=true"], "lr_monitor"),
        (["callbacks=[gradient_norm]", "+callbacks.gradient_norm.needs_single_batches=false"], ""),
    ],
)
def test_a_callback_that_looks_at_single_batches_selects_the_eager_engine(
    project: Project, overrides: list[str], name: str
) -> None:
    config = project.compose(*overrides, "runtime.compile_min_steps=1")
    callback = find_batch_callback(config.callbacks, build_callbacks(config.callbacks))
    assert callback == name
    engine = select_engine(config, CPU, 50_000, callback)
    expected = ("eager", f"callbacks.{name} looks at single batches") if name else ("compiled", engine.reason)
    assert (engine.name, engine.reason) == expected


def test_a_finer_log_makes_the_chunks_of_the_compiled_engine_smaller(project: Project) -> None:
    config = project.compose("runtime.log_every_n_steps=50")
    assert select_engine(config, CPU, 50_000).steps_per_chunk == 50
