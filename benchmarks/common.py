"""Shared by the benchmark scripts: arguments, images, clock, and the JSON line with the result."""

import json
import os
import re
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# The tutorial's values.
LR, MOMENTUM, HALF = 0.001, 0.9, 0.5
CLASSES = 10
WARM_UP = 20  # steps before the measured ones


def parser(description: str | None) -> ArgumentParser:
    """Return a parser with the arguments that every training script takes."""
    arguments = ArgumentParser(description=description)
    arguments.add_argument("--data", type=Path, default=Path("data/processed"), help="a processed data set")
    arguments.add_argument("--steps", type=int, required=True, help="optimizer steps to measure")
    arguments.add_argument("--batch-size", type=int, default=4)
    return arguments


def train_images(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Load images `[N, H, W, C]` and labels `[N]` of the training split into memory."""
    return np.load(folder / "train" / "images.npy"), np.load(folder / "train" / "labels.npy")


def anonymous_bytes(process: int | str = "self") -> int:
    """Return the anonymous memory of a process (RssAnon in /proc) in bytes, 0 after it has ended."""
    match = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(encoding="utf-8"))
    return int(match[1]) * 1024 if match else 0


def since_start() -> float:
    """Return the seconds since BENCHMARK_START, or 0 if it is not set."""
    return time.time() - float(os.environ.get("BENCHMARK_START") or time.time())


def print_result(**numbers: float | str | dict[str, float]) -> None:
    """Print the measured values as one line of JSON, which must be the last line of the output."""
    print(json.dumps(numbers), flush=True)


def print_step_result(start_up: float, seconds: float, steps: int, batch_size: int) -> None:
    """Print how long `steps` took, after `start_up` seconds."""
    print_result(
        start_up=start_up, seconds=seconds, per_step=seconds / steps, images_per_second=steps * batch_size / seconds
    )
