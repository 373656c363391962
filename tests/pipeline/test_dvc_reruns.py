"""A change reruns only the stages that depend on it, and DVC's commands name the changed value."""

import json
import signal
from collections.abc import Callable
from itertools import pairwise

import psutil
import pytest

from helpers.workspace import EPOCHS, STAGES, Command, Workspace, stages_that


def test_a_second_repro_runs_nothing(clone):
    assert list((clone.root / "src").rglob("__pycache__"))  # which is no change of the code beside it
    said = clone.dvc("repro")
    assert stages_that(said, "skipped") == STAGES
    assert stages_that(said, "ran") == []


@pytest.mark.long
def test_a_repro_in_a_fresh_clone_only_creates_the_folders_of_inputs(clone, tmp_path):
    fresh = Workspace(tmp_path / "fresh")
    clone.run("git", "clone", "--quiet", str(clone.root), str(fresh.root))
    # By a link, because DVC's own configuration takes no umlaut in a path.
    (tmp_path / "cache").symlink_to(clone.root / ".dvc" / "cache")
    fresh.dvc("config", "--local", "cache.dir", str(tmp_path / "cache"))
    fresh.dvc("checkout")
    assert fresh.model() == clone.model()
    said = fresh.dvc("repro")
    assert stages_that(said, "ran") == ["configure"] and stages_that(said, "skipped") == STAGES[1:]
    assert (fresh.root / "images").is_dir() and (fresh.root / "pretrained").is_dir()
    assert fresh.run("git", "status", "--porcelain") == ""


@pytest.fixture(scope="module")
def edited(clone, tmp_path_factory) -> Callable[[str], tuple[Workspace, Command]]:
    """Return a function that edits a copy, and starts the command that shows what follows from it."""
    folder = tmp_path_factory.mktemp("edited")
    edits = {
        "not chosen": (["repro"], "conf/optimizer/adam.yaml", "lr: 0.001", "lr: 0.002"),
        "evaluation": (["repro", "configure"], "conf/evaluation/default.yaml", "bins: 15", "bins: 10"),
        "other data": (["repro", "preprocess"], "params.yaml", "data: null", "data: digits"),
    }

    def start(name: str) -> tuple[Workspace, Command]:
        words, *edit = edits[name]
        copy = clone.copy(folder / name)
        copy.edit(*edit)
        return copy, copy.start("dvc", *words)

    return start


@pytest.mark.long
def test_an_option_that_is_not_chosen_reruns_configure_alone(edited):
    said = edited("not chosen")[1].end()
    assert stages_that(said, "ran") == ["configure"]
    assert stages_that(said, "skipped") == STAGES[1:]


def test_a_value_of_the_evaluation_reruns_the_evaluation_alone(edited):
    copy, command = edited("evaluation")
    command.end()
    said = copy.dvc("repro", "--dry")
    assert stages_that(said, "ran") == ["evaluate"]
    assert stages_that(said, "skipped") == STAGES[:-1]


@pytest.mark.long
def test_data_without_a_fallback_is_tracked_like_any_other(edited):
    copy, command = edited("other data")
    said = command.end()
    assert stages_that(said, "ran") == ["configure", "download", "preprocess"]
    assert "digits: 1,294 train, 144 val, 359 test images." in said and "Continuing with" not in said
    # null is a value that DVC compares, not a missing one.
    assert stages_that(copy.dvc("repro", "preprocess"), "ran") == []
    assert set(json.loads(copy.dvc("status", "--json"))) == {"train", "evaluate"}


@pytest.mark.long
def test_an_interrupted_training_changes_train_alone_and_the_next_repro_completes_it(copy, clone):
    def stop(command: Command, code: int) -> None:
        command.wait_for(f"epoch 1/{EPOCHS}")
        processes = [psutil.Process(command.process.pid), *psutil.Process(command.process.pid).children(recursive=True)]
        (training,) = (process for process in processes if "src/train.py" in process.cmdline()[-2:])
        training.send_signal(signal.SIGTERM)
        command.end(code)

    # By hand, with another seed than DVC's configuration.
    stop(copy.start("python", "src/train.py", "seed=7"), 128 + signal.SIGTERM)
    assert copy.read("reports/history.csv") != copy.read("models/history.csv") == clone.read("models/history.csv")
    assert set(json.loads(copy.dvc("status", "--json"))) == {"train"}
    copy.dvc("repro")
    assert copy.run("git", "status", "--porcelain") == ""

    copy.set_params(seed=8)
    stop(copy.start("dvc", "repro"), 255)
    assert "train" in json.loads(copy.dvc("status", "--json"))
    output = copy.dvc("repro")
    assert "Resuming from checkpoint" in output and stages_that(output, "ran") == ["train", "evaluate"]
    assert copy.read("reports/history.csv") == copy.read("models/history.csv") != clone.read("models/history.csv")
    assert "up to date" in copy.dvc("status")


def test_an_edited_message_reruns_nothing(copy):
    for file in ("utils/console.py", "utils/atomic.py", "tracking/runs.py"):
        path = copy.root / "src" / "cifar_pipeline" / file
        path.write_text(path.read_text() + "\n# Another word.\n")
    assert "up to date" in copy.dvc("status")


def test_changed_code_reruns_the_stages_that_use_it(copy):
    losses, figure = (
        copy.root / "src" / "cifar_pipeline" / name for name in ("training/losses.py", "reporting/plots.py")
    )
    before = losses.read_text()
    losses.write_text(before + "\n# Another formula.\n")
    # The evaluation measures the loss that was trained, too.
    assert set(json.loads(copy.dvc("status", "--json"))) == {"train", "evaluate"}
    losses.write_text(before)
    figure.write_text(figure.read_text() + "\n# Another color.\n")
    assert set(json.loads(copy.dvc("status", "--json"))) == {"preprocess", "evaluate"}


@pytest.mark.long
def test_dvc_shows_metrics_plots_and_the_graph(clone, tmp_path):
    assert "reports/metrics.json" in clone.dvc("metrics", "show").replace("\\", "/")
    graph = clone.dvc("dag", "--dot")
    for before, after in pairwise(STAGES):
        assert f'"{before}" -> "{after}"' in graph
    assert '"configure" -> "train"' in graph  # the composed configuration links them
    clone.dvc("plots", "show", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots" / "index.html").read_text()
    for title in ("Loss", "Accuracy", "Confusion on the test split", "F1 by class on the test split"):
        assert title in page
    for data in ("train/loss", "val/accuracy", "predicted", "actual", "f1"):
        assert data in page
    for image in ("learning_curves", "confusion", "filters"):
        assert f"{image}.png" in page
