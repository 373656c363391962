"""Errors that end a command with one sentence: mistakes of the user, and failures of the machine it runs on.

Failures of the machine are full disks, too little memory, missing permissions, and a database or server of MLflow that
does not respond. Everything else that is raised is a bug, and shows its traceback.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator

from cifar_pipeline.utils.text import one_line

DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
IO_ERROR_ERRNOS = {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}
PERMISSION_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS}
# By MLflow's error code: what is wrong with the server, and what to do about it.
SERVER_ERROR_CLASSES = {
    "UNAUTHENTICATED": "requires a login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN",
    "PERMISSION_DENIED": "denies access: ask its administrator for permission to edit the experiment, or set another "
    "mlflow.experiment_name",
    "ENDPOINT_NOT_FOUND": "is not an MLflow server, or runs an incompatible version: check the address",
}
# Where a login is set, the server has rejected it.
LOGIN_VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN")
REJECTED_LOGIN = (
    "rejects the login: check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
)
SERVER_STATUS = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "BAD_REQUEST", "NOT_FOUND"}
RESUME_HINT = "finished work is kept, and the same command resumes it"


class UserError(Exception):
    """A mistake in the input or the configuration; the message names it and the fix. No traceback, exit code 2."""


class EnvironmentFailure(Exception):
    """A failure of the machine or of another process. No traceback, exit code 1.

    The message is complete; it is empty if another process prints it.
    """


def describe_environment_error(error: BaseException) -> str | None:
    """Describe in one sentence a failure of the machine in an error's chain of causes; None where there is none."""
    for cause in _exception_chain(error):
        if isinstance(cause, EnvironmentFailure):
            return str(cause)
        if isinstance(cause, OSError) and cause.errno in DISK_FULL_ERRNOS:
            return f"The disk is full, or a size limit is reached ({_describe(cause)}): free some space; {RESUME_HINT}."
        if isinstance(cause, OSError) and cause.errno in PERMISSION_ERRNOS:
            return f"Permission denied ({_describe(cause)}): fix the permissions or remove the file; {RESUME_HINT}."
        if isinstance(cause, OSError) and cause.errno in IO_ERROR_ERRNOS:
            return f"I/O error ({_describe(cause)}): check the disk and the limit of open files; {RESUME_HINT}."
        if isinstance(cause, MemoryError):
            reason = f" ({one_line(cause)})" if str(cause) else ""
            return f"Out of memory{reason}: close other programs, or choose smaller batches; {RESUME_HINT}."
        if problem := _describe_server_error(cause):
            server = os.environ.get("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI")
            return f"The MLflow server at {server} {problem}; {RESUME_HINT}."
        if isinstance(cause, sqlite3.Error):
            return f"MLflow's database cannot be used ({cause}): {_sqlite_hint(str(cause))}; {RESUME_HINT}."
        if _is_lost_database(cause):
            reason = one_line(getattr(cause, "orig", cause))[:200]
            return f"The database in MLFLOW_TRACKING_URI does not respond ({reason}): start it; {RESUME_HINT}."
    return None


def _is_lost_database(cause: BaseException) -> bool:
    """Return whether an error is SQLAlchemy's for a database, other than SQLite, that does not respond."""
    return type(cause).__module__ == "sqlalchemy.exc" and type(cause).__name__ in ("OperationalError", "InterfaceError")


def _describe_server_error(cause: BaseException) -> str:
    """Describe an error of MLflow's server and its fix; empty for any other error."""
    message = one_line(cause)[:200]
    if type(cause).__module__.partition(".")[0] in ("requests", "urllib3"):
        if "error responses" in message:  # the server responded to each retry
            return f"returned errors ({message}): check its log"
        return f"does not respond ({type(cause).__name__}): start it"
    if type(cause).__module__ != "mlflow.exceptions":
        return ""
    code = getattr(cause, "error_code", "")
    if code == "UNAUTHENTICATED" and any(map(os.environ.get, LOGIN_VARIABLES)):
        return f"{REJECTED_LOGIN} ({message})"
    if code in SERVER_ERROR_CLASSES:
        return f"{SERVER_ERROR_CLASSES[code]} ({message})"
    is_response = type(cause).__name__ == "RestException" or message.startswith("API request to")
    if code in SERVER_STATUS and is_response:
        return f"returned an error: check that the address is MLflow's, and check its log ({message})"
    return ""


def _exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes, the innermost first: errors of the cleanup that came later explain less."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    yield from reversed(seen)


def _describe(error: OSError) -> str:
    path = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{path}"


def _sqlite_hint(message: str) -> str:
    if "full" in message or "I/O" in message:
        return "free some space"
    if "locked" in message:
        return "end the process that holds the lock"
    if "malformed" in message or "not a database" in message:
        return "restore mlflow.db from a backup, or move it away to start a new one"
    return "check that mlflow.db and its folder are writable"
