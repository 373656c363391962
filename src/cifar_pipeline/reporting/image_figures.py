"""Draw images: contact sheets, misclassified images, first-layer filters and attribution overlays.

Many small images are joined into one array before drawing: a hundred times faster than an axes per image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.cells import cell_len

from cifar_pipeline.reporting.metrics import sort_by_confidence
from cifar_pipeline.reporting.style import FONT, MUTED, SMALL, TEXT, TEXT_COLOR, image_axes, message_figure, new_figure
from cifar_pipeline.utils.text import escape_control

# Images of a contact sheet are drawn with at most this height; a hundred photos would need a gigabyte.
MAX_PIXELS = 160


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Convert images `[N, H, W]` or `[N, H, W, 1 or 3] uint8` to `[N, H, W, 3] uint8`; gray is repeated.

    Raises:
        ValueError: another shape or dtype.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype != np.uint8:
        raise ValueError(f"Images must be [N, H, W, 1 or 3] uint8, got {list(images.shape)} {images.dtype}.")
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def upscale_image(images: np.ndarray, pixels: int) -> np.ndarray:
    """Repeat the pixels of `[..., H, W, 3]` by an integer factor, to a height of about `pixels`."""
    factor = max(1, round(pixels / images.shape[-3]))
    return images.repeat(factor, axis=-3).repeat(factor, axis=-2)


def image_grid(images: Sequence[np.ndarray | None], columns: int, pixels: int = 96, gap: float = 0.04) -> np.ndarray:
    """Arrange images row by row in a grid on white.

    Args:
        images: at least one `[H, W, 3] uint8`, all of one size; None leaves a cell empty.
        columns: cells per row.
        pixels: approximate height of an image in the grid.
        gap: white margin around each image, as a fraction of its height.

    Returns:
        `[rows * cell height, columns * cell width, 3] uint8`.
    """
    upscaled = [None if image is None else upscale_image(image, pixels) for image in images]
    height, width = next(image.shape[:2] for image in upscaled if image is not None)
    margin = max(1, round(gap * height))
    rows = -(-len(upscaled) // columns)
    grid = np.full((rows, height + 2 * margin, columns, width + 2 * margin, 3), 255, np.uint8)
    for index, image in enumerate(upscaled):
        if image is not None:
            row, column = divmod(index, columns)
            grid[row, margin : margin + height, column, margin : margin + width] = image
    return grid.reshape(rows * (height + 2 * margin), columns * (width + 2 * margin), 3)


def draw_grid(axes: Axes, grid: np.ndarray, rows: int, columns: int) -> None:
    """Draw the result of `image_grid` on `axes`, where cell (row, column) has the corners (column, row) and +1."""
    image_axes(axes)
    cell_height, cell_width = grid.shape[0] / rows, grid.shape[1] / columns
    axes.imshow(grid, extent=(0, columns, rows, 0), aspect=cell_height / cell_width, interpolation="antialiased")


def contact_sheet(
    images: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    title: str,
    samples: int = 10,
    max_rows: int = 20,
    augment: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    shown: Sequence[int] | None = None,
) -> Figure:
    """Draw the first images of each class, one class per row; with `augment` the originals beside the augmented ones.

    Args:
        images: `[N, H, W, 1 or 3] uint8`, memory-mapped or not; only the images drawn are read.
        labels: `[N] int`, class indices.
        classes: class names, in order.
        title: names the data set.
        samples: images per class; a class with fewer leaves cells empty.
        max_rows: rows per panel; more classes continue in further panels to the right.
        augment: maps some of the images and their labels to augmented images `[M, H', W', C] uint8`, of which as many
            are drawn as originals, half of `samples`.
        shown: the class indices to draw; None for all.
    """
    shown = range(len(classes)) if shown is None else shown
    classes = [escape_control(classes[k]) for k in shown]
    largest_class = int(np.bincount(labels, minlength=max(shown) + 1)[list(shown)].max())
    originals = max(1, min(samples if augment is None else samples // 2, largest_class))
    samples = originals if augment is None else 2 * originals + 1
    panels = -(-len(classes) // max_rows)
    rows = min(len(classes), max_rows)
    cell = 0.72 if panels == 1 else 0.5
    label_width = 0.1 * max(map(cell_len, classes))
    figure = new_figure(max(6.0, panels * (samples * cell + label_width + 0.4)), rows * cell + 0.9, title)
    indices = [np.flatnonzero(labels == k)[:originals] for k in shown]
    counts, first = [len(of_class) for of_class in indices], np.concatenate(indices)
    pixels = _reduced(to_rgb(np.asarray(images[first])))
    class_images = _padded_rows(pixels, counts, originals)
    blank = np.full_like(pixels[0], 255)
    if augment is not None:
        augmented = _resized(to_rgb(augment(np.asarray(images[first]), labels[first])), pixels.shape[2])
        beside = _padded_rows(augmented, counts, originals)
        class_images = [[*row, None, *other] for row, other in zip(class_images, beside, strict=True)]
    for panel, axes in enumerate(figure.subplots(1, panels, squeeze=False)[0]):
        class_indices = range(panel * max_rows, panel * max_rows + rows)
        cells = [image for k in class_indices for image in (class_images[k] if k < len(class_images) else [])]
        cells += [blank] * (rows * samples - len(cells))
        draw_grid(axes, image_grid(cells, samples), rows, samples)
        names = [classes[k] for k in class_indices if k < len(classes)]
        axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=TEXT, family=FONT, parse_math=False)
        if augment is not None:
            axes.xaxis.tick_top()
            axes.set_xticks([originals / 2, originals * 1.5 + 1], ["original", "augmented"], fontsize=TEXT, family=FONT)
    return figure


def _padded_rows(images: np.ndarray, counts: Sequence[int], columns: int) -> list[list[np.ndarray | None]]:
    """Split images into rows of these numbers of images, each filled up with None."""
    rows = np.split(images, np.cumsum(counts)[:-1])
    return [[*row, *[None] * (columns - len(row))] for row in rows]


def _reduced(images: np.ndarray) -> np.ndarray:
    """Reduce images `[N, H, W, 3] uint8` that are larger than they are drawn by a whole factor."""
    factor = max(images.shape[1:3]) // MAX_PIXELS
    if factor < 2:
        return images
    return np.stack([np.asarray(Image.fromarray(image).reduce(factor)) for image in images])


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """Resize square images `[N, H, W, 3] uint8` for display."""
    if images.shape[2] == size:
        return images
    pillow = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in pillow])


def error_figure(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    confidence: np.ndarray,
    classes: Sequence[str],
    count: int,
    title: str,
    columns: int = 8,
) -> Figure:
    """Draw the incorrect predictions with the highest confidence, each captioned "cat, predicted as dog (98 %)".

    Args:
        images: `[N, H, W, 1 or 3] uint8`; only the images drawn are read.
        labels, predictions: `[N] int64`, class indices.
        confidence: `[N] float` in [0, 1], probabilities of the predictions.
        classes: class names, in order.
        count: maximum number of images. Without any, the figure is a message.
        title: names the model and the data set.
        columns: images per row.
    """
    classes = [escape_control(label) for label in classes]
    errors = sort_by_confidence(labels != predictions, confidence)
    shown = errors[:count]
    if len(errors) == 0:
        return message_figure(f"No errors: all {len(labels):,} images are classified correctly.", title)
    if len(shown) == 0:
        return message_figure(f"{len(errors):,} of {len(labels):,} images are misclassified; none is shown.", title)

    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(max(1.75 * columns, 7.0), 2.05 * rows + 0.7, title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    upscaled = upscale_image(to_rgb(images[shown]), 160)
    captions = [
        f"{_short(classes[labels[index]])}, predicted as\n"
        f"{_short(classes[predictions[index]])} ({100 * confidence[index]:.0f} %)"
        for index in shown
    ]
    # An image is about as wide as 21 characters of the normal size.
    longest = max(cell_len(line) for caption in captions for line in caption.splitlines())
    font_size = SMALL * min(1.0, 21 / longest)
    for axes, caption, image in zip(panels, captions, upscaled, strict=False):
        image_axes(axes)
        axes.imshow(image)
        axes.set_title(caption, fontsize=font_size, color=TEXT_COLOR, family=FONT, parse_math=False)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    return figure


def _short(name: str, length: int = 16) -> str:
    return name if len(name) <= length else name[: length - 3] + "..."


NO_CONV_MESSAGE = "No filters: the first layer is not a convolution."


@dataclass(frozen=True)
class FilterImages:
    """Filters of a convolution drawn as images.

    All share one scale, symmetric around zero: medium gray is 0, black and white (or full color) are -max_abs and
    max_abs.

    Attributes:
        images: `[M, h, w, 3] uint8`.
        columns: images per row.
        layout: how one filter is drawn, such as "a color image".
        max_abs: largest absolute weight.
    """

    images: np.ndarray
    columns: int
    layout: str
    max_abs: float

    @property
    def legend(self) -> str:
        """Description of the layout and the scale."""
        return f"each filter is {self.layout}; medium gray is 0, the range is -{self.max_abs:.2g} to {self.max_abs:.2g}"


def filter_images(weights: np.ndarray) -> FilterImages:
    """Draw each filter of a first convolution: a color image for three input channels, else gray planes.

    Args:
        weights: `[O, C, h, w] float`; with other than 1 or 3 channels each filter is a row of C planes, or a column
            if there are more filters than channels.

    Raises:
        ValueError: not four dimensions, or values that are not finite.
    """
    if weights.ndim != 4 or not np.isfinite(weights).all():
        raise ValueError(f"Filters must be [O, C, h, w] and finite, got {list(weights.shape)}.")
    filters, channels = weights.shape[:2]
    max_abs = float(np.abs(weights).max(initial=0.0))
    # All-zero filters are drawn in medium gray.
    levels = np.round(127.5 + 127.5 * weights / (max_abs or 1.0)).astype(np.uint8)
    if channels == 3:
        return FilterImages(levels.transpose(0, 2, 3, 1), _columns(filters), "a color image", max_abs)
    if channels == 1:
        return FilterImages(_gray_planes(levels), _columns(filters), "a gray plane", max_abs)
    if filters > channels:
        planes = _gray_planes(levels.swapaxes(0, 1))
        return FilterImages(planes, filters, "a column of gray planes, one per channel", max_abs)
    return FilterImages(_gray_planes(levels), channels, "a row of gray planes, one per channel", max_abs)


def first_layer_figure(weights: np.ndarray, title: str) -> Figure:
    """Draw the filters of a first convolution as `filter_images` lays them out.

    Args:
        weights: `[O, C, h, w] float`. Without filters (O = 0) the figure is a message.
        title: names the model and the data set.

    Raises:
        ValueError: not four dimensions, or values that are not finite.
    """
    filters = filter_images(weights)
    if weights.size == 0:
        return message_figure(NO_CONV_MESSAGE, title)
    rows, columns = -(-len(filters.images) // filters.columns), filters.columns
    cell = float(np.clip(12.0 / columns, 0.35, 1.6))
    figure = new_figure(max(cell * columns + 0.3, 6.0), cell * rows + 1.0, title)
    axes = figure.subplots()
    draw_grid(axes, image_grid(list(filters.images), columns, pixels=round(150 * cell), gap=0.05), rows, columns)
    axes.set_anchor("N")
    axes.set_xlabel(filters.legend, fontsize=SMALL, color=MUTED, family=FONT)
    return figure


def _gray_planes(levels: np.ndarray) -> np.ndarray:
    return levels.reshape(-1, *levels.shape[2:], 1).repeat(3, axis=3)


def _columns(filters: int) -> int:
    """Choose the number of columns, preferring full rows: 6 -> 6, 16 -> 8, 64 -> 16."""
    if filters <= 10:
        return filters
    max_columns = 16 if filters > 32 else 8
    divisors = [columns for columns in range(max_columns, max_columns // 2, -1) if filters % columns == 0]
    return divisors[0] if divisors else max_columns


POSITIVE_RGB, NEGATIVE_RGB = np.array([245, 120, 20]), np.array([20, 120, 220])
# Luma weights of red, green and blue (ITU-R BT.601).
LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])
# Attributions are clipped at this percentile: a single strong pixel would make all others pale.
CLIP_PERCENTILE = 98.0


@dataclass(frozen=True)
class AttributionMaps:
    """Attribution of the predicted class to each pixel, for some of the images.

    Attributes:
        indices: `[M]`, indices of the images.
        values: `[M, H, W] float`, positive where a pixel raises the probability of the prediction; None if the model
            has no gradient with respect to its input.
    """

    indices: np.ndarray
    values: np.ndarray | None

    @property
    def unavailable_reason(self) -> str:
        """Reason why there are no maps; empty if there are."""
        if not len(self.indices):
            return "No attribution maps were requested (evaluation.num_attributions is 0)."
        return "" if self.values is not None else "This network has no gradient with respect to its input pixels."


# Values are added up in blocks, so that a map has at most this height: those of single pixels of a large image have
# alternating signs, which look like gray noise.
MAX_MAP_PIXELS = 56


def attribution_overlay(images: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Draw attributions over faint gray images: orange for the prediction, blue against it.

    Args:
        images: `[N, H, W, 1 or 3] uint8`.
        values: `[N, H, W] float`, positive where a pixel supports the prediction; each image has its own scale.

    Returns:
        `[N, H, W, 3] uint8`.
    """
    values = _added_up(values)
    gray = (to_rgb(images) @ LUMA_WEIGHTS)[..., None]
    faint = 75 + 0.45 * gray
    scale = np.percentile(np.abs(values), CLIP_PERCENTILE, axis=(1, 2), keepdims=True)
    strength = np.clip(np.abs(values) / np.where(scale > 0, scale, 1), 0, 1)[..., None]
    color = np.where(values[..., None] > 0, POSITIVE_RGB, NEGATIVE_RGB)
    return np.asarray(np.round(faint + strength * (color - faint)), dtype=np.uint8)


def _added_up(values: np.ndarray) -> np.ndarray:
    """Replace the values `[N, H, W]` of a large image by the sums of the square blocks that they are in."""
    height, width = values.shape[1:]
    block = -(-max(height, width) // MAX_MAP_PIXELS)
    if block == 1:
        return values
    padded = np.pad(values, ((0, 0), (0, -height % block), (0, -width % block)))
    rows, columns = padded.shape[1] // block, padded.shape[2] // block
    sums: np.ndarray = padded.reshape(-1, rows, block, columns, block).sum(axis=(2, 4))
    return sums.repeat(block, axis=1).repeat(block, axis=2)[:, :height, :width]
