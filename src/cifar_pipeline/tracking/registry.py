"""MLflow's registry: which trained models are kept under a name, and which of them is the champion.

A version is a checkpoint of a run. No DVC stage comes here: a stage may be skipped, or run in a queue.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cifar_pipeline.tracking.champion import (
    PENDING,
    PREVIOUS,
    ROLLED_BACK,
    Candidate,
    PromotionPolicy,
    find_champion,
    find_version,
    format_percent,
    make_champion,
    now,
    read_claims,
    rejection_reason,
    settle,
)
from cifar_pipeline.tracking.client import connect
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.paths import main_workspace


def promote(candidate: Candidate, rule: PromotionPolicy, asked_for: bool) -> str:
    """Register the candidate, let it become the champion where it beats the present one, and say so in one line.

    A version that was sent back by `roll_back` stays so unless it is `asked_for` by name. Asked again, nothing changes.
    """
    client, _ = connect()
    with _only_one():
        claims = read_claims(client, rule)
        champion = find_champion(client, rule)
        version = _registered(client, candidate, rule.name)
        new = version is None
        if version is None:
            version = _register(client, candidate, rule.name)
        what = f"Version {version.version} of {rule.name} ({candidate.title})"
        if champion is not None and version.version == champion.version:
            if PENDING in champion.tags:  # whoever set it was killed before it looked at what others did
                settle(client, rule, str(champion.version), claims)
            return f"{what} is the champion already."
        if version.tags.get(ROLLED_BACK) and not asked_for:
            return f"{what} was sent back: `python src/registry.py promote {candidate.run_id}` lets it compete again."
        reason = rejection_reason(version, champion, rule)
        if reason:
            return f"{what} {'is registered' if new else 'stays as it is'}: {reason}"
        make_champion(client, version, champion, rule)
        now_it_is = settle(client, rule, str(version.version), claims)
        if now_it_is is not None and now_it_is.version != version.version:
            return f"{what} is registered: {_changed_meanwhile(now_it_is)}"
        return f"{what} is the champion now: {_previous_summary(champion)}"


def roll_back(rule: PromotionPolicy) -> str:
    """Put the champion's predecessor back, and say so in one line.

    Raises:
        Refusal: there is no champion, or none before it.
    """
    client, _ = connect()
    with _only_one():
        claims = read_claims(client, rule)
        champion = find_champion(client, rule)
        if champion is None:
            raise UserError(
                f"{rule.name} has no {rule.alias}: `python src/registry.py promote` makes one of the pipeline's model."
            )
        former = find_version(client, rule.name, champion.tags.get(PREVIOUS, ""))
        if former is None:
            raise UserError(
                f"There was no {rule.alias} of {rule.name} before version {champion.version}: `make models` lists what "
                "there is, `python src/registry.py promote RUN` lets another one compete."
            )
        # The tag first: who promotes at the same time does not bring it back.
        client.set_model_version_tag(rule.name, champion.version, ROLLED_BACK, now())
        client.set_registered_model_alias(rule.name, rule.alias, former.version)
        now_it_is = settle(client, rule, str(former.version), claims)
        if now_it_is is not None and now_it_is.version != former.version:
            return f"Version {champion.version} of {rule.name} was sent back: {_changed_meanwhile(now_it_is)}"
        return (
            f"Version {former.version} of {rule.name} ({format_percent(former.tags)}) is the champion again, in place of "
            f"version {champion.version} ({format_percent(champion.tags)})."
        )


@dataclass(frozen=True)
class RegisteredVersion:
    """A registered version: NAME/NUMBER, what it is called besides, when it came, and the facts that stand on it."""

    address: str
    aliases: tuple[str, ...]
    date: datetime
    facts: dict[str, str]


def read_versions(name: str | None) -> list[RegisteredVersion]:
    """Every version under `name`, or under any, the newest first."""
    client, _ = connect()
    versions = client.search_model_versions(f"name = '{name}'" if name else None)
    # A search tells nothing of aliases.
    aliases = {name: client.get_registered_model(name).aliases for name in {version.name for version in versions}}
    return [
        RegisteredVersion(
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


def _registered(client: MlflowClient, candidate: Candidate, name: str) -> ModelVersion | None:
    """The version of the candidate; where two workspaces registered it at once, the one with the lower number."""
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{candidate.run_id}'")
    of_checkpoint = [version for version in versions if version.tags.get("checkpoint") == candidate.checkpoint]
    return min(of_checkpoint, key=lambda version: int(version.version), default=None)


def _register(client: MlflowClient, candidate: Candidate, name: str) -> ModelVersion:
    if not client.search_registered_models(f"name = '{name}'"):
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            # Another workspace was faster.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    own = client.create_model_version(
        name,
        source=f"models:/{candidate.model_id}",
        run_id=candidate.run_id,
        tags=candidate.tags,
        model_id=candidate.model_id,
    )
    first = _registered(client, candidate, name)
    if first is None or first.version == own.version:
        return own
    client.delete_model_version(name, own.version)
    return first


def _changed_meanwhile(champion: ModelVersion) -> str:
    return (
        f"version {champion.version} ({format_percent(champion.tags)}), which was promoted elsewhere at the same time, is the "
        "champion now."
    )


def _previous_summary(champion: ModelVersion | None) -> str:
    if champion is None:
        return "there was none."
    return f"version {champion.version} had {format_percent(champion.tags)} (`make rollback` puts it back)."
