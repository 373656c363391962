"""Facts of a small data set, as the `train` stage passes them to MLflow's runs."""

from typing import Any


def data_facts(content_hash: str = 64 * "a", source: str = "drawn") -> dict[str, Any]:
    """Return the facts of a data set of nine gray images in two classes."""
    return {
        "name": "digits",
        "hash": content_hash,
        "source": source,
        "shape": (8, 8, 1),
        "sizes": {"train": 9},
        "classes": 2,
    }
