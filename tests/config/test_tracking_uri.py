"""MLFLOW_TRACKING_URI: what MLflow can open is used, anything else is refused in a sentence before any work."""

from pathlib import Path

import pytest

from cifar_pipeline.config.tracking_uri import sqlite_path, sqlite_uri, tracking_uri
from cifar_pipeline.utils.errors import UserError
from download import download
from helpers.config_project import Project
from train import train


@pytest.mark.parametrize(
    ("uri", "instead"),
    [
        ("localhost:5000", "write MLFLOW_TRACKING_URI=http://localhost:5000."),
        ("127.0.0.1:5000", "write MLFLOW_TRACKING_URI=http://127.0.0.1:5000."),
        ("mlflow.example.com/runs", "write MLFLOW_TRACKING_URI=http://mlflow.example.com/runs."),
        ("http:/localhost:5000", "write MLFLOW_TRACKING_URI=http://localhost:5000."),
        ("http//localhost:5000", "write MLFLOW_TRACKING_URI=http://localhost:5000."),
        ("http://localhost:99999", "a port up to 65535"),
        ("http://[::1", "is no URL"),
        ("http://local host", "is no URL"),
        ("http://localhost:5000\n", "ends with a space or a line break"),
        ("htp://localhost", "MLflow has no store for htp://; it must begin with http://"),
        ("s3://bucket/runs", "MLflow has no store for s3://"),
        ("mlflow.db", "write MLFLOW_TRACKING_URI=sqlite:///{root}/mlflow.db."),
        ("sqlite:runs.db", "write MLFLOW_TRACKING_URI=sqlite:///{root}/runs.db."),
        ("sqlite://", "write MLFLOW_TRACKING_URI=sqlite:///{root}/mlflow.db."),
        ("sqlite:///:memory:", "where they are lost"),
        ("sqlite:///conf", "sqlite:///{root}/conf/mlflow.db"),
        ("sqlite:///params.yaml/mlflow.db", "params.yaml is a file"),
        ("./mlruns", "`mlflow migrate-filestore --source mlruns --target sqlite:///{root}/mlruns.db`"),
        ("file:///runs/all", "`mlflow migrate-filestore --source /runs/all --target sqlite:////runs/all.db`"),
        ("mysql+nodriver://me@host/runs", "is no URI of a database"),
        ("postgresql://host:port/runs", "is no URI of a database"),
        ("mssql+pymssql://host/runs", "`pip install 'pymssql'`"),
        ("mysql+mysqldb://host/runs", "`pip install 'mysqlclient'`"),
    ],
)
def test_what_mlflow_cannot_open_is_refused_with_what_to_write(
    project: Project, monkeypatch: pytest.MonkeyPatch, uri: str, instead: str
) -> None:
    expected = instead.format(root=project.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError) as raised:
        tracking_uri()
    assert expected in str(raised.value) and "MLFLOW_TRACKING_URI=" in str(raised.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
    with pytest.raises(UserError, match="MLFLOW_REGISTRY_URI="):
        tracking_uri()


def test_a_stage_and_a_sweep_refuse_it_before_any_work(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "localhost:5000")
    project.start(download).assert_refused("write MLFLOW_TRACKING_URI=http://localhost:5000.")
    project.start(train, "-m", "data=digits", "seed=1,2").assert_refused("write MLFLOW_TRACKING_URI=http://local")
    assert not {"data", "mlflow.db", "localhost:5000"} & {path.name for path in project.folder.iterdir()}


def test_a_sweep_on_a_server_that_is_down_ends_with_a_sentence(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    ended = project.start(train, "-m", "data=digits", "seed=1,2")
    assert ended.code == 1 and "Traceback" not in ended.err
    assert ended.err.splitlines()[-1].startswith("The MLflow server at http://127.0.0.1:9 does not respond")


@pytest.mark.parametrize(
    "uri",
    [
        "http://[::1]:5000",
        "HTTPS://me:token@mlflow.example.com/path",
        "databricks",
        "databricks://profile",
        "sqlite:////runs/my runs/mlflow.db?timeout=3",
    ],
)
def test_others_are_used_as_they_are(project: Project, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri() == uri


def test_a_workspace_whose_path_is_no_utf8_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project.folder / "caf\udce9"
    folder.mkdir()
    for name in ("conf", "params.yaml"):
        (folder / name).symlink_to(project.folder / name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    ended = project.start(download, "data=digits")
    ended.assert_refused(r"caf\udce9/mlflow.db is not UTF-8, as the paths in MLflow's database must be: rename")


def test_mlflows_own_switch_allows_a_folder(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert tracking_uri() == "./mlruns"


def test_a_relative_database_is_in_the_main_workspace(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("copy"))
    monkeypatch.setenv("DVC_ROOT", str(project.folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    assert tracking_uri() == f"sqlite:///{project.folder}/runs.db"


@pytest.mark.parametrize("path", ["/a b/c.db", "/100%/c.db", "/50%20/c.db", "/why?/c.db", "/é#/c.db"])
def test_a_path_is_the_same_in_the_uri(path: str) -> None:
    from sqlalchemy import make_url

    assert sqlite_path(sqlite_uri(Path(path))) == Path(path)
    assert make_url(sqlite_uri(Path(path))).database == path
