"""Train the model (DVC stage `train`): data/processed -> models/, reports/history.csv and a run in MLflow."""

from typing import TYPE_CHECKING, Any

from cifar_pipeline.cli.entrypoint import run_stage
from cifar_pipeline.sweeps.job import isolate_failures
from cifar_pipeline.sweeps.multirun import run_and_summarize

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(config: "DictConfig") -> Any:
    from cifar_pipeline.tracking.provenance import record_commit

    # Before the imports below, so that a commit made while they load is not taken for that of this process's code.
    record_commit()
    # Imported here: torch and MLflow take seconds, and `--cfg job`, completion and invalid values need neither.
    from cifar_pipeline.stages.train import train

    return train(config)


if __name__ == "__main__":
    run_and_summarize(lambda: run_stage(train, decorator=isolate_failures))
