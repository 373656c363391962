"""Write choices into params.yaml: `python src/choose.py optimizer=adam optimizer.lr=0.002`, then `dvc repro`.

For where `dvc exp run -S` is not to be had, because there is no git. Comments and everything else stay as they are.
"""

import argparse

from cifar_pipeline.cli.entrypoint import run_script
from cifar_pipeline.config.edit import choose
from cifar_pipeline.utils.console import info


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="as on the command line of src/train.py")
    choose(parser.parse_args().settings)
    info("params.yaml is changed: `dvc repro` does the rest.")


if __name__ == "__main__":
    run_script(main)
