"""The best model is the champion, by a rule that no tie, other data or second look bends; and one can go back."""

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cifar_pipeline.tracking import champion
from cifar_pipeline.tracking.champion import Candidate, PromotionPolicy, from_pipeline, from_run, pipeline_dataset_name
from cifar_pipeline.tracking.client import connect
from cifar_pipeline.tracking.model_uri import resolve_model
from cifar_pipeline.tracking.registry import promote, read_versions, roll_back
from cifar_pipeline.tracking.runs import training_run
from cifar_pipeline.utils.errors import UserError

ANSWER = "sgd-mse-0"


@dataclass(frozen=True)
class Shop:
    """A registry with trainings to put into it; each test has a name of its own in the one database."""

    rule: PromotionPolicy
    folder: Path

    def train(self, accuracies: Sequence[float], name: str = ANSWER, data: str = "a") -> str:
        """A finished training with a validation accuracy for each epoch; the id of its run."""
        result = self.folder / "result"
        for checkpoint in ("last", "best"):
            (result / checkpoint).mkdir(parents=True, exist_ok=True)
            (result / checkpoint / "MLmodel").write_text(f"metadata: {checkpoint}\n")
        (result / "metadata.json").write_text(json.dumps({"dataset": {"name": "digits"}, "classes": ["0"]}))
        dataset = {"name": "digits", "hash": 64 * data, "source": "drawn"}
        fingerprint = f"{self.rule.name}-{accuracies}-{name}-{data}"
        with training_run(fingerprint, name, {}, dataset) as run:
            for epoch, accuracy in enumerate(accuracies, 1):
                run.log_metrics({"val/accuracy": accuracy}, epoch)
            run.log_metrics({"test/accuracy": 0.5})
            run.log_result(result, {"device": "cpu"})
        return run.id

    def enter(self, *accuracies: float, data: str = "a", asked_for: bool = False) -> str:
        """Train and promote; the line that is said."""
        return promote(from_run(self.train(accuracies, data=data), "last"), self.rule, asked_for)

    @property
    def champion(self) -> str:
        """The champion's number."""
        return str(connect()[0].get_model_version_by_alias(self.rule.name, self.rule.alias).version)


