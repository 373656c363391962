"""Trains on a set that stays on disk, memory-mapped, and on the same set copied into memory, in turn.

    python benchmarks/larger_than_memory.py --images 100000 --size 64

LeNet in large batches asks most of the gathering of images: larger networks wait for it less. What is told is the
peak of anonymous memory (RssAnon). Pages of the map are no part of it: the system takes them back when it needs them.
"""

import sys
from argparse import ArgumentParser
from statistics import median

from measure import Failed, machine, say
from run import TINY, commit, copy_of_the_project

AUGMENTATIONS = ("none", "flip_crop")


def main() -> int:
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=int, default=100_000, help="images in the train part")
    arguments.add_argument("--size", type=int, default=64, help="pixels of height and width")
    arguments.add_argument("--epochs", type=int, default=2, help="of which all but the first are measured")
    arguments.add_argument("--repetitions", type=int, default=3)
    options = arguments.parse_args()
    hardware = machine()
    gigabytes = options.images * options.size**2 * 3 / 1e9
    say(f"{hardware['processor']}, {hardware['cores']} cores, load {hardware['load_at_start']}, commit {commit()}")
    say(f"{options.images:,} images of {options.size} x {options.size}: {gigabytes:.2f} GB")
    rows = []
    with copy_of_the_project(TINY) as workspace:
        try:
            size = ("--images", str(options.images), "--size", str(options.size), "--data", "large")
            workspace.run("python", "benchmarks/random_images.py", *size)
            for augment in AUGMENTATIONS:
                words = ("--data", "large", "--steps", "0", "--epochs", str(options.epochs))
                choices = (f"augmentation={augment}", "trainer.batch_size=256")
                mapped, copied = [], []
                for _ in range(options.repetitions):
                    mapped.append(workspace.side("ours", *words, *choices))
                    copied.append(workspace.side("ours", *words, "--in-memory", *choices))
                rows.append(row(augment, mapped, copied))
        except Failed as failure:
            say(f"  FAILED: {failure}")
            return 1
    print("| augmentation | images/s, on disk | images/s, in memory | ratio | RssAnon, on disk | RssAnon, in memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    return 0


def row(name: str, mapped: list[dict[str, float]], copied: list[dict[str, float]]) -> str:
    """Medians with their ranges, and the peaks of memory."""

    def speeds(answers: list[dict[str, float]]) -> tuple[float, str]:
        values = [answer["images_per_second"] for answer in answers]
        return median(values), f"{median(values):,.0f} [{min(values):,.0f} - {max(values):,.0f}]"

    def memory(answers: list[dict[str, float]]) -> str:
        return f"{max(answer['anonymous_gigabytes'] for answer in answers):.2f} GB"

    (one, said), (other, told) = speeds(mapped), speeds(copied)
    return f"| `{name}` | {said} | {told} | {one / other:.2f} | {memory(mapped)} | {memory(copied)} |"


if __name__ == "__main__":
    sys.exit(main())
