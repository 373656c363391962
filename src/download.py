"""Stage download: reads the network (or CIFAR10_SOURCE), writes data/raw, the verified files of the data set in use."""

from pathlib import Path

from omegaconf import DictConfig

from cifar_pipeline.commands.stage import run_stage

RAW = Path("data/raw")
PARTIAL = Path(".cache/downloads")


def download(config: DictConfig) -> None:
    """Bring the data set that the configuration names, or its fallback where no source answers."""
    from hydra.utils import instantiate

    from cifar_pipeline.commands.unchanged import require_unchanged
    from cifar_pipeline.data.raw import bring
    from cifar_pipeline.files import require_writable

    require_writable(RAW)
    source = instantiate(config.data.source)
    fallback = instantiate(config.data.fallback)
    bring(RAW, source, fallback, list(config.data.mirrors), config.data.timeout, PARTIAL, require_unchanged)


if __name__ == "__main__":
    run_stage(download)
