"""Generate docs/configuration.md and the JSON schemas of schema/ from conf/: `make docs`.

The page is committed, because hosts show it; the schemas are for the editors on this machine, and `make setup` writes
them.
"""

import logging

from cifar_pipeline.cli.entrypoint import argument_parser, run_script

log = logging.getLogger(__name__)


def build_docs() -> None:
    # Imported here, because `entrypoint` comes first: it refuses a Python without the packages.
    from cifar_pipeline.cli.documents import write_documents

    parser = argument_parser((__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--schemas-only", action="store_true", help="write schema/ only")
    log.info(f"Wrote {', '.join(write_documents(parser.parse_args().schemas_only))}.")


if __name__ == "__main__":
    run_script(build_docs)
