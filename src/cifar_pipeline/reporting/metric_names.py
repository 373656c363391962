"""What the name of a metric says: `val/accuracy` is a fraction of the validation part, and better the higher it is."""

PARTS = {"train": "training", "val": "validation", "test": "test"}


def is_fraction(metric: str) -> bool:
    """Say whether a metric is a fraction, to be read in per cent."""
    return "accuracy" in metric


def in_words(metric: str) -> str:
    """Name a metric as a person would: `val/accuracy` is `validation accuracy`."""
    part, _, name = metric.rpartition("/")
    return f"{PARTS.get(part, part)} {name}".strip().replace("_", " ")


def lower_is_better(metric: str) -> bool:
    """Say whether a metric is better the lower it is: a loss or an error is, an accuracy isn't."""
    return any(word in metric.rpartition("/")[2] for word in ("loss", "error"))
