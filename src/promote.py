"""Register a trained model in MLflow, and let it become the champion where it beats the present one.

`python src/promote.py` takes the pipeline's model, as `make` does after `dvc repro`; `python src/promote.py RUN` that
of a run, a sweep's winner for one. The rule stands in conf/registry/. Typed again, it changes nothing.
"""

import argparse

from cifar_pipeline.commands.script import configuration, run_script


def promote() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", nargs="?", metavar="RUN", help="id or name of a run; the pipeline's without")
    asked, config = parser.parse_args(), configuration()
    # Imported here, because `--help` and a refusal should answer at once.
    from pathlib import Path

    from cifar_pipeline.console import say
    from cifar_pipeline.tracking.candidates import of_pipeline, of_run
    from cifar_pipeline.tracking.champions import Rule
    from cifar_pipeline.tracking.registry import promote as promoted

    checkpoint = config.evaluate.checkpoint
    candidate = of_run(asked.run, checkpoint) if asked.run else of_pipeline(Path("models"), checkpoint)
    say(promoted(candidate, Rule.of(config.registry, candidate.dataset), asked_for=bool(asked.run)))


if __name__ == "__main__":
    run_script(promote)
