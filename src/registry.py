"""Manage the models registered in MLflow: list the versions, promote a model to champion, roll the champion back."""

import argparse
import logging
from pathlib import Path

from cifar_pipeline.cli.entrypoint import argument_parser, run_script
from cifar_pipeline.config.compose import load_config

log = logging.getLogger(__name__)


def arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the registered versions, newest first")
    promote = commands.add_parser(
        "promote", help="register a model, and make it the champion if it beats the present one (conf/registry/)"
    )
    promote.add_argument("run", nargs="?", metavar="RUN", help="id or name of a run (default: the pipeline's model)")
    commands.add_parser("rollback", help="make the previous champion the champion again")
    return parser.parse_args()


def registry() -> None:
    args, config = arguments(), load_config()
    # Imported here, because MLflow takes seconds that `--help` and an invalid value need not wait for.
    from cifar_pipeline.reporting.summary import print_versions
    from cifar_pipeline.tracking.champion import PromotionPolicy, from_pipeline, from_run, pipeline_dataset_name
    from cifar_pipeline.tracking.registry import promote, read_versions, roll_back

    if args.command == "list":
        if versions := read_versions(config.registry.name):
            print_versions(versions)
        else:
            log.info("No model is registered yet: `make` trains one and registers it.")
    elif args.command == "promote":
        checkpoint = config.evaluation.checkpoint
        candidate = from_run(args.run, checkpoint) if args.run else from_pipeline(Path("models"), checkpoint)
        policy = PromotionPolicy.of(config.registry, candidate.dataset)
        log.info(promote(candidate, policy, explicit=bool(args.run)))
    else:
        log.info(roll_back(PromotionPolicy.of(config.registry, pipeline_dataset_name(Path("models")))))


if __name__ == "__main__":
    run_script(registry)
