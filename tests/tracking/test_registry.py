"""The best model becomes the champion, except for ties and other data, and the previous one can be restored."""

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from cifar_pipeline.reporting.summary import print_versions
from cifar_pipeline.tracking import champion
from cifar_pipeline.tracking.champion import Candidate, PromotionPolicy, from_pipeline, from_run, pipeline_dataset_name
from cifar_pipeline.tracking.client import connect
from cifar_pipeline.tracking.model_uri import resolve_model
from cifar_pipeline.tracking.registry import RegisteredVersion, promote, read_versions, roll_back
from cifar_pipeline.tracking.runs import training_run
from cifar_pipeline.utils.errors import UserError
from helpers.data_facts import data_facts

RUN_NAME = "sgd-mse-0"
ACCURACY = "val/accuracy"


@dataclass(frozen=True)
class Registry:
    """A registry and trainings to register; each test uses another model name in the one database."""

    policy: PromotionPolicy
    folder: Path

    def train(
        self, values: Sequence[float], name: str = RUN_NAME, data: str = "a", monitor: str = ACCURACY, mode: str = "max"
    ) -> str:
        """Log a finished training with the monitored metric of each epoch; return the id of its run."""
        result = self.folder / "result"
        for checkpoint in ("last", "best"):
            (result / checkpoint).mkdir(parents=True, exist_ok=True)
            (result / checkpoint / "MLmodel").write_text(f"metadata: {checkpoint}\n")
        (result / "metadata.json").write_text(json.dumps({"dataset": {"name": "digits"}, "classes": ["0"]}))
        dataset = data_facts(64 * data)
        fingerprint = f"{self.policy.name}-{values}-{name}-{data}-{monitor}-{mode}"
        with training_run(fingerprint, name, {"monitor": monitor, "mode": mode}, dataset) as run:
            for epoch, value in enumerate(values, 1):
                run.log_metrics({ACCURACY: 0.1 * epoch} | {monitor: value}, epoch)
            run.log_metrics({"test/accuracy": 0.5})
            run.log_result(result, {"device": "cpu"})
        return run.id

    def train_and_promote(self, *values: float, checkpoint: str = "last", **options: str) -> str:
        """Train and promote; return the line about it."""
        return promote(from_run(self.train(values, **options), checkpoint), self.policy, False)

    @property
    def champion(self) -> str:
        """The champion's version number."""
        return str(connect()[0].get_model_version_by_alias(self.policy.name, self.policy.alias).version)


