"""What one clone pushes to a DVC remote, another one has without training: data, model, reports."""

from pathlib import Path

import pytest
from workspace import STAGES, Workspace, stages_that


def colleague_of(clone: Workspace, root: Path) -> Workspace:
    """A clone of the repository: no cache of DVC's, no runs, an environment that is set up."""
    clone.run("git", "clone", "--quiet", str(clone.root), str(root))
    (root / ".venv").mkdir()
    (root / ".venv" / ".set-up").touch()
    return Workspace(root, clone.source)


def is_had_without_training(first: Workspace, colleague: Workspace) -> None:
    said = first.dvc("push")
    assert "pushed" in said
    first.commit()
    colleague.run("git", "pull", "--quiet")
    assert not (colleague.root / "models").exists()
    said = colleague.dvc("pull")
    assert "fetched" in said

    said = colleague.run("make")
    assert stages_that(said, "ran") == []
    assert stages_that(said, "skipped") == STAGES
    assert "test accuracy" in said and "Traceback" not in said
    assert colleague.model() == first.model()
    assert colleague.read("reports/metrics.json") == first.read("reports/metrics.json")
    assert (colleague.root / "data/processed/dataset.json").read_bytes() == (
        first.root / "data/processed/dataset.json"
    ).read_bytes()


@pytest.mark.long
def test_a_folder_that_two_clones_see(copy: Workspace, tmp_path: Path) -> None:
    colleague = colleague_of(copy, tmp_path / "colleague")
    copy.dvc("remote", "add", "--default", "storage", str(tmp_path / "storage"))
    is_had_without_training(copy, colleague)
