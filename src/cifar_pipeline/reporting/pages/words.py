"""What figures say, in words: for whoever can't see them, and where pictures are off."""

import numpy as np
import pandas as pd

from cifar_pipeline.reporting.calibration import Reliability
from cifar_pipeline.reporting.curves import best_epoch
from cifar_pipeline.reporting.metric_names import PARTS


def about_curve(history: pd.DataFrame, name: str) -> str:
    """Where the curves of `loss` or `accuracy` begin, where they end, and which epoch was best."""
    first, last = int(history["epoch"].iloc[0]), int(history["epoch"].iloc[-1])
    said = [
        f"{words} from {written(name, known.iloc[0])} to {written(name, known.iloc[-1])}"
        for part, words in PARTS.items()
        if len(known := _known(history, f"{part}/{name}"))
    ]
    best = best_epoch(history)
    if best is not None and name == "accuracy":
        top = written(name, history["val/accuracy"].iloc[best])
        said.append(f"the best validation accuracy is {top}, in epoch {history['epoch'].iloc[best]:.0f}")
    epochs = f"over epochs {first} to {last}" if last > first else f"in epoch {first}"
    return f"{name.capitalize()} {epochs}: {'; '.join(said)}."


def about_calibration(found: Reliability) -> str:
    """How often answers are right that are given with much probability, with middling and with little."""
    filled = np.flatnonzero(found.counts)
    chosen = dict.fromkeys(int(filled[place]) for place in (0, len(filled) // 2, -1))
    said = [
        f"of {found.counts[b]:,} answers given with {100 * found.edges[b]:.0f} to {100 * found.edges[b + 1]:.0f} %, "
        f"{100 * found.accuracy[b]:.0f} % are right"
        for b in chosen
    ]
    return f"Reliability diagram in {len(found.counts)} bins: {'; '.join(said)}."


def direction(excess: float) -> str:
    """What a model is whose answers have `excess` more probability than they are right; empty where there is none."""
    if round(100 * abs(excess), 1) == 0:
        return ""
    return "too sure" if excess > 0 else "too modest"


def written(name: str, value: float) -> str:
    """A metric's value as a person would write it."""
    return f"{100 * value:.1f} %" if name == "accuracy" else f"{value:.3f}"


def _known(history: pd.DataFrame, key: str) -> pd.Series:
    return pd.to_numeric(history[key], errors="coerce").dropna() if key in history else pd.Series(dtype=float)
