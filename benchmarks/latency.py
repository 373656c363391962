"""Benchmark sections for waiting times: start-up, the other stages, predictions."""

from collections.abc import Iterator
from statistics import median
from typing import Any

from copied_project import has_data, with_a_model
from measure import CommandFailed, Row, Workspace, column
from workload_sizes import Sizes

CLIENTS = (1, 4)  # of the scoring server
WITHOUT_DATA = "not measured: CIFAR-10 is not available (set CIFAR10_SOURCE)"


def stages(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """Start-up and the stages around the training."""
    with_a_model(workspace)
    results = [workspace.run_script("startup_time", "rerun=true") for _ in range(2)]
    parts = {part: median(column((answer["parts"] for answer in results), part)) for part in results[0]["parts"]}
    yield Row(
        "start of `python src/train.py` to its first step",
        "s",
        column(results, "seconds"),
        at_most=8,
        note="; ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items()) + " (medians; warm disk).",
    )
    for stage, limit, times, note in (
        ("preprocess", 5, 2, "the whole process, with the contact sheet, twice"),
        ("evaluate", 20, 1, "the whole process, with figures and MLflow, once"),
    ):
        row = f"`python src/{stage}.py`"
        if stage == "preprocess" and not has_data(workspace):
            yield Row(row, "s", at_most=limit, not_measured=WITHOUT_DATA)
            continue
        seconds = [workspace.run("python", f"src/{stage}.py").seconds for _ in range(times)]
        yield Row(row, "s", seconds, at_most=limit, note=f"{note}.")

    nothing = "`dvc repro` with nothing to do"
    if not has_data(workspace):
        yield Row(nothing, "s", at_most=1, not_measured=WITHOUT_DATA)
        return
    workspace.run("python", "src/configure.py")
    workspace.run("dvc", "commit", "--force")
    ends = [workspace.run("dvc", "repro") for _ in range(1 + sizes.repetitions)]
    if any("Running stage" in end.output for end in ends):
        raise CommandFailed(f"`dvc repro` found something to do: {ends[0].output}")
    yield Row(
        nothing, "s", [end.seconds for end in ends[1:]], at_most=1, note="the whole process, after one to warm up."
    )


def model_file(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """The model file, from process start to last prediction: ONNX against torch.export."""
    for network, images in (("lenet", sizes.predicted_files), ("resnet18", sizes.predicted_files // 10)):
        workspace.run_script("model_files", "--write", network, "--network", network)
        ours, theirs = list[dict[str, Any]](), list[dict[str, Any]]()
        for _ in range(sizes.repetitions):
            for answers, name in ((ours, "model.onnx"), (theirs, "model.pt2")):
                arguments = ["--predict", f"{network}/{name}", "--images", str(images)]
                answers.append(workspace.run_script("model_files", *arguments))
        parts = "; ".join(
            f"{name}: imports {median(column(answers, 'imports')):.2f} s, "
            f"loads {median(column(answers, 'load')):.2f} s, "
            f"{median(column(answers, 'images_per_second')):,.0f} images/s"
            for name, answers in (("ours", ours), ("theirs", theirs))
        )
        yield Row(
            f"{images:,} predictions with {network}'s model.onnx; with its pt2 file by torch",
            "s",
            column(ours, "seconds"),
            column(theirs, "seconds"),
            note=f"from the start of the process to the last prediction, medians; {parts}.",
        )


def use(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """Predictions for image files and over HTTP."""
    with_a_model(workspace)
    files = sizes.predicted_files
    workspace.run("python", "benchmarks/make_image_files.py", "images", "--count", str(files))
    runs = [workspace.run("python", "src/predict.py", "images", "--csv", "answers.csv") for _ in range(2)]
    seconds = [end.seconds for end in runs]
    yield Row(
        f"`python src/predict.py` on {files:,} files of 32x32",
        "s",
        seconds,
        at_most=files / 1000,
        note=f"PNG files; the whole process, twice: {files / median(seconds):,.0f} images/s with its start-up, "
        f"peak memory {max(end.peak_gigabytes for end in runs):.2f} GB.",
    )
    waits = [workspace.run_script("http_clients", "--clients", *map(str, CLIENTS), "--requests", str(sizes.requests))]
    for clients in CLIENTS:
        for percent in (50, 99):
            yield Row(
                f"`make serve`, an image a request, {clients} client{'s' if clients > 1 else ''}: p{percent}",
                "ms",
                column(waits, f"p{percent}_of_{clients}"),
                note=f"response time at percentile {percent} of {clients * sizes.requests} requests, one "
                "connection a client; one server.",
            )
