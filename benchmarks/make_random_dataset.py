"""Write a processed data set of random pixels with the shapes of CIFAR-10, for machines without it.

python benchmarks/make_random_dataset.py --images 45000
"""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.data.dataset import dataset_config
from cifar_pipeline.data.preprocessing import write_dataset
from cifar_pipeline.data.sources.base import RawDataset
from cifar_pipeline.data.sources.cifar import Cifar10

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class RandomPixels(Cifar10):
    """Random pixels in the shape of CIFAR-10, under a different name."""

    name, title, origin = "random", "random pixels", "a random number generator"


arguments = ArgumentParser(description=__doc__)
arguments.add_argument("--images", type=int, required=True, help="training images")
arguments.add_argument("--size", type=int, default=32, help="pixels of height and width")
arguments.add_argument("--data", type=Path, default=Path("data/processed"))
options = arguments.parse_args()
train, val, test = options.images, max(1, options.images // 9), max(1, options.images // 4)
generator = np.random.default_rng(0)


def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw random images and labels."""
    images = generator.integers(0, 256, (count, options.size, options.size, 3), np.uint8)
    return images, np.arange(count, dtype=np.int64) % len(CLASSES)


raw = RawDataset(CLASSES, *draw(train + val), *draw(test))
order = np.arange(train + val)
asked = dataset_config(compose_config().data)
options.data.mkdir(parents=True)
source = RandomPixels()
write_dataset(
    options.data, raw, order[:train], order[train:], source=source, wanted=source.title, asked=asked, used=asked
)
