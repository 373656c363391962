"""What DVC would not see change is refused before any work: links to folders, tables and folders elsewhere."""

from pathlib import Path

import pytest
from PIL import Image

from configure import configure
from download import download
from helpers.config_project import Project


def images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / f"{number}.png")


@pytest.fixture
def flowers(project: Project) -> Project:
    """A project with images of two classes, and those of a third elsewhere."""
    for name in ("images/ant", "images/bee", "elsewhere/cat"):
        images(project.folder / name)
    return project


@pytest.mark.parametrize("place", ["cat", "ant/more"])
def test_a_link_to_a_folder_among_the_images_is_refused(flowers: Project, place: str) -> None:
    (flowers.folder / "images" / place).symlink_to(flowers.folder / "elsewhere" / "cat")
    flowers.start(download, "data=image_folder").assert_refused(
        f"images/{place} is a link to a folder, whose changes DVC does not detect", "the folder itself"
    )
    assert not (flowers.folder / "data" / "raw").exists()


def test_links_to_files_and_a_linked_image_folder_are_accepted(flowers: Project) -> None:
    folder = flowers.folder / "images"
    (folder / "ant" / "link.png").symlink_to(flowers.folder / "elsewhere" / "cat" / "0.png")
    folder.rename(flowers.folder / "all")
    folder.symlink_to(flowers.folder / "all")
    ended = flowers.start(download, "data=image_folder")
    assert ended.code == 0 and "9 files of 2 classes" in ended.out


@pytest.mark.parametrize("table", ["/elsewhere/labels.csv", "../elsewhere/labels.csv"])
@pytest.mark.parametrize("stage", [configure, download])
def test_a_table_outside_of_the_image_folder_is_refused(flowers: Project, stage, table: str) -> None:
    flowers.start(stage, "data=csv_table", f"data.csv_file={table}").assert_refused(
        f"data.csv_file={table} is outside of images, the folder that DVC tracks", "write data.csv_file=labels.csv"
    )


@pytest.mark.parametrize("key", ["data.root", "data.source.root"])
def test_configure_refuses_a_folder_of_images_that_dvc_does_not_watch(flowers: Project, key: str) -> None:
    flowers.start(configure, "data=image_folder", f"{key}=elsewhere").assert_refused(
        f"{key}=elsewhere, but DVC watches images", "`image_dir: elsewhere` in params.yaml"
    )
