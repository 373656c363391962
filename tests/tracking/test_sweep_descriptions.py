"""The description of a sweep's parent run: the user's own text, then the comparison, within MLflow's limit."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from cifar_pipeline.tracking.client import connect
from cifar_pipeline.tracking.provenance import DESCRIPTION_TAG
from cifar_pipeline.tracking.sweeps import LEFT_OUT, describe_sweep, open_sweep

HEADING = "## Comparison of the trials"
Described = Callable[[list[str]], str]


@pytest.fixture
def described(workspace: Path) -> Described:
    """Return a function that describes one sweep, whose own description is `baseline`, and returns what MLflow has."""
    parent, _ = open_sweep("described", "sweep", {}, labels={DESCRIPTION_TAG: "baseline"})

    def describe(lines: list[str]) -> str:
        describe_sweep(parent, HEADING, lines)
        return str(connect()[0].get_run(parent).data.tags[DESCRIPTION_TAG])

    return describe


def test_it_follows_the_users_text_and_replaces_the_comparison_before(described: Described) -> None:
    assert described(["| rank |", "| --- |", "| 1 |"]) == f"baseline\n\n{HEADING}\n\n| rank |\n| --- |\n| 1 |"
    assert described(["another"]) == f"baseline\n\n{HEADING}\n\nanother"


def test_lines_above_mlflows_limit_are_left_out(described: Described) -> None:
    lines = [f"| {number:04} | {'x' * 90} |" for number in range(200)]
    content = described(lines)
    assert content.splitlines()[-1] == LEFT_OUT and content.count("| 00") > 70
    assert MAX_TAG_VAL_LENGTH - 100 <= len(content) <= MAX_TAG_VAL_LENGTH
