"""Register a trained model in MLflow, and let it become the champion where it beats the present one.

`python src/promote.py` takes the pipeline's model, as `make` does after `dvc repro`; `python src/promote.py RUN` that
of a run, a sweep's winner for one. The rule stands in conf/registry/. Typed again, it changes nothing.
"""

import argparse

from cifar_pipeline.cli.entrypoint import load_config, run_script


def promote() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", nargs="?", metavar="RUN", help="id or name of a run; the pipeline's without")
    asked, config = parser.parse_args(), load_config()
    # Imported here, because `--help` and a refusal should answer at once.
    from pathlib import Path

    from cifar_pipeline.tracking.champion import PromotionPolicy, from_pipeline, from_run
    from cifar_pipeline.tracking.registry import promote as promoted
    from cifar_pipeline.utils.console import info

    checkpoint = config.evaluation.checkpoint
    candidate = from_run(asked.run, checkpoint) if asked.run else from_pipeline(Path("models"), checkpoint)
    info(promoted(candidate, PromotionPolicy.of(config.registry, candidate.dataset), asked_for=bool(asked.run)))


if __name__ == "__main__":
    run_script(promote)
