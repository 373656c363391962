"""Every notebook runs from top to bottom, offline, and its committed copy carries nothing of the machine it ran on."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KERNEL = "tests-own"

each_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)


def read(file: Path) -> NotebookNode:
    return nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call, no-any-return, unused-ignore]


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
        },
    }
    (folder / "kernel.json").write_text(json.dumps(specification))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    return KERNEL


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@each_notebook
def test_runs_from_top_to_bottom(file: Path, kernel: str, tmp_path: Path) -> None:
    workplace = tmp_path / "workplace"
    workplace.mkdir()
    notebook = read(file)
    whose = nbformat.v4.new_code_cell(  # type: ignore[no-untyped-call, unused-ignore]
        "import sys\n"
        "import cifar_pipeline\n"
        f"assert sys.executable == {sys.executable!r}, sys.executable\n"
        f"assert cifar_pipeline.__file__.startswith({str(ROOT / 'src')!r}), cifar_pipeline.__file__"
    )
    notebook.cells.insert(0, whose)
    # A failing cell raises CellExecutionError, with the cell and its traceback.
    NotebookClient(
        notebook, kernel_name=kernel, timeout=120, resources={"metadata": {"path": str(workplace)}}
    ).execute()
    assert not list(workplace.iterdir()), "the notebook left files behind"


@each_notebook
def test_is_committed_as_it_ran(file: Path) -> None:
    code = [cell for cell in read(file).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert file.stat().st_size < 200_000, "outputs are to be small: they stand in every clone for ever"


@each_notebook
def test_carries_nothing_of_the_machine(file: Path) -> None:
    notebook = read(file)
    assert notebook.metadata.kernelspec.name == "python3"
    assert not [cell for cell in notebook.cells if cell.metadata]
    texts = [cell.source for cell in notebook.cells]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
    for text in texts:
        assert not re.search(r"(?:^|[\s'\"(])/(?:\w+/)+\w+|[A-Z]:\\|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d", text), text
