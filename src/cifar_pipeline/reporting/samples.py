"""The contact sheet: what the pictures of each class look like."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cifar_pipeline.reporting.mosaic import as_colour, show, tile
from cifar_pipeline.reporting.style import FONT, TEXT, new_figure
from cifar_pipeline.visible import visible


def contact_sheet(
    images: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    title: str,
    samples: int = 10,
    block: int = 20,
) -> Figure:
    """Draw the first images of each class, a row a class.

    Args:
        images: `[N, H, W, 1 or 3] uint8`, memory-mapped or not; only those shown are read.
        labels: `[N] int`, numbers of classes.
        classes: the names, in order.
        title: names the data set.
        samples: images a class; a class that has fewer leaves places empty.
        block: rows at most; more classes go on in a further panel on the right.
    """
    classes = [visible(label) for label in classes]
    most = int(np.bincount(labels, minlength=1).max())
    samples = max(1, min(samples, most))
    panels = -(-len(classes) // block)
    rows = min(len(classes), block)
    cell = 0.72 if panels == 1 else 0.5
    name = 0.1 * max(len(label) for label in classes)
    figure = new_figure(max(6.0, panels * (samples * cell + name + 0.4)), rows * cell + 0.9, title)
    chosen = [_first(images, labels, number, samples) for number in range(len(classes))]
    blank = np.full_like(as_colour(np.asarray(images[:1]))[0], 255)
    for panel, axes in enumerate(figure.subplots(1, panels, squeeze=False)[0]):
        numbers = range(panel * block, panel * block + rows)
        places = [place for number in numbers for place in (chosen[number] if number < len(chosen) else [])]
        places += [blank] * (rows * samples - len(places))
        show(axes, tile(places, samples), rows, samples)
        names = [classes[number] for number in numbers if number < len(classes)]
        axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=TEXT, family=FONT, parse_math=False)
    return figure


def _first(images: np.ndarray, labels: np.ndarray, number: int, samples: int) -> list[np.ndarray | None]:
    indices = np.flatnonzero(labels == number)[:samples]
    pictures: list[np.ndarray | None] = list(as_colour(np.asarray(images[indices])))
    return pictures + [None] * (samples - len(pictures))
