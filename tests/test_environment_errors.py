"""Failures of the machine are described in one sentence with the fix; bugs are not."""

import errno
import re
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from sqlalchemy.exc import OperationalError

from cifar_pipeline.config import compose
from cifar_pipeline.utils.atomic import require_writable
from cifar_pipeline.utils.errors import UserError, describe_environment_error
from helpers.servers import fixed_response_server
from helpers.source_tree import EXPERIMENT


def caused_by(cause: BaseException) -> BaseException:
    """Wrap an error in another one, as libraries do."""
    try:
        try:
            raise cause
        except BaseException as inner:
            raise RuntimeError("something failed") from inner
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("cause", "pattern"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "disk is full.*a/b.*free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "models"), "Permission denied.*models"),
        (OSError(errno.EIO, "Input/output error", "last.ckpt"), "I/O error .*last.ckpt.*check the disk"),
        (MemoryError("Unable to allocate 2.4 GiB"), "Out of memory .*2.4 GiB.*smaller batches"),
        (sqlite3.OperationalError("database is locked"), "database.*locked.*end the process"),
        (sqlite3.DatabaseError("file is not a database"), "restore mlflow.db from a backup"),
        (sqlite3.OperationalError("database or disk is full"), "free some space"),
        (requests.ConnectionError("refused"), "server.*does not respond"),
        (OperationalError("SELECT 1", {}, Exception("refused")), r"database.*does not respond \(refused\): start it"),
    ],
)
def test_a_failure_of_the_machine_behind_a_librarys_error_is_described(cause: BaseException, pattern: str) -> None:
    sentence = describe_environment_error(caused_by(cause))
    assert sentence is not None
    assert re.search(pattern, sentence), sentence


@pytest.mark.parametrize("error", [ValueError("wrong"), FileNotFoundError(errno.ENOENT, "no such file", "x")])
def test_a_bug_is_not_reported_as_a_failure_of_the_machine(error: BaseException) -> None:
    assert describe_environment_error(caused_by(error)) is None


def test_a_file_size_limit_is_a_full_disk(tmp_path) -> None:
    """Set the limit in a separate process."""
    code = (
        "from pathlib import Path; from cifar_pipeline.utils.errors import describe_environment_error\n"
        "from cifar_pipeline.utils.atomic import atomic_write\n"
        "try:\n"
        "    with atomic_write(Path('last.ckpt')) as tmp: tmp.write_bytes(bytes(2_000_000))\n"
        "except BaseException as error: print(describe_environment_error(error))\n"
    )
    (tmp_path / "last.ckpt").write_bytes(b"what was there")
    limit = 1_000_000
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "The disk is full, or a size limit is reached" in ended.stdout, ended.stderr
    assert (tmp_path / "last.ckpt").read_bytes() == b"what was there"
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_locked_folder_is_refused_before_any_work(tmp_path, monkeypatch) -> None:
    (tmp_path / "models").mkdir()
    require_writable(tmp_path / "models")
    require_writable(tmp_path / "not" / "there" / "yet")
    # Mocked, because root may write anywhere.
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).endswith("models"))
    with pytest.raises(UserError, match=r"models is not writable.*chmod"):
        require_writable(tmp_path / "models")


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    import mlflow

    before = mlflow.get_tracking_uri()
    with fixed_response_server() as server:
        yield server
    mlflow.set_tracking_uri(before)


@pytest.mark.parametrize(
    ("code", "body", "pattern"),
    [
        (401, b"no", "requires a login: set MLFLOW_TRACKING_USERNAME"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "not you"}', "denies access.*not you"),
        (404, b"<html>nothing here", "is not an MLflow server"),
        (200, b"<html>a proxy's page", "returned an error: check that the address is MLflow's"),
        (503, b"busy", r"returned errors \(too many 503 error responses\): check its log"),
    ],
)
def test_a_server_that_refuses_or_fails_is_not_taken_for_one_that_is_gone_or_empty(
    server: Any, code: int, body: bytes, pattern: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifar_pipeline.tracking.client import connect
    from cifar_pipeline.tracking.model_uri import resolve_model

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compose, "_experiment_name", EXPERIMENT)  # There is no conf/.
    address = f"http://127.0.0.1:{server.server_port}"
    server.reply = code, body
    for request in (connect, lambda: resolve_model("models:/digits@champion", "", "last").__enter__()):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(Exception) as raised:
            request()
        sentence = describe_environment_error(raised.value)
        assert sentence is not None and re.search(pattern, sentence), sentence
        assert sentence.startswith(f"The MLflow server at {address} ")
