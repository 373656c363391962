"""What each epoch came to: a row per epoch, its metrics, the file history.csv."""

from pathlib import Path

import pandas

# `epoch` counted from 1; `train/loss`, `train/accuracy`, `val/loss`, `val/accuracy` (with a validation part), `lr`,
# `images_per_second`.
Row = dict[str, float]


def metrics_of(row: Row) -> tuple[Row, int]:
    """The metrics of a row, and the epoch that they are logged under."""
    return {key: value for key, value in row.items() if key != "epoch"}, int(row["epoch"])


def line_of(row: Row, epochs: int) -> str:
    """A row as a line for a person."""
    val = f"val/loss {row['val/loss']:.4f}  val/accuracy {row['val/accuracy']:.2%}  " if "val/loss" in row else ""
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  train/loss {row['train/loss']:.4f}  "
        f"train/accuracy {row['train/accuracy']:.2%}  {val}{row['images_per_second']:,.0f} images/s"
    )


def write_history(rows: list[Row], path: Path) -> None:
    """Write the rows as CSV, the epoch first."""
    pandas.DataFrame(rows).astype({"epoch": int}).to_csv(path, index=False)
