"""Times this project against what people would write or use instead, and against its own limits.

    make bench        (python benchmarks/run.py)

Takes some seven minutes on two quiet cores and writes reports/bench.json and reports/bench.md. All of it happens
in a temporary copy of the project. CIFAR-10 is taken from CIFAR10_SOURCE or data/raw; without it, random pixels of its
shape do the same work. `--only NAME` measures one part, `--tiny` shows in seconds that everything runs; neither
replaces the reports.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from measure import START, Failed, Row, Workspace, alternate, column, machine, report, say, write_report

ROOT = Path(__file__).resolve().parents[1]
PARTS_OF_THE_PROJECT = ("benchmarks", "conf", "src", "dvc.yaml", ".dvcignore", ".dvc/config")
EPOCHS = 10  # of the recipe
SWEEP_EPOCHS = 4  # the longest training of the recipe that runs step by step
JOBS, BESIDE = 4, 2
CLIENTS = (1, 4)  # of the scoring server
WITHOUT_DATA = "not measured: CIFAR-10 is not here (CIFAR10_SOURCE)"


@dataclass(frozen=True)
class Sizes:
    """How much is measured. The steps of `whole_epochs` are 0: all of an epoch."""

    images: int = 45_000
    repetitions: int = 3
    steady_repetitions: int = 2  # where the values differ by a few percent
    whole_epochs: int = 0
    tutorial_steps: int = 600
    lightning_steps: int = 400
    scan_steps: int = 1_000
    large_batch: int = 256
    large_steps: int = 120
    usual_large_steps: int = 40
    network_batch: int = 128
    network_steps: int = 12
    recipe_steps: int = 8
    recipe_batches: dict[str, int] = field(default_factory=lambda: {"quick": 64, "lenet_best": 128, "fast94": 500})
    sweep_steps: int = 500
    predicted_files: int = 10_000
    requests: int = 100
    engine: str = "block"


TINY = Sizes(
    images=200,
    repetitions=1,
    steady_repetitions=1,
    whole_epochs=3,
    tutorial_steps=1,
    lightning_steps=1,
    scan_steps=2,
    large_batch=8,
    large_steps=3,
    usual_large_steps=1,
    network_batch=4,
    network_steps=1,
    recipe_steps=1,
    recipe_batches={"quick": 8, "lenet_best": 8, "fast94": 8},
    sweep_steps=2,
    predicted_files=10,
    requests=2,
    engine="plain",
)


def tutorial(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """The tutorial's recipe: batch 4, SGD, one process."""
    steps = sizes.images // 4
    cold = workspace.run("python", "src/train.py", "trainer.max_epochs=1", f"machine.engine={sizes.engine}")
    say(f"    whole process {cold.seconds:.1f} s, peak memory {cold.peak_gigabytes:.2f} GB")

    # `auto` picks the engine, except in a smoke test.
    engine = [] if sizes.engine == "block" else [f"machine.engine={sizes.engine}"]
    sides = {
        "ours": ["--steps", str(sizes.whole_epochs), *engine],
        "tutorial_loop": ["--steps", str(sizes.tutorial_steps)],
        "lightning_usual": ["--steps", str(sizes.lightning_steps)],
    }
    if find_spec("jax"):
        sides["jax_scan"] = ["--steps", str(sizes.scan_steps)]
    answers = alternate(workspace, sides, sizes.steady_repetitions)
    ours = column(answers["ours"], "seconds")
    loop, usual = (
        [seconds * steps for seconds in column(answers[name], "per_step")]
        for name in ("tutorial_loop", "lightning_usual")
    )
    how = answers["ours"][0]
    ourselves = (
        f"ours is the second epoch of `fit`, whole, with validation, logging and checkpoints, "
        f"threads: {how['threads']}, steps {how['engine']}"
    )

    def extrapolated(measured: int) -> str:
        return f"theirs is extrapolated from {measured:,} to {steps:,} steps, without validation or checkpoints"

    yield Row(
        "tutorial's recipe, an epoch; against the tutorial's loop",
        "s",
        ours,
        loop,
        at_least=5,
        note=f"{ourselves}; {extrapolated(sizes.tutorial_steps)}.",
    )
    yield Row(
        f"the same, {EPOCHS} epochs, cold; against the tutorial's loop",
        "s",
        [cold.seconds + (EPOCHS - 1) * seconds for seconds in ours],
        [answer["start_up"] + EPOCHS * seconds for answer, seconds in zip(answers["tutorial_loop"], loop, strict=True)],
        at_least=4,
        note=f"ours is one run of `python src/train.py` with one epoch, {cold.seconds:.1f} s from start to end with an "
        f"empty compiler's cache and a new MLflow database, and {EPOCHS - 1} times each measured epoch; theirs is "
        f"start-up and {EPOCHS} times each extrapolated epoch.",
    )
    yield Row(
        "tutorial's recipe, an epoch; against Lightning as usually written",
        "s",
        ours,
        usual,
        at_least=6.5,
        note=f"ours as above; {extrapolated(sizes.lightning_steps)}.",
    )
    scan = "tutorial's recipe, an epoch; against JAX, lax.scan"
    if "jax_scan" in answers:
        seconds = [seconds * steps for seconds in column(answers["jax_scan"], "per_step")]
        note = f"ours as above; {extrapolated(sizes.scan_steps)}, after compilation."
        yield Row(scan, "s", ours, seconds, at_least=3, note=note)
    else:
        yield Row(scan, at_least=3, not_measured="not measured: jax is not installed (`pip install jax`)")
    yield Row(
        "peak memory of `train`",
        "GB",
        [cold.peak_gigabytes],
        at_most=1.5,
        note="resident memory of the largest process of that same cold `python src/train.py`.",
    )


