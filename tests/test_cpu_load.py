"""The load that other processes make is measured without that of this process; OpenMP's threads spin less."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from cifar_pipeline.utils import cpu_load
from cifar_pipeline.utils.cpu_load import CpuTimes, LoadMeter

BUSY_LOOP = "while True: pass"


@pytest.fixture
def busy_process() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", BUSY_LOOP])
    yield process
    process.kill()
    process.wait()


def system_and_own_seconds(seconds: float, works: bool) -> tuple[float, float]:
    """Return how much the times of the system and of this process grow while it works or sleeps."""
    start = CpuTimes.now()
    while works and time.perf_counter() - start.clock < seconds:
        sum(range(1000))
    time.sleep(0 if works else seconds)
    end = CpuTimes.now()
    return end.system - start.system, end.own - start.own


def test_the_work_of_another_process_is_load(busy_process: "subprocess.Popen[bytes]") -> None:
    meter, process = LoadMeter(), psutil.Process(busy_process.pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(1)
    used = (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - meter.start.clock)
    assert meter.busy_cores() >= used - 0.15


def test_the_work_of_this_process_is_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    _, own = system_and_own_seconds(0.5, works=True)
    _, idle = system_and_own_seconds(0.5, works=False)
    assert own > 0.1 > idle
    times = iter([CpuTimes(0.0, 100.0, 10.0), CpuTimes(2.0, 105.0, 12.0)])
    monkeypatch.setattr(CpuTimes, "now", lambda: next(times))
    monkeypatch.setattr(cpu_load.time, "perf_counter", lambda: 2.0)
    # Of five seconds of work within two seconds, two were this process's own.
    assert LoadMeter().busy_cores() == 1.5


def test_a_short_interval_is_extended() -> None:
    meter = LoadMeter()
    meter.busy_cores()
    assert time.perf_counter() - meter.start.clock >= cpu_load.MIN_SECONDS


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_the_spin_count_is_set_before_torch_is_imported_unless_the_user_sets_it(
    variables: dict[str, str], expected: str
) -> None:
    code = (
        "import os, sys, cifar_pipeline.cli.entrypoint\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    cleaned = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    process = subprocess.run(
        [sys.executable, "-c", code], env={**cleaned, **variables}, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == expected
