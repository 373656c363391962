"""Write choices into params.yaml: `python src/choose.py optimizer=adam optimizer.lr=0.002`, then `dvc repro`.

For where `dvc exp run -S` is not to be had, because there is no git. Comments and everything else stay as they are.
"""

import sys

from cifar_pipeline.commands.script import run_script
from cifar_pipeline.config.edit import choose
from cifar_pipeline.console import say


def main() -> None:
    choose(sys.argv[1:])
    say("params.yaml is changed: `dvc repro` does the rest.")


if __name__ == "__main__":
    run_script(main)