@pytest.fixture
def shop(workspace: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Shop:
    return Shop(PromotionPolicy(re.sub(r"\W+", "-", request.node.name), "champion", 0.0), tmp_path)


def test_the_first_is_the_champion_and_a_better_one_follows(shop: Shop) -> None:
    assert "60.00% on validation) is the champion now: there was none." in shop.enter(0.5, 0.6)
    said = shop.enter(0.5, 0.7)
    assert said.startswith(f"Version 2 of {shop.rule.name} (sgd-mse-0, 70.00% on validation) is the champion now")
    assert "version 1 had 60.00%" in said and "\n" not in said
    assert shop.champion == "2"


def test_a_tie_and_a_worse_one_change_nothing(shop: Shop) -> None:
    shop.enter(0.3)
    assert "is registered: it does not beat the champion, version 1 (30.00%)" in shop.enter(0.1, 0.3)
    assert "does not beat" in shop.enter(0.2)
    assert shop.champion == "1"


def test_a_model_of_other_data_never_replaces_the_champion(shop: Shop) -> None:
    shop.enter(0.3)
    assert "was measured on other data and is not replaced" in shop.enter(0.9, data="b")
    assert shop.champion == "1"


def test_without_validation_nothing_is_compared(shop: Shop) -> None:
    shop.enter(0.3)
    assert "without a validation part it can't be compared" in shop.enter()
    assert shop.champion == "1"


def test_the_margin_must_be_passed_exactly(shop: Shop) -> None:
    shop = Shop(PromotionPolicy(shop.rule.name, "champion", 0.01), shop.folder)
    shop.enter(0.60)
    assert "(60.00%) by more than 1 trials" in shop.enter(0.61)
    assert "is the champion now" in shop.enter(0.6101)


def test_a_promotion_typed_again_does_nothing(shop: Shop) -> None:
    first, second = from_run(shop.train([0.6]), "last"), from_run(shop.train([0.5]), "last")
    promote(first, shop.rule, False)
    promote(second, shop.rule, False)
    before = read_versions(shop.rule.name)
    assert "is the champion already" in promote(first, shop.rule, False)
    assert "stays as it is: it does not beat" in promote(second, shop.rule, False)
    assert read_versions(shop.rule.name) == before


def test_one_goes_back_and_stays_back(shop: Shop) -> None:
    shop.enter(0.5)
    run = shop.train([0.6])
    promote(from_run(run, "last"), shop.rule, False)
    assert "Version 1 of " in (said := roll_back(shop.rule)) and "in place of version 2 (60.00%)" in said
    assert shop.champion == "1"
    with pytest.raises(UserError, match="There was no champion of .* before version 1"):
        roll_back(shop.rule)
    # What `make` types again must not undo it; who names the run means it.
    assert f"was sent back: `python src/registry.py promote {run}`" in promote(from_run(run, "last"), shop.rule, False)
    assert shop.champion == "1"
    assert "is the champion now" in promote(from_run(run, "last"), shop.rule, True)
    assert "Version 1 of " in roll_back(shop.rule)


def test_without_a_champion_there_is_nothing_to_go_back_from(shop: Shop) -> None:
    with pytest.raises(UserError, match=r"has no champion: `python src/promote\.py` makes one"):
        roll_back(shop.rule)
    assert read_versions(shop.rule.name) == []


def test_a_version_says_where_it_comes_from(shop: Shop) -> None:
    run = shop.train([0.7, 0.6])
    for checkpoint in ("last", "best"):
        promote(from_run(run, checkpoint), shop.rule, False)
    best, last = read_versions(shop.rule.name)
    assert (best.address, last.address) == (f"{shop.rule.name}/2", f"{shop.rule.name}/1")
    assert (last.facts["val/accuracy"], best.facts["val/accuracy"]) == ("0.6", "0.7")
    assert (last.aliases, best.aliases) == ((), ("champion",))
    for key, value in {"dataset": "digits", "dataset.hash": 36 * "a", "run": ANSWER, "test/accuracy": "0.5"}.items():
        assert last.facts[key] == value
    assert last.facts["fingerprint"].startswith(shop.rule.name) and "dvc.models" not in last.facts


def test_the_pipelines_model_is_registered_with_dvcs_hash(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shop.train([0.4])
    models = shop.folder / "models"
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
        from_pipeline(shop.folder / "nowhere", "last")


def test_a_run_is_found_by_its_name_the_newest_first(shop: Shop) -> None:
    name = f"{shop.rule.name} trainer.batch_size=4"
    shop.train([0.5], name)
    newest = shop.train([0.6], name)
    assert from_run(name, "last").run_id == newest
    for wanted in ("nobody's", 32 * "f"):
        with pytest.raises(UserError, match="No finished training is called"):
            from_run(wanted, "last")


def test_what_has_no_model_is_no_candidate(shop: Shop) -> None:
    client, experiment = connect()
    sweep = client.create_run(experiment, run_name="a sweep").info.run_id
    with pytest.raises(UserError, match="has not finished"):
        from_run(sweep, "last")
    client.set_terminated(sweep, "FINISHED")
    with pytest.raises(UserError, match="has no model: it is no training"):
        from_run(sweep, "last")


def test_of_many_at_once_the_best_is_the_champion(shop: Shop) -> None:
    entered = [from_run(shop.train([0.1 * number]), "last") for number in (3, 5, 4, 2)]

    def enter(candidate: Candidate) -> None:
        promote(candidate, shop.rule, False)

    threads = [threading.Thread(target=enter, args=[candidate]) for candidate in entered]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = read_versions(shop.rule.name)
    assert len(versions) == 4
    assert [version.facts["val/accuracy"] for version in versions if version.aliases] == ["0.5"]


def test_the_champion_and_a_runs_model_come_from_mlflow(shop: Shop) -> None:
    run = shop.train([0.4])
    promote(from_run(run, "best"), shop.rule, False)
    for address in (shop.rule.champion, f"models:/{shop.rule.name}/1", f"runs:/{run}/best"):
        with resolve_model(address, "", "last") as folder:
            assert (folder / "MLmodel").read_text() == "metadata: best\n"
        assert not folder.exists()


@pytest.mark.parametrize("address", ["models:/none@champion", "models:/none/1", "runs:/none/last"])
def test_what_mlflow_does_not_have_is_refused(shop: Shop, address: str) -> None:
    with (
        pytest.raises(UserError, match=f"MLflow has no {address} .*: `make models` lists those it has"),
        resolve_model(address, "", "last"),
    ):
        pass


def test_a_folder_is_a_model_or_holds_the_checkpoint(shop: Shop) -> None:
    shop.train([0.1])
    for address, checkpoint, found in (
        ("result", "best", "best"),
        ("result/last", "best", "last"),
        ("result", "third", "last"),
    ):
        with resolve_model(str(shop.folder / address), "", checkpoint) as folder:
            assert folder == shop.folder / "result" / found
