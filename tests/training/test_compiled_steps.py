"""Compiled steps equal eager ones, for every optimizer and every loss of conf/."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from small_training import CPU, without_speed
from torch import Tensor, nn
from torch.optim import Optimizer

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.config.validation import target_config
from cifar_pipeline.training.checkpoints import RunDir
from cifar_pipeline.training.compiled import step
from cifar_pipeline.training.compiled.engine import Engine, select_engine
from cifar_pipeline.training.compiled.step import CompiledSteps, make_capturable
from cifar_pipeline.training.setup import TrainingSetup, build_datamodule, build_module, build_optimizer_config
from cifar_pipeline.training.trainer import fit
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import ROOT, options_of

STEPS, PER_BLOCK, BATCH, CLASSES = 200, 5, 4, 3


class Small(nn.Module):
    """A convolution, a bias and a matrix: parameters of each shape, quick to trace."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.tanh(self.conv(images.permute(0, 3, 1, 2).double() / 255))
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


def make(optimizer: str, device: str = "cpu") -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    net = Small().double().to(device)
    config = build_optimizer_config(OmegaConf.load(ROOT / "conf" / "optimizer" / f"{optimizer}.yaml"))
    return net, config.build(net.parameters())


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (STEPS, BATCH, 6, 6, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, CLASSES, (STEPS, BATCH), generator=generator)


def eager_steps(net: nn.Module, loss: nn.Module, optimizer: Optimizer, images: Tensor, labels: Tensor) -> float:
    total = 0.0
    for step_images, step_labels in zip(images, labels, strict=True):
        optimizer.zero_grad()
        value = loss(net(step_images), step_labels)
        value.backward()
        optimizer.step()
        total += float(value.detach())
    return total


