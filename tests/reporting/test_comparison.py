"""Ranking and averaging of a sweep's trials, compared with plain formulas, and its tables, CSV and page."""

import csv
import html
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from cifar_pipeline.reporting.sweep_comparison import Comparison, leaderboard, winner
from cifar_pipeline.reporting.sweep_tables import as_table, to_csv, to_markdown
from cifar_pipeline.sweeps.summary import figure, print_comparison, sweep_page, write

NAN = float("nan")


def trial(name: str, accuracy: float = NAN, status: str = "FINISHED", **changes: Any) -> dict[str, Any]:
    finished = status == "FINISHED"
    return {
        "run_id": f"run-{name}", "name": name, "status": status, "reason": "", "reused": False,
        "val/accuracy": accuracy, "val/loss": 2 - 2 * accuracy, "train/accuracy": accuracy + 0.1,
        "train/loss": 1 - accuracy, "seconds": 60.0 if finished else NAN,
    } | changes  # fmt: skip


def sweep(*trials: dict[str, Any], swept: tuple[str, ...] = ("optimizer",), **others: Any) -> Comparison:
    return Comparison("a sweep on digits", pd.DataFrame(list(trials)), swept, **{"significance_level": 0.05} | others)


def over_seeds() -> Comparison:
    """Make a sweep of three optimizers, three seeds each: all failed, none failed, one failed (with the best mean)."""
    trials = [
        trial(f"muon-{seed}", status="FAILED", reason="The loss is NaN.", optimizer="muon", seed=str(seed))
        for seed in range(3)
    ]
    accuracies = {"sgd": (0.51, 0.55, 0.5), "adam": (0.61, NAN, 0.64)}
    for optimizer, values in accuracies.items():
        for seed, value in enumerate(values):
            failure = {"status": "FAILED", "reason": "out of\nmemory | here"} if math.isnan(value) else {}
            trials.append(trial(f"{optimizer}-{seed}", value, optimizer=optimizer, seed=str(seed), **failure))
    return sweep(*trials, swept=("optimizer", "seed"))


def printed(comparison: Comparison, width: int = 100) -> str:
    output = io.StringIO()
    Console(file=output, width=width).print(as_table(comparison, width))
    return output.getvalue()


def test_trials_are_ranked_by_accuracy_and_those_without_a_value_come_last() -> None:
    table = leaderboard(
        sweep(
            trial("failed", 0.9, "FAILED", optimizer="failed"),
            trial("a", 0.5, optimizer="a"),
            trial("nan", NAN, optimizer="nan"),
            trial("b", 0.7, optimizer="b"),
            trial("running", 0.95, "RUNNING", optimizer="running"),
            trial("infinite", math.inf, optimizer="infinite"),
        )
    )
    assert list(table["optimizer"]) == ["b", "a", "failed", "nan", "running", "infinite"]
    assert list(table["rank"].fillna(0)) == [1, 2, 0, 0, 0, 0]
    assert list(table["failed"]) == [0, 0, 1, 0, 0, 0]
    assert table["val/accuracy"][2:].isna().all()


@pytest.mark.parametrize("metric", ["val/loss", "own/score"])
def test_the_mode_decides_what_is_better_and_not_the_name(metric: str) -> None:
    trials = [trial(name, optimizer=name) | {metric: value} for name, value in (("a", 1.0), ("b", 0.6))]
    for mode, order in (("min", ["b", "a"]), ("max", ["a", "b"])):
        comparison = sweep(*trials, metric=metric, mode=mode)
        assert list(leaderboard(comparison)["optimizer"]) == order
        best = winner(comparison)
        assert best is not None and best["optimizer"] == order[0]


@pytest.mark.parametrize(
    ("metric", "columns"),
    [
        ("val/loss", ["validation loss", "validation accuracy"]),
        ("train/loss", ["training loss", "training accuracy"]),
        ("val/f1_macro", ["validation F1 macro", "validation accuracy"]),
        ("own/score", ["own score", "validation accuracy"]),
    ],
)
def test_the_metric_is_next_to_an_accuracy(metric: str, columns: list[str]) -> None:
    comparison = sweep(trial("a", 0.5, optimizer="a") | {metric: 0.75}, metric=metric, checkpoint="best")
    lines = to_markdown(comparison).splitlines()
    assert lines[0] == f"## a sweep on digits: {columns[0]} of the best weights"
    assert lines[2] == f"| rank | optimizer | {' | '.join(columns)} | time | status |"
    assert lines[4].split(" | ")[2] == "**0.7500**"


