"""Read CIFAR-10 and CIFAR-100, "python version": 50,000 training and 10,000 test images, 32x32, RGB.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html

The files are pickles. They are read only after their MD5 was checked, by an unpickler that allows nothing but byte
arrays (Python documentation, "pickle - Restricting globals").
"""

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cifar_pipeline.data.sources.base import Images, Labels, RawDataset
from cifar_pipeline.data.sources.download import DownloadedSource

FOLDER = "cifar-10-batches-py"


class Cifar10(DownloadedSource):
    """Fetch and read CIFAR-10."""

    name = "cifar10"
    title = "CIFAR-10"
    origin = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; files verified by MD5"
    archive_dir = FOLDER
    env_var = "CIFAR10_SOURCE"
    # From torchvision/datasets/cifar.py.
    md5s: ClassVar = {
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    }
    archive_md5 = "c58f30108f718f92721af3b95e74349a"
    max_member_bytes = 64 << 20  # the largest has 31 MB
    max_archive_bytes = 400 << 20  # the archive has 170 MB, 186 MB uncompressed

    def read(self, folder: Path) -> RawDataset:
        """Read the files in `folder`: images `[50000, 32, 32, 3]` and `[10000, 32, 32, 3]`.

        Raises UserError if a file does not have the published MD5, before it is unpickled.
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


class Cifar100(DownloadedSource):
    """Fetch and read CIFAR-100 with its 100 fine labels."""

    name = "cifar100"
    title = "CIFAR-100"
    origin = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; files verified by MD5"
    archive_dir = "cifar-100-python"
    env_var = "CIFAR100_SOURCE"
    # From torchvision/datasets/cifar.py.
    md5s: ClassVar = {
        "meta": "7973b15100ade9c7d40fb424638fde48",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "train": "16019d7e3df5f24257cddd939b257f8d",
    }
    archive_md5 = "eb9058c3a382ffc7106e4002c42a8d85"
    max_member_bytes = 320 << 20  # the training images have 154 MB
    max_archive_bytes = 400 << 20  # the archive has 169 MB

    def read(self, folder: Path) -> RawDataset:
        """Read the files in `folder`: images `[50000, 32, 32, 3]` and `[10000, 32, 32, 3]`.

        Raises UserError if a file does not have the published MD5, before it is unpickled.
        """
        train, test = (images_with_labels(self.content(folder, name), b"fine_labels") for name in ("train", "test"))
        names = unpickle(self.content(folder, "meta"))[b"fine_label_names"]
        return RawDataset(tuple(name.decode() for name in names), *train, *test)


def images_with_labels(content: bytes, labels_key: bytes) -> tuple[Images, Labels]:
    """Read images `[N, 32, 32, 3]` and labels `[N]` from a verified batch file of either dataset."""
    values = unpickle(content)
    planes = np.asarray(values[b"data"], np.uint8).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.asarray(values[labels_key], np.int64)


def unpickle(content: bytes) -> dict[bytes, Any]:
    """Unpickle a batch file of CIFAR, a dictionary with bytes as keys (it was written by Python 2).

    Raises pickle.UnpicklingError for a pickle with anything but byte arrays, or without a dictionary.
    """
    result = RestrictedUnpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(result, dict):
        raise pickle.UnpicklingError(f"expected a dictionary, not {type(result).__name__}")
    return result


class RestrictedUnpickler(pickle.Unpickler):
    """Allow only the four names in CIFAR's pickles, and replace them by functions that check their arguments."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy.core was renamed in NumPy 2; both names are the same function.
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _array,
            ("numpy._core.multiarray", "_reconstruct"): _array,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _uint8_dtype,
            ("_codecs", "encode"): _encode_latin1,
        }
        try:
            return allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None


def _array(cls: type, shape: tuple[int, ...], typecode: bytes) -> np.ndarray:
    if cls is not np.ndarray:
        raise pickle.UnpicklingError(f"{cls!r} is not an array")
    return np.empty(0, np.uint8)


def _uint8_dtype(code: str | bytes, align: object = False, copy: object = False) -> np.dtype:
    # Only uint8, because an object array could contain anything. `align` is ignored: NumPy 2.4 warns about the 0 that
    # Python 2 wrote for False.
    if code not in ("u1", b"u1", "|u1", b"|u1"):
        raise pickle.UnpicklingError(f"arrays of {code!r} are not allowed")
    return np.dtype(np.uint8)


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not allowed")
    return text.encode("latin1")
