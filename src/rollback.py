"""Put the champion's predecessor back: `python src/rollback.py`, or `make rollback`."""

import argparse

from cifar_pipeline.cli.entrypoint import load_config, run_script


def rollback() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".").parse_args()
    config = load_config()
    # Imported here, because `--help` and a refusal should answer at once.
    from pathlib import Path

    from cifar_pipeline.tracking.champion import PromotionPolicy, pipeline_dataset_name
    from cifar_pipeline.tracking.registry import roll_back
    from cifar_pipeline.utils.console import info

    info(roll_back(PromotionPolicy.of(config.registry, pipeline_dataset_name(Path("models")))))


if __name__ == "__main__":
    run_script(rollback)
