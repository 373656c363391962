"""Run commands one after another, measure time and memory, and write the table of results."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

START = time.perf_counter()
# Removed from the environment, so that each command runs as in a new shell.
REMOVED_PREFIXES = ("DVC_", "MLFLOW_", "OMP_", "GOMP_", "MKL_", "TORCH", "PYTHONPATH", "CIFAR10_SOURCE", "MAKE")
GIGABYTE = 10**9
PACKAGES = ("torch", "torchvision", "lightning", "mlflow", "dvc", "hydra-core", "jax")


class CommandFailed(Exception):
    """Raised when a measured command ends with an error."""


@dataclass(frozen=True)
class FinishedCommand:
    """A command that succeeded: seconds, peak memory of its largest process, output.

    `lines` holds each output line with the seconds after the start at which it was printed.
    """

    seconds: float
    peak_gigabytes: float
    output: str
    lines: Sequence[tuple[float, str]] = ()

    def result(self) -> dict[str, Any]:
        """Parse the JSON in the last line of the output."""
        result: dict[str, Any] = json.loads(self.output.splitlines()[-1])
        return result


@dataclass(frozen=True)
class Workspace:
    """A copy of the project and the environment variables of the commands that run in it."""

    root: Path
    variables: Mapping[str, str]

    def run(self, *words: str) -> FinishedCommand:
        """Run a command and measure it. Raises CommandFailed with the end of its output."""
        say(f"  {' '.join(words)}")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(REMOVED_PREFIXES)}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        ours = {"PATH": path, "PYTHONPATH": str(self.root / "src"), "PYTHONUTF8": "1", "COLUMNS": "200"}
        start = time.perf_counter()
        process = subprocess.Popen(
            words,
            cwd=self.root,
            env={**inherited, **ours, **self.variables, "BENCHMARK_START": repr(time.time())},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout
        lines = [(time.perf_counter() - start, line) for line in process.stdout]
        output = "".join(line for _, line in lines)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise CommandFailed(f"`{' '.join(words)}` ended with {process.returncode}: {output[-1500:]}")
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
        return FinishedCommand(seconds, usage.ru_maxrss * unit / GIGABYTE, output, lines)

    def run_script(self, name: str, *arguments: str) -> dict[str, Any]:
        """Run benchmarks/`name`.py and return its result."""
        result = self.run("python", f"benchmarks/{name}.py", *arguments).result()
        say("    " + "  ".join(f"{key} {_number(value)}" for key, value in result.items()))
        return result


def alternate(
    workspace: Workspace, scripts: Mapping[str, Sequence[str]], repetitions: int
) -> dict[str, list[dict[str, Any]]]:
    """Run `scripts` (name to arguments) alternately, A B A B, and return all results by name."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in scripts}
    for _ in range(repetitions):
        for name, arguments in scripts.items():
            results[name].append(workspace.run_script(name, *arguments))
    return results


def column(results: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """Return the value of `key` in every result."""
    return [float(result[key]) for result in results]


@dataclass(frozen=True)
class Row:
    """One row of the table. `theirs` is empty if the row has no baseline.

    `at_least` is the required speed-up over the baseline, `at_most` an upper limit for `ours`; without either the row
    has no target.
    """

    what: str
    unit: str = ""
    ours: Sequence[float] = ()
    theirs: Sequence[float] = ()
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""
    not_measured: str = ""

    @property
    def ratio(self) -> float | None:
        """Speed-up over the baseline."""
        if not self.theirs:
            return None
        ours, theirs = median(self.ours), median(self.theirs)
        return ours / theirs if self.unit.endswith("/s") else theirs / ours

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None if nothing was measured or there is no target."""
        if not self.ours or not self.target:
            return None
        if self.at_most is not None:
            return median(self.ours) <= self.at_most
        return self.ratio is not None and self.at_least is not None and self.ratio >= self.at_least

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g} {self.unit}" if self.at_most is not None else ""

    def cells(self) -> list[str]:
        """Format the row, without the note."""
        met = {True: "yes", False: "**no**", None: "" if self.ours else "not measured"}[self.is_met]
        ratio = f"{self.ratio:.2f}" if self.ratio is not None else ""
        return [self.what, _spread(self.ours, self.unit), _spread(self.theirs, self.unit), ratio, self.target, met]

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "met": self.is_met}


def machine() -> dict[str, Any]:
    """Describe the machine: processor with its instruction set, cores, system, load, package versions."""
    # Imported here: it imports Lightning, which takes seconds.
    from cifar_pipeline.training.hardware import processor_name

    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def report(head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Format the table as Markdown, with the machine above it and the notes below."""
    hardware = head["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in hardware["versions"].items() if number)
    lines = [
        "# Benchmarks",
        "",
        f"`{head['command']}` on {head['date']}, commit {head['commit']}, in {head['seconds']:.0f} s.",
        f"{hardware['processor']}, {hardware['cores']} cores, {hardware['system']}; load at the start "
        f"{hardware['load_at_start']}.",
        f"{versions}.",
        f"Data: {head['data']}.",
        "",
        "Medians [smallest - largest], each value from a process of its own, the sides in turn. Ratio: how many times "
        "as fast ours is.",
        "",
        "| what | ours | theirs | ratio | target | met |",
        "| --- | --- | --- | --- | --- | --- |",
        *("| " + " | ".join(row.cells()) + " |" for row in rows),
        "",
        "How each was measured:",
        "",
    ]
    lines += [f"- {row.what}: {row.not_measured or row.note}" for row in rows]
    return "\n".join(lines) + "\n"


def write_report(folder: Path, head: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write bench.json and bench.md."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {**head, "rows": [row.facts() for row in rows]}
    (folder / "bench.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(report(head, rows), encoding="utf-8")


def say(line: str) -> None:
    """Print a line, prefixed with the seconds since the start."""
    print(f"[{time.perf_counter() - START:4.0f} s] {line}", flush=True)


def _spread(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{_number(values[0])} {unit} (once)"
    return f"{_number(median(values))} {unit} [{_number(min(values))} - {_number(max(values))}]"


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
