"""Fashion-MNIST: 60,000 training and 10,000 test images of 10 kinds of clothing, 28x28, grey.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", 2017, https://github.com/zalandoresearch/fashion-mnist
"""

import zlib
from math import prod
from pathlib import Path
from typing import ClassVar

import numpy as np

from cifar_pipeline.data.sources.base import Images, Labels, RawDataset
from cifar_pipeline.data.sources.download import DownloadedSource
from cifar_pipeline.utils.errors import UserError

# An IDX file begins with two zero bytes, the type of its numbers and how many dimensions it has; their sizes follow, as
# four bytes each, the highest first (http://yann.lecun.com/exdb/mnist/).
UNSIGNED_BYTES = b"\x00\x00\x08"


class FashionMnist(DownloadedSource):
    """The source of Fashion-MNIST."""

    name = "fashion_mnist"
    title = "Fashion-MNIST"
    origin = "H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017; files verified by MD5"
    inner = "fashion"
    variable = "FASHION_MNIST_SOURCE"
    # As torchvision publishes them (torchvision/datasets/mnist.py), and the classes.
    published: ClassVar = {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    }
    classes = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
    )  # fmt: skip
    most_per_member = 64 << 20  # bytes; the largest has 26 MB, unpacked 47 MB
    most_per_archive = 128 << 20  # bytes; the four have 31 MB

    def read(self, folder: Path) -> RawDataset:
        """Read the files in `folder`: images `[60000, 28, 28, 1]` and `[10000, 28, 28, 1]`, classes by name.

        Raises Refusal where a file is not the published one.
        """
        train, test = (self._part(folder, part) for part in ("train", "t10k"))
        return RawDataset(self.classes, *train, *test)

    def _part(self, folder: Path, part: str) -> tuple[Images, Labels]:
        images = self._array(folder, f"{part}-images-idx3-ubyte.gz", dimensions=3)
        labels = self._array(folder, f"{part}-labels-idx1-ubyte.gz", dimensions=1)
        return images[..., None], labels.astype(np.int64)

    def _array(self, folder: Path, name: str, dimensions: int) -> np.ndarray:
        packed = self.content(folder, name)
        try:
            # A byte more than is allowed, so that what goes on behind it shows.
            unpacked = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed, self.most_per_member + 1)
            return idx_array(unpacked, dimensions)
        except (zlib.error, ValueError) as error:
            raise UserError(f"{folder / name} is no array of images or labels ({error}).") from error


def idx_array(content: bytes, dimensions: int) -> np.ndarray:
    """The array of unsigned bytes in an IDX file. Raises ValueError where it is none, or has not as many bytes."""
    start = len(UNSIGNED_BYTES) + 1 + 4 * dimensions
    if content[:4] != UNSIGNED_BYTES + bytes([dimensions]) or len(content) < start:
        raise ValueError(f"it does not begin as one of {dimensions} dimensions does")
    shape = tuple(map(int, np.frombuffer(content[4:start], ">u4")))
    if len(content) - start != prod(shape):
        raise ValueError(f"its head says {' x '.join(map(str, shape))} bytes, and {len(content) - start:,} follow")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
