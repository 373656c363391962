"""Write what is made of conf/ for its readers: docs/configuration.md, and schema/ for editors. `make docs` calls it."""

import argparse
import json
from pathlib import Path

from cifar_pipeline.commands.script import run_script
from cifar_pipeline.console import say
from cifar_pipeline.files import require_writable, whole_file
from cifar_pipeline.reference.page import page
from cifar_pipeline.reference.schemas import schemas

CONF, PAGE, SCHEMA = Path("conf"), Path("docs/configuration.md"), Path("schema")


def documents() -> dict[Path, str]:
    """The content of each file, by its path."""
    made = {SCHEMA / f"{name}.json": json.dumps(schema, indent=1) + "\n" for name, schema in schemas(CONF).items()}
    return {PAGE: page(CONF, PAGE.parent), **made}


def document() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".").parse_args()
    made = documents()
    for path in made:
        require_writable(path, is_file=True)
    for path, text in made.items():
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8", newline="\n")
    for path in set(SCHEMA.glob("*.json")) - set(made):
        path.unlink()
    say(f"{PAGE} and {len(made) - 1} files of {SCHEMA}/ are as conf/ says.")


if __name__ == "__main__":
    run_script(document)
