"""Measure how far two trainings with equal configuration differ: same and different threads, engines, GPU.

    python benchmarks/reproducibility.py        (some six minutes on two cores)

One epoch of the tutorial's recipe on the real CIFAR-10, each training in its own process, in a temporary copy of
the project. The table that it prints is in docs/guarantees.md.
"""

import environment  # noqa: F401

# isort: split

import csv
import hashlib
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import Workspace, machine, say
from run import TINY, Sizes, commit, copy_of_the_project
from train_and_evaluate import require_cifar10

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Trained:
    """Result of a training: weights, SHA-256 of the model file, accuracy on the validation split."""

    weights: Weights
    model: str
    accuracy: float


def train(workspace: Workspace, engine: str, threads: int, more: list[str]) -> Trained:
    """Train one epoch with this engine and number of threads."""
    words = [f"runtime.engine={engine}", f"runtime.threads={threads}", "trainer.max_epochs=1", "rerun=true", *more]
    workspace.run("python", "src/train.py", *words)
    root: Path = workspace.root
    (checkpoint,) = root.glob(".cache/trainings/*/last.ckpt")
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    with (root / "reports" / "history.csv").open(newline="", encoding="utf-8") as file:
        accuracy = float(list(csv.DictReader(file))[-1]["val/accuracy"])
    content = (root / "models" / "last" / "model.onnx").read_bytes()
    return Trained(weights, hashlib.sha256(content).hexdigest(), accuracy)


def row(what: str, one: Trained, other: Trained) -> str:
    """Format the differences; `equal` if the model files are equal byte for byte."""
    if one.model == other.model:
        return f"| {what} | equal | equal |"
    furthest = max(
        float((one.weights[name].double() - value.double()).abs().max()) for name, value in other.weights.items()
    )
    accuracies = f"{one.accuracy:.2%}, {other.accuracy:.2%}"
    return f"| {what} | {furthest:.1e} | {100 * abs(one.accuracy - other.accuracy):.2f} % ({accuracies}) |"


def main() -> None:
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("--tiny", action="store_true", help="only show that it runs; the numbers mean nothing")
    arguments.add_argument("overrides", nargs="*", help="overrides for all trainings, e.g. trainer.batch_size=64")
    options = arguments.parse_args()
    more = [*(["trainer.batch_size=8"] if options.tiny else []), *options.overrides]
    hardware = machine()
    cores = hardware["cores"]
    sizes = TINY if options.tiny else Sizes()
    with copy_of_the_project(sizes) as workspace:
        require_cifar10(workspace, sizes)
        eager, eager_again, eager_threads = (train(workspace, "eager", threads, more) for threads in (1, 1, cores))
        compiled, compiled_again, compiled_threads = (
            train(workspace, "compiled", threads, more) for threads in (1, 1, cores)
        )
    say(f"{hardware['processor']}, {hardware['cores']} cores, torch {torch.__version__}, commit {commit()}")
    print(row("eager engine, 1 thread, twice", eager, eager_again))
    print(row("compiled engine, 1 thread, twice", compiled, compiled_again))
    print(row(f"eager engine, 1 thread against {cores}", eager, eager_threads))
    print(row(f"compiled engine, 1 thread against {cores}", compiled, compiled_threads))
    print(row("eager engine against compiled, 1 thread", eager, compiled))


if __name__ == "__main__":
    main()
