"""The recipes of conf/experiment/ as they stand: what each is composed of, and what it was made to reach."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cifar_pipeline.config.choices import CONF
from cifar_pipeline.config.compose import composed, decisive

# In the head of an experiment's file: the accuracy on the test part that it was made for.
TARGET = re.compile(r"^#\s+Target:\s+([\d.]+) %", re.MULTILINE)


@dataclass(frozen=True)
class Recipe:
    """An experiment with overrides such as `data.val_fraction=0`, its values, and its target in percent."""

    experiment: str
    overrides: tuple[str, ...]
    values: dict[str, Any]
    target: float | None

    @property
    def command(self) -> str:
        """What a person types to run it."""
        settings = [f"experiment={self.experiment}", *(f"++overrides.{override}" for override in self.overrides)]
        return " ".join(["dvc exp run", *(f"-S {setting}" for setting in settings)])


def experiments(variants: Sequence[Sequence[str]]) -> Iterator[Recipe]:
    """Each experiment in each of the variants, which are overrides."""
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        target = TARGET.search(path.read_text(encoding="utf-8"))
        for overrides in variants:
            values = decisive(composed([f"experiment={path.stem}", *overrides]))
            yield Recipe(path.stem, tuple(overrides), values, float(target[1]) if target else None)
