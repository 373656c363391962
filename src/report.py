"""Print results: the pipeline's last run, the trials of a sweep, or all measured experiments."""

import argparse
from pathlib import Path

from cifar_pipeline.cli.entrypoint import run_script
from cifar_pipeline.utils.errors import UserError


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("summary", help="data, accuracy and time of the pipeline's last run (`make` prints it)")
    sweep = commands.add_parser("sweep", help="compare the trials of a sweep, finished or not")
    sweep.add_argument("sweep", nargs="?", default="", metavar="SWEEP", help="run id or name (default: the newest)")
    commands.add_parser("experiments", help="Markdown table of conf/experiment/: accuracy over the measured seeds")
    return parser.parse_args()


def report() -> None:
    args = arguments()
    {"summary": summary, "sweep": lambda: sweep(args.sweep), "experiments": experiments}[args.command]()


def summary() -> None:
    from cifar_pipeline.reporting.summary import show_summary

    show_summary(Path.cwd())


def sweep(name: str) -> None:
    # Imported here: MLflow takes seconds.
    from cifar_pipeline.config.params import read_params
    from cifar_pipeline.sweeps.summary import load_comparison, print_summary
    from cifar_pipeline.tracking.sweeps import find_sweep

    read_params()  # fails outside of the project, where an empty database would be created
    run = find_sweep(name)
    if run is None:
        raise UserError(
            f"There is no sweep {name or 'yet'}: start one with `make sweep` or `python src/train.py -m ...`."
        )
    print_summary(load_comparison(run.info.run_id), run.info.run_id)


def experiments() -> None:
    from cifar_pipeline.config import compose
    from cifar_pipeline.reporting.summary import experiments_table
    from cifar_pipeline.tracking.runs import list_evaluated_runs, result_params
    from cifar_pipeline.utils.console import info

    runs = list_evaluated_runs("cifar10")
    measured = []
    for recipe in compose.experiments():
        matching = [run for run in runs if run.values == result_params(recipe.values)]
        for hardware in dict.fromkeys(run.hardware for run in matching):
            measured.append((recipe, [run for run in matching if run.hardware == hardware]))
    if not measured:
        raise UserError(
            "No experiment of conf/experiment/ has been measured with its current values: run one with `dvc exp run`."
        )
    info(experiments_table(measured))


if __name__ == "__main__":
    run_script(report)
