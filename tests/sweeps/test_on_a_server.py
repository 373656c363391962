"""A sweep from four processes loses nothing on an MLflow server with PostgreSQL."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from mlflow import MlflowClient

from helpers.servers import free_port, mlflow_server
from helpers.source_tree import EXPERIMENT
from helpers.workspace import Workspace, logged_steps

JOBS, PROCESSES = 16, 4
SECONDS = 90
USER = "postgres"  # PostgreSQL refuses to run as root


def find_program(name: str) -> str | None:
    """Find a program of PostgreSQL; Debian's server programs are not on PATH."""
    folders = map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *folders]))


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start PostgreSQL; yield the URI of an empty database."""
    initdb, pg_ctl = find_program("initdb"), find_program("pg_ctl")
    if not initdb or not pg_ctl:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    if find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed (the extra `server`)")
    # Not in pytest's folders, which other users cannot read.
    folder, port = Path(f"/tmp/postgresql-of-tests-{os.getpid()}"), free_port()
    folder.mkdir(mode=0o700)
    prefix: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, USER)
        prefix = ["runuser", "-u", USER, "--"]
    listen = f"-p {port} -k {folder} -h 127.0.0.1"

    def run(*command: str) -> None:
        subprocess.run([*prefix, *command], cwd="/", check=True, stdout=subprocess.DEVNULL, timeout=SECONDS)

    try:
        run(initdb, "-D", f"{folder}/data", "--auth=trust", "--username=mlflow")
        run(pg_ctl, "-D", f"{folder}/data", "-l", f"{folder}/log.txt", "-o", listen, "-w", "start")
        # This database exists in every new PostgreSQL cluster.
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        run(pg_ctl, "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def server(database: str, tmp_path: Path) -> Iterator[str]:
    """Start an MLflow server with this database; yield its URL."""
    with mlflow_server(tmp_path, database, workers=2) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_sixteen_jobs_from_four_processes_lose_nothing(never_swept: Workspace, tmp_path: Path, server: str) -> None:
    workspace = never_swept.copy(tmp_path / "copy")
    on_server = ("env", f"MLFLOW_TRACKING_URI={server}")
    local = workspace.runs()
    trials = f"seed=range(0,{JOBS})"
    launcher = ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={PROCESSES}")
    sweep = (*on_server, "python", "src/train.py", "-m", trials, "trainer.max_epochs=2", *launcher)
    # Takes longer than the timeout of `Command.end`.
    command = workspace.start(*sweep)
    command.wait_for(f"[{JOBS - 1}]")
    assert "Traceback" not in command.end()

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment
    runs = list(client.search_runs([experiment.experiment_id]))
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) == JOBS + 1 and len(children) == JOBS
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(int(run.data.params["seed"]) for run in children) == list(range(JOBS))
    for run in children:
        for key in ("train/loss", "val/accuracy", "lr"):
            assert logged_steps(client, run.info.run_id, key) == [1, 2]
        assert run.outputs.model_outputs
        assert client.list_artifacts(run.info.run_id)
    assert len({run.data.metrics["train/loss"] for run in children}) == JOBS
    assert workspace.runs() == local  # nothing was logged to the local file

    again = workspace.run(*sweep)
    assert again.count("finished before") == JOBS
    best = max(children, key=lambda run: run.data.metrics["val/accuracy"])
    promoted = workspace.run(*on_server, "python", "src/registry.py", "promote", best.info.run_id)
    assert "is the champion now" in promoted
    assert "champion" in workspace.run(*on_server, "python", "src/registry.py", "list")
