"""Where a model may be kept, and how it comes from there: a folder, a revision of the project in DVC, MLflow.

A model from MLflow as files on this machine; nothing of it is run.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from cifar_pipeline.tracking.client import connect
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.git import GitError, Kind, find_repository, folder_in_repository

# What MLflow answers where there is no such run, model or alias; everything else is a fault of the store.
ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


def download_model(address: str, place: Path) -> Path:
    """The folder below `place` that holds the model of `models:/cifar10@champion`, `models:/cifar10/3` or `runs:/...`.

    Raises:
        Refusal: MLflow has no such model.
    """
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    connect()
    try:
        folder = Path(download_artifacts(artifact_uri=address, dst_path=str(place / "model")))
    except (MlflowException, FileNotFoundError) as error:
        if isinstance(error, MlflowException) and error.error_code not in ABSENT:
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"MLflow has no {address} ({reason}): `make models` lists those it has.") from None
    if not (folder / "MLmodel").is_file():
        raise UserError(f"{address} is no model: runs:/RUN/last and models:/NAME/VERSION are.")
    return folder


MLFLOW_SCHEMES = ("models:/", "runs:/")


@contextmanager
def resolve_model(address: str, revision: str, checkpoint: str) -> Iterator[Path]:
    """Yield the folder of one model, which may be gone afterwards.

    `address` is a folder or an address in MLflow; with a `revision` (a tag, a branch, a commit or an experiment's name)
    the folder is the one that DVC keeps for it. Of a training's folder, which holds several, `checkpoint` is taken.

    Raises:
        Refusal: there is no such model.
    """
    with TemporaryDirectory(prefix="model-") as place:
        if address.startswith(MLFLOW_SCHEMES):
            if revision:
                raise UserError(f"{address} is kept in MLflow, not in a revision of DVC: leave out one of the two.")
            # Imported here, because MLflow takes seconds that a model in a folder doesn't need.

            yield download_model(address, Path(place))
        elif revision:
            yield _find_checkpoint(
                _from_dvc_revision(address, revision, Path(place)), f"{address} of {revision}", checkpoint
            )
        else:
            yield _find_checkpoint(Path(address), address, checkpoint)


def _find_checkpoint(folder: Path, name: str, checkpoint: str) -> Path:
    """The folder itself where it is a model, or the training's checkpoint in it; without a best, the last."""
    for candidate in (folder, folder / checkpoint, folder / "last"):
        if (candidate / "MLmodel").is_file():
            return candidate
    raise UserError(
        f"There is no model in {name}: `dvc repro train` makes one; --model takes another folder, or an address "
        "such as models:/cifar10@champion."
    )


def _from_dvc_revision(folder: str, revision: str, place: Path) -> Path:
    """The folder as it was at a revision, from DVC's cache or its remote."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import RevError, SCMError

    repository = find_repository()
    if repository.kind is not Kind.FOUND:
        raise UserError(
            f"Without a commit in git there are no revisions ({repository.reason or repository.kind}): leave out --rev "
            f"{revision}."
        )
    try:
        # DVC opens a revision at the repository's top, whatever folder it is asked in.
        below = folder_in_repository()
        files = DVCFileSystem(".", rev=revision, subrepos=bool(below))
        files.get(f"{below}{folder}", str(place / "models"), recursive=True)
    except RevError:
        raise UserError(
            f"There is no revision {revision}: `git tag`, `git log` and `dvc exp list` show them."
        ) from None
    except (DvcException, SCMError, GitError, OSError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        raise UserError(
            f"DVC has no {folder} of {revision} ({reason}): `git checkout {revision} && dvc repro` makes what its "
            "cache doesn't hold."
        ) from None
    return place / "models"
