"""Stage download: fetch the files of the dataset from the network (or CIFAR10_SOURCE) and write them to data/raw."""

from pathlib import Path
from typing import TYPE_CHECKING

from cifar_pipeline.cli.entrypoint import run_stage

if TYPE_CHECKING:
    from omegaconf import DictConfig

RAW = Path("data/raw")
PARTIAL = Path(".cache/downloads")


def download(config: "DictConfig") -> None:
    """Fetch the configured dataset, or its fallback if all mirrors fail."""
    from hydra.utils import instantiate

    from cifar_pipeline.cli.entrypoint import require_unchanged
    from cifar_pipeline.data.sources.base import download_options, fetch_or_fallback
    from cifar_pipeline.utils.atomic import require_writable

    require_writable(RAW)
    source = instantiate(config.data.source)
    fallback = instantiate(config.data.fallback)
    fetch_or_fallback(RAW, source, fallback, *download_options(config.data), PARTIAL, require_unchanged)


if __name__ == "__main__":
    run_stage(download)
