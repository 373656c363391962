"""The table of DVC's experiments shows each change once, in the width of a terminal, whatever changes."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cifar_pipeline.reporting.experiments import (
    changed_values,
    dvc_experiments_table,
    other_data_note,
    parse_experiments,
    read_experiments,
)
from cifar_pipeline.utils.errors import UserError

PARAMS = {"experiment": "tutorial", "seed": 0, "image_dir": "images", "optimizer": None, "overrides": {}}
COMPOSED = {
    "train": {
        "data": {"source": {"root": "images"}},
        "optimizer": {"lr": 0.001, "momentum": 0.9},
        "tta": {"flip": False},
        "seed": 0,
    },
    "evaluate": {"tta": {"flip": False}},
}
METRICS = {"test": {"accuracy": 0.6164, "loss": 1.1}, "val": {"accuracy": 0.65}, "train": {"epochs": 10, "seconds": 75}}


def values(composed: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    """Make the two files of parameters, with `composed` merged into the section of `train`."""
    train = COMPOSED["train"] | (composed or {})
    return {"params.yaml": PARAMS | params, "composed.yaml": COMPOSED | {"train": train}}


def revision(rev: str, name: str | None, files: dict[str, Any], metrics: dict[str, Any] = METRICS) -> dict[str, Any]:
    """Make a revision as `dvc exp show --json` prints it."""
    data = {
        "params": {path: {"data": content} for path, content in files.items()},
        "metrics": {"reports/metrics.json": {"data": metrics}} if metrics else {},
    }
    return {"rev": rev, "name": name, "data": data, "error": None, "experiments": None}


def experiment(tip: dict[str, Any], state: str | None = None) -> dict[str, Any]:
    return {"name": tip["name"], "revs": [tip], "executor": state and {"state": state}}


def shown(revisions: list[dict[str, Any]], width: int = 120) -> list[str]:
    """Return the lines of the table in a terminal of `width` characters."""
    console = Console(file=io.StringIO(), width=width)
    console.print(dvc_experiments_table(list(parse_experiments(revisions))))
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (values(), []),
        (values({"seed": 1}, seed=1), ["seed=1"]),
        (values({"optimizer": {"lr": 0.1, "eps": 1e-8}}, optimizer="adam"), ["optimizer=adam"]),
        (values({"seed": 1}, overrides={"seed": 1}), ["seed=1"]),
        (values({"optimizer": {"lr": 0.001}}), ["~optimizer.momentum"]),
        (values({"data": {"source": {"root": "cats"}}}, image_dir="cats"), ["image_dir=cats"]),
        (values({"seed": 1, "optimizer": {"lr": 1.0}}, experiment="quick"), ["experiment=quick"]),
        # An edited file of conf/ is in no line of params.yaml.
        (values({"optimizer": {"lr": 0.002, "momentum": 0.9}}, seed=1), ["seed=1", "optimizer.lr=0.002"]),
        (values({"optimizer": {"lr": 0.001, "momentum": [0.9, True]}}), ["optimizer.momentum=[0.9, true]"]),
    ],
)  # fmt: skip
def test_a_change_is_listed_once(changed: dict[str, Any], expected: list[str]) -> None:
    assert changed_values(changed, values()) == expected


def test_a_value_of_several_stages_is_listed_once() -> None:
    flipped = {section: {**content, "tta": {"flip": True}} for section, content in COMPOSED.items()}
    assert changed_values({"params.yaml": PARAMS, "composed.yaml": flipped}, values()) == ["tta.flip=true"]


def test_the_table_has_the_workspace_the_commit_and_its_experiments() -> None:
    adam = values({"optimizer": {"lr": 0.1}}, optimizer="adam")
    other = {"test": {"accuracy": 0.7}, "val": {"accuracy": 0.71}, "train": {"seconds": 9.04}}
    commit = revision("63b445f7093f", "main", values())
    commit["experiments"] = [
        experiment(revision("a", "lively-swan", adam, other)),
        experiment(revision("b", "later", values(seed=3), {}), "queued"),
        experiment(revision("c", None, values()) | {"data": None, "error": {"msg": "no"}}, "failed"),
    ]
    head, rule, *rows = [line.split() for line in shown([revision("workspace", None, adam, other), commit])]
    assert head == ["experiment", "test/accuracy", "val/accuracy", "training", "changes", "to", "main"]
    assert set("".join(rule)) == {"─"}
    assert rows == [
        ["workspace", "70.00", "%", "71.00", "%", "9.0", "s", "optimizer=adam"],
        ["main", "61.64", "%", "65.00", "%", "1", "min", "15", "s"],
        ["lively-swan", "70.00", "%", "71.00", "%", "9.0", "s", "optimizer=adam"],
        ["later", "(queued)", "-", "-", "-", "seed=3"],
        ["c", "(failed)", "-", "-", "-"],
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_many_changes_are_wrapped_and_not_cut(width: int) -> None:
    overrides = {"trainer": {f"argument_{number}": number for number in range(30)}}
    commit = revision("63b445f7093f", "main", values())
    commit["experiments"] = [experiment(revision("a", "swan", values(overrides=overrides)))]
    lines = shown([revision("workspace", None, values()), commit], width)
    assert max(map(len, lines)) <= width
    words = "".join("".join(lines).split())
    assert all(f"trainer.argument_{number}={number}" in words for number in range(30))


def test_a_loss_as_the_monitor_is_no_percentage() -> None:
    metrics = {"test": {"accuracy": 0.5}, "val": {"loss": 1.23456}, "train": {"seconds": 9}}
    head, _, row = shown([revision("63b445f7093f", None, values(), metrics)])
    assert "val/loss" in head and row.split() == ["63b445f", "50.00", "%", "1.2346", "9.0", "s"]


def test_experiments_on_other_data_are_named() -> None:
    def on(data_hash: str, rev: str, name: str | None) -> dict[str, Any]:
        made = revision(rev, name, values())
        made["data"]["deps"] = {"data/processed": {"hash": data_hash}}
        return made

    commit = on("cifar10", "63b445f7093f", "main")
    commit["experiments"] = [
        experiment(on("digits", "a", "swan")),
        experiment(on("cifar10", "b", "same")),
        experiment(revision("c", "queued", values(), {}), "queued"),
    ]
    same = list(parse_experiments([on("cifar10", "workspace", None), commit]))
    assert other_data_note(same) == ("Trained on other data than main, so do not compare their accuracy with it: swan.")
    commit["experiments"] = []
    assert other_data_note(list(parse_experiments([on("cifar10", "workspace", None), commit]))) == ""


def test_names_from_outside_cannot_control_the_terminal() -> None:
    commit = revision("63b445f7093f", "ma\x1b[31min", values(optimizer="\x1b]0;"))
    assert "\x1b" not in "".join(shown([revision("workspace", None, values(optimizer="\x1b]0;x")), commit]))


def test_outside_of_a_repository_the_reason_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    with pytest.raises(UserError, match="`dvc exp show` cannot list the experiments: ") as caught:
        read_experiments()
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_without_git_the_commands_that_make_a_repository_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], check=True)
    with pytest.raises(UserError, match="DVC's experiments need a git repository .*`git init`"):
        read_experiments()
