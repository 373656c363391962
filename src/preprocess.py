"""Stage preprocess: reads data/raw, writes data/processed (arrays and dataset.json) and reports/samples.png.

And reports/skipped.csv: each file that was not taken, with the reason.
"""

from pathlib import Path

from omegaconf import DictConfig

from cifar_pipeline.cli.entrypoint import run_stage

RAW = Path("data/raw")
PROCESSED = Path("data/processed")
SAMPLES, SKIPPED = Path("reports/samples.png"), Path("reports/skipped.csv")


def preprocess(config: DictConfig) -> None:
    """Part the images into train, val and test, and show ten of every class."""
    from hydra.utils import instantiate

    from cifar_pipeline.cli.stage_inputs import require_unchanged, state_of, watch
    from cifar_pipeline.data.dataset import Dataset, dataset_config, effective_dataset_config
    from cifar_pipeline.data.preprocessing import require_usable, train_val_split, write_dataset
    from cifar_pipeline.data.sources.base import available_source
    from cifar_pipeline.data.sources.image_files import UNLABELED
    from cifar_pipeline.reporting.image_figures import contact_sheet
    from cifar_pipeline.reporting.style import save
    from cifar_pipeline.reporting.tables import write_skipped
    from cifar_pipeline.utils.atomic import atomic_replace_dir, exclusive_lock, require_writable
    from cifar_pipeline.utils.console import info, status, warning

    require_writable(PROCESSED)
    require_writable(SAMPLES, is_file=True)
    require_writable(SKIPPED, is_file=True)
    wanted, fallback = instantiate(config.data.source), instantiate(config.data.fallback)
    watch(str(RAW), lambda: state_of(RAW))
    watch(config.image_dir, lambda: state_of(Path(config.image_dir)))
    source = available_source(RAW, wanted, fallback)
    asked = dataset_config(config.data)
    used = effective_dataset_config(asked, by_fallback=source is fallback)
    # From here on, because the arrays are written from the cache of images, which another process would clear.
    with exclusive_lock(PROCESSED):
        status(f"Reading {source.title}")
        try:
            official = source.read(RAW / source.name)
        finally:
            skipped = getattr(source, "skipped", ())
            write_skipped(skipped, SKIPPED)
        train, val = train_val_split(official, config.data.val_fraction, config.data.split_seed)
        require_usable(official, train, source.title)
        status("Writing the arrays")
        with atomic_replace_dir(PROCESSED) as folder:
            said = sum(reason not in UNLABELED for _, reason in skipped)
            write_dataset(
                folder, official, train, val, source=source, wanted=wanted.title, asked=asked, used=used, skipped=said
            )
            require_unchanged()

    status("Drawing the contact sheet")
    dataset = Dataset.open(PROCESSED)
    for leak in dataset.describe_duplicates():
        warning(leak)
    images, labels = dataset.split("train")
    save(contact_sheet(images, labels, dataset.classes, dataset.caption), SAMPLES)
    info(f"{dataset.caption}: " + ", ".join(f"{size:,} {part}" for part, size in dataset.sizes.items()) + " images.")


if __name__ == "__main__":
    run_stage(preprocess)
