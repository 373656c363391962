"""What identifies a job of a sweep. Apart from what talks to MLflow, which takes seconds to import."""

from dataclasses import dataclass

# The tag that makes a run another's child on MLflow's pages.
PARENT = "mlflow.parentRunId"
# The tag that counts how often a process at a training ended without a word.
DEATHS = "deaths"


@dataclass(frozen=True)
class Point:
    """One job of a sweep: its parent's run, its number, and what it was started with."""

    parent: str
    number: int
    overrides: tuple[str, ...]
    swept: tuple[str, ...]

    @property
    def label(self) -> str:
        """Its swept values, for a person: `optimizer=adam optimizer.lr=0.01`."""
        return " ".join(text for text in self.overrides if text.lstrip("+").partition("=")[0] in self.swept)
