"""Choose the champion of a registered model, consistently across workspaces that share an MLflow server.

MLflow has no compare-and-set: of two processes that set an alias, the last one wins, whatever it read before. So a
promotion first announces itself in a tag of its version, then sets the alias, and then reads which versions others
announced since before it read the alias. If there are any, the best version that was ever promoted gets the alias. The
process that sets the alias last also reads last, so it sees all announcements.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig

from cifar_pipeline.tracking.client import connect, get_run_or_none
from cifar_pipeline.tracking.provenance import dvc_hash
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import parse_json

log = logging.getLogger(__name__)

ACCURACY = "val/accuracy"
RUN_ID = re.compile(r"[0-9a-f]{32}")
# Tags of a run that are copied to the version.
COPIED_TAGS = ("fingerprint", "git.commit", "git.dirty", "dvc.data", "dvc.experiment", "device")


# Tags of a version: when it became the champion, the champion before it, and when it was rolled back.
PROMOTED_AT, PREVIOUS, ROLLED_BACK = "champion.since", "champion.before", "champion.rolled_back"
# Tag of a promoted version until it is known whether another process set the alias at the same time.
PENDING = "champion.pending"
# Decimals to which the difference of two accuracies is rounded, to remove the error of floating point.
DIGITS = 9
# Limit for setting the alias again while other processes change it.
MAX_ATTEMPTS = 20

# By version number: when it was promoted (empty: never), and whether its promotion is pending.
Claims = Mapping[str, tuple[str, bool]]


@dataclass(frozen=True)
class Candidate:
    """A checkpoint of a run that may be registered.

    Attributes:
        checkpoint: `last` or `best`.
        model_id: of the checkpoint's model in MLflow.
        tags: of the version that it becomes.
    """

    run_id: str
    checkpoint: str
    model_id: str
    tags: dict[str, str]

    @property
    def dataset(self) -> str:
        """Name of the dataset that it was trained on."""
        return self.tags["dataset"]

    @property
    def title(self) -> str:
        """Name of the run and its validation accuracy, for messages."""
        accuracy = f", {float(self.tags[ACCURACY]):.2%} on validation" if ACCURACY in self.tags else ""
        return f"{self.tags['run']}{accuracy}"


def pipeline_dataset_name(models: Path) -> str:
    """Read the name of the dataset that the pipeline's model was trained on.

    Raises:
        UserError: there is no finished training in `models`.
    """
    return str(_read(models, "metadata.json")["dataset"]["name"])


def from_pipeline(models: Path, checkpoint: str) -> Candidate:
    """Take the model that the pipeline trained and evaluated.

    Raises:
        UserError: no training has finished, or its run is not in MLflow.
    """
    client, _ = connect()
    run = get_run_or_none(client, _read(models, "run.json")["id"])
    if run is None:
        raise UserError(
            f"The run that trained {models}/ is not in this MLflow database, so it cannot be registered: `dvc repro "
            "--force --single-item train` logs it again, without training if .cache/ still has the result."
        )
    return _candidate(client, run, checkpoint, {"dvc.models": dvc_hash("train", str(models))})


def from_run(name_or_id: str, checkpoint: str) -> Candidate:
    """Take the model of the run with this id, or of the newest finished run with this name (a trial's, for instance).

    Raises:
        UserError: there is no such run, or it has not finished.
    """
    client, experiment = connect()
    run = get_run_or_none(client, name_or_id) if RUN_ID.fullmatch(name_or_id) else None
    if run is None:
        quoted = name_or_id.replace("'", "\\'")
        runs = client.search_runs(
            [experiment],
            f"attributes.run_name = '{quoted}' and attributes.status = 'FINISHED' and tags.fingerprint LIKE '%'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        if not runs:
            raise UserError(
                f"There is no finished training named {name_or_id}: `make compare-sweep` and `make ui` show names "
                "and ids."
            )
        run = runs[0]
    if run.info.status != "FINISHED":
        raise UserError(f"The training {run.info.run_name} has not finished ({run.info.status}): it has no model yet.")
    return _candidate(client, run, checkpoint, {})


def _read(models: Path, name: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = parse_json((models / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"There is no finished training in {models}/: `dvc repro` makes one.") from None
    except ValueError as error:
        raise UserError(
            f"{models}/{name} is damaged ({error}): `dvc checkout {models}` or `dvc repro` restores it."
        ) from None
    return content


def _candidate(client: MlflowClient, run: Run, checkpoint: str, extra_tags: Mapping[str, str]) -> Candidate:
    outputs = run.outputs.model_outputs if run.outputs else []
    models = {client.get_logged_model(output.model_id).name: output.model_id for output in outputs}
    if not models:
        raise UserError(f"The run {run.info.run_name} ({run.info.run_id}) has no model: it is not a training.")
    # Without a validation split there is no best checkpoint.
    checkpoint = checkpoint if checkpoint in models else "last"
    dataset = run.inputs.dataset_inputs[0].dataset if run.inputs and run.inputs.dataset_inputs else None
    tags = {
        "run": run.info.run_name,
        "checkpoint": checkpoint,
        "dataset": dataset.name if dataset else "",
        "dataset.hash": dataset.digest if dataset else "",
        **{key: str(value) for key, value in run.data.metrics.items() if key.startswith("test/")},
        **_validation_tags(client, run, checkpoint),
        **{key: run.data.tags[key] for key in COPIED_TAGS if key in run.data.tags},
        **extra_tags,
    }
    tags = {key: value for key, value in tags.items() if value}
    return Candidate(run.info.run_id, checkpoint, models[checkpoint], tags)


def _validation_tags(client: MlflowClient, run: Run, checkpoint: str) -> dict[str, str]:
    """Return the checkpoint's validation accuracy, of the last or the best epoch; empty without validation."""
    if ACCURACY not in run.data.metrics:
        return {}
    values = [metric.value for metric in client.get_metric_history(run.info.run_id, ACCURACY)]
    return {ACCURACY: repr(max(values) if checkpoint == "best" else run.data.metrics[ACCURACY])}


@dataclass(frozen=True)
class PromotionPolicy:
    """When a version becomes the champion.

    Attributes:
        name: of the registered model.
        alias: of the champion.
        min_improvement: of the validation accuracy over the present champion's, exclusive.
    """

    name: str
    alias: str
    min_improvement: float

    @staticmethod
    def of(options: DictConfig, dataset: str) -> "PromotionPolicy":
        """Read conf/registry/; the default for the model's name is the dataset's."""
        return PromotionPolicy(options.name or dataset, options.alias, options.min_improvement)

    @property
    def champion(self) -> str:
        """The champion's URI in MLflow."""
        return f"models:/{self.name}@{self.alias}"


def read_claims(client: MlflowClient, policy: PromotionPolicy) -> Claims:
    """Read which versions were promoted and which of them are pending. To be called before the alias is read."""
    return {number: _claim(version) for number, version in read_numbered(client, policy.name).items()}


def find_champion(client: MlflowClient, policy: PromotionPolicy) -> ModelVersion | None:
    """Find the version that has the alias; None if there is none."""
    try:
        number = client.get_registered_model(policy.name).aliases.get(policy.alias)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return find_version(client, policy.name, number)


def find_version(client: MlflowClient, name: str, number: str | None) -> ModelVersion | None:
    """Find a version with its tags; None if it was deleted, or without a number."""
    try:
        return client.get_model_version(name, number) if number else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def read_numbered(client: MlflowClient, name: str) -> dict[str, ModelVersion]:
    """Read the versions of a registered model by number."""
    return {str(version.version): version for version in client.search_model_versions(f"name = '{name}'")}


def rejection_reason(version: ModelVersion, champion: ModelVersion | None, policy: PromotionPolicy) -> str:
    """Return why a version does not become the champion, as the end of a sentence; empty if it does."""
    if champion is None:
        return ""
    title = f"the champion, version {champion.version}"
    if version.tags.get("dataset.hash") != champion.tags.get("dataset.hash"):
        return f"{title}, was trained on other data and is not replaced (set another registry.name for this data)."
    if ACCURACY not in version.tags or ACCURACY not in champion.tags:
        return f"without a validation split it cannot be compared with {title}."
    gain = round(float(version.tags[ACCURACY]) - float(champion.tags[ACCURACY]), DIGITS)
    if gain <= policy.min_improvement:
        points = 100 * policy.min_improvement
        by = f" by more than {points:g} percentage point{'' if points == 1 else 's'}" if points else ""
        return f"it does not beat {title} ({val_accuracy(champion.tags)}){by}."
    return ""


def make_champion(
    client: MlflowClient, version: ModelVersion, champion: ModelVersion | None, policy: PromotionPolicy
) -> None:
    """Announce the version as the champion's successor, then set the alias. `settle` has to follow."""
    # The tags come first: if the process dies in between, the champion is still the previous one.
    client.set_model_version_tag(policy.name, version.version, PENDING, now())
    client.set_model_version_tag(policy.name, version.version, PREVIOUS, champion.version if champion else "")
    client.set_model_version_tag(policy.name, version.version, PROMOTED_AT, now())
    if version.tags.get(ROLLED_BACK):
        client.delete_model_version_tag(policy.name, version.version, ROLLED_BACK)
    client.set_registered_model_alias(policy.name, policy.alias, version.version)


def settle(client: MlflowClient, policy: PromotionPolicy, number: str, before: Claims) -> ModelVersion | None:
    """Resolve concurrent promotions after the alias was set to version `number`, and return the champion.

    Args:
        before: the claims read before the alias was.
    """
    champion = None
    for attempt in range(MAX_ATTEMPTS):
        # The alias is read first: whoever set it had written the tags before.
        champion = find_champion(client, policy)
        versions = read_numbered(client, policy.name)
        if champion is not None:
            champion = versions.get(str(champion.version), champion)
        is_alone = all(
            _claim(version) == before.get(other, ("", False)) and not _claim(version)[1]
            for other, version in versions.items()
            if other != number
        )
        # A promotion of this version was killed at this point before: all claims have to be considered.
        is_alone = is_alone and not before.get(number, ("", False))[1]
        if is_alone and attempt == 0 and champion is not None and str(champion.version) == number:
            break
        best = _best(versions, champion, policy)
        if best is None:
            _record_previous(client, policy, versions, champion)
            break
        if champion is not None and ROLLED_BACK in champion.tags:
            client.set_registered_model_alias(policy.name, policy.alias, best.version)
        else:
            make_champion(client, best, champion, policy)
    else:
        log.warning(
            f"Other processes keep changing {policy.champion}: `make list-models` shows the champion, `make rollback` "
            "restores the previous one."
        )
    for settled in {number, str(champion.version) if champion else number}:
        if (version := find_version(client, policy.name, settled)) is not None and PENDING in version.tags:
            client.delete_model_version_tag(policy.name, settled, PENDING)
    return champion


def val_accuracy(tags: Mapping[str, str]) -> str:
    """Format the validation accuracy of a version, given its tags."""
    return f"{float(tags[ACCURACY]):.2%}" if ACCURACY in tags else "not validated"


def now() -> str:
    """Return the present time in UTC, in microseconds, so that two promotions within a second differ."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _claim(version: ModelVersion) -> tuple[str, bool]:
    return version.tags.get(PROMOTED_AT, ""), PENDING in version.tags


def _best(
    versions: Mapping[str, ModelVersion], champion: ModelVersion | None, policy: PromotionPolicy
) -> ModelVersion | None:
    """Pick the best version that was ever promoted and beats the champion; a champion that was rolled back loses."""
    opponent = None if champion is not None and ROLLED_BACK in champion.tags else champion
    better = [version for version in _promoted(versions, champion) if _beats(version, opponent, policy)]
    return max(better, key=_sort_key, default=None)


def _promoted(versions: Mapping[str, ModelVersion], champion: ModelVersion | None) -> list[ModelVersion]:
    """List the versions that were ever promoted and not rolled back, except the champion."""
    return [
        version
        for number, version in versions.items()
        if any(_claim(version))
        and ROLLED_BACK not in version.tags
        and (not champion or number != str(champion.version))
    ]


def _beats(version: ModelVersion, champion: ModelVersion | None, policy: PromotionPolicy) -> bool:
    """Whether the version replaces the champion.

    If two incomparable versions were promoted over the same champion at once, the first one registered wins where the
    data differ, else the one with a validation accuracy.
    """
    if not rejection_reason(version, champion, policy):
        return True
    assert champion is not None
    if version.tags.get(PREVIOUS) != champion.tags.get(PREVIOUS):
        return False
    if version.tags.get("dataset.hash") != champion.tags.get("dataset.hash"):
        return int(version.version) < int(champion.version)
    return ACCURACY in version.tags and ACCURACY not in champion.tags


def _sort_key(version: ModelVersion) -> tuple[float, int]:
    return float(version.tags.get(ACCURACY, -1)), -int(version.version)


def _record_previous(
    client: MlflowClient, policy: PromotionPolicy, versions: Mapping[str, ModelVersion], champion: ModelVersion | None
) -> None:
    """Tag a champion that was promoted at the same time as others with the best of them as its predecessor."""
    if champion is None:
        return
    beaten = [version for version in _promoted(versions, champion) if _beats(champion, version, policy)]
    previous = max(beaten, key=_sort_key, default=None)
    if previous is not None and champion.tags.get(PREVIOUS) != str(previous.version):
        client.set_model_version_tag(policy.name, champion.version, PREVIOUS, previous.version)
