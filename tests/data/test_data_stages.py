"""The stages download and preprocess need neither torch nor lightning nor mlflow, and say what they did."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "lightning", "pytorch_lightning", "mlflow")


def run(stage: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import runpy, sys\n"
        f"sys.argv = {[f'{stage}.py', *arguments]!r}\n"
        f"runpy.run_path({str(ROOT / 'src' / f'{stage}.py')!r}, run_name='__main__')\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("a project")
    shutil.copytree(ROOT / "conf", folder / "conf")
    (folder / "params.yaml").write_text("experiment: tutorial\nseed: 0\noverrides: {}\n")
    return folder


def test_offline_from_nothing_to_processed_data(project):
    offline = "data.mirrors=[http://127.0.0.1:9/cifar-10-python.tar.gz]"
    download = run("download", project, offline)
    assert download.returncode == 0, download.stderr
    assert "http://127.0.0.1:9/cifar-10-python.tar.gz: the host refuses" in download.stderr
    assert [path.name for path in (project / "data" / "raw").iterdir()] == ["digits"]

    preprocess = run("preprocess", project)
    assert preprocess.returncode == 0, preprocess.stderr
    assert "digits, in place of CIFAR-10: 1,294 train, 144 val, 359 test images." in preprocess.stdout
    values = json.loads((project / "data" / "processed" / "dataset.json").read_text())
    assert values["asked"]["source"]["_target_"].endswith("Cifar10")
    assert values["used"]["source"] == values["asked"]["fallback"]
    assert (project / "reports" / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_without_raw_data_preprocess_refuses_in_one_sentence(project):
    elsewhere = project / "elsewhere"
    shutil.copytree(project / "conf", elsewhere / "conf")
    shutil.copy(project / "params.yaml", elsewhere)
    refused = run("preprocess", elsewhere)
    assert refused.returncode == 2
    assert "dvc repro -f download" in refused.stderr
    assert "Traceback" not in refused.stderr
