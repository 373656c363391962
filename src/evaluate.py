"""Evaluate the model on the test split (DVC stage `evaluate`): models/ -> reports/ and the run that `train` made."""

from omegaconf import DictConfig

from cifar_pipeline.cli.entrypoint import run_stage


def evaluate(config: DictConfig) -> None:
    # Imported here, because `--cfg job`, completion and a refused value should answer at once.
    from cifar_pipeline.stages.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    run_stage(evaluate)
