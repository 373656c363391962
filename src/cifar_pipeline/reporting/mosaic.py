"""Many small pictures as one: a single image draws a hundred times faster than a hundred panels."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from cifar_pipeline.reporting.style import picture_axes


def as_colour(pictures: np.ndarray) -> np.ndarray:
    """Bring pictures `[N, H, W]` or `[N, H, W, 1 or 3] uint8` to `[N, H, W, 3] uint8`; grey is repeated.

    Raises:
        ValueError: another shape or type.
    """
    if pictures.ndim == 3:
        pictures = pictures[..., None]
    if pictures.ndim != 4 or pictures.shape[3] not in (1, 3) or pictures.dtype != np.uint8:
        raise ValueError(f"Pictures must be [N, H, W, 1 or 3] uint8, got {list(pictures.shape)} {pictures.dtype}.")
    return np.repeat(pictures, 3, axis=3) if pictures.shape[3] == 1 else pictures


def enlarge(pictures: np.ndarray, pixels: int) -> np.ndarray:
    """Repeat the pixels of `[..., H, W, 3]` by a whole factor until a picture is about `pixels` high: kept sharp."""
    factor = max(1, round(pixels / pictures.shape[-3]))
    return pictures.repeat(factor, axis=-3).repeat(factor, axis=-2)


def tile(pictures: Sequence[np.ndarray | None], columns: int, pixels: int = 96, gap: float = 0.04) -> np.ndarray:
    """Lay pictures out row by row on white.

    Args:
        pictures: at least one `[H, W, 3] uint8`, all of one size; None leaves a place empty.
        columns: places in a row.
        pixels: about how high a picture becomes.
        gap: white around each picture, as a fraction of its height.

    Returns:
        `[rows * cell height, columns * cell width, 3] uint8`.
    """
    sharp = [None if picture is None else enlarge(picture, pixels) for picture in pictures]
    height, width = next(picture.shape[:2] for picture in sharp if picture is not None)
    margin = max(1, round(gap * height))
    rows = -(-len(sharp) // columns)
    sheet = np.full((rows, height + 2 * margin, columns, width + 2 * margin, 3), 255, np.uint8)
    for place, picture in enumerate(sharp):
        if picture is not None:
            row, column = divmod(place, columns)
            sheet[row, margin : margin + height, column, margin : margin + width] = picture
    return sheet.reshape(rows * (height + 2 * margin), columns * (width + 2 * margin), 3)


def show(axes: Axes, sheet: np.ndarray, rows: int, columns: int) -> None:
    """Draw what `tile` made on `axes`; a place (row, column) then spans row to row + 1, column to column + 1."""
    picture_axes(axes)
    cell_height, cell_width = sheet.shape[0] / rows, sheet.shape[1] / columns
    axes.imshow(sheet, extent=(0, columns, rows, 0), aspect=cell_height / cell_width, interpolation="antialiased")
