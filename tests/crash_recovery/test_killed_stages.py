"""The other stages, killed at any moment, leave either the old or the new result."""

import pytest
from torture import KILLED, Moment, start

from cifar_pipeline.data.dataset import Dataset
from helpers.dir_snapshot import content_of


def kill(workspace, event, number, script, *arguments):
    killed = start(workspace, Moment(event, number), script, *arguments)
    assert killed.code == KILLED, killed.output


@pytest.fixture(scope="module")
def evaluated(origin, tmp_path_factory):
    """A workspace with a short training and its reports."""
    workspace = origin.copy(tmp_path_factory.mktemp("evaluated") / "copy")
    workspace.train("experiment=debug")
    workspace.run("python", "src/evaluate.py")
    return workspace


def test_preprocess_keeps_the_old_data_until_the_new_is_complete(copy):
    processed = copy.root / "data" / "processed"
    before = content_of(processed)
    kill(copy, "array", 4, "preprocess", "data.val_fraction=0.3")
    assert content_of(processed) == before

    copy.run("python", "src/preprocess.py", "data.val_fraction=0.3")
    Dataset.open(processed).verify()
    assert content_of(processed) != before
    assert [path.name for path in processed.parent.glob(".processed.*")] == [".processed.lock"]


@pytest.mark.long
@pytest.mark.parametrize("event", ["raw array", "unexchanged", "exchanged"])
def test_download_leaves_what_was_there_or_all_of_the_new(copy, event):
    raw = copy.root / "data" / "raw"
    new = content_of(raw)
    (raw / "digits" / "labels.npy").unlink()
    old = content_of(raw)
    kill(copy, event, 1, "download")
    assert content_of(raw) == (new if event == "exchanged" else old)
    copy.run("python", "src/download.py")
    assert content_of(raw) == new


@pytest.mark.long
def test_preprocess_leaves_the_old_data_or_the_new(copy):
    processed = copy.root / "data" / "processed"
    before = content_of(processed)
    kill(copy, "unexchanged", 1, "preprocess", "data.val_fraction=0.3")
    assert content_of(processed) == before
    kill(copy, "exchanged", 1, "preprocess", "data.val_fraction=0.3")
    killed_at = content_of(processed)
    Dataset.open(processed).verify()
    copy.run("python", "src/preprocess.py", "data.val_fraction=0.3")
    assert content_of(processed) == killed_at != before


@pytest.mark.long
@pytest.mark.parametrize(("event", "number"), [("figure", 1), ("figure", 3), ("unexchanged", 1)])
def test_evaluate_leaves_every_report_as_it_was(evaluated, event, number):
    reports = evaluated.root / "reports"
    before = content_of(reports)
    kill(evaluated, event, number, "evaluate", "evaluation.num_error_images=5")
    assert content_of(reports) == before


@pytest.mark.long
def test_evaluate_killed_after_the_exchange_leaves_all_of_the_new_reports(evaluated):
    reports = evaluated.root / "reports"
    before = content_of(reports)
    kill(evaluated, "exchanged", 1, "evaluate", "evaluation.num_error_images=5")
    after = content_of(reports)
    assert after.keys() == before.keys()
    changed = {path for path in after if after[path] != before[path]}
    assert changed >= {"mistakes.png", "report.html"} and "history.csv" not in changed
    evaluated.run("python", "src/evaluate.py", "evaluation.num_error_images=5")
    now = content_of(reports)
    assert {path for path in now if now[path] != after[path]} <= {"report.html"}
