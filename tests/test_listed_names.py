"""A message lists at most ten of the user's names and says how many more there are, however many there are."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_pipeline.config.params import suggest
from cifar_pipeline.data.image_paths import SkipCounts
from cifar_pipeline.data.sources.csv_table import CsvTable
from cifar_pipeline.data.sources.image_files import warn_missing_classes
from cifar_pipeline.data.splits import stratified_split
from cifar_pipeline.models.pretrained import PretrainedWeights, load_into
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import list_names

NAMES = [f"name{number:04}" for number in range(2400)]
OPTIONS: dict[str, Any] = {
    "root": ".", "csv_file": "labels.csv", "size": 8, "resize_mode": "crop", "test_fraction": 0.25, "split_seed": 0,
    "max_unreadable": 0, "max_megapixels": 200,
}  # fmt: skip


def table(head: list[str], *rows: list[str]) -> Callable[[], Any]:
    def read() -> Any:
        lines = [",".join(cells) for cells in (head, *rows)]
        Path("labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return CsvTable(**OPTIONS).fetch(Path("raw"), [], 1, Path("cache"))

    return read


def load_other_classes() -> None:
    from torch import nn

    net = nn.Linear(2, 2)
    load_into(net, PretrainedWeights("w", "w", "", net.state_dict(), classes=tuple(NAMES)), ("a", "b"), False)


@pytest.mark.parametrize(
    "refused",
    [
        lambda: stratified_split(np.arange(len(NAMES)), 0.5, 0, NAMES),
        table(NAMES),
        table(["path", "label", *NAMES], ["a.png", "a"]),
        load_other_classes,
    ],
    ids=["single images", "columns", "cells", "classes of weights"],
)
def test_a_refusal_is_short(refused: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        refused()
    assert len(str(raised.value)) < 600 and re.search(r" and 2,39\d more", str(raised.value))


def test_a_list_of_reasons_is_short() -> None:
    skipped = SkipCounts((name, f".{name} is not an image suffix") for name in NAMES)
    assert str(skipped).endswith("; .name0009 is not an image suffix (1) and 2,390 more")


def test_a_warning_is_short(caplog: pytest.LogCaptureFixture) -> None:
    warn_missing_classes({"val": {"another"}}, NAMES)
    (message,) = caplog.messages
    assert "name0009 and 2,390 more, so they are not measured" in message and "name0010" not in message


def test_ten_names_are_listed_without_a_count() -> None:
    assert list_names(NAMES[:10]) == ", ".join(NAMES[:10])
    assert suggest("other", NAMES[:11]).endswith("name0009 and 1 more.")
