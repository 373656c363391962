"""Train and evaluate in a copy of the project as a user does, measure both, and format the cells of a table."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import onnx
from copied_project import has_data
from measure import FinishedCommand, Workspace
from workload_sizes import TINY, Sizes

ACCURACY_PREFIX = "Test accuracy: "


@dataclass(frozen=True)
class Measured:
    """Seconds of the train command, of its training alone, and of evaluate to the number; test accuracy in percent.

    `metadata` is what the training recorded about itself, `weights` the SHA-256 of the last weights (`hash_weights`).
    """

    train: float
    training: float
    evaluate: float
    accuracy: float
    metadata: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""


def require_cifar10(workspace: Workspace, sizes: Sizes) -> None:
    """Exit with a sentence if the workspace has random pixels, unless this is a smoke test."""
    if sizes is not TINY and not has_data(workspace):
        sys.exit("This needs the real CIFAR-10: run `make cifar10`, or set CIFAR10_SOURCE to a copy.")


def prepare(workspace: Workspace, words: Sequence[str]) -> None:
    """Create what persists between commands: the data set, the database, compiled bytecode."""
    workspace.run("python", "src/preprocess.py", *words)
    workspace.run("python", "src/train.py", *words, "trainer.limit_train_batches=1", "trainer.max_epochs=1")


def train_and_evaluate(workspace: Workspace, words: Sequence[str]) -> Measured:
    """Train and evaluate with these overrides, without reusing a finished training."""
    trained = workspace.run("python", "src/train.py", *words, "rerun=true")
    evaluated = workspace.run("python", "src/evaluate.py", *words)
    facts = json.loads((workspace.root / "models" / "metadata.json").read_text(encoding="utf-8"))
    accuracy = json.loads((workspace.root / "reports" / "metrics.json").read_text(encoding="utf-8"))["test"]["accuracy"]
    seconds = trained.seconds, facts["timing"]["seconds"], seconds_to_accuracy(evaluated)
    return Measured(*seconds, round(100 * accuracy, 2), metadata=facts)


def hash_weights(path: Path) -> str:
    """Return the SHA-256 of the weights in a model file, which also holds the commit and the versions of its making."""
    digest = hashlib.sha256()
    for weight in sorted(onnx.load(path).graph.initializer, key=lambda each: each.name):
        digest.update(f"{weight.name} {list(weight.dims)} {weight.data_type} ".encode())
        digest.update(onnx.numpy_helper.to_array(weight).tobytes())
    return digest.hexdigest()


def seconds_to_accuracy(ended: FinishedCommand) -> float:
    """Return the seconds from the command's start to the line with the number; figures are drawn after it."""
    return next(seconds for seconds, line in ended.lines if line.startswith(ACCURACY_PREFIX))


def accuracy_cell(percents: Sequence[float]) -> str:
    """Format the mean, standard deviation and each value of the accuracies of several seeds."""
    spread = f" ± {stdev(percents):.2f}" if len(percents) > 1 else ""
    each = ", ".join(f"{value:.2f}" for value in percents)
    return f"{mean(percents):.2f}{spread} % of {len(percents)} seed{'s' if len(percents) > 1 else ''} ({each})"


def time_cell(seconds: Sequence[float]) -> str:
    """Format the mean and the range of several times."""
    spread = f" [{min(seconds):.1f} - {max(seconds):.1f}]" if len(seconds) > 1 else ""
    return f"{mean(seconds):.1f} s{spread}"
