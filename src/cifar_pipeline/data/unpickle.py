"""Pickles without the danger: an unpickler that admits nothing but arrays of bytes, for files whose MD5 was checked.

Source: Python documentation, "pickle - Restricting globals".
"""

import io
import pickle
from typing import Any

import numpy as np


class _ArraysOnly(pickle.Unpickler):
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
    result = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
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
