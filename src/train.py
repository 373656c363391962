"""Train the model (DVC stage `train`): data/processed -> models/, reports/history.csv and a run in MLflow."""

from typing import Any

from omegaconf import DictConfig

from cifar_pipeline.cli.entrypoint import run_stage
from cifar_pipeline.sweeps.job import isolate_failures
from cifar_pipeline.sweeps.multirun import run_and_summarize


def train(config: DictConfig) -> Any:
    # Imported here: torch and MLflow take seconds, and `--cfg job`, completion and invalid values need neither.
    from cifar_pipeline.stages.train import train

    return train(config)


if __name__ == "__main__":
    run_and_summarize(lambda: run_stage(train, decorator=isolate_failures))
