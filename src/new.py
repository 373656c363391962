"""Write a new network, loss, ... of your own: its code in src/project/, its file in conf/, and its test.

What is written works as it is: change it step by step, and its test tells what still does. No file is overwritten.
"""

import argparse

from cifar_pipeline.cli.entrypoint import argument_parser, run_script
from cifar_pipeline.cli.new_code import KINDS, create, describe_kinds

EXAMPLE = "example: python src/new.py model Tiny; then python src/train.py model=tiny experiment=debug"


def new() -> None:
    parser = argument_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"kinds:\n{describe_kinds()}\n\n{EXAMPLE}"
    # Checked by `create`, whose sentences say what to write instead.
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"one of {', '.join(KINDS)}")
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of the class, such as Tiny or MyNet")
    args = parser.parse_args()
    if args.kind is None:
        parser.print_help()
    else:
        create(args.kind, args.name or "")


if __name__ == "__main__":
    run_script(new)
