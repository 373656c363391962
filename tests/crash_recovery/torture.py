"""Kill trainings at seeded moments, resume them, and compare the results with uninterrupted trainings.

`make torture` kills trainings at COUNT moments in all, and prints a table of the results.
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

from helpers.source_tree import HANGS_AFTER
from helpers.workspace import Workspace, prepared

DRIVER = str(Path(__file__).with_name("kill_driver.py"))
EPOCHS, STEPS = 4, 21  # an epoch's steps: batches of 64 of the digits
TRAINING = (
    "optimizer=adam",
    "scheduler=cosine",
    "augmentation=[flip_crop,trivial_augment,mixup]",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.batch_size=64",
    "runtime.checkpoint_interval_seconds=1e-6",  # seconds: after each step, or chunk of them
)
ENGINES = {
    "eager": ("runtime.engine=eager",),
    "compiled": ("runtime.engine=compiled", "runtime.steps_per_chunk=5"),
}
# Overrides of trainings that only one test kills.
SPECIAL = {
    "early stopping": (
        "runtime.engine=eager",
        "trainer.max_epochs=12",
        "scheduler=plateau",
        "scheduler.patience=0",
        "metrics=[f1_macro]",
        "monitor=val/loss",
        "mode=min",
        "callbacks=[early_stopping,gradient_norm]",
        "callbacks.early_stopping.patience=2",
        "callbacks.early_stopping.min_delta=0.1",
    )
}
# Steps, or chunks of them, that may be repeated after a kill: those since the last checkpoint.
MAX_REPEATED = 1
KILLS_PER_TRAINING = 5
MAX_SECONDS = 15 * 60  # seconds of `make torture` ...
MAX_SECONDS_PER_TRAINING = 120  # ... and of one training in it
KILLED = -signal.SIGKILL
STOPPED = (KILLED, 128 + signal.SIGTERM, 128 + signal.SIGINT)
# Latest occurrence of each event (seconds for start-up) at which a process is killed.
MAX_NUMBER = {
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
    """When a process is killed: at the `number`-th occurrence of an event, or `number` seconds after its start."""

    event: str
    number: float

    def __str__(self) -> str:
        return f"{self.number:.1f} s after its start" if self.event == "start-up" else f"{self.event} {self.number:.0f}"


NEVER = Moment("never", 0)


@dataclass(frozen=True)
class Start:
    """One process of a training: its exit code, its output, and its steps as `epoch:batch`."""

    moment: Moment
    code: int
    output: str
    steps: list[str]


@dataclass(frozen=True)
class Training:
    """A finished training in its own workspace, which took one or several processes."""

    workspace: Workspace
    engine: str
    starts: list[Start]

    def outcome(self) -> dict[str, Any]:
        """Return the results that interruptions must not change."""
        models = sorted((self.workspace.root / "models").rglob("*.onnx"))
        (run,) = self.workspace.runs()
        histories = {}
        for key in run.data.metrics:
            entries = self.workspace.mlflow.get_metric_history(run.info.run_id, key)
            is_speed = key in ("images_per_second", "training_seconds")
            histories[key] = sorted((entry.step, 0.0 if is_speed else entry.value) for entry in entries)
        root = self.workspace.root
        return {
            "weights": {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in models},
            "metrics": histories,
            "status": run.info.status,
            "code": self.starts[-1].code,
            "half-written": [str(path) for path in root.glob("**/.*.part*")],
        }

    def differences(self, undisturbed: "Training") -> list[str]:
        """Return the keys of the outcome that differ from the undisturbed training."""
        actual, expected = self.outcome(), undisturbed.outcome()
        return [key for key in expected if actual[key] != expected[key]]

    def repeated(self) -> list[int]:
        """Return for each process how many of its steps an earlier one had done."""
        done: set[str] = set()
        counts = []
        for start in self.starts:
            counts.append(len(done & set(start.steps)))
            done |= set(start.steps)
        return counts


def start(workspace: Workspace, moment: Moment, script: str, *arguments: str) -> Start:
    """Run a stage until it is killed or exits."""
    steps_file = workspace.root / "steps.txt"
    steps_file.unlink(missing_ok=True)
    command = workspace.start("python", DRIVER, moment.event, str(moment.number), f"src/{script}.py", *arguments)
    output = command.process.communicate(timeout=HANGS_AFTER)[0]
    steps = steps_file.read_text().split() if steps_file.exists() else []
    return Start(moment, command.process.returncode, output, steps)


def train(workspace: Workspace, engine: str, moments: Iterable[Moment] = ()) -> Training:
    """Run a training until it finishes, killed or stopped once at each of the moments that it reaches."""
    starts: list[Start] = []
    for moment in (*moments, NEVER):
        starts.append(start(workspace, moment, "train", *TRAINING, *(ENGINES | SPECIAL)[engine]))
        if starts[-1].code not in STOPPED:
            break
    return Training(workspace, engine, starts)


def random_moments(seed: int, count: int) -> list[Moment]:
    """Draw `count` moments, with each event equally often."""
    generator = random.Random(seed)
    events = list(MAX_NUMBER) * (count // len(MAX_NUMBER) + 1)
    generator.shuffle(events)
    return [
        Moment(
            event,
            generator.uniform(0.2, MAX_NUMBER[event])
            if event == "start-up"
            else generator.randint(1, MAX_NUMBER[event]),
        )
        for event in events[:count]
    ]


def ordered(moments: list[Moment]) -> list[Moment]:
    """Sort the moments at the end of a training behind the others, which it would not reach any more."""
    return sorted(moments, key=lambda moment: moment.event in ("export", "copy"))


def torture(count: int, seed: int, at_once: int, console: Console) -> bool:
    """Kill trainings at `count` moments, print a table, and return whether all ended like the undisturbed ones."""
    started_at = time.monotonic()
    moments = random_moments(seed, count)
    batches = [ordered(moments[first : first + KILLS_PER_TRAINING]) for first in range(0, count, KILLS_PER_TRAINING)]
    engines = ["compiled" if number % 3 == 2 else "eager" for number in range(len(batches))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(at_once) as pool:
        root = Path(folder)
        origin = prepared(root / "prepared")
        workspaces = {name: origin.copy(root / name) for name in dict.fromkeys(engines)}
        undisturbed = dict(zip(workspaces, pool.map(train, workspaces.values(), workspaces), strict=True))

        def run_one(number: int) -> tuple[Training, list[str]] | None:
            if time.monotonic() - started_at > MAX_SECONDS - MAX_SECONDS_PER_TRAINING:
                return None
            training = train(origin.copy(root / str(number)), engines[number], batches[number])
            return training, training.differences(undisturbed[engines[number]])

        results = [result for result in pool.map(run_one, range(len(batches))) if result]
    console.print(table(results))
    kills = sum(start.code == KILLED for training, _ in results for start in training.starts)
    differing = sum(bool(differences) for _, differences in results)
    console.print(
        f"{len(results)} trainings, {kills} kills in {time.monotonic() - started_at:.0f} s (seed {seed}); "
        f"{differing or 'none'} ended differently from the undisturbed one."
    )
    if len(results) < len(batches):
        console.print(f"The time was up: {len(batches) - len(results)} trainings were not started.")
    return not differing


def table(results: list[tuple[Training, list[str]]]) -> Table:
    """Return a table with a row for each process."""
    rows = Table("training", "engine", "killed at", "killed", "steps", "of them repeated", "equal")
    for number, (training, differences) in enumerate(results, 1):
        verdict = f"[red]no: {', '.join(differences)}[/red]" if differences else "yes"
        killed = Counter(start.code == KILLED for start in training.starts)[True]
        for index, (start, repeated) in enumerate(zip(training.starts, training.repeated(), strict=True)):
            last = start is training.starts[-1]
            rows.add_row(
                str(number) if not index else "",
                training.engine if not index else "",
                "never: it finished" if start.code != KILLED else str(start.moment),
                f"{killed} times" if last else "",
                str(len(start.steps)),
                str(repeated),
                verdict if last else "",
                end_section=last,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=2)
    args = parser.parse_args()
    sys.exit(0 if torture(args.count, args.seed, args.at_once, Console(width=110)) else 1)


if __name__ == "__main__":
    main()
