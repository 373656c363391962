"""MLflow's registry: which trained models are kept under a name, and which of them is the champion.

A version is a checkpoint of a run. No DVC stage comes here: a stage may be skipped, or run in a queue.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig

from cifar_pipeline.config.workspace import main_workspace
from cifar_pipeline.console import Refusal
from cifar_pipeline.tracking.candidates import ACCURACY, Candidate
from cifar_pipeline.tracking.store import connect

# Tags of a version: since when it has been the champion, which version was it before, and whether it was sent back.
SINCE, BEFORE, SENT_BACK = "champion.since", "champion.before", "champion.sent_back"
# Accuracies are quotients of whole numbers: beyond these digits lies the error of subtracting two of them.
DIGITS = 9


@dataclass(frozen=True)
class Rule:
    """Which name models are registered under, what the best is called, and by how much it must be better."""

    name: str
    alias: str
    margin: float

    @staticmethod
    def of(options: DictConfig, dataset: str) -> "Rule":
        """The rule of conf/registry/; where that names no model, the data set's name is the model's, too."""
        return Rule(options.name or dataset, options.alias, options.margin)

    @property
    def champion(self) -> str:
        """The address of the best one."""
        return f"models:/{self.name}@{self.alias}"


def promote(candidate: Candidate, rule: Rule, asked_for: bool) -> str:
    """Register the candidate, let it become the champion where it beats the present one, and say so in one line.

    A version that was sent back by `roll_back` stays so unless it is `asked_for` by name. Asked again, nothing changes.
    """
    client, _ = connect()
    with _only_one():
        champion = _champion(client, rule)
        version = _registered(client, candidate, rule.name)
        new = version is None
        if version is None:
            version = _register(client, candidate, rule.name)
        what = f"Version {version.version} of {rule.name} ({candidate.title})"
        if champion is not None and version.version == champion.version:
            return f"{what} is the champion already."
        if version.tags.get(SENT_BACK) and not asked_for:
            return f"{what} was sent back: `python src/promote.py {candidate.run_id}` lets it compete again."
        reason = _reason_against(version, champion, rule)
        if reason:
            return f"{what} {'is registered' if new else 'stays as it is'}: {reason}"
        _make_champion(client, version, champion, rule)
        return f"{what} is the champion now: {_beaten(champion)}"


def roll_back(rule: Rule) -> str:
    """Put the champion's predecessor back, and say so in one line.

    Raises:
        Refusal: there is no champion, or none before it.
    """
    client, _ = connect()
    with _only_one():
        champion = _champion(client, rule)
        if champion is None:
            raise Refusal(
                f"{rule.name} has no {rule.alias}: `python src/promote.py` makes one of the pipeline's model."
            )
        former = _version(client, rule.name, champion.tags.get(BEFORE, ""))
        if former is None:
            raise Refusal(
                f"There was no {rule.alias} of {rule.name} before version {champion.version}: `make models` lists what "
                "there is, `python src/promote.py RUN` lets another one compete."
            )
        client.set_registered_model_alias(rule.name, rule.alias, former.version)
        client.set_model_version_tag(rule.name, champion.version, SENT_BACK, _now())
        return (
            f"Version {former.version} of {rule.name} ({_percent(former.tags)}) is the champion again, in place of "
            f"version {champion.version} ({_percent(champion.tags)})."
        )


@dataclass(frozen=True)
class Registered:
    """A registered version: NAME/NUMBER, what it is called besides, when it came, and the facts that stand on it."""

    address: str
    aliases: tuple[str, ...]
    date: datetime
    facts: dict[str, str]


def read_versions(name: str | None) -> list[Registered]:
    """Every version under `name`, or under any, the newest first."""
    client, _ = connect()
    versions = client.search_model_versions(f"name = '{name}'" if name else None)
    # A search tells nothing of aliases.
    aliases = {name: client.get_registered_model(name).aliases for name in {version.name for version in versions}}
    return [
        Registered(
            address=f"{version.name}/{version.version}",
            aliases=tuple(alias for alias, number in aliases[version.name].items() if number == version.version),
            date=datetime.fromtimestamp(version.creation_timestamp / 1000),
            facts=dict(version.tags),
        )
        for version in sorted(versions, key=lambda version: version.creation_timestamp, reverse=True)
    ]


@contextmanager
def _only_one() -> Iterator[None]:
    """Let one process at a time decide who is the champion."""
    with FileLock(main_workspace() / ".cache" / "registry.lock"):
        yield


def _champion(client: MlflowClient, rule: Rule) -> ModelVersion | None:
    try:
        number = client.get_registered_model(rule.name).aliases.get(rule.alias)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return _version(client, rule.name, number)


def _version(client: MlflowClient, name: str, number: str | None) -> ModelVersion | None:
    """A version with its tags; None for no number, and where it was deleted."""
    try:
        return client.get_model_version(name, number) if number else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _registered(client: MlflowClient, candidate: Candidate, name: str) -> ModelVersion | None:
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{candidate.run_id}'")
    return next((version for version in versions if version.tags.get("checkpoint") == candidate.checkpoint), None)


def _register(client: MlflowClient, candidate: Candidate, name: str) -> ModelVersion:
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    return client.create_model_version(
        name,
        source=f"models:/{candidate.model_id}",
        run_id=candidate.run_id,
        tags=candidate.tags,
        model_id=candidate.model_id,
    )


def _reason_against(version: ModelVersion, champion: ModelVersion | None, rule: Rule) -> str:
    """Why a version does not become the champion, as the end of a sentence; empty where it does."""
    if champion is None:
        return ""
    of_champion = f"the champion, version {champion.version}"
    if version.tags["dataset.hash"] != champion.tags.get("dataset.hash"):
        return f"{of_champion}, was measured on other data and is not replaced (another registry.name begins anew)."
    if ACCURACY not in version.tags or ACCURACY not in champion.tags:
        return f"without a validation part it can't be compared with {of_champion}."
    gain = round(float(version.tags[ACCURACY]) - float(champion.tags[ACCURACY]), DIGITS)
    if gain <= rule.margin:
        by = f" by more than {100 * rule.margin:g} points" if rule.margin else ""
        return f"it does not beat {of_champion} ({_percent(champion.tags)}){by}."
    return ""


def _make_champion(client: MlflowClient, version: ModelVersion, champion: ModelVersion | None, rule: Rule) -> None:
    # The tags first: broken off in between, the champion is still the one that was.
    client.set_model_version_tag(rule.name, version.version, BEFORE, champion.version if champion else "")
    client.set_model_version_tag(rule.name, version.version, SINCE, _now())
    if version.tags.get(SENT_BACK):
        client.delete_model_version_tag(rule.name, version.version, SENT_BACK)
    client.set_registered_model_alias(rule.name, rule.alias, version.version)


def _beaten(champion: ModelVersion | None) -> str:
    if champion is None:
        return "there was none."
    return f"version {champion.version} had {_percent(champion.tags)} (`make rollback` puts it back)."


def _percent(tags: Mapping[str, str]) -> str:
    return f"{float(tags[ACCURACY]):.2%}" if ACCURACY in tags else "not validated"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
