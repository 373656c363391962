"""What one clone pushes to a DVC remote, another one has without training: data, model, reports."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.servers import free_port, wait_for_answer
from helpers.workspace import STAGES, Workspace, stages_that

BUCKET = "s3://shared/results"
# Whatever the server takes; a clone keeps them in .dvc/config.local, which git does not know.
KEYS = {"access_key_id": "tests", "secret_access_key": "tests", "region": "us-east-1"}


def colleague_of(clone: Workspace, root: Path) -> Workspace:
    """A clone of the repository: no cache of DVC's, no runs, an environment that is set up."""
    clone.run("git", "clone", "--quiet", str(clone.root), str(root))
    (root / ".venv").mkdir()
    (root / ".venv" / ".set-up").touch()
    return Workspace(root, clone.source)


def is_had_without_training(first: Workspace, colleague: Workspace, *keys: tuple[str, str]) -> None:
    """Pushed by one, pulled by the other, each with the `keys` of the remote, and `make` finds nothing to do."""

    def let_in(clone: Workspace) -> None:
        for key, value in keys:
            clone.dvc("remote", "modify", "--local", "storage", key, value)

    let_in(first)
    said = first.dvc("push")
    assert "pushed" in said
    first.commit()
    colleague.run("git", "pull", "--quiet")
    assert not (colleague.root / "models").exists()
    let_in(colleague)
    said = colleague.dvc("pull")
    assert "fetched" in said

    said = colleague.run("make")
    assert stages_that(said, "ran") == ["configure"]  # creates the folders of inputs
    assert stages_that(said, "skipped") == STAGES[1:]
    assert "test accuracy" in said and "Traceback" not in said
    assert colleague.model() == first.model()
    assert colleague.read("reports/metrics.json") == first.read("reports/metrics.json")
    assert (colleague.root / "data/processed/dataset.json").read_bytes() == (
        first.root / "data/processed/dataset.json"
    ).read_bytes()


@pytest.fixture
def s3_server() -> Iterator[str]:
    """The address of a server on this machine that speaks S3, with one empty bucket."""
    for package, name in (("dvc_s3", "dvc-s3"), ("moto", "moto")):
        if find_spec(package) is None:
            pytest.skip(f"{name} is not installed (the extra `s3`)")
    import boto3

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
        env={key: value for key, value in os.environ.items() if not key.startswith("AWS_")},
    )
    try:
        wait_for_answer(f"{address}/moto-api/", server)
        names = {"aws_access_key_id": "tests", "aws_secret_access_key": "tests", "region_name": KEYS["region"]}
        boto3.client("s3", endpoint_url=address, **names).create_bucket(Bucket="shared")
        yield address
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.long
def test_a_colleague_has_the_results_from_a_shared_folder_without_training(copy: Workspace, tmp_path: Path) -> None:
    colleague = colleague_of(copy, tmp_path / "colleague")
    copy.dvc("remote", "add", "--default", "storage", str(tmp_path / "storage"))
    is_had_without_training(copy, colleague)


@pytest.mark.long
def test_a_colleague_has_the_results_from_an_s3_server_without_training(
    copy: Workspace, tmp_path: Path, s3_server: str
) -> None:
    colleague = colleague_of(copy, tmp_path / "colleague")
    copy.dvc("remote", "add", "--default", "storage", BUCKET)
    copy.dvc("remote", "modify", "storage", "endpointurl", s3_server)
    is_had_without_training(copy, colleague, *KEYS.items())
