"""Selection of accelerator, threads and precision; unavailable hardware is refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.models.build import build_untrained_model
from cifar_pipeline.training import hardware
from cifar_pipeline.training.distributed import DistributedContext
from cifar_pipeline.training.hardware import Hardware, select_hardware
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project


def test_a_requested_number_of_threads_is_used(project: Project) -> None:
    config = project.compose("runtime.threads=1", "runtime.accelerator=cpu")
    hardware = select_hardware(config.runtime, config.precision, cores=3, images=1000)
    assert (hardware.threads, torch.get_num_threads()) == (1, 1)
    assert str(hardware) == "cpu, 1 thread (requested), precision 32-true"


@pytest.mark.parametrize(
    ("capability", "name"), [("AVX512", "abacus (AVX512)"), ("AVX2", "abacus (AVX2)"), ("DEFAULT", "abacus")]
)
def test_the_processor_is_named_with_its_instruction_set(
    monkeypatch: pytest.MonkeyPatch, capability: str, name: str
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(hardware, "_processor_model", lambda: "abacus")
    assert hardware.processor_name() == name


class Load:
    """A meter that reads what it was given."""

    def __init__(self, busy: float) -> None:
        self.busy = busy

    def busy_cores(self) -> float:
        return self.busy


@pytest.fixture
def selected(project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hardware]:
    """Return a function that selects the threads of a step of `images` on four cores, beside some busy processes."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(hardware, "allowed_cores", lambda: 4)
    config = project.compose("runtime.accelerator=cpu", "precision=fp32", "runtime.min_images_per_thread=16")

    def select(busy: float, images: int = 1000, cores: int = 4, **options: Any) -> Hardware:
        monkeypatch.setattr(hardware, "load_meter", lambda: Load(busy))
        return select_hardware(config.runtime, config.precision, cores=cores, images=images, **options)

    return select


@pytest.mark.parametrize(("busy", "threads"), [(0.0, 4), (0.4, 4), (0.6, 3), (1.2, 3), (2.0, 2), (3.9, 1), (9.0, 1)])
def test_cores_that_other_processes_keep_busy_are_left_to_them(
    selected: Callable[..., Hardware], busy: float, threads: int
) -> None:
    chosen = selected(busy)
    assert (chosen.threads, torch.get_num_threads()) == (threads, threads)
    assert (f"other processes keep {busy:.1f} of 4 cores busy" in str(chosen)) is (threads < 4)


def test_a_small_step_or_a_share_of_the_cores_is_not_reduced_further(selected: Callable[..., Hardware]) -> None:
    assert selected(2.0, images=33).threads == 2 and "busy" not in str(selected(2.0, images=33))
    # A job of a sweep that may use one of the four cores, beside three other jobs.
    assert selected(3.0, cores=1).threads == 1 and "busy" not in str(selected(3.0, cores=1))


def test_a_resumed_training_keeps_its_threads(selected: Callable[..., Hardware]) -> None:
    assert selected(0.0, resumed_threads=1).threads == 1
    assert selected(9.0, resumed_threads=3).threads == 3


