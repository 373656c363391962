"""Stage preprocess: reads data/raw, writes data/processed (arrays and dataset.json) and reports/samples.png.

And reports/skipped.csv: each file that was not taken, with the reason.
"""

from pathlib import Path

from omegaconf import DictConfig

from cifar_pipeline.commands.stage import run_stage

RAW = Path("data/raw")
PROCESSED = Path("data/processed")
SAMPLES, SKIPPED = Path("reports/samples.png"), Path("reports/skipped.csv")


def preprocess(config: DictConfig) -> None:
    """Part the images into train, val and test, and show ten of every class."""
    from hydra.utils import instantiate

    from cifar_pipeline.commands.unchanged import require_unchanged, state_of, watch
    from cifar_pipeline.console import doing, say, warn
    from cifar_pipeline.data.asked import asked_values, used_values
    from cifar_pipeline.data.dataset import Dataset
    from cifar_pipeline.data.raw import present
    from cifar_pipeline.data.sources.listing import UNNAMED
    from cifar_pipeline.data.split import parted, require_usable
    from cifar_pipeline.data.writing import write
    from cifar_pipeline.files import only_one, require_writable, whole_folder
    from cifar_pipeline.reporting.samples import contact_sheet
    from cifar_pipeline.reporting.skipped import write_skipped
    from cifar_pipeline.reporting.style import save

    require_writable(PROCESSED)
    require_writable(SAMPLES, is_file=True)
    require_writable(SKIPPED, is_file=True)
    wanted, fallback = instantiate(config.data.source), instantiate(config.data.fallback)
    watch(str(RAW), lambda: state_of(RAW))
    watch(config.pictures, lambda: state_of(Path(config.pictures)))
    source = present(RAW, wanted, fallback)
    asked = asked_values(config.data)
    used = used_values(asked, by_fallback=source is fallback)
    # From here on, because the arrays are written from the cache of pictures, which another process would clear.
    with only_one(PROCESSED):
        doing(f"Reading {source.title}")
        try:
            official = source.read(RAW / source.name)
        finally:
            skipped = getattr(source, "skipped", ())
            write_skipped(skipped, SKIPPED)
        train, val = parted(official, config.data.val_fraction, config.data.split_seed)
        require_usable(official, train, source.title)
        doing("Writing the arrays")
        with whole_folder(PROCESSED) as folder:
            said = sum(reason not in UNNAMED for _, reason in skipped)
            write(
                folder, official, train, val, source=source, wanted=wanted.title, asked=asked, used=used, skipped=said
            )
            require_unchanged()

    doing("Drawing the contact sheet")
    dataset = Dataset.open(PROCESSED)
    for leak in dataset.leaks():
        warn(leak)
    images, labels = dataset.part("train")
    save(contact_sheet(images, labels, dataset.classes, dataset.caption), SAMPLES)
    say(f"{dataset.caption}: " + ", ".join(f"{size:,} {part}" for part, size in dataset.sizes.items()) + " images.")


if __name__ == "__main__":
    run_stage(preprocess)
