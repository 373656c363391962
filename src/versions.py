"""List the registered models, the newest first: `python src/versions.py`, or `make models`."""

import argparse

from cifar_pipeline.cli.entrypoint import load_config, run_script


def versions() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".").parse_args()
    config = load_config()
    # Imported here, because `--help` and a refusal should answer at once.
    from cifar_pipeline.reporting.summary import print_versions
    from cifar_pipeline.tracking.registry import read_versions
    from cifar_pipeline.utils.console import info

    found = read_versions(config.registry.name)
    if found:
        print_versions(found)
    else:
        info("No model is registered yet: `make` trains one and registers it.")


if __name__ == "__main__":
    run_script(versions)
