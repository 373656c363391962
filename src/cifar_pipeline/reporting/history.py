"""The table of epochs that a training leaves, read back."""

from io import StringIO

import pandas as pd

from cifar_pipeline.console import Refusal

REMEDY = "`dvc repro -f train` writes it again, without training where .cache/ still has it"


def read_history(text: str, name: str) -> pd.DataFrame:
    """Read the rows of history.csv, an epoch each, from its text; `name` is for the sentence.

    Raises Refusal where a row has too many cells, a cell is no number, or there is no epoch.
    """
    try:
        table = pd.read_csv(StringIO(text))
        numbers = table.astype(float)
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes a surplus cell in each row for the row's name
            raise ValueError("rows have more cells than there are columns")
    except (ValueError, pd.errors.ParserError) as error:
        reason = " ".join(str(error).split())[:100]
        raise Refusal(f"{name} is not what a training writes ({reason}): {REMEDY}.") from None
    needed = {"epoch", "train/loss", "train/accuracy"}
    missing = sorted(needed - set(numbers))
    if missing or not len(numbers):
        what = f"it has no column {missing[0]}" if missing else "it has no epoch"
        raise Refusal(f"{name} is not what a training writes ({what}): {REMEDY}.")
    return table
