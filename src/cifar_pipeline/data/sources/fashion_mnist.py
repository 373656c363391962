"""Read Fashion-MNIST: 60,000 training and 10,000 test images of 10 classes of clothing, 28x28, gray.

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

# An IDX file begins with two zero bytes, the data type and the number of dimensions, followed by the sizes as
# big-endian uint32 (http://yann.lecun.com/exdb/mnist/).
IDX_UINT8 = b"\x00\x00\x08"


class FashionMnist(DownloadedSource):
    """Fetch and read Fashion-MNIST."""

    name = "fashion_mnist"
    title = "Fashion-MNIST"
    origin = "H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017; files verified by MD5"
    archive_dir = "fashion"
    env_var = "FASHION_MNIST_SOURCE"
    # MD5s and classes from torchvision/datasets/mnist.py.
    md5s: ClassVar = {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    }
    classes = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
    )  # fmt: skip
    max_member_bytes = 64 << 20  # the largest has 26 MB, 47 MB uncompressed
    max_archive_bytes = 128 << 20  # the four files have 31 MB

    def read(self, folder: Path) -> RawDataset:
        """Read the files in `folder`: images `[60000, 28, 28, 1]` and `[10000, 28, 28, 1]`.

        Raises UserError if a file does not have the published MD5.
        """
        train, test = (self._split(folder, prefix) for prefix in ("train", "t10k"))
        return RawDataset(self.classes, *train, *test)

    def _split(self, folder: Path, prefix: str) -> tuple[Images, Labels]:
        images = self._array(folder, f"{prefix}-images-idx3-ubyte.gz", dimensions=3)
        labels = self._array(folder, f"{prefix}-labels-idx1-ubyte.gz", dimensions=1)
        return images[..., None], labels.astype(np.int64)

    def _array(self, folder: Path, name: str, dimensions: int) -> np.ndarray:
        compressed = self.content(folder, name)
        try:
            # One byte more than allowed, so that larger content is detected.
            content = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(compressed, self.max_member_bytes + 1)
            return idx_array(content, dimensions)
        except (zlib.error, ValueError) as error:
            raise UserError(f"{folder / name} is not an array of images or labels ({error}).") from error


def idx_array(content: bytes, dimensions: int) -> np.ndarray:
    """Read the uint8 array in an IDX file. Raises ValueError if it is not one, or its size is wrong."""
    start = len(IDX_UINT8) + 1 + 4 * dimensions
    if content[:4] != IDX_UINT8 + bytes([dimensions]) or len(content) < start:
        raise ValueError(f"no IDX header of {dimensions} dimensions")
    shape = tuple(map(int, np.frombuffer(content[4:start], ">u4")))
    if len(content) - start != prod(shape):
        raise ValueError(
            f"the header describes {' x '.join(map(str, shape))} bytes, but {len(content) - start:,} follow"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