@pytest.fixture
def registry(workspace: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Registry:
    return Registry(PromotionPolicy(re.sub(r"\W+", "-", request.node.name), "champion", 0.0), tmp_path)


def test_the_first_model_is_the_champion_until_a_better_one_comes(registry: Registry) -> None:
    assert "val/accuracy 60.00%) is the champion now: there was none." in registry.train_and_promote(0.5, 0.6)
    line = registry.train_and_promote(0.5, 0.7)
    assert line.startswith(f"Version 2 of {registry.policy.name} (sgd-mse-0, val/accuracy 70.00%) is the champion now")
    assert "version 1 had val/accuracy 60.00%" in line and "\n" not in line
    assert registry.champion == "2"


def test_a_tie_and_a_worse_one_change_nothing(registry: Registry) -> None:
    registry.train_and_promote(0.3)
    assert (
        "is registered: it does not beat the champion, version 1 (val/accuracy 30.00%)"
        in registry.train_and_promote(0.1, 0.3)
    )
    assert "does not beat" in registry.train_and_promote(0.2)
    assert registry.champion == "1"


def test_a_model_of_other_data_never_replaces_the_champion(registry: Registry) -> None:
    registry.train_and_promote(0.3)
    assert "was trained on other data and is not replaced" in registry.train_and_promote(0.9, data="b")
    assert registry.champion == "1"


def test_a_model_without_validation_does_not_replace_the_champion(registry: Registry) -> None:
    registry.train_and_promote(0.3)
    assert "without a validation split it cannot be compared" in registry.train_and_promote()
    assert registry.champion == "1"


def test_the_minimum_improvement_must_be_exceeded(registry: Registry) -> None:
    registry = Registry(PromotionPolicy(registry.policy.name, "champion", 0.01), registry.folder)
    registry.train_and_promote(0.60)
    assert "(val/accuracy 60.00%) by more than 1 percentage point" in registry.train_and_promote(0.61)
    assert "is the champion now" in registry.train_and_promote(0.6101)


def test_the_monitored_metric_decides_in_its_own_direction(registry: Registry) -> None:
    loss = {"monitor": "val/loss", "mode": "min"}
    assert "(sgd-mse-0, val/loss 0.8000) is the champion now" in registry.train_and_promote(0.7, 0.8, **loss)
    assert "it does not beat the champion, version 1 (val/loss 0.8000)" in registry.train_and_promote(0.8, 0.9, **loss)
    assert "version 1 had val/loss 0.8000" in registry.train_and_promote(0.6, 0.7, **loss)
    # The best epoch of the same training, whose accuracy there is shown as well.
    assert "val/loss 0.6000) is the champion now" in registry.train_and_promote(0.6, 0.7, checkpoint="best", **loss)
    best = read_versions(registry.policy.name)[0]
    assert (best.tags["monitor"], best.tags["mode"], best.tags["val/loss"]) == ("val/loss", "min", "0.6")
    assert best.tags["val/accuracy"] == "0.1"
    strict = PromotionPolicy(registry.policy.name, "champion", 0.05)
    line = promote(from_run(registry.train([0.55], **loss), "last"), strict, False)
    assert line.endswith("(val/loss 0.6000) by more than 0.05.")


def test_models_with_different_monitors_are_not_compared(registry: Registry) -> None:
    registry.train_and_promote(0.3)
    for options in ({"monitor": "val/f1_macro"}, {"mode": "min"}):
        line = registry.train_and_promote(0.9, **options)
        monitor, mode = options.get("monitor", ACCURACY), options.get("mode", "max")
        assert f"was chosen by val/accuracy (mode=max) and this one by {monitor} (mode={mode}), so it is not" in line
        assert "train with the champion's monitor and mode, or set another registry.name" in line
    assert registry.champion == "1"
    assert "is the champion now" in registry.train_and_promote(0.4)


def test_the_list_has_the_monitored_metric_where_it_is_not_the_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = {ACCURACY: "0.5", "test/accuracy": "0.4", "monitor": ACCURACY, "mode": "max", "run": RUN_NAME}
    f1 = accuracy | {"monitor": "val/f1_macro", "val/f1_macro": "0.612"}
    by_accuracy, by_f1 = (
        RegisteredVersion(f"digits/{number}", (), datetime(2024, 1, 1), tags)
        for number, tags in ((1, accuracy), (2, f1))
    )
    print_versions([by_accuracy])
    assert "monitor" not in capsys.readouterr().out
    print_versions([by_f1, by_accuracy])
    # Long cells continue on another line.
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["model"][:5] == ["model", "alias", "val", "test", "monitor"]
    assert rows["digits/2"][:5] == ["digits/2", "50.00%", "40.00%", "val/f1_macro", "0.6120"]
    assert rows["digits/1"][:4] == ["digits/1", "50.00%", "40.00%", "-"]


def test_the_list_has_the_data_set_where_a_model_has_another_name(capsys: pytest.CaptureFixture[str]) -> None:
    tags = {ACCURACY: "0.5", "run": "finetune-adamw-cross_entropy-0", "dataset": "digits"}
    versions = [RegisteredVersion(f"{name}/1", (), datetime(2024, 1, 1), tags) for name in ("digits", "other")]
    print_versions(versions[:1])
    assert "data set" not in capsys.readouterr().out
    print_versions(versions)
    assert "data set" in capsys.readouterr().out


def test_promoting_again_changes_nothing(registry: Registry) -> None:
    first, second = from_run(registry.train([0.6]), "last"), from_run(registry.train([0.5]), "last")
    promote(first, registry.policy, False)
    promote(second, registry.policy, False)
    before = read_versions(registry.policy.name)
    assert "is the champion already" in promote(first, registry.policy, False)
    assert "was registered before: it does not beat" in promote(second, registry.policy, False)
    assert read_versions(registry.policy.name) == before


def test_a_version_that_was_rolled_back_is_promoted_again_only_by_name(registry: Registry) -> None:
    registry.train_and_promote(0.5)
    run = registry.train([0.6])
    promote(from_run(run, "last"), registry.policy, False)
    assert (
        "Version 1 of " in (line := roll_back(registry.policy))
        and "in place of version 2 (val/accuracy 60.00%)" in line
    )
    assert registry.champion == "1"
    with pytest.raises(UserError, match="had no champion before version 1"):
        roll_back(registry.policy)
    # `make` must not undo the rollback; naming the run does.
    assert f"was rolled back: `python src/registry.py promote {run}`" in promote(
        from_run(run, "last"), registry.policy, False
    )
    assert registry.champion == "1"
    assert "is the champion now" in promote(from_run(run, "last"), registry.policy, True)
    assert "Version 1 of " in roll_back(registry.policy)


def test_without_a_champion_there_is_nothing_to_roll_back(registry: Registry) -> None:
    with pytest.raises(UserError, match=r"has no champion: `python src/registry\.py promote` promotes"):
        roll_back(registry.policy)
    assert read_versions(registry.policy.name) == []


def test_a_version_has_the_tags_of_its_run(registry: Registry) -> None:
    run = registry.train([0.7, 0.6])
    for checkpoint in ("last", "best"):
        promote(from_run(run, checkpoint), registry.policy, False)
    best, last = read_versions(registry.policy.name)
    assert (best.address, last.address) == (f"{registry.policy.name}/2", f"{registry.policy.name}/1")
    assert (last.tags["val/accuracy"], best.tags["val/accuracy"]) == ("0.6", "0.7")
    assert (last.aliases, best.aliases) == ((), ("champion",))
    for key, value in {"dataset": "digits", "dataset.hash": 36 * "a", "run": RUN_NAME, "test/accuracy": "0.5"}.items():
        assert last.tags[key] == value
    assert last.tags["fingerprint"].startswith(registry.policy.name) and "dvc.models" not in last.tags


def test_the_pipelines_model_is_registered_with_its_hash_in_dvc(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = registry.train([0.4])
    models = registry.folder / "models"
    models.mkdir()
    (models / "run.json").write_text(json.dumps({"id": run}))
    (models / "metadata.json").write_text(json.dumps({"dataset": {"name": "digits"}}))
    assert pipeline_dataset_name(models) == "digits"
    monkeypatch.setattr(champion, "dvc_hash", lambda stage, output: f"{stage} {Path(output).name}")
    candidate = from_pipeline(models, "last")
    assert (candidate.run_id, candidate.tags["dvc.models"]) == (run, "train models")
    (models / "run.json").write_text(json.dumps({"id": 32 * "0"}))
    with pytest.raises(UserError, match=r"is not in this MLflow database.*`dvc repro --force --single-item train`"):
        from_pipeline(models, "last")
    (models / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"models/run\.json is damaged .*`dvc checkout "):
        from_pipeline(models, "last")
    with pytest.raises(UserError, match="There is no finished training in"):
        from_pipeline(registry.folder / "nowhere", "last")


def test_a_run_is_found_by_its_name_the_newest_first(registry: Registry) -> None:
    name = f"{registry.policy.name} trainer.batch_size=4"
    registry.train([0.5], name)
    newest = registry.train([0.6], name)
    assert from_run(name, "last").run_id == newest
    for name in ("missing", 32 * "f"):
        with pytest.raises(UserError, match="There is no finished training named"):
            from_run(name, "last")


def test_a_run_without_a_model_is_not_a_candidate(registry: Registry) -> None:
    client, experiment = connect()
    sweep = client.create_run(experiment, run_name="a sweep").info.run_id
    with pytest.raises(UserError, match="has not finished"):
        from_run(sweep, "last")
    client.set_terminated(sweep, "FINISHED")
    with pytest.raises(UserError, match="has no model: it is not a training"):
        from_run(sweep, "last")


def test_the_best_of_concurrent_promotions_is_the_champion(registry: Registry) -> None:
    candidates = [from_run(registry.train([0.1 * number]), "last") for number in (3, 5, 4, 2)]

    def promote_one(candidate: Candidate) -> None:
        promote(candidate, registry.policy, False)

    threads = [threading.Thread(target=promote_one, args=[candidate]) for candidate in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = read_versions(registry.policy.name)
    assert len(versions) == 4
    assert [version.tags["val/accuracy"] for version in versions if version.aliases] == ["0.5"]


def test_the_champion_and_a_runs_model_come_from_mlflow(registry: Registry) -> None:
    run = registry.train([0.4])
    promote(from_run(run, "best"), registry.policy, False)
    for address in (registry.policy.champion, f"models:/{registry.policy.name}/1", f"runs:/{run}/best"):
        with resolve_model(address, "", "last") as folder:
            assert (folder / "MLmodel").read_text() == "metadata: best\n"
        assert not folder.exists()


@pytest.mark.parametrize("address", ["models:/none@champion", "models:/none/1", "runs:/none/last"])
def test_a_missing_model_in_mlflow_is_an_error(registry: Registry, address: str) -> None:
    with (
        pytest.raises(UserError, match=f"MLflow has no {address} .*: `make list-models` lists the registered models"),
        resolve_model(address, "", "last"),
    ):
        pass


def test_a_folder_is_a_model_or_holds_the_checkpoint(registry: Registry) -> None:
    registry.train([0.1])
    for address, checkpoint, expected in (
        ("result", "best", "best"),
        ("result/last", "best", "last"),
        ("result", "third", "last"),
    ):
        with resolve_model(str(registry.folder / address), "", checkpoint) as folder:
            assert folder == registry.folder / "result" / expected


def test_a_deleted_model_is_not_taken_for_a_training_without_best_weights(registry: Registry) -> None:
    run_id, client = registry.train([0.7, 0.6]), connect()[0]
    outputs = client.get_run(run_id).outputs
    assert outputs is not None
    models = {client.get_logged_model(output.model_id).name: output.model_id for output in outputs.model_outputs}
    client.delete_logged_model(models["best"])
    assert from_run(run_id, "last").checkpoint == "last"
    with pytest.raises(UserError, match=r"The model best of the run .* was deleted in MLflow: choose another run"):
        from_run(run_id, "best")
