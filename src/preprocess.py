"""Stage preprocess: read data/raw, and write data/processed (arrays and dataset.json).

Also writes reports/skipped.csv, a list of the skipped image files with the reasons.
"""

import logging
from pathlib import Path

from omegaconf import DictConfig

from cifar_pipeline.cli.entrypoint import run_stage

log = logging.getLogger(__name__)

RAW = Path("data/raw")
PROCESSED = Path("data/processed")
SKIPPED = Path("reports/skipped.csv")


def preprocess(config: DictConfig) -> None:
    """Split the images into train, val and test."""
    from hydra.utils import instantiate

    from cifar_pipeline.cli.entrypoint import hash_stats, require_unchanged, watch
    from cifar_pipeline.data.dataset import Dataset, dataset_config, effective_dataset_config
    from cifar_pipeline.data.preprocessing import require_usable, train_val_split, write_dataset
    from cifar_pipeline.data.sources.base import available_source
    from cifar_pipeline.data.sources.image_files import UNLABELED
    from cifar_pipeline.reporting.tables import write_skipped
    from cifar_pipeline.utils.atomic import atomic_replace_dir, exclusive_lock, require_writable
    from cifar_pipeline.utils.console import status

    require_writable(PROCESSED)
    require_writable(SKIPPED, is_file=True)
    requested_source, fallback = instantiate(config.data.source), instantiate(config.data.fallback)
    watch(str(RAW), lambda: hash_stats(RAW))
    watch(config.image_dir, lambda: hash_stats(Path(config.image_dir)))
    source = available_source(RAW, requested_source, fallback)
    requested = dataset_config(config.data)
    # Also while the arrays are written, because they are read from the image cache, which another process would prune.
    with exclusive_lock(PROCESSED):
        status(f"Reading {source.title}")
        try:
            raw = source.read(RAW / source.name)
        finally:
            skipped = getattr(source, "skipped", ())
            write_skipped(skipped, SKIPPED)
        train, val = train_val_split(raw, config.data.val_fraction, config.data.split_seed)
        require_usable(raw, train, source.title)
        status("Writing the arrays")
        with atomic_replace_dir(PROCESSED) as folder:
            write_dataset(
                folder,
                raw,
                train,
                val,
                source=source,
                requested_title=requested_source.title,
                requested=requested,
                effective=effective_dataset_config(requested, by_fallback=source is fallback),
                skipped=sum(reason not in UNLABELED for _, reason in skipped),
            )
            require_unchanged()

    dataset = Dataset.open(PROCESSED)
    for sentence in dataset.describe_duplicates():
        log.warning(sentence)
    log.info(
        f"{dataset.caption}: " + ", ".join(f"{size:,} {split}" for split, size in dataset.sizes.items()) + " images."
    )


if __name__ == "__main__":
    run_stage(preprocess)
