"""The champion of a registered model, and how several workspaces agree on it through one server.

MLflow has no compare-and-set: of two who set an alias, the last one wins, whatever the first one read. So a promotion
first announces itself in a tag of its version, sets the alias, and then looks at what others announced since before it
read the alias. Where there is anything, the best of all that ever won takes the alias. The last to
set the alias is the last to look.

A trained model that may be registered: a run's checkpoint with all that is known about it.
"""

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
from cifar_pipeline.utils.console import warning
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import parse_json

ACCURACY = "val/accuracy"
RUN_ID = re.compile(r"[0-9a-f]{32}")
# Facts of a run that its registered model carries, too.
COPIED_TAGS = ("fingerprint", "git.commit", "git.dirty", "dvc.data", "dvc.experiment", "device")


@dataclass(frozen=True)
class Candidate:
    """`model_id` is that of the checkpoint's model in MLflow; `tags` are what its version will say about it."""

    run_id: str
    checkpoint: str
    model_id: str
    tags: dict[str, str]

    @property
    def dataset(self) -> str:
        """The name of the data set that it was trained on."""
        return self.tags["dataset"]

    @property
    def title(self) -> str:
        """Its run's name and its accuracy, for a person."""
        accuracy = f", {float(self.tags[ACCURACY]):.2%} on validation" if ACCURACY in self.tags else ""
        return f"{self.tags['run']}{accuracy}"


def pipeline_dataset_name(models: Path) -> str:
    """The name of the data set that the pipeline's model was trained on. Raises `Refusal` where there is none."""
    return str(_read(models, "metadata.json")["dataset"]["name"])


def from_pipeline(models: Path, checkpoint: str) -> Candidate:
    """The model that the pipeline has trained and measured.

    Raises:
        Refusal: no training has finished, or MLflow does not know its run.
    """
    client, _ = connect()
    run = get_run_or_none(client, _read(models, "run.json")["id"])
    if run is None:
        raise UserError(
            f"The run that trained {models}/ is not in this MLflow database, so it can't be registered: `dvc repro "
            "--force --single-item train` puts it there, without training again where .cache/ still has it."
        )
    return _candidate(client, run, checkpoint, {"dvc.models": dvc_hash("train", str(models))})


def from_run(wanted: str, checkpoint: str) -> Candidate:
    """The model of the run with this id, or of the newest finished one with this name; a sweep's points are runs.

    Raises:
        Refusal: there is no such run, or it has not finished.
    """
    client, experiment = connect()
    run = get_run_or_none(client, wanted) if RUN_ID.fullmatch(wanted) else None
    if run is None:
        quoted = wanted.replace("'", "\\'")
        found = client.search_runs(
            [experiment],
            f"attributes.run_name = '{quoted}' and attributes.status = 'FINISHED' and tags.fingerprint LIKE '%'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        if not found:
            raise UserError(
                f"No finished training is called {wanted}: `make compare` and `make ui` show names and ids."
            )
        run = found[0]
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
            f"{models}/{name} is damaged ({error}): `dvc checkout {models}` or `dvc repro` mends it."
        ) from None
    return content


def _candidate(client: MlflowClient, run: Run, checkpoint: str, more: Mapping[str, str]) -> Candidate:
    outputs = run.outputs.model_outputs if run.outputs else []
    models = {client.get_logged_model(output.model_id).name: output.model_id for output in outputs}
    if not models:
        raise UserError(f"The run {run.info.run_name} ({run.info.run_id}) has no model: it is no training.")
    # Without a validation part there is no best to choose.
    kept = checkpoint if checkpoint in models else "last"
    data = run.inputs.dataset_inputs[0].dataset if run.inputs and run.inputs.dataset_inputs else None
    tags = {
        "run": run.info.run_name,
        "checkpoint": kept,
        "dataset": data.name if data else "",
        "dataset.hash": data.digest if data else "",
        **{key: str(value) for key, value in run.data.metrics.items() if key.startswith("test/")},
        **_validation_tags(client, run, kept),
        **{key: run.data.tags[key] for key in COPIED_TAGS if key in run.data.tags},
        **more,
    }
    return Candidate(run.info.run_id, kept, models[kept], {key: value for key, value in tags.items() if value})


