"""Two fresh workspaces, with and without git, produce equal data, weights and metrics."""

import pytest
import yaml

from helpers.workspace import do_without_git, workspace_of_tree


def outputs(workspace, stage: str) -> dict[str, str]:
    lock = yaml.safe_load(workspace.read("dvc.lock"))["stages"]
    return {output["path"]: output["md5"] for output in lock[stage]["outs"]}


@pytest.mark.long
def test_two_equal_workspaces_come_to_equal_results(clone, tmp_path):
    archive = workspace_of_tree(tmp_path / "unpacked archive")
    do_without_git(archive)
    archive.dvc("repro")
    assert "git restore" not in archive.run("python", "src/report.py", "summary")
    for stage in ("configure", "download", "preprocess"):
        assert outputs(clone, stage) == outputs(archive, stage)
    assert clone.model() == archive.model()
    for file in ("dataset.json", "per_class.csv", "confusion.csv", "predictions.csv"):
        assert clone.read(f"reports/{file}") == archive.read(f"reports/{file}")
    measured, again = (workspace.json("reports/metrics.json") for workspace in (clone, archive))
    assert all(measured[split] == again[split] for split in ("test", "val"))  # `train` has the seconds it took
    assert clone.json("models/metadata.json")["fingerprint"] == archive.json("models/metadata.json")["fingerprint"]
