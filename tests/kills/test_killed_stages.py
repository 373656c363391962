"""The other stages, killed wherever, leave the old result or the new one."""

import pytest
from torture import KILLED, Moment, start

from cifar_pipeline.data.dataset import Dataset


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def killed(workspace, kind, number, script, *arguments):
    ended = start(workspace, Moment(kind, number), script, *arguments)
    assert ended.code == KILLED, ended.said


@pytest.fixture(scope="module")
def evaluated(origin, tmp_path_factory):
    """A workspace with a short training and its reports."""
    workspace = origin.copy(tmp_path_factory.mktemp("evaluated") / "copy")
    workspace.train("experiment=debug")
    workspace.run("python", "src/evaluate.py")
    return workspace


def test_preprocess_leaves_the_old_data_until_the_new_is_whole(copy):
    processed = copy.root / "data" / "processed"
    before = content(processed)
    killed(copy, "array", 4, "preprocess", "data.val_fraction=0.3")
    assert content(processed) == before

    copy.run("python", "src/preprocess.py", "data.val_fraction=0.3")
    Dataset.open(processed).verify()
    assert content(processed) != before
    assert not (processed.parent / ".processed.part").exists()


@pytest.mark.long
@pytest.mark.parametrize("number", [1, 2])
def test_preprocess_killed_between_its_renames_is_mended_by_the_next(copy, number):
    processed = copy.root / "data" / "processed"
    before = content(processed)
    killed(copy, "folder rename", number, "preprocess")
    copy.run("python", "src/preprocess.py")
    assert content(processed) == before


@pytest.mark.long
@pytest.mark.parametrize("number", [1, 3])
def test_evaluate_leaves_every_report_as_it_was(evaluated, number):
    reports = evaluated.root / "reports"
    before = content(reports)
    killed(evaluated, "figure", number, "evaluate", "evaluate.mistakes=5")
    assert content(reports) == before


@pytest.mark.long
def test_evaluate_killed_between_its_renames_is_mended_by_the_next(evaluated):
    reports = evaluated.root / "reports"
    before = content(reports)
    killed(evaluated, "rename", 2, "evaluate", "evaluate.mistakes=5")
    evaluated.run("python", "src/evaluate.py")
    after = content(reports)
    timing = reports / "timing.json"
    assert {**after, timing: b""} == {**before, timing: b""}
