"""Blocks take the same steps as stepping one by one does: for every optimizer and every loss of conf/."""

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
from cifar_pipeline.training.compiled import step
from cifar_pipeline.training.compiled.engine import Engine, select_engine
from cifar_pipeline.training.compiled.step import CompiledSteps, make_capturable
from cifar_pipeline.training.optimizers import build_optimizer_config
from cifar_pipeline.training.run_dir import RunDir
from cifar_pipeline.training.trainer import TrainingSetup, build_datamodule, build_module, fit
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import ROOT, options_of

STEPS, PER_BLOCK, BATCH, CLASSES = 200, 5, 4, 3


class Small(nn.Module):
    """A convolution, a bias and a matrix: a parameter of each kind, quick to trace."""

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
    chosen = build_optimizer_config(OmegaConf.load(ROOT / "conf" / "optimizer" / f"{optimizer}.yaml"))
    return net, chosen.build(net.parameters())


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (STEPS, BATCH, 6, 6, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, CLASSES, (STEPS, BATCH), generator=generator)


def one_by_one(net: nn.Module, loss: nn.Module, optimizer: Optimizer, images: Tensor, labels: Tensor) -> float:
    total = 0.0
    for pictures, truth in zip(images, labels, strict=True):
        optimizer.zero_grad()
        value = loss(net(pictures), truth)
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
def test_two_hundred_steps_in_blocks_are_the_steps_one_by_one(
    optimizer: str, loss: str, data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is compared is what was traced; that inductor compiles it rightly is tested once, below.
    monkeypatch.setattr(step, "compile_graph", lambda graph, arguments: graph)
    images, labels = data
    criterion = instantiate(target_config(OmegaConf.load(ROOT / "conf" / "loss" / f"{loss}.yaml"), "loss"))
    expected, stepper = make(optimizer)
    total = one_by_one(expected, criterion, stepper, images, labels)

    net, chosen = make(optimizer)
    summed = one_by_one(net, criterion, chosen, images[:PER_BLOCK], labels[:PER_BLOCK])
    block = CompiledSteps(net, criterion, chosen, PER_BLOCK)
    lrs = torch.tensor([[group["lr"] for group in chosen.param_groups]] * STEPS, dtype=torch.float64)
    for part in (slice(PER_BLOCK, 2 * PER_BLOCK), slice(2 * PER_BLOCK, STEPS)):
        summed += float(block(images[part], labels[part], lrs[part])[0])

    # Adam's step counter is a float32 tensor; Muon multiplies its matrices in bfloat16.
    relative, absolute = (1e-4, 5e-2) if optimizer in ("muon", "normed_muon") else (1e-7, 1e-5)
    assert summed == pytest.approx(total, rel=relative)
    for mine, theirs in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=absolute)


@pytest.mark.parametrize("optimizer", options_of("optimizer", own=True))
def test_a_step_asks_a_gpu_for_no_number_because_a_recording_would_know_only_the_first(
    optimizer: str, data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Here there is no GPU, so that the optimizers are told that what only a GPU can do is done by a CPU.
    monkeypatch.setattr("timm.optim._helpers._get_capturable_supported_devices", lambda **_: ["cpu"])
    images, labels = data
    net, chosen = make(optimizer)
    one_by_one(net, nn.CrossEntropyLoss(), chosen, images[:1], labels[:1])
    make_capturable(chosen)
    block = CompiledSteps(net, nn.CrossEntropyLoss(), chosen, 1)
    block.device = "cuda"
    lrs = torch.tensor([[group["lr"] for group in chosen.param_groups]])
    with torch.no_grad():
        graph, _ = block.trace(images[:1], labels[:1], lrs)
    asked = [str(node.target) for node in graph.graph.nodes if "local_scalar" in str(node.target)]
    assert not asked


# The others multiply in bfloat16, and make much of its rounding.
EXACT = [name for name in options_of("optimizer", own=True) if name not in ("muon", "normed_muon")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU, and this machine has none")
@pytest.mark.parametrize("optimizer", EXACT)
def test_two_hundred_steps_in_cuda_graphs_are_the_steps_one_by_one(optimizer: str, data: tuple[Tensor, Tensor]) -> None:
    images, labels = (values.cuda() for values in data)
    criterion = nn.CrossEntropyLoss()
    (expected, stepper), (net, chosen) = (make(optimizer, "cuda") for _ in range(2))
    total = one_by_one(expected, criterion, stepper, images, labels)
    summed = one_by_one(net, criterion, chosen, images[:PER_BLOCK], labels[:PER_BLOCK])
    lrs = torch.tensor([[group["lr"] for group in chosen.param_groups]] * STEPS, device="cuda")
    rest = slice(PER_BLOCK, STEPS)
    summed += float(CompiledSteps(net, criterion, chosen, PER_BLOCK)(images[rest], labels[rest], lrs[rest])[0])
    assert summed == pytest.approx(total, rel=1e-5)
    for mine, theirs in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("per_block", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_training_in_compiled_blocks_is_the_training_one_by_one(
    project, digits, tmp_path: Path, per_block: int
) -> None:
    config = compose_config(
        ["data=digits", "trainer.max_epochs=2", "trainer.batch_size=16", "scheduler=cosine", "model=lenet"]
    )
    weights, rows = [], []
    for engine in (Engine("eager", "", 1, 0), Engine("compiled", "", per_block, 5)):
        folder = RunDir(tmp_path / engine.name)
        folder.path.mkdir()
        module, pictures = build_module(config, digits, engine), build_datamodule(config, digits, engine)
        fitted = fit(TrainingSetup(module, pictures, config.trainer, CPU, folder), None)
        assert (getattr(module, "compiled_steps", None) is not None) == engine.is_compiled
        weights.append([parameter.detach() for parameter in module.parameters()])
        rows.append(without_speed(fitted.rows))
        checkpoint = torch.load(folder.checkpoint("last"), weights_only=True)
        assert checkpoint["global_step"] == 2 * -(-digits.sizes["train"] // 16)
    for plain, block in zip(*weights, strict=True):
        torch.testing.assert_close(block, plain, rtol=1e-4, atol=1e-5)
    for plain, block in zip(*rows, strict=True):
        assert block == pytest.approx(plain, rel=1e-4)


class Picky(nn.CrossEntropyLoss):
    """Looks at the labels' values, which nothing that traces has."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        assert labels.numpy().min() >= 0
        return super().forward(logits, labels)


def test_what_cannot_be_traced_is_stepped_one_by_one_and_says_so(project, digits, tmp_path: Path, capsys) -> None:
    config = compose_config(["data=digits", "trainer.max_epochs=1", "trainer.batch_size=16"])
    engine = Engine("compiled", "", 2, 5)
    folder = RunDir(tmp_path / "picky")
    folder.path.mkdir()
    module, pictures = build_module(config, digits, engine), build_datamodule(config, digits, engine)
    module.loss = Picky()
    assert len(fit(TrainingSetup(module, pictures, config.trainer, CPU, folder), None).rows) == 1
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
def test_auto_picks_the_engine_that_pays_and_says_why(project, settings: list[str], name: str, reason: str) -> None:
    engine = select_engine(compose_config(settings), CPU, train_images=50_000)
    assert (engine.name, reason in engine.reason) == (name, True), engine


def test_blocks_that_cannot_be_had_are_refused_or_passed_over(project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert select_engine(compose_config(), CPU, 50_000).reason == "there is no C++ compiler"
    with pytest.raises(UserError, match=r"runtime\.engine=compiled .* C\+\+ compiler"):
        select_engine(compose_config(["runtime.engine=compiled"]), CPU, 50_000)
