"""The stages download and preprocess need neither torch nor lightning nor mlflow, and say what they did."""

import json
import os
import subprocess
import sys
import time
from hashlib import md5
from pathlib import Path

import pytest

from cifar_pipeline.data.sources.download import DOWNLOAD_CHUNK
from helpers.config_project import ROOT, Project
from helpers.dir_snapshot import content_of

HEAVY = ("torch", "torchvision", "lightning", "pytorch_lightning", "mlflow")


def command(stage: str, *arguments: str) -> list[str]:
    """What starts a stage, and ends with an error where something heavy was imported for it."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = {[f'{stage}.py', *arguments]!r}\n"
        f"runpy.run_path({str(ROOT / 'src' / f'{stage}.py')!r}, run_name='__main__')\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    return [sys.executable, "-c", code]


def run(stage: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(stage, *arguments), cwd=folder, env=environment(), capture_output=True, text=True, timeout=60
    )


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "src")}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return Project.made(tmp_path_factory.mktemp("a project")).folder


def test_offline_from_nothing_to_processed_data(project):
    offline = "data.mirrors=[http://127.0.0.1:9/cifar-10-python.tar.gz]"
    download = run("download", project, offline)
    assert download.returncode == 0, download.stderr
    assert "http://127.0.0.1:9/cifar-10-python.tar.gz: connection refused" in download.stderr
    assert [path.name for path in (project / "data" / "raw").iterdir()] == ["digits"]

    preprocess = run("preprocess", project)
    assert preprocess.returncode == 0, preprocess.stderr
    assert "digits, in place of CIFAR-10: 1,294 train, 144 val, 359 test images." in preprocess.stdout
    values = json.loads((project / "data" / "processed" / "dataset.json").read_text())
    assert values["requested"]["source"]["_target_"].endswith("Cifar10")
    assert values["effective"]["source"] == values["requested"]["fallback"]


def test_without_raw_data_preprocess_refuses_in_one_sentence(tmp_path):
    refused = run("preprocess", Project.made(tmp_path).folder)
    assert refused.returncode == 2
    assert "dvc repro -f download" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_killed_download_goes_on_where_it_was(tmp_path, server, files, archive):
    Project.made(tmp_path)
    sums = "".join(f"  {name}: {md5(content).hexdigest()}\n" for name, content in files.items())
    with (tmp_path / "conf" / "data" / "source" / "cifar10.yaml").open("a") as source:
        source.write(f"checksums:\n{sums}")
    mirror = f"data.mirrors=[{server.url}]"

    server.answer = server.hang_after_half
    first = subprocess.Popen(command("download", mirror), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while not any(path.stat().st_size > len(archive) // 4 for path in tmp_path.rglob("*.partial")):
        assert first.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert not (tmp_path / "data" / "raw").exists()

    server.answer = server.send
    server.asked.clear()
    second = run("download", tmp_path, mirror)
    assert second.returncode == 0, second.stderr
    (asked,) = server.asked
    assert len(archive) // 4 < int(asked.removeprefix("bytes=").removesuffix("-")) <= len(archive) // 2 + DOWNLOAD_CHUNK
    assert content_of(tmp_path / "data" / "raw" / "cifar10") == files
