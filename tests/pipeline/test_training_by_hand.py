"""`python src/train.py` does what the DVC stage does, goes on where it was stopped, and says what is wrong."""

import signal

import pytest

from helpers.workspace import EPOCHS


@pytest.mark.long
def test_stopped_twice_it_ends_with_the_weights_of_the_undisturbed_stage(copy):
    weights = copy.model()

    training = copy.start("python", "src/train.py", "rerun=true")
    training.wait_for(f"epoch 1/{EPOCHS}")
    training.process.send_signal(signal.SIGTERM)
    said = training.end(code=143)
    assert said.splitlines()[-1].startswith("Stopped in epoch ") and "Traceback" not in said
    assert copy.model() == weights
    assert [run.info.status for run in copy.runs()] == ["FINISHED", "KILLED"]

    said = copy.train()
    assert "has already finished" in said and "`rerun=true` resumes it" in said
    assert copy.model() == weights
    assert [run.info.status for run in copy.runs()] == ["FINISHED", "KILLED"]

    training = copy.start("python", "src/train.py", "rerun=true")
    training.wait_for(f"epoch 2/{EPOCHS}")
    training.process.send_signal(signal.SIGINT)
    said = training.end(code=130)
    assert "Resuming from checkpoint" in said and f"epoch 1/{EPOCHS}" not in said
    assert said.splitlines()[-1].startswith("Stopped in epoch ") and "Traceback" not in said
    assert [run.info.status for run in copy.runs()] == ["FINISHED", "KILLED"]

    said = copy.train("rerun=true")
    assert "Resuming from checkpoint" in said and f"epoch {EPOCHS}/{EPOCHS}" in said
    assert copy.model() == weights
    first, second = copy.runs()
    assert second.info.status == "FINISHED"
    assert second.data.tags["fingerprint"] == first.data.tags["fingerprint"]
    assert copy.json("models/run.json")["id"] == second.info.run_id
    for key in ("train/loss", "val/accuracy", "lr", "images_per_second"):
        assert copy.logged(second, key) == list(range(1, EPOCHS + 1))
    for key in ("train/loss", "val/accuracy"):
        values = [
            [trial.value for trial in copy.mlflow.get_metric_history(run.info.run_id, key)] for run in (first, second)
        ]
        assert values[0] == values[1]


@pytest.mark.long
def test_an_infinite_loss_ends_with_one_sentence_and_a_failed_run(copy, clone):
    said = copy.train("optimizer.lr=1e9", code=2)
    assert said.splitlines()[-1].startswith("Loss became NaN or infinite in epoch 1")
    assert "Traceback" not in said
    assert copy.model() == clone.model()
    assert [run.info.status for run in copy.runs()] == ["FINISHED", "FAILED"]


@pytest.mark.long
def test_an_augmentation_is_named_and_shown_beside_the_originals(copy):
    before = (copy.root / "reports" / "samples.png").read_bytes()
    chosen = ("augmentation=[photo,mixup]", "trainer.max_epochs=1")
    said = copy.train(*chosen)
    names = "random_resized_crop, random_flip, trivial_augment, random_erasing, mixup"
    assert f"Augmentation: {names}; train/accuracy counts the label with the largest share" in said
    copy.run("python", "src/evaluate.py", *chosen)
    after = (copy.root / "reports" / "samples.png").read_bytes()
    assert after.startswith(b"\x89PNG") and after != before


@pytest.mark.long
def test_what_has_finished_is_not_trained_again(copy, clone):
    said = copy.train()
    assert "has already finished: its weights are reused" in said and "epoch" not in said
    assert copy.model() == clone.model()
    assert [run.info.status for run in copy.runs()] == ["FINISHED"]


@pytest.mark.long
def test_evaluation_without_the_run_opens_another_and_says_so(copy, clone):
    for file in copy.root.glob("mlflow.db*"):
        file.unlink()
    said = copy.run("python", "src/evaluate.py")
    assert "is not in this MLflow database: a new one, sgd-cross_entropy-0, takes the results" in said
    (run,) = copy.runs()
    assert (run.info.run_name, run.info.status) == ("sgd-cross_entropy-0", "FINISHED")
    assert run.data.metrics["test/accuracy"] == clone.json("reports/metrics.json")["test"]["accuracy"]
    assert copy.read("reports/metrics.json") == clone.read("reports/metrics.json")
