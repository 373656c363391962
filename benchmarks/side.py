"""What the sides share: their arguments, the images, the clock, and the line of JSON that each answers with."""

import json
import os
import re
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# The tutorial's values, for everybody.
LR, MOMENTUM, HALF = 0.001, 0.9, 0.5
CLASSES = 10
WARM_UP = 20  # steps before the measured ones


def parser(about: str | None) -> ArgumentParser:
    """The arguments that every side takes."""
    arguments = ArgumentParser(description=about)
    arguments.add_argument("--data", type=Path, default=Path("data/processed"), help="a processed data set")
    arguments.add_argument("--steps", type=int, required=True, help="optimizer steps to measure")
    arguments.add_argument("--batch-size", type=int, default=4)
    return arguments


def images(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images `[N, H, W, C]` and labels `[N]` of the train part, in memory."""
    return np.load(folder / "train" / "images.npy"), np.load(folder / "train" / "labels.npy")


def anonymous_bytes(process: int | str = "self") -> int:
    """The memory of a process that no file stands behind, as Linux tells it; 0 of one that has ended."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def since_start() -> float:
    """Seconds since this process was started; since now where nobody noted when that was."""
    return time.time() - float(os.environ.get("BENCHMARK_START") or time.time())


def answer(**numbers: float | str | dict[str, float]) -> None:
    """Say what was measured; the last thing that a side prints."""
    print(json.dumps(numbers), flush=True)


def answer_steps(start_up: float, seconds: float, steps: int, batch_size: int) -> None:
    """Say how long `steps` took, after `start_up` seconds."""
    answer(start_up=start_up, seconds=seconds, per_step=seconds / steps, images_per_second=steps * batch_size / seconds)
