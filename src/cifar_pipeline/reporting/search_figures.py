"""Figures of a search by Optuna's matplotlib backend: history, importance of the values, parallel coordinates."""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from optuna.importance import FanovaImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from cifar_pipeline.reporting.metric_names import display_name, heading_name, is_fraction
from cifar_pipeline.reporting.style import (
    BACKGROUND,
    COLORS,
    FONT,
    MUTED,
    SMALL,
    TRAIN,
    VALIDATION,
    clean_axes,
    format_percent,
    style_figure,
)
from cifar_pipeline.reporting.sweep_tables import headings
from cifar_pipeline.utils.text import one_line

log = logging.getLogger(__name__)

# With fewer finished trials these figures say nothing.
MIN_TRIALS = 2


def search_figures(study: optuna.Study, metrics: Sequence[str]) -> dict[str, Figure]:
    """Draw the figures of a study by file name. Those that its trials do not suffice for are left out.

    Args:
        metrics: names of the objectives; the history and the parallel coordinates show the first one.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(finished) < MIN_TRIALS:
        log.debug(f"The search has no figures yet: it has {len(finished)} finished trials of at least {MIN_TRIALS}.")
        return {}
    drawn = {
        "search_history.png": lambda: _history(study, metrics),
        "search_importance.png": lambda: _importance(study, metrics),
        "search_parallel.png": lambda: _parallel(study, metrics),
    }
    figures = {name: _draw(name, draw) for name, draw in drawn.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _draw(name: str, draw: Callable[[], Figure]) -> Figure | None:
    # Optuna draws with pyplot: its global settings and figures are restored and closed.
    with plt.rc_context(), warnings.catch_warnings():
        # About experimental features, and about axes on which all values are equal.
        warnings.simplefilter("ignore")
        plt.switch_backend("agg")
        try:
            return draw()
        except (ValueError, RuntimeError) as error:
            log.debug(f"{name} is left out: {one_line(error)}")
            return None
        finally:
            plt.close("all")


def _target(metrics: Sequence[str]) -> dict[str, Any]:
    """Return the arguments that let a figure show the first objective under its name."""
    first: Callable[[FrozenTrial], float] | None = (lambda trial: trial.values[0]) if len(metrics) > 1 else None
    return {"target": first, "target_name": heading_name(metrics[0])}


def _history(study: optuna.Study, metrics: Sequence[str]) -> Figure:
    axes = plots.plot_optimization_history(study, **_target(metrics))
    clean_axes(axes, x="Trial", y=heading_name(metrics[0]))
    for points in axes.collections:
        points.set_color(TRAIN)
    # One objective has a line of the best value so far.
    for line in axes.lines:
        line.set(color=VALIDATION, drawstyle="steps-post", alpha=1, label="best so far")
    if is_fraction(metrics[0]):
        format_percent(axes.yaxis)
    figure = _styled(axes, "Search: result of each trial", 9.0, 4.5)
    handles, _ = axes.get_legend_handles_labels()
    _remove_legend(axes)
    if axes.lines:
        _legend(figure, handles[::-1], ["best so far", "trials"])
    return figure


def _importance(study: optuna.Study, metrics: Sequence[str]) -> Figure:
    axes = plots.plot_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    clean_axes(axes, x="Share of the variance between the trials (fANOVA)")
    axes.grid(visible=False)
    for container, color in zip(axes.containers, COLORS, strict=False):
        for bar in container:
            bar.set_color(color)
    shortened = headings(tuple(label.get_text() for label in axes.get_yticklabels()))
    axes.set_yticks(axes.get_yticks(), shortened)
    axes.margins(x=0.12)
    for text in axes.texts:
        text.set(text=f" {text.get_text()}", color=MUTED, fontsize=SMALL, family=FONT)
    figure = _styled(axes, "Search: importance of the values", 9.0, 1.5 + 0.6 * len(shortened))
    _remove_legend(axes)
    if len(metrics) > 1:
        _legend(figure, list(axes.containers), [display_name(metric) for metric in metrics])
    return figure


def _parallel(study: optuna.Study, metrics: Sequence[str]) -> Figure:
    axes = plots.plot_parallel_coordinate(study, **_target(metrics))
    # The axes of the values share one place, which the constrained layout cannot arrange.
    figure = _styled(axes, "Search: values of each trial", 11.0, 5.0, is_constrained=False)
    figure.subplots_adjust(left=0.08, right=1.0, top=0.88, bottom=0.09)
    # Sorted as in the figure, which cuts long names.
    names = sorted({name for trial in study.get_trials(deepcopy=False) for name in trial.params})
    axes.set_xticks(axes.get_xticks(), [heading_name(metrics[0]), *headings(tuple(names))], rotation=0, ha="center")
    # Dark is better; without the palest quarter.
    colors = plt.get_cmap("Blues")(np.linspace(0.25, 1, 192))
    is_minimized = study.directions[0] == StudyDirection.MINIMIZE
    for lines in axes.collections:
        lines.set_cmap(ListedColormap(colors[::-1] if is_minimized else colors))
        lines.set_linewidth(1.5)
    for every in figure.axes:
        every.tick_params(labelsize=SMALL, labelfontfamily=FONT)
    # The values of the metric are those of the color bar.
    axes.set_yticks([])
    figure.axes[1].set_ylabel("")
    if is_fraction(metrics[0]):
        format_percent(figure.axes[1].yaxis)
    return figure


def _styled(axes: Axes, title: str, width: float, height: float, is_constrained: bool = True) -> Figure:
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    axes.set_title("")
    axes.set_facecolor(BACKGROUND)
    style_figure(figure, width, height, title, is_constrained)
    return figure


def _remove_legend(axes: Axes) -> None:
    if legend := axes.get_legend():
        legend.remove()


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    figure.legend(
        handles, labels, loc="outside lower left", ncols=len(labels), frameon=False,
        prop={"family": FONT, "size": SMALL}, labelcolor=MUTED,
    )  # fmt: skip
