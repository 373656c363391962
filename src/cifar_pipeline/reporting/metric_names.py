"""Readable names and numbers of metrics, for tables, figures and pages. Imports nothing that takes time to load.

Metrics are named `SPLIT/METRIC`, such as `val/accuracy`.
"""

from collections.abc import Mapping

# Metrics of the test split that are always measured; a user chooses others.
BUILT_IN_METRICS = ("accuracy", "top3_accuracy", "loss", "calibration_error")
SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
ACRONYMS = ("auroc", "f1")


def is_fraction(metric: str) -> bool:
    """Return whether a metric is a fraction, which is shown as a percentage."""
    return metric.endswith("accuracy")


def display_name(metric: str) -> str:
    """Return a readable name of a metric: `validation accuracy` for `val/accuracy`."""
    split, _, name = metric.rpartition("/")
    words = f"{SPLIT_NAMES.get(split, split)} {name}".strip().replace("_", " ").split(" ")
    return " ".join(word.upper() if word in ACRONYMS else word for word in words)


def chosen_metrics(test: Mapping[str, float]) -> dict[str, str]:
    """Format the metrics of the test split that a user has chosen in `metrics`, by their readable names."""
    return {
        display_name(name): format_metric(name, value) + unit(name)
        for name, value in test.items()
        if name not in BUILT_IN_METRICS
    }


def unit(metric: str) -> str:
    """Return the unit of what `format_metric` returns, with a space before it; empty for none."""
    return " %" if is_fraction(metric) else " s" if metric.endswith("seconds") else ""


def heading_name(metric: str) -> str:
    """Return a readable name of a metric that starts with a capital letter."""
    name = display_name(metric)
    return name[:1].upper() + name[1:]


def format_metric(metric: str, value: float, digits: int = 2) -> str:
    """Format a metric without unit: a fraction in percent, others with two more digits, large ones as a power.

    Numbers of parameters are whole, and seconds have `digits` digits.
    """
    if metric == "parameters":
        return f"{value:,.0f}"
    if metric.endswith("seconds"):
        return f"{value:,.{digits}f}"
    if is_fraction(metric):
        return f"{100 * value:.{digits}f}"
    return f"{value:.{digits + 2}f}" if abs(value) < 1000 else f"{value:.{digits}e}"
