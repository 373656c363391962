"""Benchmark sections for training speed, against the tutorial's loop, Lightning, JAX and a plain loop."""

import csv
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from measure import CommandFailed, Row, Workspace, alternate, column, say
from workload_sizes import Sizes

EPOCHS = 10  # of the recipe
SWEEP_EPOCHS = 4  # the longest training of the recipe that runs on the eager engine
TRIALS, JOBS = 4, 2


def tutorial(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """The tutorial's recipe: batch 4, SGD, one process."""
    steps = sizes.images // 4
    cold = workspace.run("python", "src/train.py", "trainer.max_epochs=1", f"runtime.engine={sizes.engine}")
    say(f"    whole process {cold.seconds:.1f} s, peak memory {cold.peak_gigabytes:.2f} GB")

    # `auto` picks the engine, except in a smoke test.
    engine = [] if sizes.engine == "compiled" else [f"runtime.engine={sizes.engine}"]
    scripts = {
        "pipeline": ["--steps", str(sizes.whole_epochs), *engine],
        "tutorial_loop": ["--steps", str(sizes.tutorial_steps)],
        "plain_lightning": ["--steps", str(sizes.lightning_steps)],
    }
    if find_spec("jax"):
        scripts["jax_scan"] = ["--steps", str(sizes.scan_steps)]
    results = alternate(workspace, scripts, sizes.steady_repetitions)
    ours = column(results["pipeline"], "seconds")
    loop, usual = (
        [seconds * steps for seconds in column(results[name], "per_step")]
        for name in ("tutorial_loop", "plain_lightning")
    )
    how = results["pipeline"][0]
    note_ours = (
        f"ours is the second epoch of `fit`, whole, with validation, logging and checkpoints, "
        f"threads: {how['threads']}, engine: {how['engine']}"
    )

    def extrapolated(measured: int) -> str:
        return f"theirs is extrapolated from {measured:,} to {steps:,} steps, without validation or checkpoints"

    yield Row(
        "tutorial's recipe, an epoch; against the tutorial's loop",
        "s",
        ours,
        loop,
        at_least=5,
        note=f"{note_ours}; {extrapolated(sizes.tutorial_steps)}.",
    )
    yield Row(
        f"the same, {EPOCHS} epochs, cold; against the tutorial's loop",
        "s",
        [cold.seconds + (EPOCHS - 1) * seconds for seconds in ours],
        [result["start_up"] + EPOCHS * seconds for result, seconds in zip(results["tutorial_loop"], loop, strict=True)],
        at_least=4,
        note=f"ours is one run of `python src/train.py` with one epoch, {cold.seconds:.1f} s from start to end with an "
        f"empty compiler cache and a new MLflow database, and {EPOCHS - 1} times each measured epoch; theirs is "
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
    if "jax_scan" in results:
        seconds = [seconds * steps for seconds in column(results["jax_scan"], "per_step")]
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
    """LeNet at batch 256, eager engine."""
    batch, size = str(sizes.large_batch), ["--batch-size", str(sizes.large_batch)]
    results = alternate(
        workspace,
        {
            "pipeline": ["--steps", str(sizes.whole_epochs), "--epochs", "3", f"trainer.batch_size={batch}"],
            "plain_loop_in_memory": ["--steps", str(sizes.large_steps), *size],
            "plain_lightning": ["--steps", str(sizes.usual_large_steps), *size],
        },
        sizes.steady_repetitions,
    )
    how = results["pipeline"][0]
    ours, by_hand, usual = (column(results[name], "images_per_second") for name in results)
    note = f"ours is the training of `fit`'s second and third epoch, engine: {how['engine']}, threads: {how['threads']}"
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
    """ResNet-18 at batch 128."""
    batch, steps = str(sizes.network_batch), str(sizes.network_steps)
    results = alternate(
        workspace,
        {
            "pipeline": ["--steps", steps, f"trainer.batch_size={batch}", "model._target_=models.resnet18"],
            "plain_loop_in_memory": ["--steps", steps, "--batch-size", batch, "--network", "resnet18"],
        },
        sizes.steady_repetitions,
    )
    ours, by_hand = (column(results[name], "images_per_second") for name in results)
    yield Row(
        f"ResNet-18, batch {batch}; against a loop by hand over tensors in memory",
        "images/s",
        ours,
        by_hand,
        at_least=0.98,
        note=f"{steps} steps each, after {steps} to warm up; ours is the training of `fit`'s second epoch.",
    )


def sweep(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """Trials of a sweep in parallel, and one after another."""
    steps, whole = sizes.sweep_steps, SWEEP_EPOCHS * sizes.images // 4
    modes = {"parallel": ["launcher=joblib", f"hydra.launcher.n_jobs={JOBS}"], "in turn": []}
    measured, extrapolated = {}, {}
    for mode, launcher in modes.items():
        folder = Path("multirun") / mode.replace(" ", "_")
        seconds = workspace.run(
            "python",
            "src/train.py",
            "-m",
            f"seed={','.join(map(str, range(1, JOBS + 1)))}",
            "trainer.max_epochs=1",
            f"trainer.limit_train_batches={steps}",
            "trainer.limit_val_batches=1",
            "runtime.threads=1",
            "rerun=true",
            f"hydra.sweep.dir={folder}",
            *launcher,
        ).seconds
        timings = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in (workspace.root / folder).glob("*/models/metadata.json")
        ]
        if len(timings) != TRIALS:
            raise CommandFailed(f"{len(timings)} of {TRIALS} trials have finished ({mode})")
        training = sum(one["timing"]["seconds"] for one in timings) / (JOBS if launcher else 1)
        measured[mode], extrapolated[mode] = seconds, seconds + training * (whole / steps - 1)
        say(f"    {seconds:.1f} s, of which training {training:.1f} s")
    yield Row(
        f"sweep of {TRIALS} trials, {JOBS} jobs in parallel; against one after another",
        "s",
        [extrapolated["parallel"]],
        [extrapolated["in turn"]],
        at_least=1.7,
        note=f"batch 4, one thread each, eager engine, whole processes; measured with {steps:,} steps a trial "
        f"({measured['parallel']:.1f} s against {measured['in turn']:.1f} s), their training extrapolated to "
        f"{SWEEP_EPOCHS} epochs, {whole:,} steps a trial.",
    )


LOOPS = {"quick": [], "lenet_tuned": [], "airbench94": ["--network", "AirbenchNet", "--bf16"]}


def recipes(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """The other experiments: training speed, and the share of a whole run that is not training."""
    for name, batch in sizes.recipe_batches.items():
        steps = str(sizes.recipe_steps * (500 // batch))
        ours = [f"experiment={name}", f"trainer.batch_size={batch}", "trainer.micro_batch_size=null"]
        short = [*ours, "trainer.max_epochs=2", f"trainer.limit_train_batches={steps}"]
        trained = workspace.run("python", "src/train.py", *short, "rerun=true")
        timing = json.loads((workspace.root / "models" / "metadata.json").read_text(encoding="utf-8"))["timing"]
        with (workspace.root / "reports" / "history.csv").open(newline="", encoding="utf-8") as file:
            speed = float(list(csv.DictReader(file))[-1]["images_per_second"])
        evaluated = workspace.run("python", "src/evaluate.py", *short)
        by_hand = workspace.run_script(
            "plain_loop_in_memory", "--steps", steps, "--batch-size", str(batch), *LOOPS[name]
        )
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
            f"experiment={name}: share of `train` and `evaluate` that is not training",
            "%",
            [100 * outside / (outside + training)],
            note=f"{outside:.1f} s of start-up, export, MLflow and evaluation with its figures, next to "
            f"{training:.0f} s of training at the speed above.",
        )


def composed_epochs(workspace: Workspace, experiment: str) -> int:
    """Return trainer.max_epochs of an experiment."""
    shown = workspace.run(
        "python", "src/train.py", "--cfg", "job", "-p", "trainer.max_epochs", f"experiment={experiment}"
    )
    return int(shown.output.splitlines()[-1])
