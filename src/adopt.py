"""Make this clone your own project, in one commit: `make adopt NAME=flowers`.

Sets the name of the distribution and of MLflow's experiment, writes a short README, and removes what is about CIFAR-10
or about this project itself. Your code belongs in src/project/ and your options in conf/ (docs/your-project.md).
"""

import argparse
import logging
import sys

from cifar_pipeline.cli.entrypoint import argument_parser, run_script
from cifar_pipeline.utils.console import clear_status, status
from cifar_pipeline.utils.errors import UserError

log = logging.getLogger(__name__)


def arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="name of your project, such as flowers")
    parser.add_argument(
        "--keep",
        default="",
        metavar="WORDS",
        help="keep cifar (recipes, leaderboard), benchmarks, notebooks or chinese (README), with commas between them",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the files that would change, and change nothing")
    return parser.parse_args()


def adopt() -> None:
    args = arguments()
    # Imported here, because `--help` need not wait for it.
    from cifar_pipeline.adoption.adopt import apply, build, describe, listing, require_adoptable

    is_asked = not args.name
    clear_status()
    name, keep = ask(args.keep) if is_asked else (args.name, args.keep)
    record = require_adoptable(name, [word for word in keep.replace(",", " ").split() if word])
    status("Preparing the commit")
    adopted = build(record)
    clear_status()
    if args.dry_run or is_asked:
        print("\n".join(listing(adopted)))
    if args.dry_run:
        log.info(f"{len(adopted.changes)} files would change, in one commit; nothing was changed.")
        return
    if is_asked and input("Commit these changes? [y/N] ").strip().lower() not in ("y", "yes"):
        log.info("Nothing was changed.")
        return
    apply(adopted)
    log.info("\n".join(describe(adopted, record)))


def is_terminal() -> bool:
    return sys.stdin.isatty()


def ask(keep: str) -> tuple[str, str]:
    """Ask for the name and what to keep. Raises UserError where nobody can answer."""
    if not is_terminal():
        raise UserError("Which name? Write `make adopt NAME=flowers`, or `python src/adopt.py flowers`.")
    try:
        name = input("Name of your project, such as flowers: ").strip()
        answer = keep or input("Keep some of cifar, benchmarks, notebooks, chinese? (Enter: none) ")
    except EOFError:
        raise UserError("No name was given, so nothing was changed.") from None
    return name, answer


if __name__ == "__main__":
    run_script(adopt)
