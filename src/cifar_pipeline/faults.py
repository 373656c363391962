"""What a machine can do wrong, in a sentence: a full disk, a locked folder, a database or server that doesn't answer.

Everything else that is raised is a bug, and shows its traceback.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FAILING = {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# MLflow's names for the answers of a server, and what it does with them.
OF_SERVERS = {
    "UNAUTHENTICATED": "asks who you are: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN",
    "PERMISSION_DENIED": "does not allow this to you: ask whoever runs it",
    "ENDPOINT_NOT_FOUND": "is no MLflow server, or one of another version: see that the address is right",
}
FAILED = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "BAD_REQUEST", "NOT_FOUND"}
GOES_ON = "what was finished is still there, and the same command goes on"


class Fault(Exception):
    """What went wrong on this machine, in a sentence already."""


def fault_sentence(error: BaseException) -> str | None:
    """What went wrong on this machine and what to do about it; None where the error is none of the machine's."""
    for cause in _causes(error):
        if isinstance(cause, Fault):
            return str(cause)
        if isinstance(cause, OSError) and cause.errno in FULL:
            return f"The disk is full, or a limit is reached ({_told(cause)}): free some space; {GOES_ON}."
        if isinstance(cause, OSError) and cause.errno in FORBIDDEN:
            return f"This may not be written ({_told(cause)}): allow it, or remove what is in the way; {GOES_ON}."
        if isinstance(cause, OSError) and cause.errno in FAILING:
            return f"The system can't read or write ({_told(cause)}): see to the disk, or to the limit; {GOES_ON}."
        if trouble := _trouble_of_server(cause):
            server = os.environ.get("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI")
            return f"MLflow's server at {server} {trouble}; {GOES_ON}."
        if isinstance(cause, sqlite3.Error):
            return f"MLflow's database can't be used ({cause}): {_remedy(str(cause))}; {GOES_ON}."
    return None


def _trouble_of_server(cause: BaseException) -> str:
    """What MLflow's server does wrong and what to do about it; empty where the error is none of a server's."""
    said = " ".join(str(cause).split())[:200]
    if type(cause).__module__.partition(".")[0] in ("requests", "urllib3"):
        if "error responses" in said:  # an answer, each time it was asked again
            return f"answers with errors ({said}): look into its log"
        return f"doesn't answer ({type(cause).__name__}): start it"
    if type(cause).__module__ != "mlflow.exceptions":
        return ""
    code = getattr(cause, "error_code", "")
    if code in OF_SERVERS:
        return f"{OF_SERVERS[code]} ({said})"
    of_server = type(cause).__name__ == "RestException" or said.startswith("API request to")
    if code in FAILED and of_server:
        return f"answers with an error: see that the address is that of MLflow, and look into its log ({said})"
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what lies behind it, the innermost first: what came while clearing up says less."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    yield from reversed(seen)


def _told(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}"


def _remedy(message: str) -> str:
    if "full" in message or "I/O" in message:
        return "free some space"
    if "locked" in message:
        return "end the process that holds it"
    if "malformed" in message or "not a database" in message:
        return "put a good copy of mlflow.db in its place, or move it away to begin a new one"
    return "see that mlflow.db and its folder may be written to"
