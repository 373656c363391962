"""The champion of a registered model, and how several workspaces agree on it through one server.

MLflow has no compare-and-set: of two who set an alias, the last one wins, whatever the first one read. So a promotion
first announces itself in a tag of its version, sets the alias, and then looks at what others announced since before it
read the alias. Where there is anything, the best of all that ever won takes the alias. The last to
set the alias is the last to look.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig

from cifar_pipeline.console import warn
from cifar_pipeline.tracking.candidates import ACCURACY

# Tags of a version: since when it has been the champion, which version was it before, and whether it was sent back.
SINCE, BEFORE, SENT_BACK = "champion.since", "champion.before", "champion.sent_back"
# The tag of a version that won, until it is known whether somebody else set the alias at the same time.
PENDING = "champion.pending"
# Accuracies are quotients of whole numbers: beyond these digits lies the error of subtracting two of them.
DIGITS = 9
# How often the alias is set again where others keep setting it.
MOST_TURNS = 20


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


Claims = Mapping[str, tuple[str, bool]]


def read_claims(client: MlflowClient, rule: Rule) -> Claims:
    """Read which versions have won, since when, and which are pending. To be called before the alias is read."""
    return {number: _claim(version) for number, version in read_numbered(client, rule.name).items()}


def find_champion(client: MlflowClient, rule: Rule) -> ModelVersion | None:
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


def reason_against(version: ModelVersion, champion: ModelVersion | None, rule: Rule) -> str:
    """Why a version does not become the champion, as the end of a sentence; empty where it does."""
    if champion is None:
        return ""
    of_champion = f"the champion, version {champion.version}"
    if version.tags.get("dataset.hash") != champion.tags.get("dataset.hash"):
        return f"{of_champion}, was measured on other data and is not replaced (another registry.name begins anew)."
    if ACCURACY not in version.tags or ACCURACY not in champion.tags:
        return f"without a validation part it can't be compared with {of_champion}."
    gain = round(float(version.tags[ACCURACY]) - float(champion.tags[ACCURACY]), DIGITS)
    if gain <= rule.margin:
        by = f" by more than {100 * rule.margin:g} points" if rule.margin else ""
        return f"it does not beat {of_champion} ({percent(champion.tags)}){by}."
    return ""


def make_champion(client: MlflowClient, version: ModelVersion, champion: ModelVersion | None, rule: Rule) -> None:
    """Announce the version as the champion's successor, then set the alias. `settle` has to follow."""
    # The tags first: broken off in between, the champion is still the one that was.
    client.set_model_version_tag(rule.name, version.version, PENDING, now())
    client.set_model_version_tag(rule.name, version.version, BEFORE, champion.version if champion else "")
    client.set_model_version_tag(rule.name, version.version, SINCE, now())
    if version.tags.get(SENT_BACK):
        client.delete_model_version_tag(rule.name, version.version, SENT_BACK)
    client.set_registered_model_alias(rule.name, rule.alias, version.version)


def settle(client: MlflowClient, rule: Rule, number: str, before: Claims) -> ModelVersion | None:
    """Return the champion after the alias was set to version `number`, once nothing that others did speaks against it.

    `before` are the claims that were read before the alias was.
    """
    champion = None
    for turn in range(MOST_TURNS):
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
            _note_former(client, rule, versions, champion)
            break
        if champion is not None and SENT_BACK in champion.tags:
            client.set_registered_model_alias(rule.name, rule.alias, best.version)
        else:
            make_champion(client, best, champion, rule)
    else:
        warn(f"Others keep setting {rule.champion}: `make models` shows who it is, `make rollback` goes back.")
    for own in {number, str(champion.version) if champion else number}:
        if (version := find_version(client, rule.name, own)) is not None and PENDING in version.tags:
            client.delete_model_version_tag(rule.name, own, PENDING)
    return champion


def percent(tags: Mapping[str, str]) -> str:
    """A version's accuracy for a person."""
    return f"{float(tags[ACCURACY]):.2%}" if ACCURACY in tags else "not validated"


def now() -> str:
    """The time as a tag; two claims within one second differ."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _claim(version: ModelVersion) -> tuple[str, bool]:
    return version.tags.get(SINCE, ""), PENDING in version.tags


def _best(versions: Mapping[str, ModelVersion], champion: ModelVersion | None, rule: Rule) -> ModelVersion | None:
    """The best of those that ever won and were not sent back, if it beats the champion, or that was sent back."""
    beaten = None if champion is not None and SENT_BACK in champion.tags else champion
    better = [version for version in _winners(versions, champion) if _beats(version, beaten, rule)]
    return max(better, key=_order, default=None)


def _winners(versions: Mapping[str, ModelVersion], champion: ModelVersion | None) -> list[ModelVersion]:
    """Those that ever won and were not sent back, but for the champion."""
    return [
        version
        for number, version in versions.items()
        if any(_claim(version)) and SENT_BACK not in version.tags and (not champion or number != str(champion.version))
    ]


def _beats(version: ModelVersion, champion: ModelVersion | None, rule: Rule) -> bool:
    """Whether it replaces the champion.

    Of two that won against the same predecessor at once, and can't be compared, it is the one with an accuracy, or else
    the one that was registered first, whose data is that of all others.
    """
    if not reason_against(version, champion, rule):
        return True
    assert champion is not None
    if version.tags.get(BEFORE) != champion.tags.get(BEFORE):
        return False
    if version.tags.get("dataset.hash") != champion.tags.get("dataset.hash"):
        return int(version.version) < int(champion.version)
    return ACCURACY in version.tags and ACCURACY not in champion.tags


def _order(version: ModelVersion) -> tuple[float, int]:
    return float(version.tags.get(ACCURACY, -1)), -int(version.version)


def _note_former(
    client: MlflowClient, rule: Rule, versions: Mapping[str, ModelVersion], champion: ModelVersion | None
) -> None:
    """Let a champion that won together with others name the best of them as its predecessor."""
    if champion is None:
        return
    beaten = [version for version in _winners(versions, champion) if _beats(champion, version, rule)]
    former = max(beaten, key=_order, default=None)
    if former is not None and champion.tags.get(BEFORE) != str(former.version):
        client.set_model_version_tag(rule.name, champion.version, BEFORE, former.version)
