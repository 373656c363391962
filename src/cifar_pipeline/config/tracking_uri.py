"""Read the URI of MLflow's store from MLFLOW_TRACKING_URI, or that of the workspace's own SQLite database.

A URI that MLflow would refuse, retry for minutes or take for a folder is refused here in one sentence, before any work.
"""

import os
import re
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.paths import main_workspace

TRACKING_VARIABLE, REGISTRY_VARIABLE = "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"
# MLflow's own switch for its file store, which it no longer develops.
FILE_STORE_VARIABLE = "MLFLOW_ALLOW_FILE_STORE"
DATABASE = "mlflow.db"
DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")
SERVICES = ("databricks", "databricks-uc", "uc")
# Packages of database drivers that are not named like their module.
DRIVER_PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
_HOST = re.compile(r"(?://)?((?:localhost|[\w-]+(?:\.[\w-]+)+|[\w.-]+(?=:\d))(?::\d+)?(?:/.*)?)")
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///(?P<path>[^?]*)")


def tracking_uri() -> str:
    """Return the URI of the store in which this workspace logs its runs.

    Raises:
        UserError: MLFLOW_TRACKING_URI or MLFLOW_REGISTRY_URI does not name a store that MLflow can open.
    """
    if registry := os.environ.get(REGISTRY_VARIABLE):
        _check(REGISTRY_VARIABLE, registry)
    uri = os.environ.get(TRACKING_VARIABLE)
    if not uri:
        return sqlite_uri(main_workspace() / DATABASE)
    _check(TRACKING_VARIABLE, uri)
    if (path := sqlite_path(uri)) is None:
        return uri
    # A relative path is one of the main workspace: DVC deletes the temporary copy in which a stage may run.
    return sqlite_uri(path) + "".join(uri.partition("?")[1:])


def sqlite_uri(path: Path) -> str:
    """Return the URI of a SQLite database; `%20` and `?` in its path are quoted as SQLAlchemy reads them.

    MLflow would create the folder of the quoted path if the URI did not name a driver.

    Raises:
        UserError: the path is not UTF-8, which MLflow stores in the database.
    """
    if str(path) != str(path).encode(errors="replace").decode():
        raise UserError(f"{path} is not UTF-8, as the paths in MLflow's database must be: rename the folder.")
    quoted = _quoted(path)
    return f"sqlite{'' if quoted == str(path) else '+pysqlite'}:///{quoted}"


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of the database that a SQLite URI names; None for the URI of another store."""
    match = _SQLITE.match(uri)
    return main_workspace() / unquote(match["path"]) if match else None


def own_database() -> Path:
    """Return the path of the workspace's own database."""
    return main_workspace() / DATABASE


def _quoted(path: Path) -> str:
    """Quote what SQLAlchemy would read as something else: a `%` with two hexadecimal digits, and a `?`."""
    return re.sub(r"%(?=[0-9a-fA-F]{2})|\?", lambda match: quote(match[0]), str(path))


def _check(variable: str, uri: str) -> None:
    """Raise UserError unless `uri` is one that MLflow can open."""
    shown = f"{variable}={uri}"
    scheme, separator, rest = uri.partition(":")
    # The letter of a drive is no scheme.
    scheme = scheme.lower() if separator and len(scheme) > 1 else ""
    dialect = scheme.partition("+")[0]
    if uri != uri.strip():
        raise UserError(f"{shown!r} begins or ends with a space or a line break: remove it.")
    if match := re.match(r"(https?)(:.*|//.*)", uri, re.IGNORECASE):
        _check_server(shown, match[1].lower(), match[2])
    elif dialect == "sqlite":
        if not _SQLITE.match(uri) or not rest.partition("///")[2].partition("?")[0]:
            name = rest.strip("/") or DATABASE
            raise UserError(f"{shown} names no file: write {variable}={sqlite_uri(main_workspace() / name)}.")
        _check_file(shown, sqlite_path(uri) or Path())
    elif dialect in DATABASE_SCHEMES:
        _check_driver(shown, uri)
    elif scheme in SERVICES or uri in SERVICES or scheme in _plugin_schemes():
        return
    elif scheme == "file" or (not re.match(r"[\w+.-]+://", uri) and not _names_host(uri)):
        if os.environ.get(FILE_STORE_VARIABLE, "").lower() not in ("true", "1"):
            raise UserError(_folder_message(shown, variable, uri))
    elif match := _HOST.fullmatch(uri):
        raise UserError(f"{shown} has no scheme: write {variable}=http://{match[1]}.")
    else:
        raise UserError(
            f"{shown}: MLflow has no store for {scheme}://; it must begin with http://, https://, "
            f"{', '.join(f'{name}://' for name in DATABASE_SCHEMES[1:])} or sqlite:///."
        )


