"""CIFAR-10, "python version": 50,000 training and 10,000 test images of 10 classes, 32x32, colour.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from pathlib import Path
from typing import ClassVar

import numpy as np

from cifar_pipeline.data.official import Images, Labels, Official
from cifar_pipeline.data.sources.published import Published
from cifar_pipeline.data.unpickle import unpickle

FOLDER = "cifar-10-batches-py"


class Cifar10(Published):
    """The source of CIFAR-10."""

    name = "cifar10"
    title = "CIFAR-10"
    origin = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; files verified by MD5"
    inner = FOLDER
    variable = "CIFAR10_SOURCE"
    # As torchvision publishes them (torchvision/datasets/cifar.py).
    published: ClassVar = {
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    }
    archive_md5 = "c58f30108f718f92721af3b95e74349a"
    most_per_member = 64 << 20  # bytes; the largest has 31 MB
    most_per_archive = 400 << 20  # bytes; the archive has 170 MB, the files without compression 186 MB

    def read(self, folder: Path) -> Official:
        """Read the files in `folder`: images `[50000, 32, 32, 3]` and `[10000, 32, 32, 3]`, classes by name.

        Raises Refusal where a file is not the published one: nothing is unpickled before its MD5 was checked.
        """
        train = [self._batch(folder, name) for name in sorted(self.checksums) if name.startswith("data_batch")]
        test_images, test_labels = self._batch(folder, "test_batch")
        names = unpickle(self.content(folder, "batches.meta"))[b"label_names"]
        return Official(
            classes=tuple(name.decode() for name in names),
            train_images=np.concatenate([images for images, _ in train]),
            train_labels=np.concatenate([labels for _, labels in train]),
            test_images=test_images,
            test_labels=test_labels,
        )

    def _batch(self, folder: Path, name: str) -> tuple[Images, Labels]:
        return images_with_labels(self.content(folder, name), b"labels")


def images_with_labels(content: bytes, labels: bytes) -> tuple[Images, Labels]:
    """Images `[N, 32, 32, 3]` and labels `[N]`, by the key `labels`, of a pickled file of either CIFAR, verified."""
    values = unpickle(content)
    planes = np.asarray(values[b"data"], np.uint8).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.asarray(values[labels], np.int64)
