"""Evaluate the model on the test split (DVC stage `evaluate`): models/ -> reports/ and the MLflow run of `train`.

With --model and --data, it measures any models on any labeled images instead, into a folder of its own.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_pipeline.cli.entrypoint import argument_parser, run_script, run_stage
from cifar_pipeline.config.compose import load_config
from cifar_pipeline.config.params import reject_invalid_group_overrides
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import list_names

if TYPE_CHECKING:
    from omegaconf import DictConfig

FLAGS = ("--model", "--data", "--output", "--help", "-h")
# The keys and groups that an evaluation with --model and --data uses.
USED_KEYS = (
    "evaluation", "metrics", "predict.batch_size", "predict.max_megapixels", "predict.max_unreadable", "comparison",
    "runtime.accelerator", "runtime.threads", "mlflow.experiment_name",
)  # fmt: skip
UNUSED_KEYS = ("evaluation.batch_size", "evaluation.num_attributions", "evaluation.sample_seed")


def evaluate(config: "DictConfig") -> None:
    # Imported here, so that `--cfg job`, completion and invalid values do not wait for it.
    from cifar_pipeline.stages.evaluate import evaluate

    evaluate(config)


def arguments() -> argparse.Namespace:
    parser = argument_parser(
        "Measure models on labeled images. Without --model and --data: the stage of `dvc repro`, which evaluates "
        "models/ on its test split and takes any override (`python src/train.py --help` lists them)."
    )
    parser.add_argument(
        "--model",
        action="append",
        help="a folder, models:/cifar10@champion or runs:/RUN/last; several --model are compared with the first",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="a folder with a folder of images for each class (of splits, test/ is used), a table.csv with the columns "
        "path and label, or data/processed for its test split",
    )
    parser.add_argument(
        "--output", type=Path, help="folder for the results (default: a new one in reports/evaluations/)"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"a value of {list_names(USED_KEYS)}")
    return parser.parse_intermixed_args()


def evaluate_data() -> None:
    args = arguments()
    if not args.model:
        raise UserError("--model is missing: write --model models, or another folder, or models:/NAME@champion.")
    if args.data is None:
        raise UserError("--data is missing: write --data FOLDER, or leave out --model for the stage `evaluate`.")
    for override in args.overrides:
        key = override.lstrip("+~").partition("=")[0]
        if "=" not in override:
            raise UserError(f"{override} is not KEY=VALUE: write --model or --data before a model or a folder.")
        if key in UNUSED_KEYS or not any(key == used or key.startswith(f"{used}.") for used in USED_KEYS):
            raise UserError(
                f"{override} has no effect on the evaluation of a given model: leave it out; what has one is "
                f"{list_names(USED_KEYS)}."
            )
    reject_invalid_group_overrides(args.overrides)
    config = load_config(args.overrides)
    # Imported here, so that `--help` and invalid values do not wait for it.
    from cifar_pipeline.stages.evaluate_data import evaluate_models

    evaluate_models(args.model, args.data, args.output, config)


if __name__ == "__main__":
    if any(argument.partition("=")[0] in FLAGS for argument in sys.argv[1:]):
        run_script(evaluate_data)
    else:
        run_stage(evaluate)
