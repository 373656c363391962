"""Trainings that are killed at seeded moments and begun again, compared with the same ones left alone.

`make torture` kills one training after the other, COUNT moments in all, and shows what came of each.
"""

import argparse
import hashlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1]))

from helpers.workspace import Workspace, prepared

DRIVER = str(Path(__file__).with_name("kill_driver.py"))
EPOCHS, STEPS = 4, 21  # an epoch's steps: batches of 64 of the digits
TRAINING = (
    "optimizer=adam",
    "scheduler=cosine",
    "augmentation=flip_crop",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.batch_size=64",
    "runtime.checkpoint_interval_seconds=1e-6",  # seconds: after each step, or chunk of them
)
ENGINES = {
    "eager": ("runtime.engine=eager",),
    "compiled": ("runtime.engine=compiled", "runtime.steps_per_chunk=5"),
}
# The steps, or chunks of them, that one kill may cost: those since the last checkpoint.
MOST_REPEATED = 1
KILLS_OF_ONE = 5
LONGEST = 15 * 60  # seconds of `make torture` ...
LONGEST_OF_ONE = 120  # ... and of one training in it
KILLED = -signal.SIGKILL
STOPPED = (KILLED, 128 + signal.SIGTERM, 128 + signal.SIGINT)
# What each moment may be: at which of its calls (or after how many seconds) the process is killed.
LATEST = {
    "start-up": 6,
    "step": 2 * STEPS,
    "half a checkpoint": STEPS,
    "rename": STEPS,
    "log": 6,
    "unsent log": 6,
    "half a transaction": 30,
    "export": 2,
    "copy": 12,
}


@dataclass(frozen=True)
class Moment:
    """When a process is killed: at the `number`-th time that it does this, or after so many seconds."""

    kind: str
    number: float

    def __str__(self) -> str:
        return f"{self.number:.1f} s after its start" if self.kind == "start-up" else f"{self.kind} {self.number:.0f}"


NEVER = Moment("never", 0)


@dataclass(frozen=True)
class Start:
    """One process of a training: its exit code, what it said, and its steps, as `epoch:batch`."""

    moment: Moment
    code: int
    said: str
    steps: list[str]


@dataclass(frozen=True)
class Training:
    """A training that has ended, in its own workspace, after one process or several."""

    workspace: Workspace
    engine: str
    starts: list[Start]

    def outcome(self) -> dict[str, Any]:
        """What has to be the same, whatever happened in between."""
        models = sorted((self.workspace.root / "models").rglob("*.onnx"))
        (run,) = self.workspace.runs()
        histories = {}
        for key in run.data.metrics:
            entries = self.workspace.mlflow.get_metric_history(run.info.run_id, key)
            speed = key == "images_per_second"
            histories[key] = sorted((entry.step, 0.0 if speed else entry.value) for entry in entries)
        root = self.workspace.root
        return {
            "weights": {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in models},
            "metrics": histories,
            "status": run.info.status,
            "code": self.starts[-1].code,
            "half-written": [str(path) for path in root.glob("**/.*.part*")],
        }

    def differences(self, undisturbed: "Training") -> list[str]:
        """What is not as in the undisturbed training; empty where all is equal."""
        mine, theirs = self.outcome(), undisturbed.outcome()
        return [key for key in theirs if mine[key] != theirs[key]]

    def repeated(self) -> list[int]:
        """For each start how many of its steps an earlier one had done."""
        done: set[str] = set()
        counts = []
        for start in self.starts:
            counts.append(len(done & set(start.steps)))
            done |= set(start.steps)
        return counts


def start(workspace: Workspace, moment: Moment, script: str, *arguments: str) -> Start:
    """Start a stage, and wait until it is killed or has ended."""
    notes = workspace.root / "steps.txt"
    notes.unlink(missing_ok=True)
    command = workspace.start("python", DRIVER, moment.kind, str(moment.number), f"src/{script}.py", *arguments)
    said = command.process.communicate(timeout=240)[0]
    steps = notes.read_text().split() if notes.exists() else []
    return Start(moment, command.process.returncode, said, steps)