def test_ties_share_a_rank_and_the_first_listed_wins() -> None:
    comparison = sweep(
        *(trial(name, value, optimizer=name) for name, value in zip("abcd", (0.5, 0.7, 0.7, 0.6), strict=True))
    )
    table = leaderboard(comparison)
    assert list(zip(table["name"], table["rank"], strict=True)) == [("b", 1), ("c", 1), ("d", 3), ("a", 4)]
    best = winner(comparison)
    assert best is not None and best["run_id"] == "run-b"


def test_means_that_differ_in_the_order_of_the_seeds_only_are_equal() -> None:
    values = (0.1, 0.2, 0.3, 0.7)
    first = [trial(f"a{i}", v, optimizer="a", seed=str(i)) for i, v in enumerate(values)]
    second = [trial(f"b{i}", v, optimizer="b", seed=str(i)) for i, v in enumerate(reversed(values))]
    assert list(leaderboard(sweep(*first, *second, swept=("optimizer", "seed")))["rank"]) == [1, 1]


def test_groups_over_seeds_have_mean_standard_deviation_and_count() -> None:
    comparison = over_seeds()
    table = leaderboard(comparison).set_index("optimizer")
    assert list(table.index) == ["sgd", "adam", "muon"]
    for optimizer in ("adam", "sgd"):
        trials = comparison.trials[comparison.trials["optimizer"] == optimizer]
        for metric in ("val/accuracy", "val/loss", "train/accuracy", "train/loss"):
            values = [float(value) for value in trials[metric] if not math.isnan(value)]
            mean = sum(values) / len(values)
            deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
            assert table.loc[optimizer, metric] == pytest.approx(mean, abs=1e-15)
            assert table.loc[optimizer, f"{metric} std"] == pytest.approx(deviation, abs=1e-15)
            assert table.loc[optimizer, f"{metric} n"] == len(values)
    assert list(table["trials"]) == [3, 3, 3]
    assert list(table["finished"]) == [3, 2, 0]
    assert list(table["failed"]) == [0, 1, 3]
    assert list(table["rank"].isna()) == list(table["val/accuracy"].isna()) == [False, False, True]


def test_the_winner_is_the_best_mean_and_of_it_the_first_seed_that_finished() -> None:
    lost = trial("a-2", status="FAILED", optimizer="a", seed="2")
    a = [trial(f"a-{seed}", value, optimizer="a", seed=seed) for seed, value in (("7", 0.6), ("1", 0.62))]
    lucky = [trial(f"b-{seed}", value, optimizer="b", seed=seed) for seed, value in (("7", 0.9), ("1", 0.2))]
    best = winner(sweep(lost, *lucky, *a, swept=("optimizer", "seed")))
    assert best is not None
    assert (best["optimizer"], best["seed"], best["run_id"]) == ("a", "7", "run-a-7")


def test_the_seed_alone_is_one_group() -> None:
    comparison = sweep(*(trial(str(i), v, seed=str(i)) for i, v in enumerate((0.5, 0.6))), swept=("seed",))
    table = leaderboard(comparison)
    assert len(table) == 1 and table["val/accuracy"][0] == pytest.approx(0.55)
    assert "55.00 ± 7.07 % (2)" in printed(comparison) and "0, 1" in printed(comparison)


def test_a_run_that_occurs_twice_counts_once() -> None:
    twice = trial("a", 0.5, optimizer="a", seed="0")
    table = leaderboard(sweep(twice, twice, trial("b", 0.6, optimizer="a", seed="1"), swept=("optimizer", "seed")))
    assert table["val/accuracy n"][0] == 2 and table["val/accuracy"][0] == pytest.approx(0.55)


def test_a_sweep_without_a_finished_trial_has_no_winner() -> None:
    assert winner(sweep(trial("a", status="FAILED", optimizer="a"), trial("b", NAN, optimizer="b"))) is None
    assert winner(sweep(swept=())) is None


