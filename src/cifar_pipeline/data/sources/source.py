"""What a source of data offers: three functions and its names. A new kind of data is a new class that has them."""

from pathlib import Path
from typing import Protocol

from cifar_pipeline.data.official import Official


class Source(Protocol):
    """A published data set: where it comes from, whether it is there, what is in it.

    `name` is the folder in data/raw, `title` what a person reads, `origin` who made it. None of them may depend on the
    route by which the files came, since the trained model's identity follows from them.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def origin(self) -> str: ...

    def fetch(self, folder: Path, mirrors: list[str], timeout: float, cache: Path) -> str:
        """Put the verified files into `folder` (all or none) and return in words where they came from.

        `timeout` is in seconds; `cache` is a folder for what is not complete yet. Raises failures.Unavailable.
        """
        ...

    def is_complete(self, folder: Path) -> bool:
        """Whether `folder` holds the right files, every byte of them, and no others."""
        ...

    def read(self, folder: Path) -> Official:
        """Read what `fetch` put there. Raises Refusal for files that are not the right ones."""
        ...
