"""An unreachable MLflow does not stop a training: metrics are kept, and sent when it is back."""

import shutil

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cifar_pipeline.training.loggers import ResumableMLFlowLogger


@pytest.fixture
def logger(tmp_path, monkeypatch, empty_database):
    shutil.copy(empty_database, tmp_path)
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("test", artifact_location=tmp_path.as_uri()))
    return ResumableMLFlowLogger(uri, run.info.run_id)


def steps(logger):
    return [metric.step for metric in logger.experiment.get_metric_history(logger.run_id, "train/loss")]


def test_metrics_are_kept_while_mlflow_is_unreachable_and_sent_later(logger, monkeypatch, capsys):
    def unreachable(*_, **__):
        raise MlflowException("API request failed") from requests.ConnectionError("refused")

    logger.log_metrics({"train/loss": 3.0}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", unreachable)
        logger.log_metrics({"train/loss": 2.0}, 2)
        logger.log_metrics({"train/loss": 1.0}, 3)
    assert capsys.readouterr().err.count("The training continues") == 1
    assert steps(logger) == [1]
    logger.log_metrics({"train/loss": 0.5}, 4)
    assert sorted(steps(logger)) == [1, 2, 3, 4]


def test_pending_metrics_are_sent_at_the_end_or_raise(logger, monkeypatch):
    def unreachable(*_, **__):
        raise MlflowException("API request failed") from requests.ConnectionError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", unreachable)
        logger.log_metrics({"train/loss": 3.0}, 1)
        with pytest.raises(MlflowException):
            logger.flush_pending()
    logger.flush_pending()
    assert steps(logger) == [1]


def test_other_exceptions_are_raised(logger, monkeypatch):
    def broken(*_, **__):
        raise LookupError("a bug")

    monkeypatch.setattr(MlflowClient, "log_batch", broken)
    with pytest.raises(LookupError):
        logger.log_metrics({"train/loss": 3.0}, 1)
