"""Render HTML pages from templates, and embed figures and images in them as data URIs."""

import io
from base64 import b64encode
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from cifar_pipeline.reporting.fonts import fit_fonts, label_legend
from cifar_pipeline.reporting.style import BACKGROUND
from cifar_pipeline.utils.text import escape_control
from cifar_pipeline.utils.text import percent as format_percent

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Render a template of templates/; a value that it uses and that is missing raises `UndefinedError`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_escape_text,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "number": format_count}
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, label_legend=label_legend(), **values) + "\n"


def _escape_text(value: Any) -> Any:
    """Escape control characters, such as bidirectional overrides, in all text but `Markup`."""
    return escape_control(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


def percent(fraction: float, digits: int = 2) -> str:
    """Format a fraction as a percentage with a non-breaking space."""
    return format_percent(fraction, digits, space="\N{NO-BREAK SPACE}")


def format_count(value: float) -> str:
    """Format a count with thousands separators."""
    return f"{value:,}"


def figure_uri(figure: Figure) -> str:
    """Encode a figure as an SVG data URI. The same figure gives the same text."""
    fit_fonts(figure)
    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "cifar-pipeline", "svg.fonttype": "path"}):
        figure.savefig(content, format="svg", facecolor=BACKGROUND, metadata={"Date": None, "Creator": None})
    return _data_uri("image/svg+xml", content.getvalue().encode())


def figure_image_uri(figure: Figure, dpi: int = 100) -> str:
    """Encode a figure as a PNG data URI: smaller than an SVG if the figure has thousands of elements."""
    fit_fonts(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, facecolor=BACKGROUND, metadata={"Software": None})
    return _data_uri("image/png", content.getvalue())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{b64encode(content).decode()}"
