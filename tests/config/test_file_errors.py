"""Files and paths of the user that cannot be read or written end a command with a sentence that names them."""

from pathlib import Path

import pytest

from cifar_pipeline.utils.atomic import require_writable
from cifar_pipeline.utils.errors import UserError
from configure import configure
from download import download
from helpers.config_project import Project
from train import train

NAME_TOO_LONG = "a" * 300


@pytest.mark.parametrize("path", ["params.yaml", "conf/optimizer/sgd.yaml"])
@pytest.mark.parametrize("arguments", [(), ("--cfg", "job"), ("-m", "seed=1,2")], ids=str)
def test_a_configuration_file_in_another_encoding_is_named(
    project: Project, path: str, arguments: tuple[str, ...]
) -> None:
    file = project.folder / path
    file.write_bytes(b"# caf\xe9\n" + file.read_bytes())
    project.start(train, *arguments).assert_refused(f"{path}, line 1, is not UTF-8: save the file as UTF-8.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("data=image_folder", f"image_dir={NAME_TOO_LONG}"), "cannot be used (file name too long)"),
        (("data=csv_table", "image_dir=conf", "data.csv_file=config.yaml/x.csv"), "config.yaml/x.csv cannot be used"),
        (("data=csv_table", "image_dir=conf", "data.csv_file=."), "conf is a folder, not a file"),
        (("data=digits",), ".cache cannot be used (file exists)"),
    ],
)
def test_a_path_that_cannot_exist_is_named(project: Project, arguments: tuple[str, ...], words: str) -> None:
    if "data=digits" in arguments:
        (project.folder / ".cache").write_text("", encoding="utf-8")
    stage = configure if "data=digits" in arguments else download
    ended = project.start(stage, *arguments)
    ended.assert_refused(words)


@pytest.mark.parametrize("folder", [".", "..", "/"])
def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="contains the current folder: choose another folder"):
        require_writable(Path(folder))
    require_writable(Path("exported"))
