"""What dvc.lock says is what was run: edits that are pending, or made while a stage runs, end it."""

import json

import pytest

from helpers.workspace import EPOCHS, PERSON, Workspace, stages_that

FAILED = 255  # as DVC ends where a stage has failed
LR = ("overrides: {trainer", "overrides: {optimizer: {lr: 0.002}, trainer")
MODULE = "src/cifar_pipeline/training/module.py"


@pytest.fixture(scope="module")
def shared(clone: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A copy for tests that leave it as they found it."""
    return clone.copy(tmp_path_factory.mktemp("shared") / "copy")


def test_a_stage_is_refused_while_an_edit_is_pending(shared: Workspace, clone: Workspace) -> None:
    shared.edit("params.yaml", *LR)
    said = shared.run("dvc", "repro", "--force", "--single-item", "train", code=FAILED)
    assert "optimizer.lr is 0.002 in params.yaml and conf/, but 0.001 in composed.yaml" in said
    assert "exited with 2" in said and "Traceback" not in said and "epoch" not in said
    assert shared.read("dvc.lock") == clone.read("dvc.lock")
    shared.edit("params.yaml", *reversed(LR))
    assert "up to date" in shared.dvc("status")


@pytest.mark.long
def test_an_edit_or_other_data_while_it_trains_keeps_it_from_publishing(copy: Workspace, clone: Workspace) -> None:
    copy.edit("params.yaml", *LR)
    copy.dvc("repro", "configure")
    lock, code = copy.read("dvc.lock"), copy.read(MODULE)
    training = copy.start("dvc", "repro", "--single-item", "train")
    training.wait_for(f"epoch 1/{EPOCHS}")
    (copy.root / MODULE).write_text(code + "\n# Another formula.\n")
    copy.run("git", *PERSON, "commit", "--quiet", "--all", "-m", "made while it trains")
    said = training.end(code=FAILED)
    assert "cifar_pipeline/training/module.py was edited while this ran, so nothing was published" in said
    assert "exited with 1" in said and "Traceback" not in said
    assert copy.read("dvc.lock") == lock and copy.model() == clone.model()

    # Undone, the training that was done is taken; the commit is that of the start.
    (copy.root / MODULE).write_text(code)
    copy.run("git", *PERSON, "commit", "--quiet", "--all", "-m", "undone")
    said = copy.dvc("repro", "train")
    assert "epoch" not in said and stages_that(said, "ran") == ["train"]
    second = copy.runs()[-1]
    assert second.info.status == "FINISHED"
    assert second.data.tags["git.commit"] == copy.run("git", "rev-parse", "HEAD~2").strip()
    assert copy.json("models/metadata.json")["commit"] == copy.run("git", "rev-parse", "HEAD").strip()
    assert copy.model() != clone.model()


@pytest.mark.long
def test_new_pins_run_configure_alone_and_other_versions_what_depends_on_them(shared: Workspace) -> None:
    before = {path: shared.read(path) for path in ("constraints.txt", "composed.yaml", "dvc.lock")}
    shared.edit("constraints.txt", "\nfuncy==", "\n# Another pin.\nfuncy==")
    said = shared.dvc("repro", "configure")
    assert stages_that(said, "ran") == ["configure"] and "up to date" in shared.dvc("status")
    # As `configure` writes it where another torch is installed.
    shared.write("composed.yaml", before["composed.yaml"].replace("    timm: ", "    timm: 0."))
    assert set(json.loads(shared.dvc("status", "--json"))) == {"configure", "train", "evaluate"}
    said = shared.run("dvc", "repro", "--force", "--single-item", "train", code=FAILED)
    assert "is installed, but composed.yaml, which DVC records, has 0." in said and "`dvc repro -f configure`" in said
    for path, text in before.items():
        shared.write(path, text)
    assert "up to date" in shared.dvc("status")


@pytest.mark.long
def test_a_users_own_code_is_watched_or_refused(shared: Workspace) -> None:
    before = {path: shared.read(path) for path in ("params.yaml", "composed.yaml", "dvc.lock")}
    net = (shared.root / "src/cifar_pipeline/models/lenet.py").read_text().replace("LeNet", "Net")
    shared.write("src/mine.py", net)
    shared.write("conf/model/mine.yaml", "# One of my own.\n_target_: mine.Net\n")
    shared.edit("params.yaml", "model: null", "model: mine")
    said = shared.run("dvc", "repro", "configure", code=FAILED)
    assert "src/mine.py is used by `_target_=mine.Net`, but DVC does not track it: move it to src/project/" in said

    (shared.root / "src/mine.py").rename(shared.root / "src/project/mine.py")
    shared.edit("conf/model/mine.yaml", "mine.Net", "project.mine.Net")
    shared.dvc("repro", "configure")
    assert set(json.loads(shared.dvc("status", "--json"))) == {"train", "evaluate"}
    for path in ("src/project/mine.py", "conf/model/mine.yaml"):
        (shared.root / path).unlink()
    for path, text in before.items():
        shared.write(path, text)
    assert "up to date" in shared.dvc("status")
