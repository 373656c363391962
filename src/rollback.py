"""Put the champion's predecessor back: `python src/rollback.py`, or `make rollback`."""

import argparse

from cifar_pipeline.commands.script import configuration, run_script


def rollback() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".").parse_args()
    config = configuration()
    # Imported here, because `--help` and a refusal should answer at once.
    from pathlib import Path

    from cifar_pipeline.console import say
    from cifar_pipeline.tracking.candidates import data_of_pipeline
    from cifar_pipeline.tracking.champions import Rule
    from cifar_pipeline.tracking.registry import roll_back

    say(roll_back(Rule.of(config.registry, data_of_pipeline(Path("models")))))


if __name__ == "__main__":
    run_script(rollback)
