"""Copy the project to a temporary directory, so that benchmarks change and reuse nothing of the original."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import Workspace
from workload_sizes import TINY, Sizes

ROOT = Path(__file__).resolve().parents[1]
# With everything that dvc.yaml depends on; the folders of the user's files are empty.
COPIED_PATHS = ("benchmarks", "conf", "src", "constraints.txt", "dvc.yaml", ".dvcignore", ".dvc/config")
EMPTY_FOLDERS = ("images", "pretrained")


def with_a_model(workspace: Workspace) -> None:
    """Train a model if the section `tutorial` did not run before."""
    if not (workspace.root / "models").is_dir():
        workspace.run("python", "src/train.py", "trainer.max_epochs=1", "trainer.limit_train_batches=100")


def has_data(workspace: Workspace) -> bool:
    """Whether the workspace has the real CIFAR-10."""
    return (workspace.root / "data" / "raw" / "cifar10").is_dir()


@contextmanager
def copy_of_the_project(sizes: Sizes) -> Iterator[Workspace]:
    """Copy the working tree to a temporary directory, with its data and an empty compiler cache."""
    with TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder) / "project"
        for name in COPIED_PATHS:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, root / name)
        for name in EMPTY_FOLDERS:
            (root / name).mkdir()
        (root / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
        (root / "params.yaml").write_text(
            "experiment: tutorial\nseed: 0\nimage_dir: images\noverrides: {}\n", encoding="utf-8"
        )
        workspace = Workspace(root, {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "compiled")} | source())
        if sizes is not TINY and "CIFAR10_SOURCE" in workspace.variables:
            workspace.run("python", "src/download.py")
            if not has_data(workspace):
                sys.exit(f"CIFAR10_SOURCE={workspace.variables['CIFAR10_SOURCE']} does not give CIFAR-10: unset it.")
            workspace.run("python", "src/preprocess.py")
        else:
            workspace.run("python", "benchmarks/make_random_dataset.py", "--images", str(sizes.images))
        yield workspace


def source() -> dict[str, str]:
    """Return the variable CIFAR10_SOURCE if CIFAR-10 is available."""
    raw = ROOT / "data" / "raw" / "cifar10"
    path = os.environ.get("CIFAR10_SOURCE") or (str(raw) if raw.is_dir() else "")
    return {"CIFAR10_SOURCE": path} if path else {}
