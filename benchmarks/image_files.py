"""Benchmark section for folders of image files: `preprocess` against torchvision's ImageFolder."""

import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from measure import Row, Workspace, column, say
from workload_sizes import Sizes

IMAGES = "images"


def image_files(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """Image files: `preprocess` against torchvision's ImageFolder with two workers."""
    for size, count, target in ((32, sizes.image_files, 1.5), (280, sizes.large_image_files, None)):
        shutil.rmtree(workspace.root / IMAGES)
        made = workspace.run("python", "benchmarks/make_photos.py", IMAGES, "--count", str(count))
        say(f"    {made.output.strip()}")
        ours, theirs = list[dict[str, Any]](), list[dict[str, Any]]()
        for _ in range(sizes.steady_repetitions):
            ours.append(_preprocess(workspace, size))
            theirs.append(
                _measured(workspace, "python", "benchmarks/torchvision_image_folder.py", IMAGES, "--size", str(size))
            )
        yield Row(
            f"`python src/preprocess.py` on {count:,} JPEG files of 500 x 400, stored at {size} x {size}",
            "images/s",
            [count / seconds for seconds in column(ours, "seconds")],
            [count / seconds for seconds in column(theirs, "seconds")],
            at_least=target,
            note="the whole process without cached images; ImageFolder with Resize, CenterCrop and a DataLoader of two "
            f"workers, the whole process too. Peak of anonymous memory: ours {_peak(ours)}, theirs {_peak(theirs)}.",
        )


def _preprocess(workspace: Workspace, size: int) -> dict[str, Any]:
    """Measure `preprocess` on images that are not cached."""
    for name in (".cache/images", "data/raw"):
        shutil.rmtree(workspace.root / name, ignore_errors=True)
    overrides = ("experiment=custom_images", f"data.size={size}")
    workspace.run("python", "src/download.py", *overrides)
    return _measured(workspace, "python", "src/preprocess.py", *overrides)


def _measured(workspace: Workspace, *command: str) -> dict[str, Any]:
    return workspace.run_script("peak_memory", *command)


def _peak(results: Sequence[dict[str, Any]]) -> str:
    return f"{max(column(results, 'anonymous_megabytes')):,.0f} MB"
