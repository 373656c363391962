"""Write what is made of conf/ for its readers: docs/configuration.md, and schema/ for editors. `make docs` calls it."""

import argparse
import json
from pathlib import Path

from cifar_pipeline.cli.entrypoint import run_script
from cifar_pipeline.config.json_schema import schemas
from cifar_pipeline.config.reference import render_page
from cifar_pipeline.utils.atomic import atomic_write, require_writable
from cifar_pipeline.utils.console import info

CONF, PAGE, SCHEMA_DIR = Path("conf"), Path("docs/configuration.md"), Path("schema")


def documents() -> dict[Path, str]:
    """The content of each file, by its path."""
    made = {SCHEMA_DIR / f"{name}.json": json.dumps(schema, indent=1) + "\n" for name, schema in schemas(CONF).items()}
    return {PAGE: render_page(CONF, PAGE.parent), **made}


def document() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".").parse_args()
    made = documents()
    for path in made:
        require_writable(path, is_file=True)
    for path, text in made.items():
        with atomic_write(path) as part:
            part.write_text(text, encoding="utf-8", newline="\n")
    for path in set(SCHEMA_DIR.glob("*.json")) - set(made):
        path.unlink()
    info(f"{PAGE} and {len(made) - 1} files of {SCHEMA_DIR}/ are as conf/ says.")


if __name__ == "__main__":
    run_script(document)
