"""A copy of the project in a folder of its own, and how a person would run commands there: offline, on the digits."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from cifar_pipeline.tracking.client import relocate
from helpers.source_tree import ROOT

EPOCHS = 3
STAGES = ["configure", "download", "preprocess", "train", "evaluate"]
# Nobody listens there: refused at once, also where there is a network.
NOWHERE = "http://127.0.0.1:9/cifar-10-python.tar.gz"
PERSON = ("-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false")
# Variables that would make a command here something else than the same command typed in a new shell, where Python
# also leaves its bytecode beside the code.
DISTURBING = ("DVC_", "MLFLOW_", "GIT_", "PYTEST_", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "CIFAR10_SOURCE")

# Time enough for a training to be killed in the middle.
SLOW = """
import time
from torch.nn import CrossEntropyLoss


class Slow(CrossEntropyLoss):
    def forward(self, *given):
        time.sleep(0.03)
        return super().forward(*given)
"""


class Command:
    """A command that was started in a workspace; its two streams come as one."""

    def __init__(self, words: tuple[str, ...], root: Path, environment: dict[str, str]) -> None:
        self.words, self.output = " ".join(words), ""
        self.process = subprocess.Popen(
            words,
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Where the tests run in the background, they ignore Ctrl-C, and what they start would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )

    def wait_for(self, text: str) -> None:
        """Read until a line holds `text`."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{self.words} never said {text!r}:\n{self.output}")

    def end(self, code: int = 0) -> str:
        """Everything printed, once the command has ended, which must be with `code`."""
        self.output += self.process.communicate(timeout=240)[0]
        ended = self.process.returncode
        assert ended == code, f"{self.words} ended with {ended} instead of {code}:\n{self.output}"
        return self.output


@dataclass(frozen=True)
class Workspace:
    """The project at `root`; `source` is what CIFAR10_SOURCE says there."""

    root: Path
    source: str = "/nowhere/cifar-10-batches-py"

    def start(self, *words: str) -> Command:
        """Start a command as in a shell with the environment active."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(DISTURBING)}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        ours = {
            "PATH": path,
            "CIFAR10_SOURCE": self.source,
            "COLUMNS": "200",
            "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "1",
        }
        return Command(words, self.root, inherited | ours)

    def run(self, *words: str, code: int = 0) -> str:
        return self.start(*words).end(code)

    def dvc(self, *arguments: str) -> str:
        return self.run("dvc", *arguments)

    def train(self, *overrides: str, code: int = 0) -> str:
        return self.run("python", "src/train.py", *overrides, code=code)

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", *PERSON, "commit", "--quiet", "--allow-empty", "-m", "as the tests need it")

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def write(self, path: str, text: str) -> None:
        (self.root / path).write_text(text)

    def json(self, path: str) -> Any:
        return json.loads(self.read(path))

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace the one place that says `old`."""
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
        """The model file of the last weights."""
        return (self.root / folder / "last" / "model.onnx").read_bytes()

    @property
    def mlflow(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")

    def runs(self) -> list[Run]:
        """The runs of the one experiment, the oldest first."""
        experiment = self.mlflow.get_experiment_by_name("cifar-pipeline")
        assert experiment
        return list(self.mlflow.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))

    def logged(self, run: Run, metric: str = "train/loss") -> list[int]:
        """The epochs of a run in order, as often as they were logged."""
        return logged_steps(self.mlflow, run.info.run_id, metric)

    def copy(self, root: Path) -> "Workspace":
        """The same in another folder, with its cache and its runs."""
        shutil.copytree(self.root, root, symlinks=True)
        # Here, so that no command in the copy says it.
        relocate(root / "mlflow.db", self.root.resolve(), root.resolve())
        return Workspace(root, self.source)


def workspace_of_tree(root: Path, source: str = Workspace.source) -> Workspace:
    """What git would commit of the working tree as it is now, without the published results; no repository yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if name != "dvc.lock" and not name.startswith("reports/") and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    workspace = Workspace(root, source)
    mirrors = yaml.safe_load(workspace.read("conf/data/cifar10.yaml"))["mirrors"]
    workspace.edit("conf/data/cifar10.yaml", "".join(f"  - {url}\n" for url in mirrors), f"  - {NOWHERE}\n")
    workspace.edit("params.yaml", "overrides: {}", f"overrides: {{trainer: {{max_epochs: {EPOCHS}}}}}")
    # Two threads would wait for each other wherever something else runs on the machine.
    workspace.edit("conf/runtime/default.yaml", "threads: auto", "threads: 1")
    return workspace


def prepared(folder: Path) -> Workspace:
    """A workspace with processed digits and an empty database."""
    workspace = workspace_of_tree(folder)
    workspace.edit("params.yaml", "data: null", "data: digits")
    for stage in ("download", "preprocess"):
        workspace.run("python", f"src/{stage}.py")
    workspace.run("python", "src/report.py", "sweep", code=2)  # there is nothing to compare, but the database is made
    return workspace


def add_own(workspace: Workspace, code: str) -> None:
    """What a user might bring along: `code` in a file beside the stages, and `loss=slow`, which takes its time."""
    (workspace.root / "src" / "own.py").write_text(SLOW + code)
    (workspace.root / "conf" / "loss" / "slow.yaml").write_text("_target_: own.Slow\noutput_activation: softmax\n")


def make_repository(workspace: Workspace) -> None:
    workspace.run("git", "init", "--quiet", "--initial-branch=main")
    workspace.commit()


def do_without_git(workspace: Workspace) -> None:
    """Make it an unpacked archive, as the Makefile does where there is no .git."""
    workspace.dvc("config", "--local", "core.no_scm", "true")


def logged_steps(client: MlflowClient, run_id: str, metric: str) -> list[int]:
    """The steps at which a run has this metric, in order."""
    return sorted(entry.step for entry in client.get_metric_history(run_id, metric))


def sentences(said: str) -> list[str]:
    """The lines of a command, less those on what it is doing, which only a busy machine makes it say."""
    return [line for line in said.splitlines() if not line.endswith(" ...")]


def stages_that(output: str, what: str) -> list[str]:
    """Which stages `dvc repro` says that it ran ("Running stage 'x'") or skipped ("Stage 'x' didn't change")."""
    begin, end = {"ran": ("Running stage '", "':"), "skipped": ("Stage '", "' didn't change")}[what]
    return [name for name in STAGES if f"{begin}{name}{end}" in output]