def test_omp_num_threads_limits_the_threads(selected: Callable[..., Hardware], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert selected(9.0).threads == 2 and "OMP_NUM_THREADS=2" in str(selected(9.0))
    assert selected(0.0, resumed_threads=4).threads == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert selected(9.0).threads == 4 and "OMP_NUM_THREADS" not in str(selected(9.0))


def test_ranks_do_not_count_each_other(selected: Callable[..., Hardware]) -> None:
    ranks = DistributedContext(local_world_size=2)
    assert selected(2.0, distributed=ranks).threads == 2


def test_single_precision_turns_tf32_off_for_convolutions(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    config = project.compose("precision=fp32")
    assert select_hardware(config.runtime, config.precision, cores=3, images=1000).precision == "32-true"
    assert not torch.backends.cudnn.allow_tf32


def test_a_precision_that_the_accelerator_does_not_support_is_refused(project: Project) -> None:
    config = project.compose("precision.cpu=16-mixed", "runtime.accelerator=cpu")
    with pytest.raises(
        UserError, match=r"precision\.cpu=16-mixed is not supported: .* use precision\.cpu=bf16-mixed, or"
    ):
        select_hardware(config.runtime, config.precision, cores=3, images=1000)


@pytest.mark.parametrize("name", ["cuda", "gpu", "mps", "cudda"])
def test_an_unavailable_accelerator_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    config = project.compose(f"runtime.accelerator={name}")
    with pytest.raises(
        UserError, match=rf"runtime\.accelerator={name}: this machine has cpu; use runtime\.accelerator=auto"
    ):
        select_hardware(config.runtime, config.precision, cores=3, images=1000)


def test_auto_selects_a_gpu_if_available_and_its_precision(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(hardware, "load_meter", lambda: Load(0.0))
    monkeypatch.setattr(hardware, "allowed_cores", lambda: 3)
    config = project.compose("precision=auto")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpu = select_hardware(config.runtime, config.precision, cores=3, images=1000)
    assert (cpu.accelerator, cpu.precision, cpu.threads) == ("cpu", "32-true", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = select_hardware(config.runtime, config.precision, cores=3, images=1000)
    assert (gpu.accelerator, gpu.precision) == ("cuda", "bf16-mixed")


def test_a_gpu_that_torch_cannot_use_is_reported_with_the_reason(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def broken() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(torch.cuda, "init", broken)
    config = project.compose("runtime.threads=1")
    options = {"cores": 3, "images": 1000}
    monkeypatch.setattr(hardware, "NVIDIA_DRIVER_GPUS", tmp_path / "gpus")
    assert select_hardware(config.runtime, config.precision, **options).reason == "no GPU found"
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    for _ in range(2):
        assert select_hardware(config.runtime, config.precision, **options).reason == "GPU unusable"
    warnings = capsys.readouterr().err
    assert warnings.count("\n") == 1 and "torch cannot use it (The NVIDIA driver on your system is too old" in warnings
    requested = project.compose("runtime.accelerator=gpu")
    with pytest.raises(UserError, match=r"has cpu \(and an NVIDIA GPU that torch cannot use: The NVIDIA driver"):
        select_hardware(requested.runtime, requested.precision, **options)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert select_hardware(config.runtime, config.precision, **options).reason == "no GPU found"


UNITS = {"avx512_bf16": True, "amx_bf16": False}


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(64, 64, 3, groups=64), nn.Linear(3000, 3000))


def dense() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.Linear(3000, 3000))


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.Linear(300, 300))


def own_values() -> nn.Module:
    """A network that reads values of its weights when it is built, which is impossible without memory for them."""
    layer = nn.Linear(3000, 3000)
    assert float(layer.weight.detach().sum()) != 1e9
    return layer


@pytest.mark.parametrize(
    ("network", "units", "expected"),
    [
        (grouped, UNITS, "32-true"),
        (dense, UNITS, "bf16-mixed"),
        (dense, {"avx512_bf16": False, "amx_bf16": True}, "bf16-mixed"),
        (dense, {"avx512_bf16": False, "amx_bf16": False}, "32-true"),
        (dense, {}, "32-true"),
        (small, UNITS, "32-true"),
        (own_values, UNITS, "32-true"),
        (None, UNITS, "32-true"),
    ],
)
def test_a_processor_with_units_for_bfloat16_uses_it_where_it_is_faster(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    network: Callable[[], nn.Module] | None,
    units: dict[str, bool],
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    config = project.compose("runtime.accelerator=cpu", "precision=auto")
    selected = select_hardware(config.runtime, config.precision, cores=1, images=1000, network=network)
    assert (selected.precision, selected.features_in_bfloat16) == (expected, any(units.values()))


def test_the_precision_of_the_configuration_comes_before_the_rule(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: UNITS)
    for option, expected, features in (("fp32", "32-true", False), ("bf16", "bf16-mixed", True)):
        config = project.compose("runtime.accelerator=cpu", f"precision={option}")
        selected = select_hardware(config.runtime, config.precision, cores=1, images=1000, network=dense)
        assert (selected.precision, selected.features_in_bfloat16) == (expected, features)


def test_the_rule_needs_its_number_of_parameters(project: Project) -> None:
    config = project.compose("runtime.accelerator=cpu", "precision=fp32", "precision.cpu=auto")
    with pytest.raises(UserError, match=r"^precision\.cpu=auto also needs .*: choose precision=auto\.$"):
        select_hardware(config.runtime, config.precision, cores=1, images=1000, network=dense)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=lenet"], "32-true"),
        (["model=torchvision", "model.name=resnet18"], "bf16-mixed"),
        (["model=torchvision", "model.name=resnet18", "model.input_size=128"], "bf16-mixed"),
        (["model=timm", "model.name=efficientnet_b1"], "32-true"),
        (["model=timm", "model.name=resnet18", "precision.cpu_bf16_min_parameters=100000000"], "32-true"),
    ],
)
def test_the_rule_looks_at_the_configured_network(
    project: Project, digits: Dataset, monkeypatch: pytest.MonkeyPatch, overrides: list[str], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: UNITS)
    config = project.compose("precision=auto", *overrides)
    network = partial(build_untrained_model, config, digits, None)
    assert hardware.auto_precision(network, config.precision) == expected
