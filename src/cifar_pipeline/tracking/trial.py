"""What identifies a job of a sweep. Apart from what talks to MLflow, which takes seconds to import."""

from collections.abc import Iterable
from dataclasses import dataclass

# The tag that makes a run another's child on MLflow's pages.
PARENT_KEY = "mlflow.parentRunId"
# The tag that says why a trial failed.
FAILURE_TAG = "failure"
# The tag with the seconds that processes spent at a training: its run lasts while it is left off, or taken again, too.
SECONDS_TAG = "seconds"
# The tag of a run that one rerun of a training has, or of the parent while one rerun of the sweep has: its id.
RERUN = "rerun"
# The tag that says which rerun of a sweep a trial's run was made in, or gone on with.
SWEEP_RERUN = "sweep.rerun"
# What a run's name says by itself.
KEYS_IN_RUN_NAME = ("optimizer", "loss", "seed")


@dataclass(frozen=True)
class Trial:
    """One job of a sweep: its parent's run, its number, what it was started with, and of how many (0: not known).

    `rerun` is the id of the sweep's rerun that it belongs to; empty: of none.
    """

    parent: str
    number: int
    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    of: int = 0
    rerun: str = ""

    @property
    def place(self) -> str:
        """Which of how many it is, for a person; a search or a range of numbers may not know how many."""
        return f"trial {self.number + 1}" + (f" of {self.of}" if self.of else "")

    @property
    def label(self) -> str:
        """Its swept values, for a person: `optimizer=adam optimizer.lr=0.01`."""
        return " ".join(f"{key}={value}" for key, value in self._swept_values)

    @property
    def beside(self) -> list[str]:
        """Those of its swept values that `optimizer-loss-seed` does not say."""
        return [f"{key}={value}" for key, value in self._swept_values if key not in KEYS_IN_RUN_NAME]

    @property
    def _swept_values(self) -> list[tuple[str, str]]:
        return [item for item in parse_overrides(self.overrides).items() if item[0] in self.swept]


def parse_overrides(overrides: Iterable[str]) -> dict[str, str]:
    """Overrides of a command line as keys with the values written for them; of two for a key the last counts."""
    pairs = (text.lstrip("+").partition("=") for text in overrides if not text.startswith("~"))
    return {key: value for key, _, value in pairs}
