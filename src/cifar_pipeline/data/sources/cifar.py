"""CIFAR-10, "python version": 50,000 training and 10,000 test images of 10 classes, 32x32, colour.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html

CIFAR-100, "python version": 50,000 training and 10,000 test images of 100 classes, 32x32, colour.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html

Pickles without the danger: an unpickler that admits nothing but arrays of bytes, for files whose MD5 was checked.

Source: Python documentation, "pickle - Restricting globals".
"""

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cifar_pipeline.data.sources.base import Images, Labels, RawDataset
from cifar_pipeline.data.sources.download import DownloadedSource


class RestrictedUnpickler(pickle.Unpickler):
    """Finds the four names that CIFAR's files hold, and refuses every other one."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy.core was renamed in NumPy 2; both names are the same function.
        admitted = {
            ("numpy.core.multiarray", "_reconstruct"): _array,
            ("numpy._core.multiarray", "_reconstruct"): _array,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _bytes_dtype,
            ("_codecs", "encode"): _latin1,
        }
        try:
            return admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted here") from None


def unpickle(content: bytes) -> dict[bytes, Any]:
    """Read the dictionary in one of CIFAR's files (written by Python 2, so its keys are bytes).

    Raises pickle.UnpicklingError where the pickle names anything but arrays of bytes or holds no dictionary.
    """
    result = RestrictedUnpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(result, dict):
        raise pickle.UnpicklingError(f"a dictionary was expected, not {type(result).__name__}")
    return result


def _array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"{kind!r} is no array")
    return np.empty(0, np.uint8)


def _bytes_dtype(code: str | bytes, align: object = False, copy: object = False) -> np.dtype:
    # NumPy 2.4 warns about Python 2's way to write `align` (0 for False); beside that, an object array could hide
    # anything, so uint8 is the only type.
    if code not in ("u1", b"u1", "|u1", b"|u1"):
        raise pickle.UnpicklingError(f"arrays of {code!r} are not admitted here")
    return np.dtype(np.uint8)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not admitted here")
    return text.encode("latin1")


FOLDER = "cifar-10-batches-py"


class Cifar10(DownloadedSource):
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

    def read(self, folder: Path) -> RawDataset:
        """Read the files in `folder`: images `[50000, 32, 32, 3]` and `[10000, 32, 32, 3]`, classes by name.

        Raises Refusal where a file is not the published one: nothing is unpickled before its MD5 was checked.
        """
        train = [self._batch(folder, name) for name in sorted(self.checksums) if name.startswith("data_batch")]
        test_images, test_labels = self._batch(folder, "test_batch")
        names = unpickle(self.content(folder, "batches.meta"))[b"label_names"]
        return RawDataset(
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


class Cifar100(DownloadedSource):
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

    def read(self, folder: Path) -> RawDataset:
        """Read the files in `folder`: images `[50000, 32, 32, 3]` and `[10000, 32, 32, 3]`, classes by name.

        Raises Refusal where a file is not the published one: nothing is unpickled before its MD5 was checked.
        """
        train, test = (images_with_labels(self.content(folder, name), b"fine_labels") for name in ("train", "test"))
        names = unpickle(self.content(folder, "meta"))[b"fine_label_names"]
        return RawDataset(tuple(name.decode() for name in names), *train, *test)
