"""Write what is generated from conf/: docs/configuration.md, and the JSON schemas of schema/ for editors.

The page is committed, because hosts show it; the schemas are for the editors on this machine.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from cifar_pipeline.config.json_schema import schemas
from cifar_pipeline.config.params import CONF
from cifar_pipeline.config.reference import render_page
from cifar_pipeline.utils.atomic import atomic_write, require_writable

PAGE, SCHEMA_DIR = Path("docs/configuration.md"), Path("schema")


def documents(schemas_only: bool = False) -> dict[Path, str]:
    """Return the content of each generated file by its path."""
    json_schemas = {
        SCHEMA_DIR / f"{name}.json": json.dumps(schema, indent=1) + "\n" for name, schema in schemas(CONF).items()
    }
    return json_schemas if schemas_only else {PAGE: render_page(CONF, PAGE.parent), **json_schemas}


def write_documents(schemas_only: bool = False) -> Iterable[str]:
    """Write the generated files, remove schemas that are no longer generated, and return what was written."""
    generated = documents(schemas_only)
    for path in generated:
        require_writable(path, is_file=True)
    for path, text in generated.items():
        with atomic_write(path) as tmp:
            tmp.write_text(text, encoding="utf-8", newline="\n")
    for path in set(SCHEMA_DIR.glob("*.json")) - set(generated):
        path.unlink()
    return sorted({str(path if path == PAGE else SCHEMA_DIR) for path in generated})
