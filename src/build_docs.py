"""Generate docs/configuration.md and the JSON schemas of schema/ from conf/: `make docs`.

The page is committed, because hosts show it; the schemas are for the editors on this machine, and `make setup` writes
them.
"""

import json
import logging
from pathlib import Path

from cifar_pipeline.cli.entrypoint import argument_parser, run_script
from cifar_pipeline.config.json_schema import schemas
from cifar_pipeline.config.reference import render_page
from cifar_pipeline.utils.atomic import atomic_write, require_writable

log = logging.getLogger(__name__)

CONF, PAGE, SCHEMA_DIR = Path("conf"), Path("docs/configuration.md"), Path("schema")


def documents(schemas_only: bool = False) -> dict[Path, str]:
    """Return the content of each generated file by its path."""
    json_schemas = {
        SCHEMA_DIR / f"{name}.json": json.dumps(schema, indent=1) + "\n" for name, schema in schemas(CONF).items()
    }
    return json_schemas if schemas_only else {PAGE: render_page(CONF, PAGE.parent), **json_schemas}


def build_docs() -> None:
    parser = argument_parser((__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--schemas-only", action="store_true", help="write schema/ only")
    generated = documents(parser.parse_args().schemas_only)
    for path in generated:
        require_writable(path, is_file=True)
    for path, text in generated.items():
        with atomic_write(path) as tmp:
            tmp.write_text(text, encoding="utf-8", newline="\n")
    for path in set(SCHEMA_DIR.glob("*.json")) - set(generated):
        path.unlink()
    log.info(f"Wrote {', '.join(sorted({str(path if path == PAGE else SCHEMA_DIR) for path in generated}))}.")


if __name__ == "__main__":
    run_script(build_docs)
