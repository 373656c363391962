"""What a machine can do wrong, in a sentence: a full disk, a locked folder, a database or server that doesn't answer.

Everything else that is raised is a bug, and shows its traceback.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator

DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
IO_ERROR_ERRNOS = {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}
PERMISSION_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS}
# MLflow's names for the answers of a server, and what it does with them.
SERVER_ERROR_CLASSES = {
    "UNAUTHENTICATED": "asks who you are: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN",
    "PERMISSION_DENIED": "does not allow this to you: ask whoever runs it",
    "ENDPOINT_NOT_FOUND": "is no MLflow server, or one of another version: see that the address is right",
}
SERVER_STATUS = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "BAD_REQUEST", "NOT_FOUND"}
RESUME_HINT = "what was finished is still there, and the same command goes on"


class UserError(Exception):
    """One sentence to a person: what is wrong and what to write instead. Shown without a traceback; exit code 2."""


class EnvironmentFailure(Exception):
    """What went wrong on this machine, in a sentence already."""


def describe_environment_error(error: BaseException) -> str | None:
    """What went wrong on this machine and what to do about it; None where the error is none of the machine's."""
    for cause in _exception_chain(error):
        if isinstance(cause, EnvironmentFailure):
            return str(cause)
        if isinstance(cause, OSError) and cause.errno in DISK_FULL_ERRNOS:
            return f"The disk is full, or a limit is reached ({_describe(cause)}): free some space; {RESUME_HINT}."
        if isinstance(cause, OSError) and cause.errno in PERMISSION_ERRNOS:
            return (
                f"This may not be written ({_describe(cause)}): allow it, or remove what is in the way; {RESUME_HINT}."
            )
        if isinstance(cause, OSError) and cause.errno in IO_ERROR_ERRNOS:
            return (
                f"The system can't read or write ({_describe(cause)}): see to the disk, or to the limit; {RESUME_HINT}."
            )
        if trouble := _describe_server_error(cause):
            server = os.environ.get("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI")
            return f"MLflow's server at {server} {trouble}; {RESUME_HINT}."
        if isinstance(cause, sqlite3.Error):
            return f"MLflow's database can't be used ({cause}): {_sqlite_hint(str(cause))}; {RESUME_HINT}."
    return None


def _describe_server_error(cause: BaseException) -> str:
    """What MLflow's server does wrong and what to do about it; empty where the error is none of a server's."""
    said = " ".join(str(cause).split())[:200]
    if type(cause).__module__.partition(".")[0] in ("requests", "urllib3"):
        if "error responses" in said:  # an answer, each time it was asked again
            return f"answers with errors ({said}): look into its log"
        return f"doesn't answer ({type(cause).__name__}): start it"
    if type(cause).__module__ != "mlflow.exceptions":
        return ""
    code = getattr(cause, "error_code", "")
    if code in SERVER_ERROR_CLASSES:
        return f"{SERVER_ERROR_CLASSES[code]} ({said})"
    of_server = type(cause).__name__ == "RestException" or said.startswith("API request to")
    if code in SERVER_STATUS and of_server:
        return f"answers with an error: see that the address is that of MLflow, and look into its log ({said})"
    return ""


def _exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what lies behind it, the innermost first: what came while clearing up says less."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    yield from reversed(seen)


def _describe(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}"


def _sqlite_hint(message: str) -> str:
    if "full" in message or "I/O" in message:
        return "free some space"
    if "locked" in message:
        return "end the process that holds it"
    if "malformed" in message or "not a database" in message:
        return "put a good copy of mlflow.db in its place, or move it away to begin a new one"
    return "see that mlflow.db and its folder may be written to"
