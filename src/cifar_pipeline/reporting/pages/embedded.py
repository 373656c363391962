"""Figures and pictures inside a page, as data URIs; figures are light or dark as their reader wants pages to be."""

import io
import re
from base64 import b64encode

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cifar_pipeline.reporting.mosaic import as_colour
from cifar_pipeline.reporting.style import COLOURS, INK, OTHERS, PAPER, QUIET, RULE

# A figure's colours, and what they are on a dark page.
ON_DARK = {
    INK: "#E6E6E6",
    QUIET: "#A7ACB1",
    RULE: "#3A4046",
    PAPER: "#16191C",
    OTHERS: "#565C63",
    **dict(
        zip(
            COLOURS,
            ("#4FA9E3", "#FF8A4C", "#2FC79A", "#E3A1C6", "#F0B429", "#7CC7F2", "#E6E6E6", "#BC9A76"),
            strict=True,
        )
    ),
}
# Pictures of more pixels a side are brought down to so many, which a page shows as large as the others.
MOST_PIXELS = 160


def figure_uri(figure: Figure) -> str:
    """The figure as an SVG without a background. The same figure gives the same text."""
    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "cifar-pipeline", "svg.fonttype": "path"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _uri("image/svg+xml", _two_sided(content.getvalue()).encode())


def figure_picture_uri(figure: Figure, dpi: int = 100) -> str:
    """The figure as a PNG on white: for one that is made of thousands of parts."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return _uri("image/png", content.getvalue())


def picture_uri(picture: np.ndarray) -> str:
    """A picture `[H, W]` or `[H, W, 1 or 3] uint8`: a small one as it is, a large one in the size that is shown."""
    image, content = Image.fromarray(as_colour(picture[None])[0]), io.BytesIO()
    if max(image.size) <= MOST_PIXELS:
        image.save(content, "PNG", optimize=True)
        return _uri("image/png", content.getvalue())
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    image.save(content, "JPEG", quality=88)
    return _uri("image/jpeg", content.getvalue())


def _two_sided(svg: str) -> str:
    """Let each colour be a variable, which has another value where the reader wants dark pages."""
    names = {colour.lower(): f"--c{place}" for place, colour in enumerate(dict.fromkeys(ON_DARK))}
    light = ";".join(f"{name}:{colour}" for colour, name in names.items())
    dark = ";".join(f"{names[colour.lower()]}:{value}" for colour, value in ON_DARK.items())
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    svg = re.sub("|".join(names), lambda found: f"var({names[found[0]]})", svg)
    opened, tag, rest = svg.partition("<defs>")
    return opened + style + tag + rest


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"
