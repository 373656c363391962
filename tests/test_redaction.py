"""Secrets in text that leaves the process become `***`, by their position in a URL or by their value."""

import os
import subprocess
import sys
import threading

import pytest

from cifar_pipeline.utils.text import contains_secret, redact, redact_arguments, redact_bytes, redact_values
from helpers.source_tree import SRC


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:s3cr@t@host:1/a?token=abc&x=1#f", "https://me:***@host:1/a?token=***&x=1#f"),
        ("postgresql://user:pa/ss@host/runs", "postgresql://user:***@host/runs"),
        ("mysql+pymysql://root:p%40w@host", "mysql+pymysql://root:***@host"),
        ("https://ghp_abcdef@github.com/x", "https://***@github.com/x"),
        ("[https://u:p@a/x,https://v:q@b/y?sig=1]", "[https://u:***@a/x,https://v:***@b/y?sig=***]"),
        (
            "see https://h/x?X-Amz-Signature=12&X-Amz-Date=3, 'https://u:p@b/'",
            "see https://h/x?X-Amz-Signature=***&X-Amz-Date=3, 'https://u:***@b/'",
        ),
        ("http://h/x?password=a;b=1", "http://h/x?password=***;b=1"),
    ],
)  # fmt: skip
def test_a_secret_in_a_url_is_masked_by_its_place(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact_bytes(b"\xff" + text.encode()) == b"\xff" + expected.encode()


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/models/cifar10@champion",
        "sqlite:////srv/mlflow.db",
        "/a/folder@home",
        "models:/cifar10@champion",
        "https://h/a?monkey=1&keys=2",
        "optimizer.lr=0.001",
    ],
)
def test_text_without_secrets_is_unchanged(text: str) -> None:
    assert redact(text) == text
    assert not contains_secret(text)


def test_values_of_secret_environment_variables_are_masked_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abc/def+ghi")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pass%20word@proxy:3128")
    text = "401 for 'correct horse': abc/def+ghi, pass word, pass%20word; me"
    assert redact(text) == "401 for '***': ***, ***, ***; me"


def test_values_under_a_secret_key_are_masked() -> None:
    values = {"a": {"token": "abc", "tokens": 3}, "urls": ["http://u:p@h/"], "password": None, "lr": 0.1}
    expected = {"a": {"token": "***", "tokens": 3}, "urls": ["http://u:***@h/"], "password": None, "lr": 0.1}
    assert redact_values(values) == expected
    assert redact_arguments(["+data.source.password=abc", "lr=1"]) == ["+data.source.password=***", "lr=1"]


def test_tracebacks_and_logs_of_libraries_are_redacted_and_escaped() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(SRC)!r})\n"
        "from cifar_pipeline.utils.console import configure_logging; configure_logging()\n"
        "import logging; logging.warning('asks %s', 'https://u:topsecret@h/')\n"
        "raise ValueError('at https://u:topsecret@h/ \\x1b[2J')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "asks https://u:***@h/" in ended.stderr
    assert r"ValueError: at https://u:***@h/ \x1b[2J" in ended.stderr
    assert "\x1b" not in ended.stderr
    assert "topsecret@" not in ended.stderr.replace("raise ValueError('at https://u:topsecret@h/", "")


def test_a_variable_that_another_thread_removes_is_harmless(monkeypatch):
    """A thread of MLflow sets and removes a variable."""
    monkeypatch.setenv("PASSING", "")
    stop = threading.Event()

    def set_and_remove():
        while not stop.is_set():
            os.environ["PASSING"] = "1"
            del os.environ["PASSING"]

    thread = threading.Thread(target=set_and_remove)
    thread.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(1000):
            assert redact("nothing secret") == "nothing secret"
    finally:
        sys.setswitchinterval(before)
        stop.set()
        thread.join()
