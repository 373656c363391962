"""A store that doesn't answer stops no training: its metrics are kept, and sent when it answers again."""

import shutil

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cifar_pipeline.training.callbacks import ResumableMLFlowLogger


@pytest.fixture
def logger(tmp_path, monkeypatch, empty_database):
    shutil.copy(empty_database, tmp_path)
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("tested", artifact_location=tmp_path.as_uri()))
    return ResumableMLFlowLogger(uri, run.info.run_id, 0)


def steps(logger):
    return [metric.step for metric in logger.experiment.get_metric_history(logger.run_id, "train/loss")]


def test_metrics_are_kept_while_the_store_is_away_and_sent_later(logger, monkeypatch, capsys):
    def away(*_, **__):
        raise MlflowException("API request failed") from requests.ConnectionError("refused")

    logger.log_metrics({"train/loss": 3.0}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", away)
        logger.log_metrics({"train/loss": 2.0}, 2)
        logger.log_metrics({"train/loss": 1.0}, 3)
    assert capsys.readouterr().err.count("doesn't answer") == 1
    assert steps(logger) == [1]
    logger.log_metrics({"train/loss": 0.5}, 4)
    assert sorted(steps(logger)) == [1, 2, 3, 4]


def test_what_is_kept_at_the_end_is_sent_then_or_said(logger, monkeypatch):
    def away(*_, **__):
        raise MlflowException("API request failed") from requests.ConnectionError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", away)
        logger.log_metrics({"train/loss": 3.0}, 1)
        with pytest.raises(MlflowException):
            logger.flush_pending()
    logger.flush_pending()
    assert steps(logger) == [1]


def test_what_is_a_bug_is_not_kept_quiet(logger, monkeypatch):
    def broken(*_, **__):
        raise LookupError("a bug")

    monkeypatch.setattr(MlflowClient, "log_batch", broken)
    with pytest.raises(LookupError):
        logger.log_metrics({"train/loss": 3.0}, 1)
