"""Evaluate the model on the test split (DVC stage `evaluate`): models/ -> reports/ and the MLflow run of `train`."""

from omegaconf import DictConfig

from cifar_pipeline.cli.entrypoint import run_stage


def evaluate(config: DictConfig) -> None:
    # Imported here, so that `--cfg job`, completion and invalid values do not wait for it.
    from cifar_pipeline.stages.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    run_stage(evaluate)
