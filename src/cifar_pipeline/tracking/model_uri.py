"""Resolve the address of a model to a folder: a local folder, a revision in DVC, or a `models:/` or `runs:/` URI.

Models are downloaded as files; nothing in them is executed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cifar_pipeline.config.params import MLFLOW_SCHEMES
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.git import GitError, Kind, find_repository, folder_in_repository
from cifar_pipeline.utils.paths import MLMODEL_FILE
from cifar_pipeline.utils.safe_io import parse_json
from cifar_pipeline.utils.text import one_line

# MLflow's error codes for a missing run, model or alias; all others are failures of the store.
NOT_FOUND = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


def download_model(uri: str, directory: Path) -> Path:
    """Download `models:/cifar10@champion`, `models:/cifar10/3` or `runs:/...` into `directory`; return its folder.

    Raises:
        UserError: MLflow has no such model.
    """
    # Imported here: MLflow takes seconds, and a model in a folder does not need it.
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    from cifar_pipeline.tracking.client import connect

    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    connect()
    try:
        folder = Path(download_artifacts(artifact_uri=uri, dst_path=str(directory / "model")))
    except (MlflowException, FileNotFoundError) as error:
        if isinstance(error, MlflowException) and error.error_code not in NOT_FOUND:
            raise
        reason = one_line(error).rstrip(".")
        raise UserError(f"MLflow has no {uri} ({reason}): `make list-models` lists the registered models.") from None
    if not (folder / MLMODEL_FILE).is_file():
        raise UserError(f"{uri} is not a model: write runs:/RUN/last or models:/NAME/VERSION.")
    return folder


@contextmanager
def resolve_model(address: str, revision: str, checkpoint: str) -> Iterator[Path]:
    """Yield the folder of a model, which may be temporary.

    Args:
        address: a folder or an MLflow URI.
        revision: of the folder in DVC (tag, branch, commit or experiment name); empty for the working tree.
        checkpoint: the model to take from a training's folder, which has several.

    Raises:
        UserError: there is no such model.
    """
    with TemporaryDirectory(prefix="model-") as name:
        directory = Path(name)
        if address.startswith(MLFLOW_SCHEMES):
            if revision:
                raise UserError(f"{address} is kept in MLflow, not in a revision of DVC: omit one of the two.")
            yield download_model(address, directory)
        elif revision:
            folder = _from_dvc_revision(address, revision, directory)
            yield _find_checkpoint(folder, f"{address} of {revision}", checkpoint)
        else:
            yield _find_checkpoint(Path(address), address, checkpoint)


def _find_checkpoint(folder: Path, name: str, checkpoint: str) -> Path:
    """Return the folder itself if it is a model, or the checkpoint in it; `last` if the training made no `best`."""
    for candidate in (folder, folder / checkpoint):
        if (candidate / MLMODEL_FILE).is_file():
            return candidate
    if checkpoint in _made_checkpoints(folder):
        raise UserError(
            f"{name}/{checkpoint} is missing or incomplete: `dvc repro -f train` restores it from the training."
        )
    if (folder / "last" / MLMODEL_FILE).is_file():
        return folder / "last"
    raise UserError(
        f"There is no model in {name}: `dvc repro train` makes one; --model takes another folder, or an address "
        "such as models:/cifar10@champion."
    )


def _made_checkpoints(folder: Path) -> list[str]:
    """Return the names of the weights that a training has made; none if the folder is not a training's."""
    try:
        metadata = parse_json((folder / "metadata.json").read_text(encoding="utf-8"))
        return list(metadata["checkpoints"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _from_dvc_revision(folder: str, revision: str, directory: Path) -> Path:
    """Copy the folder at a revision from DVC's cache or its remote into `directory`."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import RevError, SCMError

    repository = find_repository()
    if repository.kind is not Kind.FOUND:
        raise UserError(
            f"There are no revisions without a commit in git ({repository.reason or repository.kind}): omit --rev "
            f"{revision}."
        )
    try:
        # DVC opens a revision at the repository's top, whatever the working directory is.
        prefix = folder_in_repository()
        files = DVCFileSystem(".", rev=revision, subrepos=bool(prefix))
        files.get(f"{prefix}{folder}", str(directory / "models"), recursive=True)
    except RevError:
        raise UserError(
            f"There is no revision {revision}: `git tag`, `git log` and `dvc exp list` list them."
        ) from None
    except (DvcException, SCMError, GitError, OSError) as error:
        reason = (one_line(error) or type(error).__name__).rstrip(".")
        raise UserError(
            f"DVC has no {folder} of {revision} ({reason}): `git checkout {revision} && dvc repro` creates what "
            "its cache does not have."
        ) from None
    return directory / "models"
