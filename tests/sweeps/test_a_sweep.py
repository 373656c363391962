"""A sweep is one parent run in MLflow, and finished trainings are not repeated."""

import html
import math
import shutil
from dataclasses import dataclass
from textwrap import indent

import pytest
from mlflow.entities import Run
from sweep_runs import (
    PARENT,
    artifact,
    assert_complete,
    children,
    folder,
    in_order,
    params_lines,
    rows,
    set_params,
    sweeps,
    trained,
    trials,
)

from helpers.config_project import run
from helpers.workspace import Workspace, sentences
from report import report

BASIC = ("-m", "optimizer=sgd,adam", "loss=cross_entropy,mse", "trainer.max_epochs=2", "launcher=joblib")


@dataclass(frozen=True)
class Swept:
    workspace: Workspace
    output: str
    after_first: list[Run]
    wrote_models: bool


def scenario_basic(workspace: Workspace) -> Swept:
    """Two trials at a time, into a database that does not exist yet."""
    for path in workspace.root.glob("mlflow.db*"):
        path.unlink()
    first = workspace.train(*BASIC)
    return Swept(workspace, first, workspace.runs(), (workspace.root / "models").exists())


def scenario_retrained(workspace: Workspace) -> Swept:
    """Then the best trial in the pipeline, trained again; only the stage `train`."""
    basic = scenario_basic(workspace)
    set_params(workspace, params_lines(basic.output))
    shutil.rmtree(workspace.root / ".cache" / "trainings")
    assert "epoch 2/2" in workspace.train()
    return basic


def test_a_sweep_is_one_run_with_its_jobs_as_children(outcome):
    basic = outcome(scenario_basic)
    workspace = basic.workspace
    parent = basic.after_first[0]
    assert parent.info.run_name == "optimizer=sgd,adam loss=cross_entropy,mse"
    assert parent.info.status == "FINISHED"
    jobs = in_order(workspace, parent)
    assert [job.info.run_name for job in jobs] == [
        f"debug-{optimizer}-{loss}-0" for optimizer in ("sgd", "adam") for loss in ("cross_entropy", "mse")
    ]
    assert {job.info.status for job in jobs} == {"FINISHED"}
    assert sorted(trained(basic.output)) == [0, 1, 2, 3]
    assert_complete(workspace, basic.output, 4)


def test_a_sweep_does_not_write_to_models_but_to_a_folder_for_each_job(outcome):
    basic = outcome(scenario_basic)
    workspace, parent = basic.workspace, basic.after_first[0]
    assert not basic.wrote_models
    jobs = [f"{folder(basic.output)}/{number}" for number in range(4)]
    for job, job_run in zip(jobs, in_order(workspace, parent), strict=True):
        assert workspace.json(f"{job}/models/run.json") == {"id": job_run.info.run_id, "name": job_run.info.run_name}
        assert len(workspace.read(f"{job}/reports/history.csv").splitlines()) == 1 + 2
    assert len({workspace.model(f"{job}/models") for job in jobs}) == 4


def test_the_table_has_the_metrics_of_the_jobs(outcome):
    basic = outcome(scenario_basic)
    workspace, parent = basic.workspace, basic.after_first[0]
    jobs = in_order(workspace, parent)
    table = rows(workspace, parent)
    assert [row["run_id"] for row in table] == [job.info.run_id for job in jobs]
    for row, job in zip(table, jobs, strict=True):
        for metric in ("val/accuracy", "val/loss", "train/accuracy", "train/loss"):
            assert float(row[metric]) == job.data.metrics[metric]
        assert (row["status"], row["reason"], row["reused"]) == ("FINISHED", "", "False")
        assert 0 < float(row["seconds"]) == float(job.data.tags["seconds"])
    saved = folder(basic.output)
    for name in ("comparison.csv", "comparison.md", "compare.html", "comparison.png", "curves.png"):
        assert artifact(workspace, parent, name) == (workspace.root / saved / name).read_bytes()
    description = workspace.mlflow.get_run(parent.info.run_id).data.tags["mlflow.note.content"]
    _, _, table_and_sentences = workspace.read(f"{saved}/comparison.md").partition("\n\n")
    assert description == f"## Comparison of the trials\n\n{table_and_sentences}".rstrip("\n")
    best = max(jobs, key=lambda job: job.data.metrics["val/accuracy"])
    _, optimizer, loss, _ = best.info.run_name.split("-")
    # There is no git in this workspace.
    overrides = "{trainer: {max_epochs: 2}, runtime: {threads: 1, engine: eager}}"
    command = f"""Set in params.yaml:
  optimizer: {optimizer}
  loss: {loss}
  overrides: {overrides}
Then type: dvc repro"""
    heading = f"To run {best.info.run_name} in the pipeline and evaluate it on the test split:"
    assert f"\n{heading}\n{indent(command, '  ')}\n" in basic.output
    page = (workspace.root / saved / "compare.html").read_text(encoding="utf-8")
    assert html.escape(command) in page and f"optimizer={optimizer}, loss={loss}" in page


