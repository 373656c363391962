"""Where a model may be kept, and how it comes from there: a folder, a revision of the project in DVC, MLflow."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cifar_pipeline.console import Refusal
from cifar_pipeline.git import GitError, Kind, find_repository, folder_in_repository

IN_MLFLOW = ("models:/", "runs:/")


@contextmanager
def model_folder(address: str, revision: str, checkpoint: str) -> Iterator[Path]:
    """Yield the folder of one model, which may be gone afterwards.

    `address` is a folder or an address in MLflow; with a `revision` (a tag, a branch, a commit or an experiment's name)
    the folder is the one that DVC keeps for it. Of a training's folder, which holds several, `checkpoint` is taken.

    Raises:
        Refusal: there is no such model.
    """
    with TemporaryDirectory(prefix="model-") as place:
        if address.startswith(IN_MLFLOW):
            if revision:
                raise Refusal(f"{address} is kept in MLflow, not in a revision of DVC: leave out one of the two.")
            # Imported here, because MLflow takes seconds that a model in a folder doesn't need.
            from cifar_pipeline.tracking.downloads import download_model

            yield download_model(address, Path(place))
        elif revision:
            yield _one_model(_from_dvc(address, revision, Path(place)), f"{address} of {revision}", checkpoint)
        else:
            yield _one_model(Path(address), address, checkpoint)


def _one_model(folder: Path, name: str, checkpoint: str) -> Path:
    """The folder itself where it is a model, or the training's checkpoint in it; without a best, the last."""
    for candidate in (folder, folder / checkpoint, folder / "last"):
        if (candidate / "MLmodel").is_file():
            return candidate
    raise Refusal(
        f"There is no model in {name}: `dvc repro train` makes one; --model takes another folder, or an address "
        "such as models:/cifar10@champion."
    )


def _from_dvc(folder: str, revision: str, place: Path) -> Path:
    """The folder as it was at a revision, from DVC's cache or its remote."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import RevError, SCMError

    repository = find_repository()
    if repository.kind is not Kind.FOUND:
        raise Refusal(
            f"Without a commit in git there are no revisions ({repository.reason or repository.kind}): leave out --rev "
            f"{revision}."
        )
    try:
        # DVC opens a revision at the repository's top, whatever folder it is asked in.
        below = folder_in_repository()
        files = DVCFileSystem(".", rev=revision, subrepos=bool(below))
        files.get(f"{below}{folder}", str(place / "models"), recursive=True)
    except RevError:
        raise Refusal(f"There is no revision {revision}: `git tag`, `git log` and `dvc exp list` show them.") from None
    except (DvcException, SCMError, GitError, OSError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        raise Refusal(
            f"DVC has no {folder} of {revision} ({reason}): `git checkout {revision} && dvc repro` makes what its "
            "cache doesn't hold."
        ) from None
    return place / "models"
