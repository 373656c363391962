"""Compare training on a memory-mapped data set with training on the same set copied into memory.

    python benchmarks/larger_than_memory.py --images 100000 --size 64

LeNet in large batches is the worst case for gathering images; larger networks wait for them less. The reported memory
is the peak of RssAnon, which excludes the pages of the memory map: the system reclaims them when it needs to.
"""

import environment  # noqa: F401

# isort: split

import sys
from argparse import ArgumentParser
from statistics import median

from measure import CommandFailed, machine, say
from run import TINY, commit, copy_of_the_project

AUGMENTATIONS = ("none", "flip_crop")


def main() -> int:
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=int, default=100_000, help="training images")
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
            workspace.run("python", "benchmarks/make_random_dataset.py", *size)
            for augment in AUGMENTATIONS:
                words = ("--data", "large", "--steps", "0", "--epochs", str(options.epochs))
                overrides = (f"augmentation={augment}", "trainer.batch_size=256")
                mapped, copied = [], []
                for _ in range(options.repetitions):
                    mapped.append(workspace.run_script("pipeline", *words, *overrides))
                    copied.append(workspace.run_script("pipeline", *words, "--in-memory", *overrides))
                rows.append(row(augment, mapped, copied))
        except CommandFailed as failure:
            say(f"  FAILED: {failure}")
            return 1
    print("| augmentation | images/s, on disk | images/s, in memory | ratio | RssAnon, on disk | RssAnon, in memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    return 0


def row(name: str, mapped: list[dict[str, float]], copied: list[dict[str, float]]) -> str:
    """Format medians with their ranges, and the peak memory."""

    def speeds(results: list[dict[str, float]]) -> tuple[float, str]:
        values = [result["images_per_second"] for result in results]
        return median(values), f"{median(values):,.0f} [{min(values):,.0f} - {max(values):,.0f}]"

    def memory(results: list[dict[str, float]]) -> str:
        return f"{max(result['anonymous_gigabytes'] for result in results):.2f} GB"

    (mapped_speed, mapped_text), (copied_speed, copied_text) = speeds(mapped), speeds(copied)
    ratio = mapped_speed / copied_speed
    return f"| `{name}` | {mapped_text} | {copied_text} | {ratio:.2f} | {memory(mapped)} | {memory(copied)} |"


if __name__ == "__main__":
    sys.exit(main())
