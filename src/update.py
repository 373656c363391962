"""Merge a newer version of cifar-pipeline into your adopted project, in one commit: `make update`.

What `make adopt` removed stays removed, and the files that it changed do not conflict (docs/your-project.md).
"""

import argparse

from cifar_pipeline.cli.entrypoint import argument_parser, run_script


def arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("url", nargs="?", default="", metavar="URL", help="repository to add as the remote `upstream`")
    parser.add_argument("--branch", default="main", help="branch of the upstream (default: main)")
    return parser.parse_args()


def update() -> None:
    args = arguments()
    from cifar_pipeline.adoption.update import update

    update(args.url, args.branch)


if __name__ == "__main__":
    run_script(update)
