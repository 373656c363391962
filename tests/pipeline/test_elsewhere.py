"""Without git, and in another folder: the same data, the same weights, the same numbers."""

import yaml
from workspace import STAGES, stages_that


def outputs(workspace, stage: str) -> dict[str, str]:
    lock = yaml.safe_load(workspace.read("dvc.lock"))["stages"]
    return {output["path"]: output["md5"] for output in lock[stage]["outs"]}


def test_an_unpacked_archive_needs_no_git(reproduced):
    archive = reproduced.archive
    assert stages_that(reproduced.archive_said, "ran") == STAGES
    assert stages_that(archive.dvc("repro"), "ran") == []
    (run,) = archive.runs()
    assert run.info.status == "FINISHED"
    assert not any(tag.startswith("git.") for tag in run.data.tags)
    assert "git restore" not in archive.run("python", "src/summary.py")


def test_two_equal_workspaces_come_to_equal_results(reproduced):
    clone, archive = reproduced.clone, reproduced.archive
    for stage in ("configure", "download", "preprocess"):
        assert outputs(clone, stage) == outputs(archive, stage)
    assert clone.model() == archive.model()
    for file in ("metrics.json", "confusion.csv", "predictions.csv"):
        assert clone.read(f"reports/{file}") == archive.read(f"reports/{file}")
    assert clone.json("models/training.json")["identity"] == archive.json("models/training.json")["identity"]