def _validation_tags(client: MlflowClient, run: Run, checkpoint: str) -> dict[str, str]:
    """The checkpoint's validation accuracy: of the last epoch, or the best of all; nothing without validation."""
    if ACCURACY not in run.data.metrics:
        return {}
    values = [metric.value for metric in client.get_metric_history(run.info.run_id, ACCURACY)]
    return {ACCURACY: repr(max(values) if checkpoint == "best" else run.data.metrics[ACCURACY])}


# Tags of a version: since when it has been the champion, which version was it before, and whether it was sent back.
PROMOTED_AT, PREVIOUS, ROLLED_BACK = "champion.since", "champion.before", "champion.rolled_back"
# The tag of a version that won, until it is known whether somebody else set the alias at the same time.
PENDING = "champion.pending"
# Accuracies are quotients of whole numbers: beyond these digits lies the error of subtracting two of them.
DIGITS = 9
# How often the alias is set again where others keep setting it.
MAX_ATTEMPTS = 20


@dataclass(frozen=True)
class PromotionPolicy:
    """Which name models are registered under, what the best is called, and by how much it must be better."""

    name: str
    alias: str
    min_improvement: float

    @staticmethod
    def of(options: DictConfig, dataset: str) -> "PromotionPolicy":
        """The rule of conf/registry/; where that names no model, the data set's name is the model's, too."""
        return PromotionPolicy(options.name or dataset, options.alias, options.min_improvement)

    @property
    def champion(self) -> str:
        """The address of the best one."""
        return f"models:/{self.name}@{self.alias}"


Claims = Mapping[str, tuple[str, bool]]


def read_claims(client: MlflowClient, rule: PromotionPolicy) -> Claims:
    """Read which versions have won, since when, and which are pending. To be called before the alias is read."""
    return {number: _claim(version) for number, version in read_numbered(client, rule.name).items()}


def find_champion(client: MlflowClient, rule: PromotionPolicy) -> ModelVersion | None:
    """The version that the alias names; None where it names none."""
    try:
        number = client.get_registered_model(rule.name).aliases.get(rule.alias)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return find_version(client, rule.name, number)


def find_version(client: MlflowClient, name: str, number: str | None) -> ModelVersion | None:
    """A version with its tags; None for no number, and where it was deleted."""
    try:
        return client.get_model_version(name, number) if number else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def read_numbered(client: MlflowClient, name: str) -> dict[str, ModelVersion]:
    """Every version of a registered model by its number."""
    return {str(version.version): version for version in client.search_model_versions(f"name = '{name}'")}


def rejection_reason(version: ModelVersion, champion: ModelVersion | None, rule: PromotionPolicy) -> str:
    """Why a version does not become the champion, as the end of a sentence; empty where it does."""
    if champion is None:
        return ""
    of_champion = f"the champion, version {champion.version}"
    if version.tags.get("dataset.hash") != champion.tags.get("dataset.hash"):
        return f"{of_champion}, was measured on other data and is not replaced (another registry.name begins anew)."
    if ACCURACY not in version.tags or ACCURACY not in champion.tags:
        return f"without a validation part it can't be compared with {of_champion}."
    gain = round(float(version.tags[ACCURACY]) - float(champion.tags[ACCURACY]), DIGITS)
    if gain <= rule.min_improvement:
        by = f" by more than {100 * rule.min_improvement:g} points" if rule.min_improvement else ""
        return f"it does not beat {of_champion} ({format_percent(champion.tags)}){by}."
    return ""


def make_champion(
    client: MlflowClient, version: ModelVersion, champion: ModelVersion | None, rule: PromotionPolicy
) -> None:
    """Announce the version as the champion's successor, then set the alias. `settle` has to follow."""
    # The tags first: broken off in between, the champion is still the one that was.
    client.set_model_version_tag(rule.name, version.version, PENDING, now())
    client.set_model_version_tag(rule.name, version.version, PREVIOUS, champion.version if champion else "")
    client.set_model_version_tag(rule.name, version.version, PROMOTED_AT, now())
    if version.tags.get(ROLLED_BACK):
        client.delete_model_version_tag(rule.name, version.version, ROLLED_BACK)
    client.set_registered_model_alias(rule.name, rule.alias, version.version)


