"""The surest mistakes: the wrong predictions that the model was surest of, as pictures."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cifar_pipeline.reporting.answers import surest
from cifar_pipeline.reporting.mosaic import as_colour, enlarge
from cifar_pipeline.reporting.style import FONT, INK, SMALL, new_figure, only_words, picture_axes
from cifar_pipeline.visible import visible


def surest_mistakes(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    count: int,
    title: str,
    columns: int = 8,
) -> Figure:
    """Draw the wrong predictions of highest probability, surest first, each as "cat, taken for dog (98 %)".

    Args:
        images: `[N, H, W, 1 or 3] uint8`; only those shown are read.
        labels, predictions: `[N] int64`, numbers of classes.
        probabilities: `[N] float` of the predictions, in [0, 1].
        classes: the names, in order.
        count: pictures at most. Where there is none to show, the figure says why.
        title: names the model and the data set.
        columns: pictures in a row.
    """
    classes = [visible(label) for label in classes]
    wrong = surest(labels != predictions, probabilities)
    shown = wrong[:count]
    if len(wrong) == 0:
        return only_words(f"No mistakes: all {len(labels):,} images are recognised.", title)
    if len(shown) == 0:
        return only_words(f"{len(wrong):,} of {len(labels):,} images are mistaken; none is shown.", title)

    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(max(1.75 * columns, 7.0), 2.05 * rows + 0.7, title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    pictures = enlarge(as_colour(images[shown]), 160)
    captions = [
        f"{_short(classes[labels[index]])}, taken for\n"
        f"{_short(classes[predictions[index]])} ({100 * probabilities[index]:.0f} %)"
        for index in shown
    ]
    # About 21 letters of the usual size are as wide as a picture.
    longest = max(len(line) for caption in captions for line in caption.splitlines())
    letters = SMALL * min(1.0, 21 / longest)
    for axes, caption, picture in zip(panels, captions, pictures, strict=False):
        picture_axes(axes)
        axes.imshow(picture)
        axes.set_title(caption, fontsize=letters, color=INK, family=FONT, parse_math=False)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    return figure


def _short(name: str, letters: int = 16) -> str:
    return name if len(name) <= letters else name[: letters - 3] + "..."
