"""CIFAR-100, "python version": 50,000 training and 10,000 test images of 100 classes, 32x32, colour.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from pathlib import Path
from typing import ClassVar

from cifar_pipeline.data.official import Official
from cifar_pipeline.data.sources.cifar10 import images_with_labels
from cifar_pipeline.data.sources.published import Published
from cifar_pipeline.data.unpickle import unpickle


class Cifar100(Published):
    """The source of CIFAR-100, by its 100 fine labels."""

    name = "cifar100"
    title = "CIFAR-100"
    origin = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; files verified by MD5"
    inner = "cifar-100-python"
    variable = "CIFAR100_SOURCE"
    # As torchvision publishes them (torchvision/datasets/cifar.py).
    published: ClassVar = {
        "meta": "7973b15100ade9c7d40fb424638fde48",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "train": "16019d7e3df5f24257cddd939b257f8d",
    }
    archive_md5 = "eb9058c3a382ffc7106e4002c42a8d85"
    most_per_member = 320 << 20  # bytes; the training images alone have 154 MB
    most_per_archive = 400 << 20  # bytes; the archive has 169 MB

    def read(self, folder: Path) -> Official:
        """Read the files in `folder`: images `[50000, 32, 32, 3]` and `[10000, 32, 32, 3]`, classes by name.

        Raises Refusal where a file is not the published one: nothing is unpickled before its MD5 was checked.
        """
        train, test = (images_with_labels(self.content(folder, name), b"fine_labels") for name in ("train", "test"))
        names = unpickle(self.content(folder, "meta"))[b"fine_label_names"]
        return Official(tuple(name.decode() for name in names), *train, *test)