def test_the_table_fits_the_width_and_is_complete() -> None:
    comparison = over_seeds()
    page = printed(comparison)
    assert max(map(len, page.splitlines())) <= 100
    assert "62.50 ± 2.12 % (2 of 3)" in page and "52.00 ± 2.65 % (3)" in page
    assert page.index("sgd") < page.index("adam") < page.index("muon")
    assert "1 min" in page
    words = " ".join(printed(comparison, 200).split())
    assert "2 finished, 1 failed: out of memory | here" in words and "failed: The loss is NaN." in words
    assert "a sweep on digits" in page


def test_numbers_are_never_wrapped_in_a_wide_table() -> None:
    swept = ("optimizer.lr", "optimizer.momentum", "optimizer.weight_decay", "data.batch_size")
    values: dict[str, Any] = dict(zip(swept, ("0.00123456789012345", "0.987654321", "0.0005", "64"), strict=True))
    failed = trial("b", status="FAILED", reason="because of " + 30 * "many words ", **values)
    comparison = sweep(trial("a", 0.6234, **values), failed, swept=swept)
    columns = ("0.001235", "0.9877", "0.0005", "62.34 %", "weight_decay", "batch_size", "1 min 00 s", "0.7532")
    for width, shown in ((120, columns), (100, columns[:-1]), (80, columns[:-2])):
        page = printed(comparison, width)
        assert max(map(len, page.splitlines())) <= width
        assert [cell for cell in columns if cell in page] == [*shown]


def test_reused_trials_are_marked() -> None:
    comparison = sweep(trial("a", 0.5, optimizer="a", reused=True), trial("b", 0.4, optimizer="b"))
    assert printed(comparison).count("reused") == 1
    assert "finished, reused" in to_markdown(comparison)


def test_a_pruned_trial_has_no_rank_and_its_epoch_as_status() -> None:
    reason = "Pruned after epoch 2 of 10 with validation accuracy 31.00 % (MedianPruner)."
    comparison = sweep(
        trial("a", 0.9, "PRUNED", optimizer="a", reason=reason), trial("b", 0.5, optimizer="b"),
        trial("c", status="FAILED", reason="The loss is NaN.", optimizer="c"),
    )  # fmt: skip
    assert list(leaderboard(comparison)["optimizer"]) == ["b", "a", "c"]
    assert list(leaderboard(comparison)["failed"]) == [0, 0, 1]
    lines = to_markdown(comparison).splitlines()
    assert lines[5] == "|  | a |  |  |  | pruned: after epoch 2 of 10 with … |"
    assert lines[-1] == "- c failed: The loss is NaN."
    page = sweep_page(comparison, {}, "")
    assert page.count('<tr class="failed">') == 1 and "a was" not in page
    one_of_two = sweep(
        trial("a", status="PRUNED", optimizer="a", seed="0", reason=reason), trial("b", 0.5, optimizer="a", seed="1"),
        swept=("optimizer", "seed"),
    )  # fmt: skip
    assert "1 pruned, 1 finished: Pruned after" in to_markdown(one_of_two)


def test_markup_and_bars_in_values_are_kept() -> None:
    comparison = sweep(trial("a", 0.5, optimizer="[red]x|y[/red]"))
    assert "[red]x|y[/red]" in printed(comparison)
    assert "**[red]x\\|y[/red]**" in to_markdown(comparison)


def test_markdown_has_the_ranking_and_each_failure() -> None:
    lines = to_markdown(over_seeds()).splitlines()
    assert lines[0] == (
        "## a sweep on digits: validation accuracy of the last weights, mean ± standard deviation over 3 seeds"
    )
    assert lines[2] == "| rank | optimizer | validation accuracy | difference | validation loss | time | status |"
    assert lines[4].startswith("| **1** | **sgd** | **52.00 ± 2.65 % (3)** | **best** | **0.9600** | **1 min 00 s** |")
    assert lines[5].startswith("| 2 | adam | 62.50 ± 2.12 % (2 of 3) | no clear difference (p = 0.")
    assert lines[6].startswith("|  | muon |  |  |  |  |")
    assert all(line.replace("\\|", "").count("|") == 8 for line in lines[2:7])
    assert "- adam-1 failed: out of memory | here." in lines
    assert sum(line.startswith("- ") for line in lines) == 4


