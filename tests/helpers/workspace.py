"""Copy the project to its own folder, and run commands there as in a shell: offline, on the digits."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from cifar_pipeline.reporting.tables import read_rows
from cifar_pipeline.tracking.client import relocate
from helpers.fork_server import ADDRESS, ForkedProcess, command_folder, start_fork
from helpers.source_tree import EXPERIMENT, HANGS_AFTER, PUBLISHED, ROOT

EPOCHS = 3
STAGES = ["configure", "download", "preprocess", "train", "evaluate"]
# A port without a server: connections are refused at once, also with a network.
NOWHERE = "http://127.0.0.1:9/cifar-10-python.tar.gz"
PERSON = ("-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false")
# Variables that would make a command behave differently from the same command in a new shell.
UNSET_PREFIXES = (
    "DVC_",
    "MLFLOW_",
    "GIT_",
    "PYTEST_",
    "TESTS_",
    "PYTHONPATH",
    "PYTHONDONTWRITEBYTECODE",
    "CIFAR10_SOURCE",
)

# A loss slow enough for a training to be killed in the middle.
SLOW = """
import time
from torch.nn import CrossEntropyLoss


class Slow(CrossEntropyLoss):
    def forward(self, *inputs):
        time.sleep(0.03)
        return super().forward(*inputs)
"""


class Command:
    """A command started in a workspace, with standard output and error in one stream."""

    def __init__(self, arguments: tuple[str, ...], root: Path, environment: dict[str, str]) -> None:
        self.command, self.output = " ".join(arguments), ""
        self.process = start_process(arguments, root, environment)

    def wait_for(self, text: str) -> None:
        """Read until a line contains `text`."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{self.command} never printed {text!r}:\n{self.output}")

    def end(self, code: int = 0) -> str:
        """Wait for the end of the command, assert its exit code, and return its output."""
        self.output += self.process.communicate(timeout=HANGS_AFTER)[0]
        returncode = self.process.returncode
        assert returncode == code, f"{self.command} ended with {returncode} instead of {code}:\n{self.output}"
        return self.output


def start_process(
    arguments: Sequence[str], root: Path, environment: dict[str, str]
) -> "subprocess.Popen[str] | ForkedProcess":
    """Start a command; a script of Python in a fork of the server with the libraries, in a test run that has one."""
    variables = list(takewhile(lambda word: "=" in word, arguments[1:])) if arguments[0] == "env" else []
    python, *script = arguments[len(variables) + 1 :] if variables else arguments
    if ADDRESS in os.environ and python == "python" and script[0].endswith((".py", "/dvc")):
        given = dict(variable.split("=", 1) for variable in variables)
        return start_fork(script, root, environment | given)
    return subprocess.Popen(
        arguments,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@dataclass(frozen=True)
class Workspace:
    """The project at `root`; `source` is the value of CIFAR10_SOURCE for its commands.

    They inherit `environment`: by default that of this process at their start.
    """

    root: Path
    source: str = "/nowhere/cifar-10-batches-py"
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False, compare=False)

    def start(self, *arguments: str) -> Command:
        """Start a command as in a shell with the virtual environment active."""
        inherited = {key: value for key, value in self.environment.items() if not key.startswith(UNSET_PREFIXES)}
        overrides = {
            "PATH": self._path,
            "CIFAR10_SOURCE": self.source,
            "COLUMNS": "200",
            "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "1",
        }
        return Command(arguments, self.root, inherited | overrides)

    def run(self, *arguments: str, code: int = 0) -> str:
        return self.start(*arguments).end(code)

    def dvc(self, *arguments: str) -> str:
        """Run DVC to its end. (Stages do not recognize a fork as DVC, with which they end: use `start` to kill it.)"""
        command = ["python", str(Path(sys.executable).with_name("dvc")), *arguments]
        if ADDRESS in os.environ:  # its stages are forks too
            command = ["env", f"PATH={command_folder()}{os.pathsep}{self._path}", *command]
        return self.run(*command)

    @property
    def _path(self) -> str:
        return os.pathsep.join([str(Path(sys.executable).parent), self.environment["PATH"]])

    def train(self, *overrides: str, code: int = 0) -> str:
        return self.run("python", "src/train.py", *overrides, code=code)

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", *PERSON, "commit", "--quiet", "--allow-empty", "-m", "set up the test")

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def write(self, path: str, text: str) -> None:
        (self.root / path).write_text(text)

    def json(self, path: str) -> Any:
        return json.loads(self.read(path))

    def classes(self) -> list[str]:
        """Return the classes that were evaluated, in their order."""
        return [row[0] for row in read_rows(self.root / "reports" / "per_class.csv")][1:]

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace `old`, which must occur exactly once, by `new`."""
        text = self.read(path)
        assert text.count(old) == 1, f"{path} has {old!r} {text.count(old)} times"
        (self.root / path).write_text(text.replace(old, new))

    def set_params(self, **values: Any) -> None:
        """Set keys of params.yaml; dotted ones (`**{"trainer.max_epochs": 1}`) are set below `overrides`."""
        text = self.read("params.yaml")
        params = yaml.safe_load(text)
        for key, value in values.items():
            *parents, name = ["overrides", *key.split(".")] if "." in key else [key]
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = value
        for key in {"overrides" if "." in key else key for key in values}:
            inline = (
                yaml.safe_dump(params[key], default_flow_style=True, width=10_000, allow_unicode=True)
                .removesuffix("...\n")
                .strip()
            )
            text, count = re.subn(rf"^{key}:.*$", lambda _, line=f"{key}: {inline}": line, text, flags=re.MULTILINE)
            assert count == 1, f"params.yaml has {count} lines of {key}"
        self.write("params.yaml", text)

    def model(self, folder: str = "models") -> bytes:
        """Return the model file with the last weights."""
        return (self.root / folder / "last" / "model.onnx").read_bytes()

    @property
    def mlflow(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")

    def runs(self) -> list[Run]:
        """Return the runs of the experiment, oldest first."""
        experiment = self.mlflow.get_experiment_by_name(EXPERIMENT)
        assert experiment
        return list(self.mlflow.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))

    def logged(self, run: Run, metric: str = "train/loss") -> list[int]:
        """Return the logged epochs of a run in order, duplicates included."""
        return logged_steps(self.mlflow, run.info.run_id, metric)

    def copy(self, root: Path) -> "Workspace":
        """Copy the workspace to another folder, with its cache and its runs."""
        # In another process: if one that has a SQLite database open also reads its file, SQLite loses its locks.
        subprocess.run(["cp", "-a", self.root, root], check=True)
        # Now, so that no command in the copy prints a message about it.
        relocate(root / "mlflow.db", self.root.resolve(), root.resolve())
        return replace(self, root=root)


def workspace_of_tree(root: Path, source: str = Workspace.source) -> Workspace:
    """Copy what git would commit of the working tree, without its results and without a repository.

    params.yaml is as published.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        exists = (ROOT / name).is_file() or (ROOT / name).is_symlink()
        if exists and name != "dvc.lock" and not name.startswith("reports/"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name, follow_symlinks=False)
    shutil.copy(PUBLISHED / "params.yaml", root)
    workspace = Workspace(root, source)
    mirrors = yaml.safe_load(workspace.read("conf/data/cifar10.yaml"))["mirrors"]
    workspace.edit("conf/data/cifar10.yaml", "".join(f"  - {url}\n" for url in mirrors), f"  - {NOWHERE}\n")
    workspace.edit("params.yaml", "overrides: {}", f"overrides: {{trainer: {{max_epochs: {EPOCHS}}}}}")
    # Two threads would compete wherever something else runs on the machine.
    workspace.edit("conf/runtime/default.yaml", "threads: auto", "threads: 1")
    return workspace