def large_batch(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """LeNet at batch 256, step by step."""
    batch, size = str(sizes.large_batch), ["--batch-size", str(sizes.large_batch)]
    answers = alternate(
        workspace,
        {
            "ours": ["--steps", str(sizes.whole_epochs), "--epochs", "3", f"trainer.batch_size={batch}"],
            "memory_loop": ["--steps", str(sizes.large_steps), *size],
            "lightning_usual": ["--steps", str(sizes.usual_large_steps), *size],
        },
        sizes.steady_repetitions,
    )
    how = answers["ours"][0]
    ours, by_hand, usual = (column(answers[name], "images_per_second") for name in answers)
    note = f"ours is the training of `fit`'s second and third epoch, steps {how['engine']}, threads: {how['threads']}"
    yield Row(
        f"LeNet, batch {batch}; against a loop by hand over tensors in memory",
        "images/s",
        ours,
        by_hand,
        at_least=0.95,
        note=f"{note}; theirs is {sizes.large_steps} steps.",
    )
    yield Row(
        f"LeNet, batch {batch}; against Lightning with the usual DataLoader",
        "images/s",
        ours,
        usual,
        at_least=3,
        note=f"{note}; theirs is {sizes.usual_large_steps} steps.",
    )


def large_network(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """A network that keeps the processor busy by itself."""
    batch, steps = str(sizes.network_batch), str(sizes.network_steps)
    answers = alternate(
        workspace,
        {
            "ours": ["--steps", steps, f"trainer.batch_size={batch}", "model._target_=networks.resnet18"],
            "memory_loop": ["--steps", steps, "--batch-size", batch, "--network", "resnet18"],
        },
        sizes.steady_repetitions,
    )
    ours, by_hand = (column(answers[name], "images_per_second") for name in answers)
    yield Row(
        f"ResNet-18, batch {batch}; against a loop by hand over tensors in memory",
        "images/s",
        ours,
        by_hand,
        at_least=0.98,
        note=f"{steps} steps each, after {steps} to warm up; ours is the training of `fit`'s second epoch.",
    )


def stages(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """What a person waits for around the training."""
    with_a_model(workspace)
    firsts = [workspace.side("first_step", "rerun=true") for _ in range(2)]
    parts = {part: median(column((answer["parts"] for answer in firsts), part)) for part in firsts[0]["parts"]}
    yield Row(
        "start of `python src/train.py` to its first step",
        "s",
        column(firsts, "seconds"),
        at_most=8,
        note="; ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items()) + " (medians; warm disk).",
    )
    for stage, most, times, what in (
        ("preprocess", 5, 2, "the whole process, with the contact sheet, twice"),
        ("evaluate", 20, 1, "the whole process, with figures and MLflow, once"),
    ):
        row = f"`python src/{stage}.py`"
        if stage == "preprocess" and not has_data(workspace):
            yield Row(row, "s", at_most=most, not_measured=WITHOUT_DATA)
            continue
        seconds = [workspace.run("python", f"src/{stage}.py").seconds for _ in range(times)]
        yield Row(row, "s", seconds, at_most=most, note=f"{what}.")

    nothing = "`dvc repro` with nothing to do"
    if not has_data(workspace):
        yield Row(nothing, "s", at_most=1, not_measured=WITHOUT_DATA)
        return
    workspace.run("python", "src/configure.py")
    workspace.run("dvc", "commit", "--force")
    ends = [workspace.run("dvc", "repro") for _ in range(1 + sizes.repetitions)]
    if any("Running stage" in end.output for end in ends):
        raise Failed(f"`dvc repro` found something to do: {ends[0].output}")
    yield Row(
        nothing, "s", [end.seconds for end in ends[1:]], at_most=1, note="the whole process, after one to warm up."
    )


def use(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """The model in use: on picture files, and over HTTP."""
    with_a_model(workspace)
    files = sizes.predicted_files
    workspace.run("python", "benchmarks/picture_files.py", "pictures", "--count", str(files))
    asked = [workspace.run("python", "src/predict.py", "pictures", "--csv", "answers.csv") for _ in range(2)]
    seconds = [end.seconds for end in asked]
    yield Row(
        f"`python src/predict.py` on {files:,} files of 32x32",
        "s",
        seconds,
        at_most=files / 1000,
        note=f"PNG files; the whole process, twice: {files / median(seconds):,.0f} pictures/s with its start-up, "
        f"peak memory {max(end.peak_gigabytes for end in asked):.2f} GB.",
    )
    waits = [workspace.side("clients", "--clients", *map(str, CLIENTS), "--requests", str(sizes.requests))]
    for clients in CLIENTS:
        for percent in (50, 99):
            yield Row(
                f"`make serve`, a picture a request, {clients} client{'s' if clients > 1 else ''}: p{percent}",
                "ms",
                column(waits, f"p{percent}_of_{clients}"),
                note=f"the time from question to answer that {percent} % of {clients * sizes.requests} requests "
                "don't pass, on one connection a client; one server.",
            )


def sweep(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """Points of a sweep beside each other, and one after another."""
    steps, whole = sizes.sweep_steps, SWEEP_EPOCHS * sizes.images // 4
    ways = {"together": ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={BESIDE}"], "in turn": []}
    measured, extrapolated = {}, {}
    for way, launcher in ways.items():
        folder = Path("multirun") / way.replace(" ", "_")
        seconds = workspace.run(
            "python",
            "src/train.py",
            "-m",
            f"seed={','.join(map(str, range(1, JOBS + 1)))}",
            "trainer.max_epochs=1",
            f"trainer.limit_train_batches={steps}",
            "trainer.limit_val_batches=1",
            "machine.threads=1",
            "rerun=true",
            f"hydra.sweep.dir={folder}",
            *launcher,
        ).seconds
        facts = [json.loads(path.read_text()) for path in (workspace.root / folder).glob("*/models/training.json")]
        if len(facts) != JOBS:
            raise Failed(f"{len(facts)} of {JOBS} points have finished {way}")
        training = sum(fact["timing"]["seconds"] for fact in facts) / (BESIDE if launcher else 1)
        measured[way], extrapolated[way] = seconds, seconds + training * (whole / steps - 1)
        say(f"    {seconds:.1f} s, of which training {training:.1f} s")
    yield Row(
        f"sweep of {JOBS} points, {BESIDE} jobs together; against one after another",
        "s",
        [extrapolated["together"]],
        [extrapolated["in turn"]],
        at_least=1.7,
        note=f"batch 4, one thread each, step by step, whole processes; measured with {steps:,} steps a point "
        f"({measured['together']:.1f} s against {measured['in turn']:.1f} s), their training extrapolated to "
        f"{SWEEP_EPOCHS} epochs, {whole:,} steps a point.",
    )


LOOPS = {"quick": [], "lenet_best": [], "fast94": ["--network", "AirbenchNet", "--bf16"]}


def recipes(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """The recipes past the tutorial's: their speed, and how much of a whole run is something else than training."""
    for name, batch in sizes.recipe_batches.items():
        steps = str(sizes.recipe_steps * (500 // batch))
        ours = [f"experiment={name}", f"trainer.batch_size={batch}", "trainer.micro_batch_size=null"]
        short = [*ours, "trainer.max_epochs=2", f"trainer.limit_train_batches={steps}"]
        trained = workspace.run("python", "src/train.py", *short, "rerun=true")
        timing = json.loads((workspace.root / "models" / "training.json").read_text())["timing"]
        with (workspace.root / "reports" / "history.csv").open(newline="") as file:
            speed = float(list(csv.DictReader(file))[-1]["images_per_second"])
        evaluated = workspace.run("python", "src/evaluate.py", *short)
        by_hand = workspace.side("memory_loop", "--steps", steps, "--batch-size", str(batch), *LOOPS[name])
        yield Row(
            f"experiment={name}, in batches of {batch}; against a loop by hand over tensors in memory",
            "images/s",
            [speed],
            [by_hand["images_per_second"]],
            note=f"{steps} steps each, after the first ones, once; ours is the second epoch of `python src/train.py`, "
            "with its optimizer and augmentation, theirs has SGD and none.",
        )
        outside = trained.seconds - timing["seconds"] + evaluated.seconds
        training = composed_epochs(workspace, name) * sizes.images / speed
        yield Row(
            f"experiment={name}: what of `train` and `evaluate` is not training",
            "%",
            [100 * outside / (outside + training)],
            note=f"{outside:.1f} s of start-up, export, MLflow and evaluation with its figures, beside "
            f"{training:.0f} s of training at the speed above.",
        )


def composed_epochs(workspace: Workspace, experiment: str) -> int:
    """The epochs of an experiment."""
    told = workspace.run(
        "python", "src/train.py", "--cfg", "job", "-p", "trainer.max_epochs", f"experiment={experiment}"
    )
    return int(told.output.splitlines()[-1])


SECTIONS: dict[str, Callable[[Workspace, Sizes], Iterator[Row]]] = {
    "tutorial": tutorial,
    "large_batch": large_batch,
    "large_network": large_network,
    "stages": stages,
    "use": use,
    "sweep": sweep,
    "recipes": recipes,
}


def with_a_model(workspace: Workspace) -> None:
    """Train one where the part `tutorial` was left out."""
    if not (workspace.root / "models").is_dir():
        workspace.run("python", "src/train.py", "trainer.max_epochs=1", "trainer.limit_train_batches=100")


def has_data(workspace: Workspace) -> bool:
    """Whether the workspace holds the real CIFAR-10."""
    return (workspace.root / "data" / "raw" / "cifar10").is_dir()


@contextmanager
def copy_of_the_project(sizes: Sizes) -> Iterator[Workspace]:
    """The project as it is, in a temporary folder, with its data and an empty compiler's cache."""
    with TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder) / "project"
        for name in PARTS_OF_THE_PROJECT:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, root / name)
        (root / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
        (root / "params.yaml").write_text("experiment: tutorial\nseed: 0\noverrides: {}\n")
        workspace = Workspace(root, {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "compiled")} | source())
        if sizes is not TINY and "CIFAR10_SOURCE" in workspace.variables:
            workspace.run("python", "src/download.py")
            if not has_data(workspace):
                sys.exit(f"CIFAR10_SOURCE={workspace.variables['CIFAR10_SOURCE']} does not give CIFAR-10: unset it.")
            workspace.run("python", "src/preprocess.py")
        else:
            workspace.run("python", "benchmarks/random_pictures.py", "--images", str(sizes.images))
        yield workspace


def source() -> dict[str, str]:
    """The variable that says where CIFAR-10 is, if anything does."""
    raw = ROOT / "data" / "raw" / "cifar10"
    place = os.environ.get("CIFAR10_SOURCE") or (str(raw) if raw.is_dir() else "")
    return {"CIFAR10_SOURCE": place} if place else {}


def commit() -> str:
    """The commit that is measured, with a word where the code differs from it."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "src", "conf"], capture_output=True, text=True)
    return (found.stdout.strip() or "unknown") + (" with changes" if changed.stdout else "")


def main() -> int:
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    arguments.add_argument("--tiny", action="store_true", help="only show that it runs; the numbers mean nothing")
    arguments.add_argument(
        "--reports", type=Path, help="where the results are written; reports/, and nowhere with --only or --tiny"
    )
    options = arguments.parse_args()
    is_whole = options.only == list(SECTIONS) and not options.tiny
    sizes = TINY if options.tiny else Sizes()
    hardware = machine()
    head: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": hardware,
    }
    say(f"{hardware['processor']}, {hardware['cores']} cores, load {hardware['load_at_start']}")
    rows: list[Row] = []
    failures = 0
    with copy_of_the_project(sizes) as workspace:
        real = has_data(workspace)
        head["data"] = f"{'CIFAR-10' if real else 'random pixels in the shape of CIFAR-10'}, {sizes.images:,} images"
        say(f"data: {head['data']}")
        for name in options.only:
            say(f"{name}: {SECTIONS[name].__doc__}")
            try:
                for row in SECTIONS[name](workspace, sizes):
                    rows.append(row)
                    say("  => " + " | ".join(row.cells()))
            except Failed as failure:
                failures += 1
                say(f"  FAILED: {failure}")
    head["seconds"] = time.perf_counter() - START
    print(report(head, rows))
    if reports := options.reports or (ROOT / "reports" if is_whole else None):
        write_report(reports, head, rows)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
