"""Where an evaluation's numbers come from: the data, the training, its recipe."""

from collections.abc import Iterator, Mapping
from typing import Any

from cifar_pipeline.console import duration
from cifar_pipeline.nested import flat
from cifar_pipeline.reporting.summary import device_words, skipped_words

Rows = list[tuple[str, str]]


def provenance(run: Mapping[str, str], facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> Rows:
    """Which data, which weights, which code, on which machine."""
    dataset, timing = metrics["dataset"], facts.get("timing", {})
    sizes = ", ".join(f"{part} {size:,}" for part, size in dataset["sizes"].items())
    rows = [
        ("data set", f"{dataset['title']}{', the fallback' if dataset['fallback'] else ''}"),
        ("source", str(dataset["source"])),
        ("images", f"{sizes}{skipped_words(dataset)}; the test part is looked at by this evaluation alone"),
        ("data's hash", str(dataset["hash"])[:16]),
        ("weights", _weights(metrics["checkpoint"], facts)),
        ("parameters", f"{metrics['parameters']:,}"),
        ("trained", f"in {duration(timing['seconds'])} on {device_words(timing)}" if timing else ""),
        ("code", f"commit {facts['commit'][:12]}" if facts.get("commit") else "not under git"),
        ("training's identity", str(facts.get("identity", ""))),
        ("MLflow run", f"{run['name']} ({run['id']})"),
    ]
    return [(name, value) for name, value in rows if value]


def recipe(facts: Mapping[str, Any]) -> Rows:
    """What the training was told to do: the option that was chosen in each group, with its values."""
    chosen, values = facts.get("choices", {}), facts.get("recipe", {})
    rows = [("experiment", str(chosen["experiment"]))] if chosen.get("experiment") else []
    for group, value in values.items():
        if not isinstance(value, Mapping):
            rows.append((group, str(value)))
            continue
        option = chosen.get(group) or str(value.get("_target_", "")).rpartition(".")[2]
        settings = ", ".join(f"{key} {_plain(number)}" for key, number in _settings(value))
        rows.append((group, ": ".join(filter(None, (option, settings)))))
    return rows


def _weights(checkpoint: str, facts: Mapping[str, Any]) -> str:
    epochs = facts.get("epochs")
    if checkpoint == "best":
        return f"those of epoch {facts.get('best_epoch')} of {epochs}, the best on the validation part"
    return f"the last, of epoch {epochs}"


def _settings(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is set, without Hydra's own words such as `_target_`."""
    for key, value in flat(values).items():
        if value is not None and not key.rpartition(".")[2].startswith("_"):
            yield key, value


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
