"""Each trial of a sweep gets a GPU of the machine, or its share of one, and gives it back. The GPUs are pretended."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from sweep_runs import in_order, the_sweep, trained

from cifar_pipeline.sweeps.devices import GpuPool, lock_dir, visible_gpus
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project
from helpers.parameters import some_of
from helpers.workspace import Workspace

Take = Callable[..., AbstractContextManager[list[str]]]
TWO_GPUS = "GPU 0: NVIDIA H100 (UUID: GPU-aa1)\nGPU 1: NVIDIA H100 (UUID: GPU-bb2)\n"
MIG = f"{TWO_GPUS}  MIG 3g.40gb     Device  0: (UUID: MIG-c3)\n  MIG 3g.40gb     Device  1: (UUID: MIG-d4)\n"
RECORDING = """

class Recording(CrossEntropyLoss):
    \"\"\"Record the process, its GPU, and the time; the first process kills itself if a file asks for it.\"\"\"
    def forward(self, *inputs):
        time.sleep(0.02)
        with Path("gpus.txt").open("a") as file:
            file.write(f"{time.monotonic()} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
        if Path("kill").exists():
            Path("kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(*inputs)
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that pretends that the driver lists these GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def pretend(listed: str) -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\ncat <<END\n{listed}END\n" if listed else "#!/bin/sh\nexit 9\n")
        script.chmod(0o755)

    return pretend


@pytest.fixture
def take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Take:
    """Return a function that takes a share of some GPUs, two unless said otherwise, as in a new process."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # assigned below, and restored

    def take(share: float, gpus: str = "01") -> AbstractContextManager[list[str]]:
        monkeypatch.setattr("cifar_pipeline.sweeps.devices._own_gpus", ())
        return GpuPool({gpu: f"GPU-{gpu}" for gpu in gpus}, share, tmp_path / "locks").assign()

    return take


@pytest.mark.parametrize(
    ("listed", "variable", "expected"),
    [
        ("", None, {}),
        (TWO_GPUS, None, {"0": "GPU-aa1", "1": "GPU-bb2"}),
        (TWO_GPUS, "1", {"1": "GPU-bb2"}),
        (TWO_GPUS, "GPU-bb, 0", {"GPU-bb": "GPU-bb2", "0": "GPU-aa1"}),
        (TWO_GPUS, "1,2,0", {"1": "GPU-bb2"}),
        (MIG, None, {"0": "GPU-aa1", "MIG-c3": "MIG-c3", "MIG-d4": "MIG-d4"}),
        (MIG, "MIG-d4", {"MIG-d4": "MIG-d4"}),
        ("", "0,3", {"0": "0", "3": "3"}),
        (TWO_GPUS, "", {}),
        (TWO_GPUS, "-1", {}),
        (TWO_GPUS, "0,-1,1", {"0": "GPU-aa1"}),
        (TWO_GPUS, "NoDevFiles", {}),
    ],
)
def test_the_gpus_are_those_that_cuda_would_use(
    driver: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    listed: str,
    variable: str | None,
    expected: dict[str, str],
) -> None:
    driver(listed)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == expected


@pytest.mark.parametrize(("share", "expected"), [(1.0, "01"), (0.5, "0101"), (0.3, "010101"), (0.7, "01")])
def test_trials_are_spread_over_the_gpus_up_to_their_shares(
    take: Take,
    share: float,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert GpuPool({"0": "0", "1": "1"}, share, Path()).max_trials == len(expected)
    waited: list[float] = []
    with ExitStack() as stack:
        assert "".join(stack.enter_context(take(share))[0] for _ in expected) == expected
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
        # While another one waits, all of them end.
        monkeypatch.setattr("time.sleep", lambda seconds: waited.append(seconds) or stack.close())
        with take(share) as gpu:
            assert gpu == ["0"] and waited


def test_a_trial_takes_several_whole_gpus(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    assert GpuPool(dict.fromkeys("01234", ""), 2, Path()).max_trials == 2
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", lambda seconds: waited.append(seconds) or stack.close())
    with take(0.5, "0") as half, ExitStack() as stack:
        assert half == ["0"]
        assert stack.enter_context(take(2, "01234")) == ["1", "2"]  # not the half used one
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"
        assert stack.enter_context(take(2, "01234")) == ["3", "4"] and not waited
        with take(2, "01234") as gpus:
            assert gpus == ["1", "2"] and waited


def test_a_process_keeps_its_gpus_also_if_fewer_are_asked_for(take: Take, tmp_path: Path) -> None:
    with take(1, "0"), take(2, "0123") as own:
        assert own == ["1", "2"]
    with GpuPool({gpu: f"GPU-{gpu}" for gpu in "0123"}, 2, tmp_path / "locks").assign() as again:
        assert again == own  # although 0 is free, and the first one


def test_sweeps_with_different_shares_never_use_more_than_a_gpu(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", lambda seconds: waited.append(seconds) or stack.close())
    with ExitStack() as stack:
        assert [stack.enter_context(take(share)) for share in (0.5, 1.0, 0.25, 0.25)] == [[*gpu] for gpu in "0100"]
        assert not waited
        with take(0.25):
            assert waited


def test_a_process_keeps_its_gpu_because_cuda_reads_the_variable_once(take: Take, tmp_path: Path) -> None:
    with take(0.5), take(0.5) as own:
        pass
    again = GpuPool({"0": "GPU-0", "1": "GPU-1"}, 1.0, tmp_path / "locks").assign()
    with again as gpu:
        assert gpu == own == ["1"]  # although 0 is free, and the first one


HOLD = (
    "from cifar_pipeline.sweeps.devices import *\n"
    "with GpuPool(visible_gpus(), float(sys.argv[1]), lock_dir()).assign() as gpu:\n"
    "    print(*gpu, flush=True)\n"
    "    sys.stdin.read()\n"
)


def hold(cwd: Path, share: float = 1.0) -> "subprocess.Popen[str]":
    """Take a GPU in another process until its standard input is closed."""
    cwd.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(share)], cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_killed_process_of_another_workspace_gives_its_gpu_back(
    driver: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(TWO_GPUS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    processes = [hold(tmp_path / "one"), hold(tmp_path / "two")]
    try:
        assert {process.stdout.readline() for process in processes if process.stdout} == {"0\n", "1\n"}
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb2")
        waiting = hold(tmp_path / "three")
        processes.append(waiting)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(3)
        for process in processes[:2]:
            process.kill()
        assert waiting.stdout and waiting.stdout.readline() == "GPU-bb2\n"
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_folder_that_is_not_writable_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"gpus.* is not writable .*set XDG_CACHE_HOME to a folder that is\.$"):
        GpuPool({"0": "0"}, 1.0, lock_dir()).assign().__enter__()


@pytest.mark.parametrize("share", some_of(["0", "-0.5", "1.5", "-2", "all", "null"], 0, 2, -1))
def test_a_share_that_no_trial_can_use_is_refused_before_the_sweep(project: Project, share: str) -> None:
    outcome = project.start(train, "-m", "seed=0,1", f"runtime.gpus_per_trial={share}")
    outcome.assert_refused("runtime.gpus_per_trial", "a whole number of GPUs of at least 1, or a fraction of one")


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (("runtime.gpus_per_trial=3",), ("runtime.gpus_per_trial=3", "sees 2 GPUs")),
        (("trainer.devices=2",), ("trainer.devices=2", "each trial gets 1 GPU: set runtime.gpus_per_trial=2")),
        (("runtime.gpus_per_trial=2", "trainer.devices=1"), ("gets 2 GPUs: set runtime.gpus_per_trial=1",)),
        (("trainer.devices=1,2",), ("trainer.devices does not change a training's result", "one value")),
        (("trainer.num_nodes=2",), ("trainer.num_nodes=2", "on one machine")),
    ],
)
def test_a_number_of_processes_that_does_not_fit_the_gpus_is_refused_before_the_sweep(
    driver: Callable[[str], None], project: Project, overrides: tuple[str, ...], fragments: tuple[str, ...]
) -> None:
    driver(TWO_GPUS)
    project.start(train, "-m", "seed=0,1", *overrides).assert_refused(*fragments)


def test_shares_that_differ_between_trials_are_refused_before_the_sweep(project: Project) -> None:
    project.start(train, "-m", "runtime.gpus_per_trial=1,0.5").assert_refused("runtime.gpus_per_trial", "one value")


def train(config: Any) -> None:
    """Stand for the stage, which must not start."""
    raise AssertionError


def sweep(workspace: Workspace, gpus: str, *overrides: str, code: int = 0) -> tuple[str, list[tuple[float, str, str]]]:
    """Run a sweep with pretended GPUs; return its output, and time, process and GPU of each step."""
    if RECORDING not in workspace.read("src/own.py"):
        workspace.write("src/own.py", workspace.read("src/own.py") + RECORDING)
    option = "_target_: own.Recording\noutput_activation: softmax\n"
    (workspace.root / "conf" / "loss" / "recording.yaml").write_text(option)
    command = ("env", f"CUDA_VISIBLE_DEVICES={gpus}", f"XDG_CACHE_HOME={workspace.root / 'cache'}", "python")
    output = workspace.run(*command, "src/train.py", "-m", "loss=recording", *overrides, code=code)
    steps = [line.split() for line in workspace.read("gpus.txt").splitlines()]
    return output, sorted((float(seconds), process, gpu) for seconds, process, gpu in steps)


def most_at_a_time(steps: list[tuple[float, str, str]]) -> int:
    """Return the largest number of processes that ran between the first and the last step of one of them."""
    spans = {process: [time for time, other, _ in steps if other == process] for _, process, _ in steps}
    return max(sum(min(times) <= start <= max(times) for times in spans.values()) for start in map(min, spans.values()))


def assigned(workspace: Workspace, output: str) -> list[str]:
    """Return the GPU of each trial, by number, which its first line and its run name."""
    tags = [run.data.tags["gpu"] for run in in_order(workspace, the_sweep(workspace))]
    lines = dict(re.findall(r"^\[(\d+)\] Trial .* \(GPUs? (.+)\)$", output, re.MULTILINE))
    assert tags == [lines[str(number)].replace(" ", "") for number in range(len(tags))]
    return tags


def scenario_submitit(workspace: Workspace) -> tuple[Workspace, str, list[tuple[float, str, str]]]:
    return workspace, *sweep(workspace, "4,7", "launcher=submitit_local", "seed=0,1,2")


@pytest.mark.long
def test_trials_of_submitit_wait_for_a_gpu(outcome: Callable[..., Any]) -> None:
    workspace, _, steps = outcome(scenario_submitit)
    logs = "".join(path.read_text() for path in sorted((workspace.root / "multirun").rglob("*_log.out")))
    assert logs.count("Waiting for a GPU: other trials use 4, 7") == 1
    assert sorted(assigned(workspace, logs)) in (["4", "4", "7"], ["4", "7", "7"])
    for gpu in "47":
        assert most_at_a_time([step for step in steps if step[2] == gpu]) == 1
    assert {gpu for _, _, gpu in steps} == {"4", "7"} and len({process for _, process, _ in steps}) == 3


def scenario_halves(workspace: Workspace) -> tuple[Workspace, str, list[tuple[float, str, str]]]:
    overrides = ("launcher=joblib", "hydra.launcher.n_jobs=5", "seed=range(6)", "runtime.gpus_per_trial=0.5")
    return workspace, *sweep(workspace, "0,1", *overrides)


@pytest.mark.long
def test_two_trials_of_joblib_share_each_gpu(outcome: Callable[..., Any]) -> None:
    workspace, output, steps = outcome(scenario_halves)
    assert "Trials at a time: 4 instead of 5, on 2 GPUs; runtime.gpus_per_trial=0.33 fits 5." in output
    assert len({process for _, process, _ in steps}) == 4 and sorted(trained(output)) == list(range(6))
    for gpu in "01":
        on_it = [step for step in steps if step[2] == gpu]
        assert len({process for _, process, _ in on_it}) == 2 and most_at_a_time(on_it) <= 2
    assert sorted(set(assigned(workspace, output))) == ["0", "1"]


def scenario_killed(workspace: Workspace) -> tuple[Workspace, str, list[tuple[float, str, str]]]:
    """Two trials on two GPUs, of which one is killed, and with it joblib's sweep; then the same command."""
    (workspace.root / "kill").touch()
    sweep(workspace, "0,1", "launcher=joblib", "seed=0,1", code=1)
    (workspace.root / "gpus.txt").unlink()
    return workspace, *sweep(workspace, "0,1", "launcher=joblib", "seed=0,1")


@pytest.mark.long
def test_a_killed_sweep_leaves_its_gpus_to_the_same_command(outcome: Callable[..., Any]) -> None:
    workspace, output, steps = outcome(scenario_killed)
    assert {gpu for _, _, gpu in steps} == {"0", "1"} and sorted(assigned(workspace, output)) == ["0", "1"]


def scenario_one_after_another(workspace: Workspace) -> tuple[Workspace, str, list[tuple[float, str, str]]]:
    return workspace, *sweep(workspace, "3,5", "seed=0,1")


@pytest.mark.long
def test_trials_without_a_launcher_use_one_gpu_and_are_told_how_to_use_all(outcome: Callable[..., Any]) -> None:
    workspace, output, steps = outcome(scenario_one_after_another)
    assert "Trials at a time: 1, on 2 GPUs; launcher=joblib hydra.launcher.n_jobs=2 uses all of them." in output
    assert {gpu for _, _, gpu in steps} == {"3"} and assigned(workspace, output) == ["3", "3"]


def scenario_cpu(workspace: Workspace) -> tuple[Workspace, str, list[tuple[float, str, str]]]:
    return workspace, *sweep(workspace, "0,1", "launcher=joblib", "seed=0,1", "runtime.accelerator=cpu")


@pytest.mark.long
def test_trials_on_a_cpu_take_no_gpu(outcome: Callable[..., Any]) -> None:
    workspace, output, steps = outcome(scenario_cpu)
    assert {gpu for _, _, gpu in steps} == {"0,1"} and "GPU" not in output
    assert not (workspace.root / "cache" / "cifar-pipeline").exists()
    assert not any("gpu" in run.data.tags for run in in_order(workspace, the_sweep(workspace)))
