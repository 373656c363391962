"""Choose the champion of a registered model, consistently across workspaces that share an MLflow server.

MLflow has no compare-and-set: of two processes that set an alias, the last one wins, whatever it read before. So a
promotion first announces itself in a tag of its version, then sets the alias, and then reads which versions others
announced since before it read the alias. If there are any, the best version that was ever promoted gets the alias. The
process that sets the alias last also reads last, so it sees all announcements.
"""

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
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
from cifar_pipeline.tracking.sweeps import history
from cifar_pipeline.tracking.trial import checkpoint_metrics
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import parse_json

log = logging.getLogger(__name__)

ACCURACY = "val/accuracy"
# Parameters of a run and tags of a version: the monitored metric's name, and whether larger values are better.
MONITOR_KEYS = ("monitor", "mode")
RUN_ID = re.compile(r"[0-9a-f]{32}")
# Tags of a run that are copied to the version.
COPIED_TAGS = ("fingerprint", "git.commit", "git.dirty", "dvc.data", "dvc.experiment", "device")


# Tags of a version: when it became the champion, the champion before it, and when it was rolled back.
PROMOTED_AT, PREVIOUS, ROLLED_BACK = "champion.since", "champion.before", "champion.rolled_back"
# Tag of a promoted version until it is known whether another process set the alias at the same time.
PENDING = "champion.pending"
# Decimals to which the difference of two values is rounded, to remove the error of floating point.
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
        """Name of the run and its monitored metric, for messages."""
        return f"{self.tags['run']}, {format_monitor(self.tags)}"


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
    if not outputs:
        raise UserError(f"The run {run.info.run_name} ({run.info.run_id}) has no model: it is not a training.")
    models = dict(_existing_models(client, [output.model_id for output in outputs]))
    if checkpoint == "best" and run.data.params.get(MONITOR_KEYS[0], "") not in run.data.metrics:
        checkpoint = "last"  # without a validation split there is no best checkpoint
    if checkpoint not in models:
        raise UserError(
            f"The model {checkpoint} of the run {run.info.run_name} ({run.info.run_id}) was deleted in MLflow: choose "
            "another run, or train it again with `rerun=true`."
        )
    dataset = run.inputs.dataset_inputs[0].dataset if run.inputs and run.inputs.dataset_inputs else None
    tags = {
        "run": run.info.run_name,
        "checkpoint": checkpoint,
        "dataset": dataset.name if dataset else "",
        "dataset.hash": dataset.digest if dataset else "",
        **{key: str(value) for key, value in run.data.metrics.items() if key.startswith("test/")},
        **_monitor_tags(run, checkpoint),
        **{key: run.data.tags[key] for key in COPIED_TAGS if key in run.data.tags},
        **extra_tags,
    }
    tags = {key: value for key, value in tags.items() if value}
    return Candidate(run.info.run_id, checkpoint, models[checkpoint], tags)


def _existing_models(client: MlflowClient, ids: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield name and id of the logged models that have not been deleted."""
    for model_id in ids:
        try:
            yield client.get_logged_model(model_id).name, model_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def _monitor_tags(run: Run, checkpoint: str) -> dict[str, str]:
    """Return the name and the mode of the monitored metric, its value and the validation accuracy of the checkpoint."""
    monitor, mode = (run.data.params.get(key, "") for key in MONITOR_KEYS)
    names = [name for name in dict.fromkeys([monitor, ACCURACY]) if name in run.data.metrics]
    metrics = checkpoint_metrics(history(run.info.run_id, names), monitor, mode, checkpoint)
    values = {key: repr(metrics[key]) for key in (monitor, ACCURACY) if key in metrics}
    return {"monitor": monitor, "mode": mode, **values}


@dataclass(frozen=True)
class PromotionPolicy:
    """When a version becomes the champion.

    Attributes:
        name: of the registered model.
        alias: of the champion.
        min_improvement: of the monitored metric over the present champion's, exclusive.
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
    if _monitor(version) != _monitor(champion):
        return (
            f"{title}, was chosen by {_describe_monitor(champion)} and this one by {_describe_monitor(version)}, so it "
            "is not replaced (train with the champion's monitor and mode, or set another registry.name)."
        )
    if not (_has_value(version) and _has_value(champion)):
        return f"without a validation split it cannot be compared with {title}."
    if round(_score(version) - _score(champion), DIGITS) <= policy.min_improvement:
        return f"it does not beat {title} ({format_monitor(champion.tags)}){_margin(champion, policy)}."
    return ""


def _monitor(version: ModelVersion) -> tuple[str, str]:
    """Return the name of the metric by which a version's training was monitored, and its mode."""
    return version.tags.get("monitor", ""), version.tags.get("mode", "")


def _describe_monitor(version: ModelVersion) -> str:
    name, mode = _monitor(version)
    return f"{name} (mode={mode})" if name else "a metric that was not recorded"


def _has_value(version: ModelVersion) -> bool:
    return _monitor(version)[0] in version.tags


def _score(version: ModelVersion) -> float:
    """Return the monitored metric, negated where smaller values are better; minus infinity without a value."""
    name, mode = _monitor(version)
    value = version.tags.get(name)
    return -math.inf if value is None else -float(value) if mode == "min" else float(value)


def _margin(champion: ModelVersion, policy: PromotionPolicy) -> str:
    """Return the end of a sentence about `min_improvement`, in the metric's unit; empty for 0."""
    if not policy.min_improvement:
        return ""
    if not _monitor(champion)[0].endswith("accuracy"):
        return f" by more than {policy.min_improvement:g}"
    points = 100 * policy.min_improvement
    return f" by more than {points:g} percentage point{'' if points == 1 else 's'}"


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


def format_monitor(tags: Mapping[str, str]) -> str:
    """Format the monitored metric of a version with its name, given its tags."""
    name = tags.get("monitor", "")
    return f"{name} {float(tags[name]):{'.2%' if name.endswith('accuracy') else '.4f'}}" if name in tags else "no value"


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
    data or the monitored metrics differ, else the one with a value.
    """
    if not rejection_reason(version, champion, policy):
        return True
    assert champion is not None
    if version.tags.get(PREVIOUS) != champion.tags.get(PREVIOUS):
        return False
    if version.tags.get("dataset.hash") != champion.tags.get("dataset.hash") or _monitor(version) != _monitor(champion):
        return int(version.version) < int(champion.version)
    return _has_value(version) and not _has_value(champion)


def _sort_key(version: ModelVersion) -> tuple[float, int]:
    return _score(version), -int(version.version)


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
