"""Benchmark section for folders of image files: `preprocess` against torchvision's ImageFolder."""

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from measure import Row, Workspace, column, say
from workload_sizes import Sizes

IMAGES = "images"
# Of the folder on which the start-up is measured.
FEW_IMAGES = 20
SHORTEST = 0.1  # seconds, for the smoke test


def image_files(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """Image files: `preprocess` against torchvision's ImageFolder with two workers."""
    for size, count, target in ((32, sizes.image_files, 1.5), (280, sizes.large_image_files, None)):
        _make_photos(workspace, FEW_IMAGES)
        start = _both(workspace, size)
        _make_photos(workspace, count)
        runs = [_both(workspace, size) for _ in range(sizes.steady_repetitions)]
        rates = {
            side: [
                (count - FEW_IMAGES) / max(seconds - start[side]["seconds"], SHORTEST)
                for seconds in _values(runs, side)
            ]
            for side in start
        }
        yield Row(
            f"`python src/preprocess.py` on {count:,} JPEG files of 500 x 400, stored at {size} x {size}",
            "images/s",
            rates["ours"],
            rates["theirs"],
            at_least=target,
            note="without cached images; ImageFolder with Resize, CenterCrop and a DataLoader of two workers. The "
            f"process less its time for {FEW_IMAGES} files: ours {start['ours']['seconds']:.1f} s, theirs "
            f"{start['theirs']['seconds']:.1f} s. Peak of anonymous memory: ours {_peak(runs, 'ours')}, theirs "
            f"{_peak(runs, 'theirs')}.",
        )


def _make_photos(workspace: Workspace, count: int) -> None:
    shutil.rmtree(workspace.root / IMAGES)
    made = workspace.run("python", "benchmarks/make_photos.py", IMAGES, "--count", str(count))
    say(f"    {made.output.strip()}")


def _both(workspace: Workspace, size: int) -> dict[str, dict[str, Any]]:
    """Measure both sides once, ours on images that are not cached."""
    for name in (".cache/images", "data/raw"):
        shutil.rmtree(workspace.root / name, ignore_errors=True)
    overrides = ("experiment=custom_images", f"data.size={size}")
    workspace.run("python", "src/download.py", *overrides)
    theirs = ("benchmarks/torchvision_image_folder.py", IMAGES, "--size", str(size))
    return {
        "ours": workspace.run_script("peak_memory", "python", "src/preprocess.py", *overrides),
        "theirs": workspace.run_script("peak_memory", "python", *theirs),
    }


def _values(runs: list[dict[str, dict[str, Any]]], side: str, key: str = "seconds") -> list[float]:
    results: list[Mapping[str, Any]] = [run[side] for run in runs]
    return column(results, key)


def _peak(runs: list[dict[str, dict[str, Any]]], side: str) -> str:
    return f"{max(_values(runs, side, 'anonymous_megabytes')):,.0f} MB"
