"""Outputs that are links and mount points: a stage succeeds, and they are still links and mount points."""

import pytest

from helpers.dir_snapshot import content_of
from helpers.mounts import OWN_MOUNTS, needs_mounts
from helpers.workspace import sentences


@needs_mounts
def test_a_stage_fills_a_mounted_folder_and_one_behind_a_link(copy, tmp_path):
    processed = copy.root / "data" / "processed"
    before = content_of(processed)
    (copy.root / "reports").rename(tmp_path / "elsewhere")
    (copy.root / "reports").symlink_to(tmp_path / "elsewhere")
    # Stale files are removed, also from a mounted folder.
    mounted = "mount -t tmpfs none data/processed && touch data/processed/stale"
    stage, kept = "python src/preprocess.py", "mountpoint data/processed && cp -r data/processed kept"
    output = copy.run(*OWN_MOUNTS, "sh", "-c", f"{mounted} && {stage} && {kept}")
    assert "is a mountpoint" in output
    assert content_of(copy.root / "kept") == before
    assert (copy.root / "reports").is_symlink() and (tmp_path / "elsewhere" / "skipped.csv").is_file()


@pytest.mark.long
def test_a_file_where_a_folder_goes_is_refused_before_training(copy):
    (copy.root / "models").rename(copy.root / "away")
    (copy.root / "models").write_text("of another user")
    runs = len(copy.runs())
    (sentence,) = sentences(copy.train("seed=1", code=2))
    assert "models is a file, but a folder will be written there" in sentence
    assert len(copy.runs()) == runs and copy.read("models") == "of another user"
