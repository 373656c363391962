"""Writes random pixels as a processed data set, for a machine without CIFAR-10: the same shapes, so the same work.

python benchmarks/random_images.py --images 45000
"""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np

from cifar_pipeline.config.compose import compose_config, restrict_to_stage
from cifar_pipeline.data.dataset import dataset_config
from cifar_pipeline.data.preprocessing import write_dataset
from cifar_pipeline.data.sources.base import RawDataset
from cifar_pipeline.data.sources.cifar import Cifar10

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class RandomPixels(Cifar10):
    """Something of CIFAR-10's shape that nobody should take for it."""

    name, title, origin = "random", "random pixels", "a random number generator"


arguments = ArgumentParser(description=__doc__)
arguments.add_argument("--images", type=int, required=True, help="images in the train part")
arguments.add_argument("--size", type=int, default=32, help="pixels of height and width")
arguments.add_argument("--data", type=Path, default=Path("data/processed"))
options = arguments.parse_args()
train, val, test = options.images, max(1, options.images // 9), max(1, options.images // 4)
generator = np.random.default_rng(0)


def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images and labels."""
    images = generator.integers(0, 256, (count, options.size, options.size, 3), np.uint8)
    return images, np.arange(count, dtype=np.int64) % len(CLASSES)


official = RawDataset(CLASSES, *drawn(train + val), *drawn(test))
order = np.arange(train + val)
asked = dataset_config(restrict_to_stage(compose_config(), "preprocess").data)
options.data.mkdir(parents=True)
source = RandomPixels()
write_dataset(
    options.data,
    official,
    order[:train],
    order[train:],
    source=source,
    requested_title=source.title,
    requested=asked,
    effective=asked,
)
