"""Read and write the published rows of the leaderboard, reports/speedrun.json."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from copied_project import ROOT
from scipy.stats import t
from train_and_evaluate import Measured

from cifar_pipeline.utils.atomic import atomic_write

FILE = ROOT / "reports" / "speedrun.json"
# Of what a training records about itself, that which decides how it rounds.
ROUNDING_KEYS = ("processor", "device", "threads", "engine", "precision", "processes")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class SeedResult:
    """Result of one seed: seconds to the test accuracy, seconds of training alone, test accuracy in percent.

    `weights` is the SHA-256 of the evaluated weights.
    """

    seed: int
    seconds: float
    training: float
    accuracy: float
    weights: str = ""

    @staticmethod
    def of(seed: int, measured: Measured) -> "SeedResult":
        seconds = measured.train + measured.evaluate
        return SeedResult(seed, seconds, measured.training, measured.accuracy, measured.weights)


@dataclass(frozen=True)
class PublishedRow:
    """A row of the leaderboard: what each seed reached, and everything on which the bits of a result depend."""

    recipe: str
    commit: str
    fingerprint: str
    data: str
    runtime: Mapping[str, str]
    versions: Mapping[str, str]
    results: Sequence[SeedResult]

    @property
    def accuracies(self) -> list[float]:
        return [result.accuracy for result in self.results]

    def spread(self) -> str:
        """Format the mean, the standard deviation and the range of the seeds."""
        values = self.accuracies
        return (
            f"{mean(values):.2f} ± {stdev(values):.2f} % of {len(values)} seeds [{min(values):.2f} - {max(values):.2f}]"
        )

    def prediction_interval(self) -> tuple[float, float]:
        """Return the accuracies in percent between which another training lies with a probability of 95 %.

        It is that of a normal distribution whose mean and variance are known from these seeds only: Student's t times
        s sqrt(1 + 1/n) (Hahn and Meeker, Statistical Intervals, 1991).
        """
        values = self.accuracies
        half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) * (1 + 1 / len(values)) ** 0.5
        return mean(values) - half, mean(values) + half

    def differences(self, other: "PublishedRow") -> list[str]:
        """List what differs of that which decides the bits of a result."""
        pairs = {key: (self.runtime.get(key), other.runtime.get(key)) for key in ROUNDING_KEYS}
        pairs |= {name: (one, other.versions.get(name)) for name, one in self.versions.items() if name != "jax"}
        pairs["data"] = self.data[:12], other.data[:12]
        if self.data == other.data:
            # The fingerprint is of configuration, code and data.
            pairs["configuration or code (fingerprint)"] = self.fingerprint[:12], other.fingerprint[:12]
        return [f"{key}: published {one}, here {here}" for key, (one, here) in pairs.items() if one != here]


def make_row(recipe: str, commit: str, versions: Mapping[str, str], measured: Mapping[int, Measured]) -> PublishedRow:
    """Make the row of a recipe from what was measured of each seed."""
    first = next(iter(measured.values()))
    runtime = {key: str(first.metadata["timing"][key]) for key in ROUNDING_KEYS}
    results = [SeedResult.of(seed, one) for seed, one in measured.items()]
    fingerprint, data = first.metadata["fingerprint"], first.metadata["dataset"]["hash"]
    return PublishedRow(recipe, commit, fingerprint, data, runtime, versions, results)


def read_rows(path: Path = FILE) -> dict[str, PublishedRow]:
    """Read the published rows by recipe; none if the file does not exist."""
    if not path.is_file():
        return {}
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: PublishedRow(**{**row, "results": [SeedResult(**result) for result in row["results"]]})
        for name, row in rows.items()
    }


def published_row(name: str) -> PublishedRow:
    """Return the published row of a recipe. Exits with a sentence if there is none."""
    rows = read_rows()
    if name not in rows:
        sys.exit(
            f"ROW={name}: there is no such row in {FILE.relative_to(ROOT)}, which has {', '.join(rows) or 'none'}."
        )
    return rows[name]


def write_row(row: PublishedRow, path: Path = FILE) -> None:
    """Replace the published row of a recipe."""
    rows = read_rows(path) | {row.recipe: row}
    with atomic_write(path) as temporary:
        content = {name: asdict(each) for name, each in sorted(rows.items())}
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
