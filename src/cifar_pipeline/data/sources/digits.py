"""Digits: 1,797 handwritten digits, 8x8, grey, that ship inside scikit-learn, so no network is needed.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from hashlib import md5
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cifar_pipeline.data.preprocessing import stratified_split
from cifar_pipeline.data.sources.base import AllSourcesFailed, Images, RawDataset
from cifar_pipeline.utils.atomic import atomic_replace_dir
from cifar_pipeline.utils.errors import UserError

# MD5 of each array's bytes, so that another release of scikit-learn cannot change the data unseen.
CHECKSUMS = {"images": "fa70cba135d4cdd4cde65da70dbffde2", "labels": "1041ea9b393a866c07fc3ca1c2bb06cd"}
MAX_VALUE = 16
SPLIT_SEED = 0  # of the test part: there is no published one


class Digits:
    """The source of the digits.

    `test_fraction` of the images, evenly from every class, are the test part; `size` is the height and width in pixels
    that they are brought to, in three equal channels, so that they fit where CIFAR-10 does.
    """

    name = "digits"
    title = "digits"
    origin = "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 1998; from scikit-learn"

    def __init__(self, test_fraction: float, size: int) -> None:
        if size < 1:
            raise UserError(f"Digits of {size} pixels cannot be made: data.source.size must be at least 1.")
        self.test_fraction, self.size = test_fraction, size

    def fetch(self, folder: Path, mirrors: list[str], timeout: float, cache: Path) -> str:
        """Write the digits as they are, `[1797, 8, 8] uint8` from 0 to 16, into `folder`; the rest is unused.

        Raises Unavailable where scikit-learn holds other ones than this was written for.
        """
        if self.is_complete(folder):
            return f"{folder}, where it was already"
        table = _table_in_scikit_learn()
        arrays = {"images": table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), "labels": table[:, -1]}
        for name, array in arrays.items():
            if _md5(array) != CHECKSUMS[name]:
                raise AllSourcesFailed(self.title, [("scikit-learn", f"its digits' {name} are not the known ones")])
        with atomic_replace_dir(folder) as new:
            for name, array in arrays.items():
                np.save(new / f"{name}.npy", array, allow_pickle=False)
        return "scikit-learn"

    def is_complete(self, folder: Path) -> bool:
        """Whether `folder` holds both arrays, every byte of them, and nothing else."""
        if not folder.is_dir() or {path.name for path in folder.iterdir()} != {f"{name}.npy" for name in CHECKSUMS}:
            return False
        try:
            return all(_md5(_array(folder, name)) == CHECKSUMS[name] for name in CHECKSUMS)
        except (ValueError, EOFError, OSError):
            return False

    def read(self, folder: Path) -> RawDataset:
        """Read the digits and part them: images `[N, size, size, 3] uint8`, classes "0" to "9".

        Raises Refusal where the files in `folder` are not the right ones.
        """
        if not self.is_complete(folder):
            raise UserError(f"{folder} does not hold the digits; `dvc repro -f download` brings them again.")
        images = upscale(_array(folder, "images"), self.size)
        labels = np.array(_array(folder, "labels"))
        train, test = stratified_split(labels, self.test_fraction, SPLIT_SEED)
        return RawDataset(tuple("0123456789"), images[train], labels[train], images[test], labels[test])


def _array(folder: Path, name: str) -> np.ndarray:
    """Map one of the two arrays. What its header says is compared with the file's size before it takes memory."""
    array: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array


def upscale(digits: Images, size: int) -> Images:
    """Bring `[N, h, w]` grey from 0 to 16 to `[N, size, size, 3]` from 0 to 255, each pixel by its nearest.

    In integers only: the bytes are the same on every machine.
    """
    rows = np.arange(size) * digits.shape[1] // size
    columns = np.arange(size) * digits.shape[2] // size
    bright = (digits.astype(np.uint16) * 255 + MAX_VALUE // 2) // MAX_VALUE
    large = bright.astype(np.uint8)[:, rows[:, None], columns[None, :]]
    return np.repeat(large[..., None], 3, axis=-1)


def _table_in_scikit_learn() -> np.ndarray:
    """The 64 pixels of each digit and its label, `[1797, 65] int64`.

    Read from the installed file: to import scikit-learn takes seconds.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise AllSourcesFailed(Digits.title, [("scikit-learn", "it is not installed")])
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        return np.loadtxt(file, delimiter=",", dtype=np.int64)
    except FileNotFoundError:
        raise AllSourcesFailed(Digits.title, [("scikit-learn", f"it has no {file.name} any more")]) from None


def _md5(array: np.ndarray) -> str:
    kind = np.dtype(array.dtype).newbyteorder("<")
    return md5(array.astype(kind, copy=False).tobytes(), usedforsecurity=False).hexdigest()
