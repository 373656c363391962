"""MLflow's own server with users: a training with the right login is logged there, one without permission is not."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests

from helpers.servers import mlflow_server
from helpers.source_tree import EXPERIMENT
from helpers.workspace import Workspace

ADMIN, ADMIN_PASSWORD = "admin", "password-of-the-administrator"
READER, READER_PASSWORD = "reader", "password-of-the-reader"
API = "api/2.0/mlflow"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Start an MLflow server with its app basic-auth, two users, and runs that each may read; yield its URL."""
    if find_spec("flask_wtf") is None:
        pytest.skip("Flask-WTF is not installed (the extra `server`)")
    settings = {
        "default_permission": "READ",
        "database_uri": f"sqlite:///{tmp_path}/users.db",
        "admin_username": ADMIN,
        "admin_password": ADMIN_PASSWORD,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    lines = ["[mlflow]", *(f"{key} = {value}" for key, value in settings.items())]
    (tmp_path / "auth.ini").write_text("\n".join(lines) + "\n")
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-tests",
    }
    options = ("--app-name", "basic-auth")
    with mlflow_server(tmp_path, f"sqlite:///{tmp_path}/runs.db", 1, options, variables) as port:
        url = f"http://127.0.0.1:{port}"
        user = {"username": READER, "password": READER_PASSWORD}
        created = requests.post(f"{url}/{API}/users/create", json=user, auth=(ADMIN, ADMIN_PASSWORD), timeout=60)
        created.raise_for_status()
        yield url


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_training_needs_a_login_with_permission(copy: Workspace, server: str) -> None:
    def train(user: str, password: str, *overrides: str, code: int) -> str:
        login = [f"MLFLOW_TRACKING_USERNAME={user}", f"MLFLOW_TRACKING_PASSWORD={password}"] if user else []
        return copy.run("env", f"MLFLOW_TRACKING_URI={server}", *login, "python", "src/train.py", *overrides, code=code)

    def assert_refused(output: str, sentence: str) -> None:
        assert output.splitlines()[-1].startswith(f"The MLflow server at {server} {sentence}")
        assert "Traceback" not in output and "epoch 1/" not in output

    assert_refused(train("", "", code=1), "requires a login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    assert_refused(train(READER, "a-wrong-one", code=1), "rejects the login: check MLFLOW_TRACKING_USERNAME")
    assert "epoch 1/" in train(ADMIN, ADMIN_PASSWORD, code=0)
    # The reader may see the run, but not add one.
    assert_refused(train(READER, READER_PASSWORD, "seed=1", code=1), "denies access: ask its administrator")

    session = requests.Session()
    session.auth = (READER, READER_PASSWORD)
    experiment = session.get(f"{server}/{API}/experiments/get-by-name", params={"experiment_name": EXPERIMENT})
    identity = experiment.json()["experiment"]["experiment_id"]
    (run,) = session.post(f"{server}/{API}/runs/search", json={"experiment_ids": [identity]}).json()["runs"]
    assert run["info"]["status"] == "FINISHED" and run["outputs"]["model_outputs"]
    dataset = run["inputs"]["dataset_inputs"][0]["dataset"]
    assert "mlflow_tensorspec" in dataset["schema"] and '"classes": 10' in dataset["profile"]
