"""A sweep from four processes against an MLflow server whose store is PostgreSQL loses nothing."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from workspace import Workspace

JOBS, AT_ONCE = 16, 4
SECONDS = 90
USER = "postgres"  # where the tests run as root, which PostgreSQL refuses


def program(name: str) -> str | None:
    """Where a program of PostgreSQL's lies; Debian puts those of the server beside PATH."""
    places = map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *places]))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty database in a PostgreSQL of its own."""
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    if not initdb or not pg_ctl:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    if find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed (the extra `server`)")
    # Not below pytest's folders, which are closed to other users.
    folder, port = Path(f"/tmp/postgresql-of-tests-{os.getpid()}"), free_port()
    folder.mkdir(mode=0o700)
    words: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, USER)
        words = ["runuser", "-u", USER, "--"]
    listen = f"-p {port} -k {folder} -h 127.0.0.1"

    def run(*command: str) -> None:
        subprocess.run([*words, *command], cwd="/", check=True, stdout=subprocess.DEVNULL, timeout=SECONDS)

    try:
        run(initdb, "-D", f"{folder}/data", "--auth=trust", "--username=mlflow")
        run(pg_ctl, "-D", f"{folder}/data", "-l", f"{folder}/said.txt", "-o", listen, "-w", "start")
        # The database that every PostgreSQL has from its beginning will do.
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        run(pg_ctl, "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def server(database: str, tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server with this database and a folder for the files."""
    address = f"http://127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    words = ["mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "2"]
    store = ["--backend-store-uri", database, "--artifacts-destination", str(tmp_path / "files")]
    said = tmp_path / "said.txt"
    with said.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", *words, *store], stdout=file, stderr=file, cwd=tmp_path)
    try:
        began = time.monotonic()
        while not answers(address):
            assert time.monotonic() - began < SECONDS and process.poll() is None, said.read_text()
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=5).ok
    except requests.RequestException:
        return False


@pytest.mark.long
@pytest.mark.timeout(900)
def test_sixteen_jobs_from_four_processes_lose_nothing(never_swept: Workspace, tmp_path: Path, server: str) -> None:
    workspace = never_swept.copy(tmp_path / "copy")
    on_server = ("env", f"MLFLOW_TRACKING_URI={server}")
    local = workspace.runs()
    points = f"seed=range(0,{JOBS})"
    launcher = ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={AT_ONCE}")
    sweep = (*on_server, "python", "src/train.py", "-m", points, "trainer.max_epochs=2", *launcher)
    # Longer than a command may take elsewhere in the tests.
    command = workspace.start(*sweep)
    command.wait_for(f"[{JOBS - 1}]")
    said = command.end()
    assert "Traceback" not in said

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("cifar-pipeline")
    assert experiment
    runs = list(client.search_runs([experiment.experiment_id]))
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) == JOBS + 1 and len(children) == JOBS
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(int(run.data.params["seed"]) for run in children) == list(range(JOBS))
    for run in children:
        for key in ("train/loss", "val/accuracy", "lr"):
            assert [entry.step for entry in client.get_metric_history(run.info.run_id, key)] == [1, 2]
        assert run.outputs.model_outputs
        assert client.list_artifacts(run.info.run_id)
    assert len({run.data.metrics["train/loss"] for run in children}) == JOBS
    assert workspace.runs() == local  # none went to the file beside

    again = workspace.run(*sweep)
    assert again.count("finished before") == JOBS
    best = max(children, key=lambda run: run.data.metrics["val/accuracy"])
    promoted = workspace.run(*on_server, "python", "src/promote.py", best.info.run_id)
    assert "is the champion now" in promoted
    assert "champion" in workspace.run(*on_server, "python", "src/versions.py")
