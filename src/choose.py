"""Write choices into params.yaml: `python src/choose.py optimizer=adam optimizer.lr=0.002`, then `dvc repro`.

For where `dvc exp run -S` is not to be had, because there is no git. Comments and everything else stay as they are.
"""

import sys

from cifar_pipeline.config.choose import choose
from cifar_pipeline.console import Refusal, complain, say


def main(arguments: list[str]) -> None:
    try:
        choose(arguments)
    except Refusal as refusal:
        complain(str(refusal))
        sys.exit(2)
    say("params.yaml is changed: `dvc repro` does the rest.")


if __name__ == "__main__":
    main(sys.argv[1:])
