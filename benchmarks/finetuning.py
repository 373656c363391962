"""Measure accuracy and time by the number of training images: from scratch, a new classifier, and full fine-tuning.

    make bench-finetuning        (python benchmarks/finetuning.py --images 10 100 --methods head --append)

CIFAR-10 as a user's own images: a folder of PNG files with the first images of each class of the train and the val
split, and all test images. In a temporary copy of the project, `preprocess` runs once for each number of images and
method, then `train` and `evaluate` for each seed, without cached features or compiled code. Each result is printed and
written to the output file as soon as it is there; with --append the results in that file are not measured again.
"""

import environment  # noqa: F401

# isort: split

import json
import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean

import numpy as np
from copied_project import ROOT, copy_of_the_project
from measure import START, CommandFailed, Workspace, machine, say
from PIL import Image
from run import commit
from train_and_evaluate import accuracy_cell, prepare, require_cifar10, time_cell, train_and_evaluate
from workload_sizes import TINY, Sizes

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.utils.atomic import atomic_write

# The images are stored as they are; a pretrained network enlarges them itself.
METHODS = {
    "scratch": ("experiment=custom_images",),
    "head": ("experiment=finetune", "finetune=head", "data.size=32"),
    "full": ("experiment=finetune", "finetune=full", "data.size=32"),
}
# Overrides of a method for a number of training images of each class.
OVERRIDES: dict[tuple[str, int], tuple[str, ...]] = {
    ("full", 10): ("trainer.max_epochs=20", "model.input_size=96"),
    ("full", 100): ("trainer.max_epochs=8", "model.input_size=96"),
    ("full", 500): ("trainer.max_epochs=8", "model.input_size=96"),
    ("full", 4500): ("trainer.max_epochs=2", "model.input_size=96"),
}
IMAGES, SEEDS = (10, 100, 500, 4500), (0, 1, 2)
MIN_VAL_IMAGES, TRAIN_IMAGES_PER_VAL_IMAGE = 5, 10
WARM_UP_IMAGES = 20  # of each class: more than a batch in all
TINY_IMAGES, TINY_SEEDS = (5,), (0,)
TINY_WORDS = (
    "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.batch_size=8", "evaluation.num_attributions=0",
)  # fmt: skip
OUTPUT = ROOT / "reports" / "finetuning.json"


@dataclass(frozen=True)
class Trial:
    """One training to measure: method, training images of each class, seed, overrides."""

    images: int
    method: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def words(self) -> list[str]:
        """The words of its commands, without the seed."""
        return merge_overrides(METHODS[self.method], self.overrides)


@dataclass(frozen=True)
class Result:
    """Result of a trial: seconds of each stage and of the training alone, accuracy in percent, commit and machine."""

    trial: Trial
    preprocess: float
    train: float
    training: float
    evaluate: float
    accuracy: float
    commit: str
    machine: str


def merge_overrides(*groups: Iterable[str]) -> list[str]:
    """Merge overrides; the last one of a key counts."""
    return list({word.partition("=")[0]: word for words in groups for word in words}.values())


def require_enough_images(dataset: Dataset, counts: Sequence[int]) -> None:
    """Exit with a sentence if a count is not between 1 and the training images of the rarest class."""
    available = int(np.bincount(dataset.split("train")[1]).min())
    if not 0 < min(counts) <= max(counts) <= available:
        sys.exit(f"--images takes numbers from 1 to {available:,}, the training images of the rarest class.")


