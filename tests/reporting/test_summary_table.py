"""The summary that `make` prints last, from the script itself."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.source_tree import SRC

STAGES = ("configure", "download", "preprocess", "train", "evaluate")
METADATA = "models/metadata.json"


def run(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SRC / "report.py", "summary"], cwd=root, env={**os.environ, "COLUMNS": "100", **environment},
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "reports").mkdir()
    write(
        tmp_path / "reports" / "metrics.json",
        {
            "test": {"accuracy": 0.6234, "top3_accuracy": 0.9012, "loss": 1.08, "calibration_error": 0.02},
            "train": {"epochs": 10, "seconds": 187.0, "images_per_second": 9120.4},
        },
    )
    write(
        tmp_path / "reports" / "dataset.json",
        {
            "name": "cifar10",
            "title": "CIFAR-10",
            "source": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "fallback": False,
            "sizes": {"train": 45000, "val": 5000, "test": 10000},
        },
    )
    write(tmp_path / METADATA, {"parameters": 62006, "timing": {"device": "cpu", "threads": 2}})
    for stage in STAGES:
        write(tmp_path / ".cache" / "stages" / f"{stage}.json", {"seconds": 187.4 if stage == "train" else 1.26})
    for name in ("curves.png", "confusion.png", "report.html"):
        (tmp_path / "reports" / name).touch()
    return tmp_path


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def fall_back(root: Path) -> None:
    path = root / "reports" / "dataset.json"
    write(path, json.loads(path.read_text()) | {"name": "digits", "title": "handwritten digits", "fallback": True})


def commit_all(root: Path) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True)


def test_the_summary_has_the_results_and_where_to_find_them(root: Path) -> None:
    process = run(root)
    assert (process.returncode, process.stderr) == (0, "")
    for expected in (
        "CIFAR-10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "62.34 %", "90.12 %", "45,000",
        "cpu, 2 threads", "3 min 07 s (9,120 images/s)", "1.3 s", "reports/curves.png", "reports/confusion.png",
        "reports/report.html", "make ui", "62,006",
    ):  # fmt: skip
        assert expected in process.stdout, expected
    assert [stage for stage in STAGES if stage not in process.stdout] == []
    assert "fallback" not in process.stdout and "git restore" not in process.stdout


def test_the_summary_has_what_was_monitored_and_why_the_training_stopped(root: Path) -> None:
    plain = run(root).stdout
    assert not any(name in plain for name in ("stopped early", "test metrics", "monitor"))
    stopped = "epoch 7 of 30: val/loss has not improved for 5 epochs"
    recipe = {"monitor": "val/loss", "mode": "min"}
    metadata = json.loads((root / "models" / "metadata.json").read_text())
    write(root / "models" / "metadata.json", metadata | {"recipe": recipe, "stopped": stopped})
    metrics = json.loads((root / "reports" / "metrics.json").read_text())
    metrics["test"] |= {"f1_macro": 0.6123, "balanced_accuracy": 0.625}
    write(root / "reports" / "metrics.json", metrics)
    rows = dict(re.findall(r"^ ?(\S+(?: \S+)*) {2,}(\S.*\S) *$", run(root).stdout, re.MULTILINE))
    assert rows["monitor"] == "val/loss (min)" and rows["stopped early"] == stopped
    assert rows["test metrics"] == "F1 macro 0.6123, balanced accuracy 62.50 %"


@pytest.mark.parametrize(("classes", "expected"), [("ab", "62.34 %"), ("abcd", "62.34 % (top 3: 90.12 %)")])
def test_few_classes_have_no_top3_accuracy(root: Path, classes: str, expected: str) -> None:
    metadata = json.loads((root / METADATA).read_text())
    write(root / METADATA, metadata | {"classes": list(classes)})
    (line,) = [line for line in run(root).stdout.splitlines() if line.startswith(" test accuracy")]
    assert line == f" test accuracy   {expected}"


def test_the_fallback_is_named_with_the_command_for_the_real_data(root: Path) -> None:
    fall_back(root)
    printed = run(root).stdout
    assert "handwritten digits (fallback)" in printed
    assert "This is the fallback data set, handwritten digits: no source of the real data could be reached." in printed
    assert "`make cifar10`" in printed
    assert "git restore" not in printed


def test_in_a_git_clone_the_summary_has_the_command_that_restores_the_published_results(root: Path) -> None:
    fall_back(root)
    commit_all(root)
    assert "`git restore params.yaml composed.yaml dvc.lock reports`" in run(root).stdout


def test_the_same_holds_for_a_project_in_a_subfolder_of_its_repository(root: Path) -> None:
    fall_back(root)
    commit_all(root)
    project = root / "projects" / "images"
    shutil.copytree(root / "reports", project / "reports")
    assert "`git restore params.yaml composed.yaml dvc.lock reports`" in run(project).stdout


@pytest.mark.parametrize(
    ("device", "threads", "expected"),
    [("cpu", 1, "cpu, 1 thread"), ("cpu, 2 threads", "2", "cpu, 2 threads"), ("NVIDIA H100", None, "NVIDIA H100")],
)
def test_threads_are_printed_once(root: Path, device: str, threads: int | str | None, expected: str) -> None:
    write(root / METADATA, {"parameters": 1, "timing": {"device": device, "threads": threads}})
    (line,) = [line for line in run(root).stdout.splitlines() if line.startswith(" device")]
    assert line.split(maxsplit=1)[1].strip() == expected


def test_a_stage_that_did_not_run_came_from_the_cache(root: Path) -> None:
    (root / ".cache" / "stages" / "train.json").unlink()
    (line,) = [line for line in run(root).stdout.splitlines() if "train  " in line]
    assert "not recorded here" in line


def test_without_the_model_its_size_and_device_are_unknown(root: Path) -> None:
    (root / METADATA).unlink()
    lines = [line.split() for line in run(root).stdout.splitlines()]
    assert ["parameters", "unknown"] in lines and ["device", "unknown"] in lines


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"COLUMNS": "60"}])
def test_in_a_pipe_the_summary_is_plain_and_within_the_width(root: Path, environment: dict[str, str]) -> None:
    printed = run(root, **environment).stdout
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) <= int(environment.get("COLUMNS", "100"))


def test_without_results_the_message_names_the_command_to_run(tmp_path: Path) -> None:
    process = run(tmp_path)
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.count("\n") == 1 and "run `make`" in process.stderr


@pytest.mark.parametrize("file", ["reports/metrics.json", "reports/dataset.json", METADATA])
@pytest.mark.parametrize("content", ["{", "[]", '{"unknown": 1}', '{"test": {}, "sizes": 1, "timing": []}'])
def test_unreadable_results_are_rejected_with_one_sentence(root: Path, file: str, content: str) -> None:
    (root / file).write_text(content)
    process = run(root)
    assert process.returncode == 2
    assert "Traceback" not in process.stderr and "run `make`" in process.stderr


def test_the_summary_imports_nothing_heavy() -> None:
    code = (
        "import sys, cifar_pipeline.reporting.summary\n"
        "heavy = {'torch', 'pandas', 'numpy', 'mlflow', 'matplotlib', 'hydra', 'dvc'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=SRC, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
