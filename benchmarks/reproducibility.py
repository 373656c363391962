"""How far two trainings of the same choices lie apart: with the same threads and engine, with others, on a GPU.

    python benchmarks/reproducibility.py        (some six minutes on two cores)

One epoch of the tutorial's recipe on the real CIFAR-10, each training in a process of its own, in a temporary copy of
the project. docs/guarantees.md has the table that it prints.
"""

import csv
import hashlib
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import Workspace, machine, say
from run import TINY, Sizes, commit, copy_of_the_project, has_data

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Trained:
    """What a training ended with: its weights, the bytes of its model file, and the accuracy on the validation part."""

    weights: Weights
    model: str
    accuracy: float


def trained(workspace: Workspace, engine: str, threads: int, more: list[str]) -> Trained:
    """Train one epoch anew with this engine and so many threads."""
    words = [f"runtime.engine={engine}", f"runtime.threads={threads}", "trainer.max_epochs=1", "rerun=true", *more]
    workspace.run("python", "src/train.py", *words)
    root: Path = workspace.root
    (checkpoint,) = root.glob(".cache/trainings/*/last.ckpt")
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    with (root / "reports" / "history.csv").open(newline="") as file:
        accuracy = float(list(csv.DictReader(file))[-1]["val/accuracy"])
    content = (root / "models" / "last" / "model.onnx").read_bytes()
    return Trained(weights, hashlib.sha256(content).hexdigest(), accuracy)


def row(what: str, one: Trained, other: Trained) -> str:
    """How far apart they are; `equal` where every byte of the model file is."""
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
    arguments.add_argument("overrides", nargs="*", help="what else the trainings get, e.g. trainer.batch_size=64")
    options = arguments.parse_args()
    more = [*(["trainer.batch_size=8"] if options.tiny else []), *options.overrides]
    hardware = machine()
    several = hardware["cores"]
    with copy_of_the_project(TINY if options.tiny else Sizes()) as workspace:
        if not has_data(workspace) and not options.tiny:
            sys.exit("This takes the real CIFAR-10: `make cifar10` fetches it, or CIFAR10_SOURCE names a copy.")
        plain, plain_again, threaded = (trained(workspace, "plain", threads, more) for threads in (1, 1, several))
        block, block_again, both = (trained(workspace, "block", threads, more) for threads in (1, 1, several))
    say(f"{hardware['processor']}, {hardware['cores']} cores, torch {torch.__version__}, commit {commit()}")
    print(row("plain engine, 1 thread, twice", plain, plain_again))
    print(row("block engine, 1 thread, twice", block, block_again))
    print(row(f"plain engine, 1 thread against {several}", plain, threaded))
    print(row(f"block engine, 1 thread against {several}", block, both))
    print(row("plain engine against block, 1 thread", plain, block))


if __name__ == "__main__":
    main()