def train(workspace: Workspace, engine: str, moments: Iterable[Moment] = ()) -> Training:
    """Start a training until it has ended, killed or stopped once at each of the moments that it still comes to."""
    starts: list[Start] = []
    for moment in (*moments, NEVER):
        starts.append(start(workspace, moment, "train", *TRAINING, *ENGINES[engine]))
        if starts[-1].code not in STOPPED:
            break
    return Training(workspace, engine, starts)


def drawn(seed: int, count: int) -> list[Moment]:
    """So many moments, each kind as often as the others."""
    generator = random.Random(seed)
    kinds = list(LATEST) * (count // len(LATEST) + 1)
    generator.shuffle(kinds)
    return [
        Moment(kind, generator.uniform(0.2, LATEST[kind]) if kind == "start-up" else generator.randint(1, LATEST[kind]))
        for kind in kinds[:count]
    ]


def ordered(moments: list[Moment]) -> list[Moment]:
    """Those at a training's end behind the others, which it would not come to any more."""
    return sorted(moments, key=lambda moment: moment.kind in ("export", "copy"))


def torture(count: int, seed: int, at_once: int, console: Console) -> bool:
    """Kill trainings at `count` moments, show a table, and return whether every one ended as if left alone."""
    began = time.monotonic()
    moments = drawn(seed, count)
    parts = [ordered(moments[first : first + KILLS_OF_ONE]) for first in range(0, count, KILLS_OF_ONE)]
    engines = ["compiled" if number % 3 == 2 else "eager" for number in range(len(parts))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(at_once) as pool:
        root = Path(folder)
        origin = prepared(root / "prepared")
        named = {name: origin.copy(root / name) for name in dict.fromkeys(engines)}
        undisturbed = dict(zip(named, pool.map(train, named.values(), named), strict=True))

        def one(number: int) -> tuple[Training, list[str]] | None:
            if time.monotonic() - began > LONGEST - LONGEST_OF_ONE:
                return None
            training = train(origin.copy(root / str(number)), engines[number], parts[number])
            return training, training.differences(undisturbed[engines[number]])

        results = [result for result in pool.map(one, range(len(parts))) if result]
    console.print(table(results))
    kills = sum(start.code == KILLED for training, _ in results for start in training.starts)
    differing = sum(bool(differences) for _, differences in results)
    console.print(
        f"{len(results)} trainings, {kills} kills in {time.monotonic() - began:.0f} s (seed {seed}); "
        f"{differing or 'none'} ended in another way than the undisturbed one."
    )
    if len(results) < len(parts):
        console.print(f"Time was up: {len(parts) - len(results)} more trainings were not begun.")
    return not differing


def table(results: list[tuple[Training, list[str]]]) -> Table:
    """A row for each start."""
    shown = Table("training", "engine", "killed at", "killed", "steps", "of them repeated", "equal")
    for number, (training, differences) in enumerate(results, 1):
        verdict = f"[red]no: {', '.join(differences)}[/red]" if differences else "yes"
        killed = Counter(start.code == KILLED for start in training.starts)[True]
        for place, (start, repeated) in enumerate(zip(training.starts, training.repeated(), strict=True)):
            last = start is training.starts[-1]
            shown.add_row(
                str(number) if not place else "",
                training.engine if not place else "",
                "never: it ended" if start.code != KILLED else str(start.moment),
                f"{killed} times" if last else "",
                str(len(start.steps)),
                str(repeated),
                verdict if last else "",
                end_section=last,
            )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=2)
    asked = parser.parse_args()
    sys.exit(0 if torture(asked.count, asked.seed, asked.at_once, Console(width=110)) else 1)


if __name__ == "__main__":
    main()
