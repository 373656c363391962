"""Print results: the last run, DVC's experiments, a sweep's trials, or a table of the recipes."""

import argparse
from pathlib import Path

from cifar_pipeline.cli.entrypoint import argument_parser, run_script
from cifar_pipeline.utils.errors import UserError


def arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("summary", help="data, accuracy and time of the pipeline's last run (`make` prints it)")
    sweep = commands.add_parser("sweep", help="compare the trials of a sweep, finished or not")
    sweep.add_argument("sweep", nargs="?", default="", metavar="SWEEP", help="run id or name (default: the newest)")
    commands.add_parser("experiments", help="what the experiments of `dvc exp run` change, and their results")
    commands.add_parser("results-table", help="Markdown table of conf/experiment/: test accuracy over the seeds")
    return parser.parse_args()


def report() -> None:
    args = arguments()
    if args.command == "summary":
        summary()
    elif args.command == "sweep":
        sweep(args.sweep)
    elif args.command == "experiments":
        experiments()
    else:
        results_table()


# The functions import what they need themselves, because MLflow takes seconds that `summary` and `--help` don't need.


def summary() -> None:
    from cifar_pipeline.reporting.summary import show_summary

    show_summary(Path.cwd())


def sweep(name: str) -> None:
    from cifar_pipeline.config.params import read_params
    from cifar_pipeline.sweeps.summary import load_comparison, print_summary
    from cifar_pipeline.tracking.sweeps import find_sweep

    read_params()  # Fails outside the project's folder, where an empty database would be created.
    parent = find_sweep(name)
    if parent is None:
        raise UserError(f"There is no sweep {name or 'yet'}: `make sweep` or `python src/train.py -m ...` starts one.")
    print_summary(load_comparison(parent.info.run_id), parent.info.run_id)


def experiments() -> None:
    from cifar_pipeline.reporting.experiments import print_experiments

    print_experiments()


def results_table() -> None:
    from rich.text import Text

    from cifar_pipeline.config import compose
    from cifar_pipeline.reporting.summary import experiments_table
    from cifar_pipeline.tracking.runs import list_evaluated_runs, result_params
    from cifar_pipeline.utils.console import stdout_console

    runs = list_evaluated_runs(str(compose.compose_with_hydra([]).hydra.runtime.choices["data"]))
    rows = []
    for recipe in compose.experiments():
        matching = [run for run in runs if run.values == result_params(recipe.values)]
        for hardware in dict.fromkeys(run.hardware for run in matching):
            rows.append((recipe, [run for run in matching if run.hardware == hardware]))
    if not rows:
        raise UserError(
            "No experiment of conf/experiment/ was evaluated without other changes: `dvc exp run -S experiment=NAME` "
            "evaluates one."
        )
    stdout_console.print(Text(experiments_table(rows)))


if __name__ == "__main__":
    run_script(report)
