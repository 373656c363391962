"""Compare the trials of a sweep, finished or not: the newest, or the one whose run id or name follows.

The table and the figures go to multirun/ and onto the sweep's run in MLflow when the sweep ends; this shows the table.
"""

import argparse

from cifar_pipeline.cli.entrypoint import run_script
from cifar_pipeline.utils.errors import UserError


def compare() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("sweep", nargs="?", default="", help="a sweep's run id or name; the newest without")
    wanted = parser.parse_args().sweep
    # Imported here, because `--help` should answer at once.
    from cifar_pipeline.config.params import read_params
    from cifar_pipeline.sweeps.summary import load_comparison, print_summary
    from cifar_pipeline.tracking.sweeps import find_sweep

    read_params()  # Elsewhere than in the project's folder, an empty database would be made.
    sweep = find_sweep(wanted)
    if sweep is None:
        raise UserError(f"There is no sweep {wanted or 'yet'}: `make sweep` or `python src/train.py -m ...` makes one.")
    print_summary(load_comparison(sweep.info.run_id), sweep.info.run_id)


if __name__ == "__main__":
    run_script(compare)
