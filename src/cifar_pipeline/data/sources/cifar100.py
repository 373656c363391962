"""CIFAR-100, "python version": 50,000 training and 10,000 test images of 100 classes, 32x32, colour.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cifar_pipeline.data.official import Images, Labels, Official
from cifar_pipeline.data.sources.cifar10 import Cifar10

# The MD5 of each file in the archive, as torchvision publishes them (torchvision/datasets/cifar.py).
MEMBERS = {
    "meta": "7973b15100ade9c7d40fb424638fde48",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "train": "16019d7e3df5f24257cddd939b257f8d",
}


class Cifar100(Cifar10):
    """The source of CIFAR-100, by its 100 fine labels. `checksums` are the MD5s of the files that make it up."""

    name = "cifar100"
    title = "CIFAR-100"
    inner = "cifar-100-python"
    variable = "CIFAR100_SOURCE"
    published = MEMBERS
    archive_md5 = "eb9058c3a382ffc7106e4002c42a8d85"
    most_per_member = 320 << 20  # bytes; the training images alone have 154 MB

    def __init__(self, checksums: Mapping[str, str] = MEMBERS) -> None:
        super().__init__(checksums)

    def read(self, folder: Path) -> Official:
        """Read the files in `folder`: images `[50000, 32, 32, 3]` and `[10000, 32, 32, 3]`, classes by name.

        Raises Refusal where a file is not the published one: nothing is unpickled before its MD5 was checked.
        """
        classes = tuple(name.decode() for name in self._open(folder, "meta")[b"fine_label_names"])
        return Official(classes, *self._batch(folder, "train"), *self._batch(folder, "test"))

    def _batch(self, folder: Path, name: str) -> tuple[Images, Labels]:
        content = self._open(folder, name)
        planes = np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.asarray(content[b"fine_labels"], np.int64)
