"""Measure what a sweep costs beside the training of its trials, against plain `hydra -m`.

    make bench-sweep        (python benchmarks/sweep_overhead.py --trials 100)

A hundred trials of LeNet with about a second of optimizer steps each, one thread a trial: without a launcher, and with
two processes of joblib; the same with `plain_hydra.py`, which only trains. Takes about ten minutes on two quiet cores.
"""

import environment  # noqa: F401

# isort: split

import csv
import json
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean

from copied_project import copy_of_the_project
from measure import CommandFailed, FinishedCommand, Row, Workspace, machine, say
from workload_sizes import TINY, Sizes

EPOCHS, BATCH_SIZE, JOBS = 2, 4, 2
LAUNCHERS = {
    "one after another": (1, [], []),
    f"joblib, {JOBS} processes": (
        JOBS,
        ["launcher=joblib", f"hydra.launcher.n_jobs={JOBS}"],
        ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={JOBS}"],
    ),
}
EPOCH_LINE = re.compile(r"\[(\d+)\] epoch (\d+)/\d+ .*?([\d,]+) images/s")


def sweep_overhead(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """Time that a sweep takes beside the training of its trials."""
    trials, steps = sizes.overhead_trials, sizes.overhead_steps
    seeds = f"seed={','.join(str(1000 + number) for number in range(trials))}"
    for launcher, (jobs, ours, theirs) in LAUNCHERS.items():
        folder = workspace.root / "multirun" / f"overhead_{jobs}"
        plain = workspace.run(
            "python", "benchmarks/plain_hydra.py", "-m", seeds, f"epochs={EPOCHS}", f"steps={steps // EPOCHS}",
            f"batch_size={BATCH_SIZE}", f"hydra.sweep.dir={folder}_plain", *theirs,
        )  # fmt: skip
        sweep = workspace.run(
            "python", "src/train.py", "-m", seeds, f"trainer.max_epochs={EPOCHS}", f"trainer.batch_size={BATCH_SIZE}",
            f"trainer.limit_train_batches={steps // EPOCHS}", "trainer.limit_val_batches=1", "runtime.threads=1",
            "runtime.engine=eager", "rerun=true", f"hydra.sweep.dir={folder}", *ours,
        )  # fmt: skip
        seconds = [_training_seconds(path, steps) for path in folder.glob("*/models/history.csv")]
        plain_seconds = [
            json.loads(path.read_text(encoding="utf-8"))["seconds"]
            for path in folder.parent.glob(f"{folder.name}_plain/*/timing.json")
        ]
        if len(seconds) != trials or len(plain_seconds) != trials:
            raise CommandFailed(
                f"{len(seconds)} and {len(plain_seconds)} of {trials} trials have finished ({launcher})"
            )
        if jobs == 1:
            yield Row(
                "sweep, one trial after another: from the last epoch of a trial to the first step of the next",
                "s",
                pauses(sweep, steps, trials),
                note="between the lines of the epochs, less the steps of the first epoch; its validation counts.",
            )
        trained, plainly_trained = mean(seconds), mean(plain_seconds)
        yield Row(
            f"sweep of {trials} small trials, {launcher}: time per trial beside training; against plain `hydra -m`",
            "s",
            [sweep.seconds / trials - trained / jobs],
            [plain.seconds / trials - plainly_trained / jobs],
            at_most=1.5 if jobs > 1 else None,
            note=f"the whole command ({sweep.seconds:.0f} s, theirs {plain.seconds:.0f} s) less its training, that its "
            f"processes share. A trial trained for {trained:.2f} s ({plainly_trained:.2f} s): {steps:,} optimizer "
            f"steps of batch {BATCH_SIZE} in {EPOCHS} epochs. Theirs saves the weights; it does not validate values, "
            "log, checkpoint, export or compare.",
        )


def _training_seconds(history: Path, steps: int) -> float:
    """Return the seconds that a trial spent on its optimizer steps."""
    with history.open(newline="", encoding="utf-8") as file:
        speeds = [float(row["images_per_second"]) for row in csv.DictReader(file)]
    return sum(steps / EPOCHS * BATCH_SIZE / speed for speed in speeds)


def pauses(sweep: FinishedCommand, steps: int, trials: int) -> list[float]:
    """Return the seconds from the end of each trial's last epoch to the first step of the next trial."""
    ends: dict[tuple[int, int], tuple[float, float]] = {}
    for seconds, line in sweep.lines:
        if match := EPOCH_LINE.match(line):
            speed = float(match[3].replace(",", ""))
            ends[int(match[1]), int(match[2])] = seconds, steps / EPOCHS * BATCH_SIZE / speed
    return [ends[number, 1][0] - ends[number, 1][1] - ends[number - 1, EPOCHS][0] for number in range(1, trials)]


def main() -> None:
    arguments = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--trials", type=int, default=100)
    arguments.add_argument("--steps", type=int, default=Sizes.overhead_steps, help="optimizer steps of a trial")
    arguments.add_argument("--tiny", action="store_true", help="smoke test; the numbers mean nothing")
    options = arguments.parse_args()
    sizes = TINY if options.tiny else replace(Sizes(), overhead_trials=options.trials, overhead_steps=options.steps)
    hardware = machine()
    say(f"{hardware['processor']}, {hardware['cores']} cores, load {hardware['load_at_start']}")
    with copy_of_the_project(sizes) as workspace:
        for row in sweep_overhead(workspace, sizes):
            print("| " + " | ".join(row.cells()) + f" |\n  {row.note}", flush=True)


if __name__ == "__main__":
    main()
