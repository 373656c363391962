"""List the registered models, the newest first: `python src/versions.py`, or `make models`."""

import argparse

from cifar_pipeline.commands.script import configuration, run_script


def versions() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".").parse_args()
    config = configuration()
    # Imported here, because `--help` and a refusal should answer at once.
    from cifar_pipeline.console import say
    from cifar_pipeline.reporting.versions import print_versions
    from cifar_pipeline.tracking.registry import read_versions

    found = read_versions(config.registry.name)
    if found:
        print_versions(found)
    else:
        say("No model is registered yet: `make` trains one and registers it.")


if __name__ == "__main__":
    run_script(versions)
