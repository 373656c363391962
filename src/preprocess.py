"""Stage preprocess: read data/raw, and write data/processed (arrays and dataset.json).

Also writes reports/skipped.csv, a list of the skipped image files with the reasons.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_pipeline.cli.entrypoint import run_stage

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

RAW = Path("data/raw")
PROCESSED = Path("data/processed")
SKIPPED = Path("reports/skipped.csv")


def preprocess(config: "DictConfig") -> None:
    """Split the images into train, val and test."""
    from cifar_pipeline.cli.entrypoint import require_unchanged, watch
    from cifar_pipeline.data.dataset import Dataset
    from cifar_pipeline.data.preprocessing import process
    from cifar_pipeline.data.sources.image_files import CACHE
    from cifar_pipeline.reporting.tables import write_skipped
    from cifar_pipeline.utils.atomic import atomic_replace_dir, exclusive_lock, require_writable
    from cifar_pipeline.utils.file_hashes import hash_stats

    require_writable(PROCESSED)
    require_writable(SKIPPED, is_file=True)
    watch(str(RAW), lambda: hash_stats(RAW))
    watch(config.image_dir, lambda: hash_stats(Path(config.image_dir)))
    # The image cache too, because another process would remove images that this one still reads.
    with exclusive_lock(PROCESSED), exclusive_lock(CACHE), atomic_replace_dir(PROCESSED) as folder:
        process(folder, RAW, config.data, SKIPPED, write_skipped)
        require_unchanged()

    dataset = Dataset.open(PROCESSED)
    for sentence in dataset.describe_duplicates():
        log.warning(sentence)
    log.info(f"{dataset.caption}: {dataset.describe_sizes()} images.")


if __name__ == "__main__":
    run_stage(preprocess)
