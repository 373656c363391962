"""A page from its template: HTML in which what comes from outside is text and can be nothing else."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cifar_pipeline.visible import visible

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder in. A value that the template names must be there."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "number": number}
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **values) + "\n"


def _shown(value: Any) -> Any:
    """Escape what would change how a page is read, bidirectional overrides for one; Markup is ours."""
    return visible(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


def percent(fraction: float, digits: int = 2) -> str:
    """A fraction in per cent, with a space that no line breaks at."""
    return f"{100 * fraction:.{digits}f}\N{NO-BREAK SPACE}%"


def number(value: float) -> str:
    """A count with its thousands apart."""
    return f"{value:,}"
