"""Register models in MLflow: promote a checkpoint to champion, roll back to the previous one, list the versions.

A version is a checkpoint of a run. No DVC stage registers models, because stages may be skipped or run in a queue.
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
    format_monitor,
    make_champion,
    now,
    read_claims,
    rejection_reason,
    settle,
)
from cifar_pipeline.tracking.client import connect
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.paths import main_workspace


def promote(candidate: Candidate, policy: PromotionPolicy, explicit: bool) -> str:
    """Register the candidate and make it the champion if it beats the present one. Idempotent.

    Args:
        explicit: whether the user named the run; otherwise a version that was rolled back is not promoted again.

    Returns:
        The outcome in one line.
    """
    client, _ = connect()
    with _registry_lock():
        claims = read_claims(client, policy)
        champion = find_champion(client, policy)
        version = _find_registered(client, candidate, policy.name)
        is_new = version is None
        if version is None:
            version = _register(client, candidate, policy.name)
        title = f"Version {version.version} of {policy.name} ({candidate.title})"
        if champion is not None and version.version == champion.version:
            if PENDING in champion.tags:  # The process that set it was killed before `settle` finished.
                settle(client, policy, str(champion.version), claims)
            return f"{title} is the champion already."
        if version.tags.get(ROLLED_BACK) and not explicit:
            return f"{title} was rolled back: `python src/registry.py promote {candidate.run_id}` promotes it again."
        reason = rejection_reason(version, champion, policy)
        if reason:
            return f"{title} {'is registered' if is_new else 'was registered before'}: {reason}"
        make_champion(client, version, champion, policy)
        settled = settle(client, policy, str(version.version), claims)
        if settled is not None and settled.version != version.version:
            return f"{title} is registered: {_concurrent_summary(settled)}"
        return f"{title} is the champion now: {_previous_summary(champion)}"


def roll_back(policy: PromotionPolicy) -> str:
    """Make the previous champion the champion again, and return the outcome in one line.

    Raises:
        UserError: there is no champion, or none before it.
    """
    client, _ = connect()
    with _registry_lock():
        claims = read_claims(client, policy)
        champion = find_champion(client, policy)
        if champion is None:
            raise UserError(
                f"{policy.name} has no {policy.alias}: `python src/registry.py promote` promotes the pipeline's model."
            )
        previous = find_version(client, policy.name, champion.tags.get(PREVIOUS, ""))
        if previous is None:
            raise UserError(
                f"{policy.name} had no {policy.alias} before version {champion.version}: `make list-models` lists its "
                "versions, `python src/registry.py promote RUN` promotes another one."
            )
        # The tag comes first, so that a concurrent promotion does not restore this version.
        client.set_model_version_tag(policy.name, champion.version, ROLLED_BACK, now())
        client.set_registered_model_alias(policy.name, policy.alias, previous.version)
        settled = settle(client, policy, str(previous.version), claims)
        if settled is not None and settled.version != previous.version:
            return f"Version {champion.version} of {policy.name} was rolled back: {_concurrent_summary(settled)}"
        return (
            f"Version {previous.version} of {policy.name} ({format_monitor(previous.tags)}) is the champion again, in "
            f"place of version {champion.version} ({format_monitor(champion.tags)})."
        )


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model; `address` is NAME/NUMBER, `date` when it was registered."""

    address: str
    aliases: tuple[str, ...]
    date: datetime
    tags: dict[str, str]


def read_versions(name: str | None) -> list[RegisteredVersion]:
    """List the versions of the model `name`, or of all models, newest first."""
    client, _ = connect()
    versions = client.search_model_versions(f"name = '{name}'" if name else None)
    # search_model_versions returns no aliases.
    aliases = {name: client.get_registered_model(name).aliases for name in {version.name for version in versions}}
    return [
        RegisteredVersion(
            address=f"{version.name}/{version.version}",
            aliases=tuple(alias for alias, number in aliases[version.name].items() if number == version.version),
            date=datetime.fromtimestamp(version.creation_timestamp / 1000),
            tags=dict(version.tags),
        )
        for version in sorted(versions, key=lambda version: version.creation_timestamp, reverse=True)
    ]


@contextmanager
def _registry_lock() -> Iterator[None]:
    """Serialize promotions and rollbacks of this workspace."""
    with FileLock(main_workspace() / ".cache" / "registry.lock"):
        yield


def _find_registered(client: MlflowClient, candidate: Candidate, name: str) -> ModelVersion | None:
    """Find the candidate's version; the lowest number if two workspaces registered it at the same time."""
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{candidate.run_id}'")
    matching = [version for version in versions if version.tags.get("checkpoint") == candidate.checkpoint]
    return min(matching, key=lambda version: int(version.version), default=None)


def _register(client: MlflowClient, candidate: Candidate, name: str) -> ModelVersion:
    if not client.search_registered_models(f"name = '{name}'"):
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            # Another workspace may have created it in between.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    created = client.create_model_version(
        name,
        source=f"models:/{candidate.model_id}",
        run_id=candidate.run_id,
        tags=candidate.tags,
        model_id=candidate.model_id,
    )
    first = _find_registered(client, candidate, name)
    if first is None or first.version == created.version:
        return created
    client.delete_model_version(name, created.version)
    return first


def _concurrent_summary(champion: ModelVersion) -> str:
    return (
        f"version {champion.version} ({format_monitor(champion.tags)}), which was promoted elsewhere at the same time, "
        "is the champion now."
    )


def _previous_summary(champion: ModelVersion | None) -> str:
    if champion is None:
        return "there was none."
    return f"version {champion.version} had {format_monitor(champion.tags)} (`make rollback` restores it)."