def write_image_folder(dataset: Dataset, folder: Path, count: int) -> None:
    """Write SPLIT/CLASS/INDEX.png: the first `count` images of each class of train, a tenth of val, all of test."""
    limits = {"train": count, "val": max(MIN_VAL_IMAGES, count // TRAIN_IMAGES_PER_VAL_IMAGE), "test": None}
    for split, limit in limits.items():
        images, labels = dataset.split(split)
        for label, name in enumerate(dataset.classes):
            (folder / split / name).mkdir(parents=True)
            for index in np.flatnonzero(labels == label)[:limit]:
                # Lossless at any level; the lowest is the fastest.
                Image.fromarray(images[index]).save(folder / split / name / f"{index:05}.png", compress_level=1)


def use_images(workspace: Workspace, folder: Path) -> None:
    """Make a folder the images of the workspace."""
    settings = f"experiment: custom_images\nseed: 0\nimage_dir: {json.dumps(str(folder))}\noverrides: {{}}\n"
    (workspace.root / "params.yaml").write_text(settings, encoding="utf-8")
    workspace.run("python", "src/download.py")


def preprocess(workspace: Workspace, words: Sequence[str]) -> float:
    """Preprocess without cached images, and return the seconds."""
    shutil.rmtree(workspace.root / ".cache" / "images", ignore_errors=True)
    return workspace.run("python", "src/preprocess.py", *words).seconds


def warm_up(workspace: Workspace, cifar10: Dataset, methods: Iterable[str]) -> None:
    """Train each method on a few batches, so that no measured command is the first to import or to log."""
    folder = workspace.root.parent / "warm-up"
    write_image_folder(cifar10, folder, WARM_UP_IMAGES)
    use_images(workspace, folder)
    for method in methods:
        prepare(workspace, METHODS[method])


def measure(workspace: Workspace, trial: Trial, preprocess_seconds: float) -> Result:
    """Train and evaluate without cached features and compiled code."""
    shutil.rmtree(workspace.root / ".cache" / "features", ignore_errors=True)
    shutil.rmtree(workspace.variables["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)
    measured = train_and_evaluate(workspace, [*trial.words, f"seed={trial.seed}"])
    hardware = machine()
    where = f"{hardware['processor']}, {hardware['cores']} cores, torch {hardware['versions']['torch']}"
    seconds = preprocess_seconds, measured.train, measured.training, measured.evaluate
    return Result(trial, *seconds, measured.accuracy, commit=commit(), machine=where)


def trials(images: Sequence[int], methods: Sequence[str], seeds: Sequence[int], more: Sequence[str]) -> list[Trial]:
    """List the trials, by number of images, method and seed; `more` overrides what OVERRIDES has."""
    listed: dict[Trial, None] = {}
    for count in images:
        for method in methods:
            overrides = tuple(merge_overrides(OVERRIDES.get((method, count), ()), more))
            listed |= dict.fromkeys(Trial(count, method, overrides, seed) for seed in seeds)
    return list(listed)


def read_results(path: Path) -> list[Result]:
    """Read the results of earlier calls; none if there is no file."""
    if not path.is_file():
        return []
    results = []
    for facts in json.loads(path.read_text(encoding="utf-8")):
        trial = facts.pop("trial")
        results.append(Result(Trial(**trial | {"overrides": tuple(trial["overrides"])}), **facts))
    return results


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write all results, so that an interruption leaves the file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as tmp:
        tmp.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")


def row(results: Sequence[Result]) -> str:
    """Format the row of the trials that differ in the seed only."""
    trial = results[0].trial
    cells = [
        f"{trial.images:,}",
        f"`{' '.join(trial.words)}`",
        accuracy_cell([result.accuracy for result in results]),
        time_cell(sorted({result.preprocess for result in results})),
        time_cell([result.train for result in results]),
        f"{mean(result.training for result in results):.1f} s",
        time_cell([result.evaluate for result in results]),
    ]
    return f"| {' | '.join(cells)} |"


def table(results: Sequence[Result]) -> str:
    """Format the table of all results, with a row for each number of images, method and overrides."""
    order = list(METHODS)
    rows: dict[tuple[int, int, tuple[str, ...]], list[Result]] = {}
    for result in sorted(results, key=lambda one: one.trial.seed):
        trial = result.trial
        rows.setdefault((trial.images, order.index(trial.method), trial.overrides), []).append(result)
    lines = [
        "| images of a class | overrides | test accuracy | preprocess | train | training alone | evaluate |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(row(rows[key]) for key in sorted(rows)),
        "",
        *sorted({f"Measured at {result.commit} on {result.machine}." for result in results}),
    ]
    return "\n".join(lines)


def run_row(workspace: Workspace, words: Sequence[str], seeds: Iterable[Trial]) -> Iterator[Result | CommandFailed]:
    """Preprocess for trials that differ in the seed only, and yield the result or the failure of each."""
    try:
        seconds = preprocess(workspace, words)
    except CommandFailed as failure:
        yield failure
        return
    for trial in seeds:
        try:
            yield measure(workspace, trial, seconds)
        except CommandFailed as failure:
            yield failure


def run_trials(workspace: Workspace, pending: Sequence[Trial], warm: bool) -> Iterator[Result | CommandFailed]:
    """Yield the result or the failure of each trial as soon as it is there."""
    cifar10 = Dataset.open((workspace.root / "data" / "processed").rename(workspace.root.parent / "cifar10"))
    require_enough_images(cifar10, [trial.images for trial in pending])
    if warm:
        warm_up(workspace, cifar10, dict.fromkeys(trial.method for trial in pending))
    for count, trials_of_count in groupby(pending, lambda trial: trial.images):
        folder = workspace.root.parent / f"cifar10-{count}"
        write_image_folder(cifar10, folder, count)
        use_images(workspace, folder)
        # The size of the images depends on the network.
        for words, trials_of_row in groupby(trials_of_count, lambda trial: trial.words):
            yield from run_row(workspace, words, trials_of_row)


def parse_arguments() -> Namespace:
    """Parse the command line, and fill in what it leaves out."""
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=int, nargs="+", help=f"training images of each class, by default {IMAGES}")
    arguments.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments.add_argument("--seeds", type=int, nargs="+", help=f"by default {SEEDS}")
    arguments.add_argument("--output", type=Path, help="JSON file of all results, by default reports/finetuning.json")
    arguments.add_argument("--append", action="store_true", help="keep the results in the output file, and skip those")
    arguments.add_argument("--tiny", action="store_true", help="smoke test on random pixels; the numbers mean nothing")
    arguments.add_argument("overrides", nargs="*", help="overrides for all trainings, after `--`")
    options = arguments.parse_args()
    options.images = options.images or (TINY_IMAGES if options.tiny else IMAGES)
    options.seeds = options.seeds or (TINY_SEEDS if options.tiny else SEEDS)
    options.output = options.output or (None if options.tiny else OUTPUT)
    if options.tiny:
        options.overrides = [*TINY_WORDS, *options.overrides]
    if options.output and options.output.exists() and not options.append:
        sys.exit(f"{options.output} has results: add --append to keep and complete them, or remove it.")
    return options


def main() -> int:
    options, failures = parse_arguments(), 0
    results = read_results(options.output) if options.output else []
    finished = {result.trial for result in results}
    wanted = trials(options.images, options.methods, options.seeds, options.overrides)
    pending = [trial for trial in wanted if trial not in finished]
    say(f"trainings to measure: {len(pending)}; with results in {options.output}: {len(wanted) - len(pending)}")
    if pending:
        sizes = TINY if options.tiny else Sizes()
        with copy_of_the_project(sizes) as workspace:
            require_cifar10(workspace, sizes)
            for outcome in run_trials(workspace, pending, warm=not options.tiny):
                if isinstance(outcome, CommandFailed):
                    failures += 1
                    say(f"  FAILED: {outcome}")
                    continue
                results.append(outcome)
                say(f"  => {row([outcome])}")
                if options.output:
                    write_results(options.output, results)
    say(f"{time.perf_counter() - START:.0f} s in all, failures: {failures}")
    if results:
        print(table(results))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
