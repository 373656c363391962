"""Evaluate the model on the test split (DVC stage `evaluate`): models/ -> reports/ and the MLflow run of `train`."""

from typing import TYPE_CHECKING

from cifar_pipeline.cli.entrypoint import run_stage

if TYPE_CHECKING:
    from omegaconf import DictConfig


def evaluate(config: "DictConfig") -> None:
    # Imported here, so that `--cfg job`, completion and invalid values do not wait for it.
    from cifar_pipeline.stages.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    run_stage(evaluate)
