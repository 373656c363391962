"""The Pareto front has the trials that no other beats, and Optuna's figures show what a study holds."""

import logging
import math

import matplotlib as mpl
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from cifar_pipeline.reporting.pareto import front_markdown, front_rows, pareto_figure, pareto_front
from cifar_pipeline.reporting.search_figures import search_figures
from cifar_pipeline.reporting.sweep_comparison import Comparison

OBJECTIVES = (("val/accuracy", "max"), ("parameters", "min"))
# Name, accuracy, parameters, status. `b` and `d` have the same values, `c` and `e` are beaten, `f` was not finished.
TRIALS = [
    ("a", 0.9, 1000, "FINISHED"),
    ("b", 0.8, 100, "FINISHED"),
    ("c", 0.7, 200, "FINISHED"),
    ("d", 0.8, 100, "FINISHED"),
    ("e", 0.9, 1001, "FINISHED"),
    ("f", 1.0, 1, "PRUNED"),
    ("g", 0.99, math.nan, "FINISHED"),
]


def comparison(trials=TRIALS, objectives=OBJECTIVES) -> Comparison:
    rows = [
        {
            "run_id": name, "name": name, "status": status, "reason": "", "reused": False, "model": name,
            "val/accuracy": accuracy, "parameters": parameters, "training_seconds": 1.0, "seconds": 2.0,
        }
        for name, accuracy, parameters, status in trials
    ]  # fmt: skip
    return Comparison("a search", pd.DataFrame(rows), ("model",), objectives=objectives, significance_level=0.05)


def test_the_front_has_the_trials_that_no_other_beats_best_first():
    assert [group.values for group in pareto_front(comparison())] == [("a",), ("b",), ("d",)]
    swapped = comparison(objectives=(("val/accuracy", "min"), ("parameters", "max")))
    assert [group.values for group in pareto_front(swapped)] == [("c",), ("e",)]


def test_the_table_of_the_front_has_each_objective_with_its_unit():
    header, rows = front_rows(comparison())
    assert header == ["no.", "model", "validation accuracy", "parameters"]
    assert rows == [["1", "a", "90.00 %", "1,000"], ["2", "b", "80.00 %", "100"], ["3", "d", "80.00 %", "100"]]
    assert "| ---: | --- | ---: | ---: |\n| 1 | a | 90.00 % | 1,000 |" in front_markdown(comparison())


def test_the_figure_numbers_the_front_as_the_table_does():
    texts = [text.get_text() for text in pareto_figure(comparison()).axes[0].texts]
    assert texts == ["1", "2, 3"]


def test_three_objectives_have_a_panel_for_each_after_the_first():
    figure = pareto_figure(comparison(objectives=(*OBJECTIVES, ("training_seconds", "min"))))
    assert [axes.get_xlabel() for axes in figure.axes] == ["Parameters", "Training seconds"]


def test_a_search_without_a_finished_trial_has_an_empty_front():
    unfinished = comparison([("f", 1.0, 1, "PRUNED")])
    assert pareto_front(unfinished) == [] and pareto_figure(unfinished).axes


def study(count: int, directions: tuple[str, ...] = ("maximize",)) -> optuna.Study:
    """Make a study whose result depends on the learning rate only."""
    space = {
        "optimizer.lr": FloatDistribution(0.001, 1.0, log=True),
        "trainer.batch_size": CategoricalDistribution([4, 8]),
    }
    made = optuna.create_study(directions=directions)
    for number in range(count):
        params = {"optimizer.lr": 0.001 * 1.5**number, "trainer.batch_size": 4 + 4 * (number % 2)}
        values = [0.1 + 0.02 * number, 10.0 * number][: len(directions)]
        made.add_trial(create_trial(params=params, distributions=space, values=values))
    return made


def test_the_figures_of_a_study_show_its_values_and_leave_matplotlib_as_it_was():
    before = dict(mpl.rcParams)
    figures = search_figures(study(12), ["val/accuracy"])
    assert list(figures) == ["search_history.png", "search_importance.png", "search_parallel.png"]
    assert dict(mpl.rcParams) == before
    history, importance, parallel = figures.values()
    assert history.axes[0].get_ylabel() == "Validation accuracy"
    assert [label.get_text() for label in importance.axes[0].get_yticklabels()] == ["batch_size", "lr"]
    labels = [label.get_text() for label in parallel.axes[0].get_xticklabels()]
    assert labels == ["Validation accuracy", "lr", "batch_size"]


@pytest.mark.parametrize(("direction", "is_dark_high"), [("maximize", True), ("minimize", False)])
def test_dark_lines_are_better(direction, is_dark_high):
    figures = search_figures(study(6, (direction,)), ["val/loss"])
    (lines,) = figures["search_parallel.png"].axes[0].collections
    low, high = (sum(lines.get_cmap()(value)[:3]) for value in (0.0, 1.0))
    assert (high < low) == is_dark_high


def test_several_objectives_have_an_importance_each():
    figures = search_figures(study(12, ("maximize", "minimize")), ["val/accuracy", "parameters"])
    (legend,) = figures["search_importance.png"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["validation accuracy", "parameters"]


def test_too_few_trials_have_no_figures(caplog):
    with caplog.at_level(logging.DEBUG, logger="cifar_pipeline.reporting.search_figures"):
        assert search_figures(study(1), ["val/accuracy"]) == {}
    assert "it has 1 finished trials of at least 2." in caplog.text
