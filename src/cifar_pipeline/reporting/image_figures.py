"""Many small images as one: a single image draws a hundred times faster than a hundred panels.

The contact sheet: what the images of each class look like.

The surest mistakes: the wrong predictions that the model was surest of, as images.

The first layer's filters: what the network looks for in the pixels.

What a network looked at, as an image: the pixels that speak for its answer and those that speak against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cifar_pipeline.reporting.metrics import sort_by_confidence
from cifar_pipeline.reporting.style import FONT, MUTED, SMALL, TEXT, TEXT_COLOR, image_axes, message_figure, new_figure
from cifar_pipeline.utils.text import escape_control


def to_rgb(pictures: np.ndarray) -> np.ndarray:
    """Bring images `[N, H, W]` or `[N, H, W, 1 or 3] uint8` to `[N, H, W, 3] uint8`; grey is repeated.

    Raises:
        ValueError: another shape or type.
    """
    if pictures.ndim == 3:
        pictures = pictures[..., None]
    if pictures.ndim != 4 or pictures.shape[3] not in (1, 3) or pictures.dtype != np.uint8:
        raise ValueError(f"Images must be [N, H, W, 1 or 3] uint8, got {list(pictures.shape)} {pictures.dtype}.")
    return np.repeat(pictures, 3, axis=3) if pictures.shape[3] == 1 else pictures


def upscale_image(pictures: np.ndarray, pixels: int) -> np.ndarray:
    """Repeat the pixels of `[..., H, W, 3]` by a whole factor until an image is about `pixels` high: kept sharp."""
    factor = max(1, round(pixels / pictures.shape[-3]))
    return pictures.repeat(factor, axis=-3).repeat(factor, axis=-2)


def image_grid(pictures: Sequence[np.ndarray | None], columns: int, pixels: int = 96, gap: float = 0.04) -> np.ndarray:
    """Lay images out row by row on white.

    Args:
        images: at least one `[H, W, 3] uint8`, all of one size; None leaves a place empty.
        columns: places in a row.
        pixels: about how high an image becomes.
        gap: white around each image, as a fraction of its height.

    Returns:
        `[rows * cell height, columns * cell width, 3] uint8`.
    """
    sharp = [None if image is None else upscale_image(image, pixels) for image in pictures]
    height, width = next(image.shape[:2] for image in sharp if image is not None)
    margin = max(1, round(gap * height))
    rows = -(-len(sharp) // columns)
    sheet = np.full((rows, height + 2 * margin, columns, width + 2 * margin, 3), 255, np.uint8)
    for place, image in enumerate(sharp):
        if image is not None:
            row, column = divmod(place, columns)
            sheet[row, margin : margin + height, column, margin : margin + width] = image
    return sheet.reshape(rows * (height + 2 * margin), columns * (width + 2 * margin), 3)


def draw_grid(axes: Axes, sheet: np.ndarray, rows: int, columns: int) -> None:
    """Draw what `tile` made on `axes`; a place (row, column) then spans row to row + 1, column to column + 1."""
    image_axes(axes)
    cell_height, cell_width = sheet.shape[0] / rows, sheet.shape[1] / columns
    axes.imshow(sheet, extent=(0, columns, rows, 0), aspect=cell_height / cell_width, interpolation="antialiased")


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
    classes = [escape_control(label) for label in classes]
    most = int(np.bincount(labels, minlength=1).max())
    samples = max(1, min(samples, most))
    panels = -(-len(classes) // block)
    rows = min(len(classes), block)
    cell = 0.72 if panels == 1 else 0.5
    name = 0.1 * max(len(label) for label in classes)
    figure = new_figure(max(6.0, panels * (samples * cell + name + 0.4)), rows * cell + 0.9, title)
    chosen = [_first(images, labels, number, samples) for number in range(len(classes))]
    blank = np.full_like(to_rgb(np.asarray(images[:1]))[0], 255)
    for panel, axes in enumerate(figure.subplots(1, panels, squeeze=False)[0]):
        numbers = range(panel * block, panel * block + rows)
        places = [place for number in numbers for place in (chosen[number] if number < len(chosen) else [])]
        places += [blank] * (rows * samples - len(places))
        draw_grid(axes, image_grid(places, samples), rows, samples)
        names = [classes[number] for number in numbers if number < len(classes)]
        axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=TEXT, family=FONT, parse_math=False)
    return figure


def _first(images: np.ndarray, labels: np.ndarray, number: int, samples: int) -> list[np.ndarray | None]:
    indices = np.flatnonzero(labels == number)[:samples]
    pictures: list[np.ndarray | None] = list(to_rgb(np.asarray(images[indices])))
    return pictures + [None] * (samples - len(pictures))


def error_figure(
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
        count: images at most. Where there is none to show, the figure says why.
        title: names the model and the data set.
        columns: images in a row.
    """
    classes = [escape_control(label) for label in classes]
    wrong = sort_by_confidence(labels != predictions, probabilities)
    shown = wrong[:count]
    if len(wrong) == 0:
        return message_figure(f"No mistakes: all {len(labels):,} images are recognised.", title)
    if len(shown) == 0:
        return message_figure(f"{len(wrong):,} of {len(labels):,} images are mistaken; none is shown.", title)

    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(max(1.75 * columns, 7.0), 2.05 * rows + 0.7, title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    pictures = upscale_image(to_rgb(images[shown]), 160)
    captions = [
        f"{_short(classes[labels[index]])}, taken for\n"
        f"{_short(classes[predictions[index]])} ({100 * probabilities[index]:.0f} %)"
        for index in shown
    ]
    # About 21 letters of the usual size are as wide as an image.
    longest = max(len(line) for caption in captions for line in caption.splitlines())
    letters = SMALL * min(1.0, 21 / longest)
    for axes, caption, image in zip(panels, captions, pictures, strict=False):
        image_axes(axes)
        axes.imshow(image)
        axes.set_title(caption, fontsize=letters, color=TEXT_COLOR, family=FONT, parse_math=False)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    return figure


def _short(name: str, letters: int = 16) -> str:
    return name if len(name) <= letters else name[: letters - 3] + "..."


NO_CONV_MESSAGE = "No filters: the network's first layer is no convolution."


@dataclass(frozen=True)
class FilterImages:
    """Filters as images `[M, h, w, 3] uint8`, in so many columns; `what` says how one of them is drawn.

    All share one scale, symmetric around zero: middle grey is 0, black and white (or full colour) `largest`, the
    largest magnitude of all.
    """

    pictures: np.ndarray
    columns: int
    what: str
    largest: float

    @property
    def legend(self) -> str:
        """How to read them."""
        return f"each filter is {self.what}; middle grey is 0, the ends are -{self.largest:.2g} and {self.largest:.2g}"


def filter_images(weights: np.ndarray) -> FilterImages:
    """Draw each filter of a first convolution: one colour image where it sees three channels, else grey planes.

    Args:
        weights: `[O, C, h, w] float`; with other than 1 or 3 channels each filter is a row of C planes, or a column
            where there are more filters than channels.

    Raises:
        ValueError: not four dimensions, or values that are not finite.
    """
    if weights.ndim != 4 or not np.isfinite(weights).all():
        raise ValueError(f"Filters must be [O, C, h, w] and finite, got {list(weights.shape)}.")
    filters, channels = weights.shape[:2]
    largest = float(np.abs(weights).max(initial=0.0))
    # All zero is drawn as middle grey.
    levels = np.round(127.5 + 127.5 * weights / (largest or 1.0)).astype(np.uint8)
    if channels == 3:
        return FilterImages(levels.transpose(0, 2, 3, 1), _columns(filters), "a colour image", largest)
    if channels == 1:
        return FilterImages(_grey(levels), _columns(filters), "a grey plane", largest)
    if filters > channels:
        grey = _grey(levels.swapaxes(0, 1))
        return FilterImages(grey, filters, "a column of grey planes, one a channel", largest)
    return FilterImages(_grey(levels), channels, "a row of grey planes, one a channel", largest)


def first_layer_figure(weights: np.ndarray, title: str) -> Figure:
    """Draw the filters of a first convolution as `filter_images` makes them.

    Args:
        weights: `[O, C, h, w] float`. With no filters (O = 0) the figure says that there are none.
        title: names the model and the data set.

    Raises:
        ValueError: not four dimensions, or values that are not finite.
    """
    drawn = filter_images(weights)
    if weights.size == 0:
        return message_figure(NO_CONV_MESSAGE, title)
    rows, columns = -(-len(drawn.pictures) // drawn.columns), drawn.columns
    cell = float(np.clip(12.0 / columns, 0.35, 1.6))
    figure = new_figure(max(cell * columns + 0.3, 6.0), cell * rows + 1.0, title)
    axes = figure.subplots()
    draw_grid(axes, image_grid(list(drawn.pictures), columns, pixels=round(150 * cell), gap=0.05), rows, columns)
    axes.set_anchor("N")
    axes.set_xlabel(drawn.legend, fontsize=SMALL, color=MUTED, family=FONT)
    return figure


def _grey(levels: np.ndarray) -> np.ndarray:
    return levels.reshape(-1, *levels.shape[2:], 1).repeat(3, axis=3)


def _columns(filters: int) -> int:
    """Choose a few full rows over a ragged square: 6 -> 6, 16 -> 8, 64 -> 16."""
    if filters <= 10:
        return filters
    widest = 16 if filters > 32 else 8
    fitting = [columns for columns in range(widest, widest // 2, -1) if filters % columns == 0]
    return fitting[0] if fitting else widest


POSITIVE_RGB, NEGATIVE_RGB = np.array([245, 120, 20]), np.array([20, 120, 220])
# Brightness of the red, green and blue of an image (ITU-R BT.601).
BRIGHTNESS = np.array([0.299, 0.587, 0.114])
# Stronger pixels than all but so many hundredths are drawn alike: a single one would make the others pale.
CLIP_PERCENTILE = 98.0


@dataclass(frozen=True)
class AttributionMaps:
    """How much each pixel of some images speaks for the answer: `values` is `[M, H, W] float`, `places` says whose.

    There are no values where no gradient comes from the network's answers to the pixels.
    """

    places: np.ndarray
    values: np.ndarray | None

    @property
    def why_none(self) -> str:
        """Why there is nothing to see; empty where there is."""
        if not len(self.places):
            return "No image was asked for (evaluation.num_attributions)."
        return "" if self.values is not None else "No gradient comes from this network's answers to the pixels."


def attribution_overlay(pictures: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Lay `values` over images that are turned to faint grey: orange for the answer, blue against it.

    Args:
        images: `[N, H, W, 1 or 3] uint8`.
        values: `[N, H, W] float`, positive where a pixel speaks for the answer; each image has its own scale.

    Returns:
        `[N, H, W, 3] uint8`.
    """
    grey = (to_rgb(pictures) @ BRIGHTNESS)[..., None]
    faint = 75 + 0.45 * grey
    scale = np.percentile(np.abs(values), CLIP_PERCENTILE, axis=(1, 2), keepdims=True)
    strength = np.clip(np.abs(values) / np.where(scale > 0, scale, 1), 0, 1)[..., None]
    colour = np.where(values[..., None] > 0, POSITIVE_RGB, NEGATIVE_RGB)
    return np.asarray(np.round(faint + strength * (colour - faint)), dtype=np.uint8)