def settle(client: MlflowClient, rule: PromotionPolicy, number: str, before: Claims) -> ModelVersion | None:
    """Return the champion after the alias was set to version `number`, once nothing that others did speaks against it.

    `before` are the claims that were read before the alias was.
    """
    champion = None
    for turn in range(MAX_ATTEMPTS):
        # The alias first: whoever moved it wrote the tags before.
        champion = find_champion(client, rule)
        versions = read_numbered(client, rule.name)
        if champion is not None:
            champion = versions.get(str(champion.version), champion)
        is_alone = all(
            _claim(version) == before.get(other, ("", False)) and not _claim(version)[1]
            for other, version in versions.items()
            if other != number
        )
        # Killed at that before, it looks at all of them.
        is_alone = is_alone and not before.get(number, ("", False))[1]
        if is_alone and turn == 0 and champion is not None and str(champion.version) == number:
            break
        best = _best(versions, champion, rule)
        if best is None:
            _record_previous(client, rule, versions, champion)
            break
        if champion is not None and ROLLED_BACK in champion.tags:
            client.set_registered_model_alias(rule.name, rule.alias, best.version)
        else:
            make_champion(client, best, champion, rule)
    else:
        warning(f"Others keep setting {rule.champion}: `make models` shows who it is, `make rollback` goes back.")
    for own in {number, str(champion.version) if champion else number}:
        if (version := find_version(client, rule.name, own)) is not None and PENDING in version.tags:
            client.delete_model_version_tag(rule.name, own, PENDING)
    return champion


def format_percent(tags: Mapping[str, str]) -> str:
    """A version's accuracy for a person."""
    return f"{float(tags[ACCURACY]):.2%}" if ACCURACY in tags else "not validated"


def now() -> str:
    """The time as a tag; two claims within one second differ."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _claim(version: ModelVersion) -> tuple[str, bool]:
    return version.tags.get(PROMOTED_AT, ""), PENDING in version.tags


def _best(
    versions: Mapping[str, ModelVersion], champion: ModelVersion | None, rule: PromotionPolicy
) -> ModelVersion | None:
    """The best of those that ever won and were not sent back, if it beats the champion, or that was sent back."""
    beaten = None if champion is not None and ROLLED_BACK in champion.tags else champion
    better = [version for version in _winners(versions, champion) if _beats(version, beaten, rule)]
    return max(better, key=_order, default=None)


def _winners(versions: Mapping[str, ModelVersion], champion: ModelVersion | None) -> list[ModelVersion]:
    """Those that ever won and were not sent back, but for the champion."""
    return [
        version
        for number, version in versions.items()
        if any(_claim(version))
        and ROLLED_BACK not in version.tags
        and (not champion or number != str(champion.version))
    ]


def _beats(version: ModelVersion, champion: ModelVersion | None, rule: PromotionPolicy) -> bool:
    """Whether it replaces the champion.

    Of two that won against the same predecessor at once, and can't be compared, it is the one with an accuracy, or else
    the one that was registered first, whose data is that of all others.
    """
    if not rejection_reason(version, champion, rule):
        return True
    assert champion is not None
    if version.tags.get(PREVIOUS) != champion.tags.get(PREVIOUS):
        return False
    if version.tags.get("dataset.hash") != champion.tags.get("dataset.hash"):
        return int(version.version) < int(champion.version)
    return ACCURACY in version.tags and ACCURACY not in champion.tags


def _order(version: ModelVersion) -> tuple[float, int]:
    return float(version.tags.get(ACCURACY, -1)), -int(version.version)


def _record_previous(
    client: MlflowClient, rule: PromotionPolicy, versions: Mapping[str, ModelVersion], champion: ModelVersion | None
) -> None:
    """Let a champion that won together with others name the best of them as its predecessor."""
    if champion is None:
        return
    beaten = [version for version in _winners(versions, champion) if _beats(champion, version, rule)]
    former = max(beaten, key=_order, default=None)
    if former is not None and champion.tags.get(PREVIOUS) != str(former.version):
        client.set_model_version_tag(rule.name, champion.version, PREVIOUS, former.version)