def _names_host(uri: str) -> bool:
    """Return whether a URI without a scheme is a server's address rather than a path."""
    is_file = uri.endswith((".db", ".sqlite", ".sqlite3")) or Path(uri).exists()
    return _HOST.fullmatch(uri) is not None and not is_file


def _check_server(shown: str, scheme: str, rest: str) -> None:
    address = rest.lstrip(":/\\")
    if not rest.startswith("://") or not address:
        raise UserError(f"{shown} is no URL: write {shown.partition('=')[0]}={scheme}://{address or 'localhost:5000'}.")
    try:
        url = urlsplit(f"{scheme}{rest}")
        is_valid = bool(url.hostname) and not re.search(r"\s", rest) and (url.port is None or url.port > 0)
    except ValueError:
        is_valid = False
    if not is_valid:
        raise UserError(f"{shown} is no URL: write a host, and a port up to 65535, as in {scheme}://localhost:5000.")


def _check_file(shown: str, path: Path) -> None:
    """Raise UserError if SQLite could not open a database at `path`: MLflow would retry that for minutes."""
    if path.name == ":memory:":
        raise UserError(f"{shown} keeps the runs in memory, where they are lost: name a file.")
    if path.is_dir():
        raise UserError(f"{shown} names a folder: add the file's name, as in sqlite:///{_quoted(path / DATABASE)}.")
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir():
        raise UserError(f"{shown}: {parent} is a file, so {path} cannot be created: write another path.")


def _check_driver(shown: str, uri: str) -> None:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    dialect = uri.partition(":")[0]
    try:
        url = make_url(uri)
        url.get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        if error.name == "psycopg" and find_spec("psycopg2"):
            raise UserError(
                f"{shown} does not name the installed driver: begin it with {dialect}+psycopg2://."
            ) from None
        package = DRIVER_PACKAGES.get(str(error.name), str(error.name))
        raise UserError(
            f"{shown} needs the driver {error.name}, which is not installed: `pip install '{package}'` installs it."
        ) from None
    except (ArgumentError, ValueError) as error:  # NoSuchModuleError is an ArgumentError
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(f"{shown} is no URI of a database ({reason}): write dialect://host:port/name.") from None


def _plugin_schemes() -> set[str]:
    """Return the schemes of stores that other packages add to MLflow."""
    groups = ("mlflow.tracking_store", "mlflow.model_registry_store")
    return {entry.name.lower() for group in groups for entry in entry_points(group=group)}


def _folder_message(shown: str, variable: str, uri: str) -> str:
    folder = Path(unquote(urlsplit(uri).path) if uri.lower().startswith("file:") else uri).expanduser()
    path = main_workspace() / folder
    if path.suffix in (".db", ".sqlite", ".sqlite3"):
        return f"{shown} has no scheme: write {variable}={sqlite_uri(path)}."
    target = sqlite_uri(path.with_name(f"{path.name}.db"))
    return (
        f"{shown} names a folder, but MLflow now keeps runs in a database: unset it for the workspace's own, or write "
        f"{variable}={target}, to which `mlflow migrate-filestore --source {folder} --target {target}` copies the "
        "folder's runs."
    )
