"""Build a CIFAR-10 of a few images in the published layout, and its archive."""

import io
import pickle
import tarfile

import numpy as np

META = pickle.dumps({b"label_names": [b"cat", b"dog"]}, protocol=2)


def batch(seed: int, images: int = 10) -> bytes:
    """Return the content of one file, with cats and dogs alternating."""
    data = np.random.default_rng(seed).integers(0, 256, (images, 3072), np.uint8)
    return pickle.dumps({b"data": data, b"labels": [index % 2 for index in range(images)]}, protocol=2)


def pack(contents: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    """Return a .tar.gz with these files, followed by further entries without content."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for entry in more:
            tar.addfile(entry)
    return archive.getvalue()
