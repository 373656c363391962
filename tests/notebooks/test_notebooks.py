"""Every notebook runs from top to bottom, offline, and its committed copy carries nothing of the machine it ran on."""

import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from download import download
from helpers.config_project import ROOT, Project
from helpers.source_tree import HANGS_AFTER
from preprocess import preprocess

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What looks at a project's runs needs a project; the others need nothing.
IN_A_PROJECT = "03-runs.ipynb"
# What clones the project itself, and sets it up.
IN_A_CLONE = "05-colab.ipynb"
# In the default test run; the others are long.
IN_SECONDS = "01-by-hand.ipynb"
SWEEP = "optimizer=sgd,adam loss=cross_entropy,mse trainer.batch_size=16 trainer.max_epochs=2"
KERNEL = "tests-own"

each_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)


def read(file: Path) -> NotebookNode:
    return nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call, no-any-return, unused-ignore]


def texts(cell: NotebookNode) -> list[str]:
    """What stands in a cell, and what came of it in words."""
    outputs = cell.get("outputs", [])
    return [cell.source, *(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel that is this very interpreter with this very source, whatever kernels the machine has installed."""
    folder = tmp_path / "jupyter" / "kernels" / KERNEL
    folder.mkdir(parents=True)
    specification = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": KERNEL,
        "language": "python",
        "env": {
            "PYTHONPATH": str(ROOT / "src"),
            # A person's start-up files are not part of the notebook.
            "IPYTHONDIR": str(tmp_path / "ipython"),
            # Nobody answers there: a download fails at once instead of passing where there is a network.
            "HTTP_PROXY": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            # The runs are those of the folder that the notebook works in.
            "MLFLOW_TRACKING_URI": "",
            "DVC_ROOT": "",
            "OMP_NUM_THREADS": "1",
        },
    }
    (folder / "kernel.json").write_text(json.dumps(specification))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    return KERNEL


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=pytest.mark.long) if file.name != IN_SECONDS else file for file in NOTEBOOKS],
    ids=lambda file: file.name,
)
def test_a_notebook_runs_from_top_to_bottom(
    file: Path, kernel: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace = tmp_path / "workplace" / "notebooks"
    if file.name == IN_A_PROJECT:
        assert SWEEP in file.read_text(encoding="utf-8")
        project = with_data(request.getfixturevalue("project"))
        shutil.copy(request.getfixturevalue("empty_database"), project.folder)
        workplace = project.folder / "notebooks"
    workplace.mkdir(parents=True)
    notebook = read(file)
    whose = nbformat.v4.new_code_cell(  # type: ignore[no-untyped-call, unused-ignore]
        "import sys\n"
        "import cifar_pipeline\n"
        f"assert sys.executable == {sys.executable!r}, sys.executable\n"
        f"assert cifar_pipeline.__file__.startswith({str(ROOT / 'src')!r}), cifar_pipeline.__file__"
    )
    notebook.cells.insert(0, whose)
    if file.name == IN_A_CLONE:
        monkeypatch.setenv("REPOSITORY", str(ROOT))
        environment = f"!ln -s {sys.prefix} .venv"
        notebook.cells.insert(3, nbformat.v4.new_code_cell(environment))  # type: ignore[no-untyped-call, unused-ignore]
    for cell in notebook.cells:
        # Two points of a few steps are a sweep too, and spare seconds.
        cell.source = cell.source.replace(SWEEP, "optimizer=sgd,adam experiment=debug")
    # A failing cell raises CellExecutionError, with the cell and its traceback.
    NotebookClient(
        notebook, kernel_name=kernel, timeout=HANGS_AFTER, resources={"metadata": {"path": str(workplace)}}
    ).execute()
    left = [path.name for path in workplace.iterdir()]
    assert left == (["project"] if file.name == IN_A_CLONE else []), "the notebook left files behind"
    if file.name == IN_A_CLONE:
        report = (workplace / "project" / "reports" / "report.html").read_text(encoding="utf-8")
        assert "digits" in report and "rank" in texts(notebook.cells[-1])[1]


def with_data(project: Project) -> Project:
    """A project with processed digits and no run yet."""
    shutil.copytree(ROOT / "src", project.folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    project.edit("params.yaml", "data: null", "data: digits")
    for stage in (download, preprocess):
        assert project.start(stage).code == 0
    return project


@each_notebook
def test_a_notebook_is_committed_as_it_ran(file: Path) -> None:
    code = [cell for cell in read(file).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert file.stat().st_size < 200_000, "outputs are to be small: they stand in every clone for ever"


@each_notebook
def test_no_notebook_shows_a_image_of_cifar10(file: Path) -> None:
    """No image of CIFAR-10 may stand in the repository: its photographs are other people's."""
    said = "".join(text for cell in read(file).cells for text in texts(cell)[1:])
    assert "CIFAR" not in said and re.search(r"digits|labels \[0, 1, 2, 3\]", said)


@each_notebook
def test_a_notebook_carries_nothing_of_the_machine(file: Path) -> None:
    notebook = read(file)
    assert notebook.metadata.kernelspec.name == "python3"
    assert not [cell for cell in notebook.cells if cell.metadata]
    for text in (text for cell in notebook.cells for text in texts(cell)):
        assert not re.search(r"(?:^|[\s'\"(])/(?:\w+/)+\w+|[A-Z]:\\|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d", text), text