@pytest.mark.long
def test_the_best_trial_trains_to_the_same_weights_in_the_pipeline(outcome):
    basic = outcome(scenario_retrained)
    jobs = in_order(basic.workspace, basic.after_first[0])
    best = max(range(4), key=lambda number: jobs[number].data.metrics["val/accuracy"])
    assert basic.workspace.model() == basic.workspace.model(f"{folder(basic.output)}/{best}/models")
    assert basic.workspace.json("models/run.json")["id"] == jobs[best].info.run_id


def test_without_any_sweep_there_is_nothing_to_compare(never_swept, inside):
    inside(never_swept)
    ended = run(report, "sweep")
    assert ended.code == 2
    assert sentences(ended.err) == ["There is no sweep yet: `make sweep` or `python src/train.py -m ...` starts one."]
    assert never_swept.runs() == []


def scenario_larger(workspace: Workspace) -> tuple[Workspace, str]:
    workspace.train("-m", "loss=cross_entropy,mse")
    return workspace, workspace.train("-m", "loss=mse,focal,cross_entropy")


@pytest.mark.long
def test_a_larger_sweep_reuses_the_trials_of_the_first_without_moving_them(outcome):
    workspace, output = outcome(scenario_larger)
    first, larger = sweeps(workspace)
    assert trained(output) == [1] and output.count("finished before") == 2
    assert [job.info.run_name for job in children(workspace, larger)] == ["debug-sgd-focal-0"]
    cross_entropy, mse = trials(first)
    assert trials(larger)[::2] == [mse, cross_entropy] and len(trials(larger)) == 3
    reused = {row["run_id"]: row["reused"] for row in rows(workspace, larger)}
    assert {run for run, was in reused.items() if was == "True"} == {mse, cross_entropy}
    assert all(workspace.mlflow.get_run(run).data.tags[PARENT] == first.info.run_id for run in trials(first))
    assert output.count("finished, reused") == 2


@dataclass(frozen=True)
class Repeated:
    workspace: Workspace
    outputs: list[str]
    after_first: list[Run]
    after_second: list[Run]


def scenario_repeated(workspace: Workspace) -> Repeated:
    # An error before any work, which leaves no run.
    (error,) = sentences(workspace.train("-m", "optimizer=sgd,nope", code=2))
    assert error.startswith("optimizer=nope: conf/optimizer/ has no file of this name;")
    assert workspace.runs() == []
    arguments = ("-m", "optimizer.lr=0.1,0.001", "trainer.max_epochs=2")
    first, after_first = workspace.train(*arguments), workspace.runs()
    again, after_second = workspace.train(*arguments), workspace.runs()
    return Repeated(workspace, [first, again, workspace.train(*arguments, "rerun=true")], after_first, after_second)


@pytest.mark.long
def test_a_sweep_typed_again_trains_nothing_and_stays_the_same_sweep(outcome):
    repeated = outcome(scenario_repeated)
    _, output, _ = repeated.outputs
    assert not trained(output) and output.count("finished before") == 2
    before, after = (
        {run.info.run_id: run.info.start_time for run in runs} for runs in (repeated.after_first, repeated.after_second)
    )
    assert before == after and {run.info.status for run in repeated.after_second} == {"FINISHED"}
    _, *jobs = repeated.after_second
    assert [repeated.workspace.logged(job) for job in jobs] == [[1, 2], [1, 2]]


@pytest.mark.long
def test_rerun_trains_again_under_the_same_parent(outcome):
    repeated = outcome(scenario_repeated)
    workspace, (first, _, again) = repeated.workspace, repeated.outputs
    assert trained(first) == trained(again) == [0, 1]
    (parent,) = sweeps(workspace)
    jobs = children(workspace, parent)
    # The name has the swept values other than optimizer, loss and seed.
    assert [job.info.run_name for job in jobs] == [
        f"debug-sgd-cross_entropy-0 optimizer.lr={lr}" for lr in ("0.1", "0.001")
    ] * 2
    assert trials(parent) == [job.info.run_id for job in jobs[2:]]
    values = [job.data.metrics["val/loss"] for job in jobs]
    assert values[:2] == values[2:] and not any(map(math.isnan, values))
