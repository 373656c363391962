"""What stands in data/raw when sources answer, when none does, and when the wish changes."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cifar_pipeline.data.sources.base import available_source, fetch_or_fallback
from cifar_pipeline.data.sources.digits import Digits
from cifar_pipeline.utils.atomic import exclusive_lock
from cifar_pipeline.utils.errors import UserError

CLOSED = "http://127.0.0.1:9/cifar-10-python.tar.gz"


@pytest.fixture
def download(small, tmp_path):
    def download(mirrors, fallback=None):
        return fetch_or_fallback(tmp_path / "data" / "raw", small, fallback, mirrors, 5, tmp_path / "cache")

    return download


def names(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "data" / "raw").iterdir()}


def test_the_real_data_is_fetched_and_then_kept(download, server, small, tmp_path, capsys):
    assert download([server.url]) is small
    assert names(tmp_path) == {"cifar10"}
    assert f"from {server.url}" in capsys.readouterr().out
    assert download([CLOSED]) is small
    assert "already" in capsys.readouterr().out


def test_files_that_another_process_fetched_meanwhile_are_kept(download, server, small, tmp_path):
    """Somebody may be reading it by now."""
    raw = tmp_path / "data" / "raw"
    with ThreadPoolExecutor(1) as pool:
        with exclusive_lock(raw):
            second = pool.submit(download, [server.url])
            while not (raw.parent / ".raw.lock").exists():
                time.sleep(0.01)
            time.sleep(0.3)
            small.fetch(raw / small.name, [server.url], 5, tmp_path / "another cache")
            brought = raw.stat().st_ino
        assert second.result() is small
    assert raw.stat().st_ino == brought


def test_offline_the_fallback_is_used_with_a_warning(download, small, tmp_path, capsys):
    digits = Digits(0.2, 8)
    assert download([CLOSED, "http://127.0.0.1:9/other"], digits) is digits
    assert names(tmp_path) == {"digits"}
    said = capsys.readouterr().err
    assert "CIFAR-10 could not be fetched" in said
    assert f"{CLOSED}: connection refused" in said
    assert "http://127.0.0.1:9/other: " in said
    assert "digits instead of CIFAR-10" in said
    assert "make cifar10" in said
    assert "dvc repro -f download && dvc repro" in said
    assert "git restore params.yaml composed.yaml dvc.lock reports" in said
    assert available_source(tmp_path / "data" / "raw", small, digits) is digits


def test_the_real_data_replaces_the_fallback(download, server, tmp_path):
    digits = Digits(0.2, 8)
    download([CLOSED], digits)
    download([server.url], digits)
    assert names(tmp_path) == {"cifar10"}


def test_without_a_fallback_a_failure_changes_nothing(download, tmp_path, capsys):
    download([CLOSED], Digits(0.2, 8))
    with pytest.raises(UserError, match="fallback is null"):
        download([CLOSED])
    assert names(tmp_path) == {"digits"}
    assert CLOSED in capsys.readouterr().err


def test_missing_raw_data_is_refused_by_its_name(small, tmp_path):
    with pytest.raises(
        UserError, match="neither the files of CIFAR-10 nor those of digits: run `dvc repro -f download`"
    ):
        available_source(tmp_path, small, Digits(0.2, 8))
    with pytest.raises(UserError, match="files of CIFAR-10: "):
        available_source(tmp_path, small, None)
