"""Show the runs in MLflow's page: start its server for one person, and print the address when the page answers."""

import argparse

from cifar_pipeline.cli.entrypoint import argument_parser, run_script


def arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default: 5000)")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    return parser.parse_args()


def ui() -> None:
    args = arguments()
    # Imported here: MLflow takes seconds, and `--help` does not need it.
    from cifar_pipeline.tracking.ui import show_runs

    show_runs(args.port, opens_browser=not args.no_browser)


if __name__ == "__main__":
    run_script(ui)