@pytest.mark.parametrize(
    ("optimizer", "loss"),
    [
        *((name, "cross_entropy") for name in options_of("optimizer", own=True)),
        *(("sgd", name) for name in options_of("loss", own=True)),
    ],
)
def test_two_hundred_compiled_steps_are_the_eager_steps(
    optimizer: str, loss: str, data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the traced graph is compared; compilation by inductor is tested below.
    monkeypatch.setattr(step, "compile_graph", lambda graph, arguments: graph)
    images, labels = data
    criterion = instantiate(target_config(OmegaConf.load(ROOT / "conf" / "loss" / f"{loss}.yaml"), "loss"))
    expected, stepper = make(optimizer)
    total = eager_steps(expected, criterion, stepper, images, labels)

    net, chosen = make(optimizer)
    summed = eager_steps(net, criterion, chosen, images[:PER_BLOCK], labels[:PER_BLOCK])
    compiled_steps = CompiledSteps(net, criterion, chosen, PER_BLOCK)
    lrs = torch.tensor([[group["lr"] for group in chosen.param_groups]] * STEPS, dtype=torch.float64)
    for rows in (slice(PER_BLOCK, 2 * PER_BLOCK), slice(2 * PER_BLOCK, STEPS)):
        summed += float(compiled_steps(images[rows], labels[rows], lrs[rows])[0])

    # Adam's step counter is a float32 tensor; Muon multiplies its matrices in bfloat16.
    relative, absolute = (1e-4, 5e-2) if optimizer in ("muon", "normed_muon") else (1e-7, 1e-5)
    assert summed == pytest.approx(total, rel=relative)
    for actual, desired in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(actual, desired, rtol=0, atol=absolute)


@pytest.mark.parametrize("optimizer", options_of("optimizer", own=True))
def test_a_compiled_step_never_synchronizes_a_gpu(
    optimizer: str, data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a GPU: let the optimizers accept `capturable` on a CPU.
    monkeypatch.setattr("timm.optim._helpers._get_capturable_supported_devices", lambda **_: ["cpu"])
    images, labels = data
    net, chosen = make(optimizer)
    eager_steps(net, nn.CrossEntropyLoss(), chosen, images[:1], labels[:1])
    make_capturable(chosen)
    compiled_steps = CompiledSteps(net, nn.CrossEntropyLoss(), chosen, 1)
    compiled_steps.device = "cuda"
    lrs = torch.tensor([[group["lr"] for group in chosen.param_groups]])
    with torch.no_grad():
        graph, _ = compiled_steps.trace(images[:1], labels[:1], lrs)
    synchronizing = [str(node.target) for node in graph.graph.nodes if "local_scalar" in str(node.target)]
    assert not synchronizing


# The others multiply in bfloat16, which amplifies rounding errors.
EXACT = [name for name in options_of("optimizer", own=True) if name not in ("muon", "normed_muon")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU, and this machine has none")
@pytest.mark.parametrize("optimizer", EXACT)
def test_two_hundred_steps_in_cuda_graphs_are_the_eager_steps(optimizer: str, data: tuple[Tensor, Tensor]) -> None:
    images, labels = (values.cuda() for values in data)
    criterion = nn.CrossEntropyLoss()
    (expected, stepper), (net, chosen) = (make(optimizer, "cuda") for _ in range(2))
    total = eager_steps(expected, criterion, stepper, images, labels)
    summed = eager_steps(net, criterion, chosen, images[:PER_BLOCK], labels[:PER_BLOCK])
    lrs = torch.tensor([[group["lr"] for group in chosen.param_groups]] * STEPS, device="cuda")
    rest = slice(PER_BLOCK, STEPS)
    summed += float(CompiledSteps(net, criterion, chosen, PER_BLOCK)(images[rest], labels[rest], lrs[rest])[0])
    assert summed == pytest.approx(total, rel=1e-5)
    for actual, desired in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(actual, desired, rtol=0, atol=1e-3)


@pytest.mark.parametrize("per_block", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_training_with_compiled_steps_equals_the_eager_training(
    project, digits, tmp_path: Path, per_block: int
) -> None:
    config = compose_config(
        ["data=digits", "trainer.max_epochs=2", "trainer.batch_size=16", "scheduler=cosine", "model=lenet"]
    )
    weights, rows = [], []
    for engine in (Engine("eager", "", 1, 0), Engine("compiled", "", per_block, 5)):
        folder = RunDir(tmp_path / engine.name)
        folder.path.mkdir()
        module, datamodule = build_module(config, digits, engine), build_datamodule(config, digits, engine)
        result = fit(TrainingSetup(module, datamodule, config.trainer, CPU, folder))
        assert (getattr(module, "compiled_steps", None) is not None) == engine.is_compiled
        weights.append([parameter.detach() for parameter in module.parameters()])
        rows.append(without_speed(result.rows))
        checkpoint = torch.load(folder.checkpoint("last"), weights_only=True)
        assert checkpoint["global_step"] == 2 * -(-digits.sizes["train"] // 16)
    for eager, compiled in zip(*weights, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    for eager, compiled in zip(*rows, strict=True):
        assert compiled == pytest.approx(eager, rel=1e-4)


class Untraceable(nn.CrossEntropyLoss):
    """A loss that reads the values of the labels, which do not exist while tracing."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        assert labels.numpy().min() >= 0
        return super().forward(logits, labels)


def test_a_step_that_cannot_be_traced_falls_back_to_eager_with_a_warning(
    project, digits, tmp_path: Path, capsys
) -> None:
    config = compose_config(["data=digits", "trainer.max_epochs=1", "trainer.batch_size=16"])
    engine = Engine("compiled", "", 2, 5)
    folder = RunDir(tmp_path / "untraceable")
    folder.path.mkdir()
    module, datamodule = build_module(config, digits, engine), build_datamodule(config, digits, engine)
    module.loss = Untraceable()
    assert len(fit(TrainingSetup(module, datamodule, config.trainer, CPU, folder)).rows) == 1
    assert "falling back to eager mode" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "name", "reason"),
    [
        ([], "compiled", "125,000 steps"),
        (["trainer.max_epochs=1"], "compiled", "12,500 steps"),
        (["trainer.max_epochs=1", "trainer.batch_size=8"], "eager", "6,250 steps are too few"),
        (["trainer.batch_size=64", "trainer.max_epochs=1000"], "eager", "gain nothing"),
        (["trainer.gradient_clip_val=1"], "eager", "eager engine"),
        (["optimizer=gradient_descent"], "eager", "accumulates"),
        (["weight_averaging=ema"], "eager", "averaging"),
        (["trainer.micro_batch_size=2"], "eager", "eager engine"),
        (["runtime.engine=eager"], "eager", "requested"),
        (["runtime.engine=compiled", "trainer.max_epochs=1"], "compiled", "requested"),
    ],
)
def test_auto_selects_the_engine_that_pays_off_and_gives_the_reason(
    project, settings: list[str], name: str, reason: str
) -> None:
    engine = select_engine(compose_config(settings), CPU, train_images=50_000)
    assert (engine.name, reason in engine.reason) == (name, True), engine


def test_the_compiled_engine_without_a_compiler_is_refused_or_skipped(project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert select_engine(compose_config(), CPU, 50_000).reason == "there is no C++ compiler"
    with pytest.raises(UserError, match=r"runtime\.engine=compiled .* C\+\+ compiler"):
        select_engine(compose_config(["runtime.engine=compiled"]), CPU, 50_000)