def prepared(folder: Path) -> Workspace:
    """Create a workspace with processed digits and an empty database."""
    workspace = workspace_of_tree(folder)
    workspace.edit("params.yaml", "data: null", "data: digits")
    for stage in ("download", "preprocess"):
        workspace.run("python", f"src/{stage}.py")
    workspace.run("python", "src/report.py", "sweep", code=2)  # nothing to compare, but this creates the database
    # A copy trains, so that all copies know the graph of its network.
    trained = workspace.copy(folder.with_name(f"{folder.name}-trained"))
    trained.train("experiment=debug", "trainer.limit_train_batches=1")
    shutil.move(trained.root / ".cache" / "graphs", workspace.root / ".cache" / "graphs")
    shutil.rmtree(trained.root)
    return workspace


def add_own(workspace: Workspace, code: str) -> None:
    """Add a user's own module src/own.py with `code`, and the option `loss=slow`."""
    (workspace.root / "src" / "own.py").write_text(SLOW + code)
    (workspace.root / "conf" / "loss" / "slow.yaml").write_text("_target_: own.Slow\noutput_activation: softmax\n")


def make_repository(workspace: Workspace) -> None:
    workspace.run("git", "init", "--quiet", "--initial-branch=main")
    workspace.commit()


def do_without_git(workspace: Workspace) -> None:
    """Configure DVC to work without git, as the Makefile does where there is no .git."""
    workspace.dvc("config", "--local", "core.no_scm", "true")


def logged_steps(client: MlflowClient, run_id: str, metric: str) -> list[int]:
    """Return the steps at which a run has this metric, in order."""
    return sorted(entry.step for entry in client.get_metric_history(run_id, metric))


def sentences(output: str) -> list[str]:
    """Return the lines of a command's output without status lines, which appear only on a busy machine."""
    return [line for line in output.splitlines() if not line.endswith(" ...")]


def stages_that(output: str, what: str) -> list[str]:
    """Return the stages that `dvc repro` ran ("Running stage 'x'") or skipped ("Stage 'x' didn't change")."""
    begin, end = {"ran": ("Running stage '", "':"), "skipped": ("Stage '", "' didn't change")}[what]
    return [name for name in STAGES if f"{begin}{name}{end}" in output]
