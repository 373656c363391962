"""How fast trainings are: against what people would write or use instead, and against a loop by hand."""

import csv
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from measure import Failed, Row, Workspace, alternate, column, say
from sizes import Sizes

EPOCHS = 10  # of the recipe
SWEEP_EPOCHS = 4  # the longest training of the recipe that runs step by step
JOBS, BESIDE = 4, 2


def tutorial(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """The tutorial's recipe: batch 4, SGD, one process."""
    steps = sizes.images // 4
    cold = workspace.run("python", "src/train.py", "trainer.max_epochs=1", f"runtime.engine={sizes.engine}")
    say(f"    whole process {cold.seconds:.1f} s, peak memory {cold.peak_gigabytes:.2f} GB")

    # `auto` picks the engine, except in a smoke test.
    engine = [] if sizes.engine == "block" else [f"runtime.engine={sizes.engine}"]
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


def sweep(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """Points of a sweep beside each other, and one after another."""
    steps, whole = sizes.sweep_steps, SWEEP_EPOCHS * sizes.images // 4
    ways = {"together": ["launcher=joblib", f"hydra.launcher.n_jobs={BESIDE}"], "in turn": []}
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
            "runtime.threads=1",
            "rerun=true",
            f"hydra.sweep.dir={folder}",
            *launcher,
        ).seconds
        facts = [json.loads(path.read_text()) for path in (workspace.root / folder).glob("*/models/metadata.json")]
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


LOOPS = {"quick": [], "lenet_tuned": [], "airbench94": ["--network", "AirbenchNet", "--bf16"]}


def recipes(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """The recipes past the tutorial's: their speed, and how much of a whole run is something else than training."""
    for name, batch in sizes.recipe_batches.items():
        steps = str(sizes.recipe_steps * (500 // batch))
        ours = [f"experiment={name}", f"trainer.batch_size={batch}", "trainer.micro_batch_size=null"]
        short = [*ours, "trainer.max_epochs=2", f"trainer.limit_train_batches={steps}"]
        trained = workspace.run("python", "src/train.py", *short, "rerun=true")
        timing = json.loads((workspace.root / "models" / "metadata.json").read_text())["timing"]
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
