"""Read the handwritten digits of scikit-learn: 1,797 images, 8x8, gray, available without a network.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from hashlib import md5
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cifar_pipeline.data.sources.base import AllSourcesFailed, Images, RawDataset
from cifar_pipeline.data.splits import stratified_split
from cifar_pipeline.utils.atomic import atomic_replace_dir
from cifar_pipeline.utils.errors import UserError

# MD5 of each array's bytes, so that another release of scikit-learn cannot silently change the data.
CHECKSUMS = {"images": "fa70cba135d4cdd4cde65da70dbffde2", "labels": "1041ea9b393a866c07fc3ca1c2bb06cd"}
MAX_VALUE = 16
SPLIT_SEED = 0  # of the test split, because there is no official one


class Digits:
    """Fetch and read the digits.

    `test_fraction` of each class is the test split. Images are scaled to `size` x `size` pixels with three equal
    channels, to have the format of CIFAR-10.
    """

    name = "digits"
    title = "digits"
    origin = "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 1998; from scikit-learn"

    def __init__(self, test_fraction: float, size: int) -> None:
        if size < 1:
            raise UserError(f"data.source.size={size} is out of range: set at least 1.")
        self.test_fraction, self.size = test_fraction, size

    def fetch(self, folder: Path, mirrors: list[str], timeout: float, cache: Path) -> str:
        """Write the digits, `[1797, 8, 8] uint8` from 0 to 16, and their labels into `folder`.

        The other arguments are not used. Raises AllSourcesFailed if scikit-learn has other digits than expected.
        """
        if self.is_complete(folder):
            return f"{folder}, where it was already"
        table = _read_scikit_learn_csv()
        arrays = {"images": table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), "labels": table[:, -1]}
        for name, array in arrays.items():
            if _md5(array) != CHECKSUMS[name]:
                raise AllSourcesFailed(self.title, [("scikit-learn", f"unexpected {name} in its digits")])
        with atomic_replace_dir(folder) as new:
            for name, array in arrays.items():
                np.save(new / f"{name}.npy", array, allow_pickle=False)
        return "scikit-learn"

    def is_complete(self, folder: Path) -> bool:
        """Return whether `folder` contains both arrays, with the expected content, and nothing else."""
        if not folder.is_dir() or {path.name for path in folder.iterdir()} != {f"{name}.npy" for name in CHECKSUMS}:
            return False
        try:
            return all(_md5(_load_array(folder, name)) == CHECKSUMS[name] for name in CHECKSUMS)
        except (ValueError, EOFError, OSError):
            return False

    def read(self, folder: Path) -> RawDataset:
        """Read the digits and draw the test split: images `[N, size, size, 3] uint8`, classes "0" to "9".

        Raises UserError if the files in `folder` have changed.
        """
        if not self.is_complete(folder):
            raise UserError(f"{folder} does not contain the digits: run `dvc repro -f download` to fetch them again.")
        images = upscale(_load_array(folder, "images"), self.size)
        labels = np.array(_load_array(folder, "labels"))
        train, test = stratified_split(labels, self.test_fraction, SPLIT_SEED, option="data.source.test_fraction")
        return RawDataset(tuple("0123456789"), images[train], labels[train], images[test], labels[test])


def _load_array(folder: Path, name: str) -> np.ndarray:
    """Memory-map an array, so that the shape in its header is compared with the file's size before memory is used."""
    array: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array


def upscale(digits: Images, size: int) -> Images:
    """Scale `[N, h, w]` gray from 0 to 16 to `[N, size, size, 3]` from 0 to 255, by nearest neighbor.

    In integers only, so that the bytes are the same on every machine.
    """
    rows = np.arange(size) * digits.shape[1] // size
    columns = np.arange(size) * digits.shape[2] // size
    scaled = (digits.astype(np.uint16) * 255 + MAX_VALUE // 2) // MAX_VALUE
    large = scaled.astype(np.uint8)[:, rows[:, None], columns[None, :]]
    return np.repeat(large[..., None], 3, axis=-1)


def _read_scikit_learn_csv() -> np.ndarray:
    """Return the 64 pixels of each digit and its label, `[1797, 65] int64`.

    Read from the installed file, because importing scikit-learn takes seconds.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise AllSourcesFailed(Digits.title, [("scikit-learn", "not installed")])
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        return np.loadtxt(file, delimiter=",", dtype=np.int64)
    except FileNotFoundError:
        raise AllSourcesFailed(Digits.title, [("scikit-learn", f"no {file.name} in this version")]) from None


def _md5(array: np.ndarray) -> str:
    little_endian = np.dtype(array.dtype).newbyteorder("<")
    return md5(array.astype(little_endian, copy=False).tobytes(), usedforsecurity=False).hexdigest()