def test_csv_has_every_trial_in_full() -> None:
    comparison = over_seeds()
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert [row["name"] for row in rows] == list(comparison.trials["name"])
    assert [row["seed"] for row in rows] == list("012" * 3)
    for row, value in zip(rows, comparison.trials["train/accuracy"], strict=True):
        assert (float(row["train/accuracy"]) == value) if row["train/accuracy"] else np.isnan(value)
    assert list(rows[0])[:5] == ["name", "optimizer", "seed", "status", "reason"]


def test_written_twice_gives_equal_bytes(tmp_path: Path) -> None:
    epochs = pd.DataFrame({"epoch": [1, 2], "val/accuracy": [0.3, 0.5]})
    comparison = over_seeds()
    comparison.histories.update(dict.fromkeys(comparison.trials["run_id"], epochs))
    names = ["comparison.csv", "comparison.md", "compare.html", "comparison.png", "curves.png"]
    for folder in ("one", "two"):
        assert write(comparison, tmp_path / folder) == [tmp_path / folder / name for name in names]
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == sorted(names)
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_sentence_is_printed_for_each_failed_trial(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(
        sweep(
            trial("a", 0.5, optimizer="a"),
            trial("b", status="FAILED", reason="The loss is NaN.", optimizer="b"),
            trial("c", status="KILLED", optimizer="c"),
            trial("", status="FAILED", reason="never started", optimizer="d", run_id=""),
            trial("e", status="RUNNING", optimizer="e"),
        )
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "b failed: The loss is NaN.",
        "c was killed (no reason recorded).",
        "optimizer=d failed: never started.",
    ]  # and nothing of differences, because only one trial has a value


def test_the_page_has_the_table_the_best_trial_the_command_and_the_failures() -> None:
    comparison = over_seeds()
    page = sweep_page(comparison, {"Trials": figure(comparison)}, "dvc exp run -S optimizer=adam && echo '<b>'")
    words = html.unescape(page)
    assert "<b>52.00 ± 2.65 % (3)</b>validation accuracy of the best: optimizer=sgd" in page
    assert "dvc exp run -S optimizer=adam && echo '<b>'" in words and "echo '<b>'" not in page
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr[^>]*>(.*)</tr>", page)][1:]
    assert [row[:3] for row in rows] == [
        ["1", "52.00 ± 2.65 % (3)", "sgd"], ["2", "62.50 ± 2.12 % (2 of 3)", "adam"], ["", "", "muon"]
    ]  # fmt: skip
    assert page.count('<tr class="best">') == 1 and page.count('<tr class="failed">') == 2
    for sentence in ("adam-1 failed: out of memory | here.", "muon-0 failed: The loss is NaN."):
        assert f"<li>{sentence}</li>" in page
    assert (
        "Trials. Validation accuracy from the best, optimizer=sgd with 52.00 ± 2.65 % (3), to the last, optimizer=adam "
        "with 62.50 ± 2.12 % (2 of 3)." in page
    )


def test_the_page_of_a_search_has_short_headings_and_no_column_that_is_equal_in_all_rows() -> None:
    keys = ("optimizer.lr", "optimizer.momentum", "loss.label_smoothing", "trainer.batch_size")
    trials = [trial(name, value, **dict.fromkeys(keys, name)) for name, value in (("1", 0.5), ("2", 0.4), ("3", 0.3))]
    page = sweep_page(sweep(*trials, swept=keys), {}, "")
    names = ["lr", "momentum", "label_smoothing", "batch_size"]
    assert re.findall(r"<th [^>]*>([^<]*)</th>", page)[2:6] == names
    assert re.findall(r'<th scope="col" title="([^"]*)">', page) == list(keys)
    assert "cannot say" not in page.partition("</table>")[0]
    assert "One run each: cannot say whether" in page.partition("</table>")[2]


def test_the_page_of_a_sweep_without_a_finished_trial_has_a_message() -> None:
    page = sweep_page(sweep(trial("a", status="KILLED", optimizer="a")), {}, "")
    assert "No trial finished, so there is no best trial." in page and "a was killed (no reason recorded)." in page
    assert 'id="command"' not in page
