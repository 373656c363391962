"""Runs the present best of docs/leaderboard.md over several seeds, and prints its row.

    make race RACE=quick        (python benchmarks/race.py quick --seeds 0 1 2 3 4)

Each seed is typed anew in a temporary copy of the project, with the data set already prepared. The clock runs from the
command to the number on the test part: start-up, training, export and evaluation. docs/leaderboard.md has the rules.
The runs stand in the project's own MLflow database, of which `make results` makes its table.
"""

import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from dataclasses import dataclass, replace
from statistics import mean, stdev

from measure import Ended, Failed, Workspace, machine, say
from run import ROOT, TINY, Sizes, commit, copy_of_the_project, has_data


@dataclass(frozen=True)
class Race:
    """What is run, the accuracy on the test part that its mean must reach, and of how many seeds at least."""

    overrides: tuple[str, ...]
    target: float
    seeds: int
    technique: str


RACES = {
    "tutorial": Race((), 0.0, 1, "the tutorial's recipe"),
    "quick": Race(("experiment=quick",), 62.0, 5, "Muon, one cycle, batch 128, twice three quarters of the images"),
    "lenet_tuned": Race(("experiment=lenet_tuned",), 79.5, 3, "the tutorial's network, 100 epochs, six views"),
    "airbench94": Race(("experiment=airbench94", "data.val_fraction=0"), 94.0, 3, "airbench network, Muon, six views"),
    "accurate": Race(("experiment=airbench96", "data.val_fraction=0"), 95.5, 1, "a wider one, 40 epochs"),
}
NUMBER = "Test accuracy: "


@dataclass(frozen=True)
class Lap:
    """One seed's way: the seconds to the number, those of the training alone, and the number in percent."""

    seed: int
    seconds: float
    training: float
    accuracy: float


def lap(workspace: Workspace, race: Race, seed: int, more: list[str]) -> Lap:
    """Train and evaluate as a person would type it, and look at the clock when the number is there."""
    words = [*race.overrides, f"seed={seed}", *more]
    trained = workspace.run("python", "src/train.py", *words, "rerun=true")
    evaluated = workspace.run("python", "src/evaluate.py", *words)
    facts = json.loads((workspace.root / "models" / "metadata.json").read_text())
    accuracy = json.loads((workspace.root / "reports" / "metrics.json").read_text())["test"]["accuracy"]
    return Lap(seed, trained.seconds + until_number(evaluated), facts["timing"]["seconds"], 100 * accuracy)


def until_number(ended: Ended) -> float:
    """Seconds from the command's start to the line with the number; what is drawn after it belongs to nobody's race."""
    return next(seconds for seconds, line in ended.lines if line.startswith(NUMBER))


def row(name: str, race: Race, laps: list[Lap]) -> str:
    """The leaderboard's row, and what the rules want beside it."""
    values = [one.accuracy for one in laps]
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    seconds = [one.seconds for one in laps]
    outside = mean(1 - one.training / one.seconds for one in laps)
    reached = "" if mean(values) >= race.target else f" (missed: {race.target:g} % was the aim)"
    cells = [
        commit(),
        race.technique,
        f"{mean(seconds):.1f} s [{min(seconds):.1f} - {max(seconds):.1f}], {outside:.0%} of it not training",
        f"{mean(values):.2f}{spread} % of {len(laps)} seeds ({', '.join(f'{value:.2f}' for value in values)}){reached}",
        f"`make race RACE={name}`",
    ]
    return f"| {' | '.join(cells)} |"


def with_our_runs(workspace: Workspace) -> Workspace:
    """The workspace as a temporary one of the project's (which DVC_ROOT says): its MLflow database, its commit."""
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--absolute-git-dir"], capture_output=True, text=True)
    ours = {"DVC_ROOT": str(ROOT)}
    if git.returncode == 0:
        ours |= {"GIT_DIR": git.stdout.strip(), "GIT_WORK_TREE": str(ROOT)}
    return replace(workspace, variables={**workspace.variables, **ours})


def prepare(workspace: Workspace, race: Race) -> None:
    """Leave what a machine keeps from the first command on: the data set, the database, Python's compiled files."""
    workspace.run("python", "src/preprocess.py", *race.overrides)
    workspace.run("python", "src/train.py", *race.overrides, "trainer.limit_train_batches=1", "trainer.max_epochs=1")


def main() -> int:
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("races", nargs="+", choices=RACES)
    arguments.add_argument("--seeds", type=int, nargs="+", help="as many as the rules want, from 0 on")
    arguments.add_argument("--tiny", action="store_true", help="only show that it runs; the numbers mean nothing")
    options = arguments.parse_args()
    hardware, start, rows = machine(), time.perf_counter(), []
    say(f"{hardware['processor']}, {hardware['cores']} cores, load {hardware['load_at_start']}, commit {commit()}")
    tiny = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.batch_size=8", "data.val_fraction=0.1"]
    with copy_of_the_project(TINY if options.tiny else Sizes()) as workspace:
        if not has_data(workspace) and not options.tiny:
            sys.exit("A race takes the real CIFAR-10: `make cifar10` fetches it, or CIFAR10_SOURCE names a copy.")
        for name in options.races:
            race, laps = RACES[name], []
            try:
                if not options.tiny:
                    prepare(workspace, race)
                for seed in options.seeds or range(race.seeds):
                    there = workspace if options.tiny else with_our_runs(workspace)
                    laps.append(lap(there, race, seed, tiny if options.tiny else []))
                    say(f"  {laps[-1]}")
            except Failed as failure:
                say(f"  FAILED: {failure}")
                return 1
            rows.append(row(name, race, laps))
            if len(laps) < race.seeds:
                say(f"  The rules want {race.seeds} seeds or more; these are {len(laps)}.")
    say(f"{time.perf_counter() - start:.0f} s in all")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
