"""Run the experiments of docs/leaderboard.md over several seeds, and print their rows.

    make speedrun RECIPE=quick        (python benchmarks/speedrun.py quick --seeds 0 1 2 3 4)

Each seed runs in a temporary copy of the project, with the data set already prepared. The time is measured from the
command to the test accuracy: start-up, training, export and evaluation. docs/leaderboard.md has the rules. The runs are
logged to the project's own MLflow database, from which `make results-table` prints its table. With as many seeds as the
rules require, the results are written to reports/speedrun.json, with which `make verify` compares.
"""

import environment  # noqa: F401

# isort: split

import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from measure import CommandFailed, Workspace, machine, say
from published_rows import SeedResult, make_row, write_row
from run import ROOT, TINY, Sizes, commit, copy_of_the_project
from train_and_evaluate import (
    Measured,
    accuracy_cell,
    hash_weights,
    prepare,
    require_cifar10,
    time_cell,
    train_and_evaluate,
)


@dataclass(frozen=True)
class Recipe:
    """Overrides of an experiment, the target for the mean test accuracy in percent, and the minimum number of seeds."""

    overrides: tuple[str, ...]
    target: float
    seeds: int
    technique: str


RECIPES = {
    "tutorial": Recipe((), 0.0, 3, "the tutorial's recipe"),
    "quick": Recipe(("experiment=quick",), 62.0, 5, "Muon, one cycle, batch 128, twice three quarters of the images"),
    "lenet_tuned": Recipe(
        ("experiment=lenet_tuned",), 79.5, 3, "the tutorial's network, 100 epochs, test-time augmentation"
    ),
    "airbench94": Recipe(
        ("experiment=airbench94", "data.val_fraction=0"), 94.0, 3, "airbench network, Muon, test-time augmentation"
    ),
    "airbench96": Recipe(("experiment=airbench96", "data.val_fraction=0"), 95.5, 1, "a wider one, 40 epochs"),
}


def run_seed(workspace: Workspace, recipe: Recipe, seed: int, more: Sequence[str] = ()) -> Measured:
    """Train and evaluate with one seed, and measure the time until the test accuracy is printed."""
    measured = train_and_evaluate(workspace, [*recipe.overrides, f"seed={seed}", *more])
    return replace(measured, weights=hash_weights(workspace.root / "models" / "last" / "model.onnx"))


def row(name: str, recipe: Recipe, results: Sequence[SeedResult]) -> str:
    """Format the row of the leaderboard."""
    values = [one.accuracy for one in results]
    outside = mean(1 - one.training / one.seconds for one in results)
    reached = "" if mean(values) >= recipe.target else f" (target missed: {recipe.target:g} %)"
    cells = [
        commit(),
        recipe.technique,
        f"{time_cell([one.seconds for one in results])}, {outside:.0%} of it not training",
        f"{accuracy_cell(values)}{reached}",
        f"`make speedrun RECIPE={name}`",
    ]
    return f"| {' | '.join(cells)} |"


def with_project_runs(workspace: Workspace) -> Workspace:
    """Make the workspace log to the project's own MLflow database and commit, by DVC_ROOT and GIT_DIR."""
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--absolute-git-dir"], capture_output=True, text=True)
    ours = {"DVC_ROOT": str(ROOT)}
    if git.returncode == 0:
        ours |= {"GIT_DIR": git.stdout.strip(), "GIT_WORK_TREE": str(ROOT)}
    return replace(workspace, variables={**workspace.variables, **ours})


def main() -> int:
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("recipes", nargs="+", choices=RECIPES)
    arguments.add_argument("--seeds", type=int, nargs="+", help="default: 0, 1, ... as many as the rules require")
    arguments.add_argument("--tiny", action="store_true", help="smoke test; the numbers mean nothing")
    options = arguments.parse_args()
    hardware, start, rows = machine(), time.perf_counter(), []
    say(f"{hardware['processor']}, {hardware['cores']} cores, load {hardware['load_at_start']}, commit {commit()}")
    tiny = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.batch_size=8", "data.val_fraction=0.1"]
    sizes = TINY if options.tiny else Sizes()
    with copy_of_the_project(sizes) as workspace:
        require_cifar10(workspace, sizes)
        for name in options.recipes:
            recipe, measured = RECIPES[name], dict[int, Measured]()
            try:
                if not options.tiny:
                    prepare(workspace, recipe.overrides)
                for seed in options.seeds or range(recipe.seeds):
                    target = workspace if options.tiny else with_project_runs(workspace)
                    measured[seed] = run_seed(target, recipe, seed, tiny if options.tiny else [])
                    say(f"  {SeedResult.of(seed, measured[seed])}")
            except CommandFailed as failure:
                say(f"  FAILED: {failure}")
                return 1
            rows.append(row(name, recipe, [SeedResult.of(seed, one) for seed, one in measured.items()]))
            if len(measured) < recipe.seeds:
                say(f"  The rules require at least {recipe.seeds} seeds; this is {len(measured)}.")
            elif not options.tiny and recipe.seeds > 1:
                write_row(make_row(name, commit(), hardware["versions"], measured))
    say(f"{time.perf_counter() - start:.0f} s in all")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
