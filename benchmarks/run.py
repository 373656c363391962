"""Benchmark this project against common alternatives and against its own limits.

    make bench        (python benchmarks/run.py)

Takes a quarter of an hour on two quiet cores and writes reports/bench.json and reports/bench.md. All of it happens
in a temporary copy of the project. CIFAR-10 is taken from CIFAR10_SOURCE or data/raw; without it, random pixels of its
shape do the same work. `--only NAME` measures one section, `--tiny` is a smoke test; neither replaces
the reports.
"""

import environment  # noqa: F401

# isort: split

import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from busy_machine import busy
from copied_project import ROOT, copy_of_the_project, has_data
from image_files import image_files
from latency import model_file, stages, use
from measure import START, CommandFailed, Row, Workspace, machine, report, say, write_report
from training_speed import large_batch, large_network, recipes, sweep, tutorial
from workload_sizes import TINY, Sizes

SECTIONS: dict[str, Callable[[Workspace, Sizes], Iterator[Row]]] = {
    "tutorial": tutorial,
    "large_batch": large_batch,
    "large_network": large_network,
    "stages": stages,
    "use": use,
    "model_file": model_file,
    "sweep": sweep,
    "recipes": recipes,
    "busy": busy,
    "image_files": image_files,
}


@cache
def commit() -> str:
    """Return the measured commit, followed by "with changes" if the code differs from it.

    It is read once: what is committed during the measurement is not measured.
    """
    git = ["git", "-C", str(ROOT)]
    revision = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "src", "conf"], capture_output=True, text=True)
    return (revision.stdout.strip() or "unknown") + (" with changes" if changed.stdout else "")


def main() -> int:
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    arguments.add_argument("--tiny", action="store_true", help="smoke test; the numbers mean nothing")
    arguments.add_argument(
        "--reports", type=Path, help="where the results are written; reports/, and nowhere with --only or --tiny"
    )
    arguments.add_argument("--image-files", type=int, help="number of files of the section image_files, 57 kB each")
    options = arguments.parse_args()
    is_complete = options.only == list(SECTIONS) and not options.tiny
    sizes = TINY if options.tiny else Sizes()
    if options.image_files:
        sizes = replace(sizes, image_files=options.image_files, large_image_files=options.image_files // 10)
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
            except CommandFailed as failure:
                failures += 1
                say(f"  FAILED: {failure}")
    head["seconds"] = time.perf_counter() - START
    print(report(head, rows))
    if reports := options.reports or (ROOT / "reports" if is_complete else None):
        write_report(reports, head, rows)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
