"""Images of one's own: a folder for each class or a table, any size, brought to one size once."""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_pipeline.data import images as decoding
from cifar_pipeline.data.sources import image_files
from cifar_pipeline.data.sources.base import RawDataset
from cifar_pipeline.data.sources.csv_table import CsvTable
from cifar_pipeline.data.sources.image_folder import ImageFolder
from cifar_pipeline.data.splits import train_val_split
from cifar_pipeline.utils.errors import UserError

OPTIONS = {
    "root": "mine", "size": 8, "resize_mode": "crop", "test_fraction": 0.25, "split_seed": 0, "max_unreadable": 0,
    "max_megapixels": 200,
}  # fmt: skip
COLOURS = {"ant": (200, 0, 0), "bee": (0, 200, 0), "cat": (0, 0, 200)}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The project's root, in which the images lie in mine/."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(path: str, colour=(9, 9, 9), size=(20, 12)) -> Path:
    file = Path("mine", path)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)
    return file


def tree(prefix: str = "", count: int = 8, start: int = 0) -> None:
    """So many images of each class, each of a size and a shade of its own, one of three in a folder further down."""
    for name, colour in COLOURS.items():
        for number in range(start, start + count):
            below = "deep/" if number % 3 == 0 else ""
            shade = tuple(part and part - number for part in colour)
            picture(f"{prefix}{name}/{below}{number}.png", shade, (10 + number, 30 - number))


def read(source=ImageFolder, **options) -> RawDataset:
    return source(**{**OPTIONS, **options}).read(Path("raw"))


def kept() -> Path:
    """Where the resized images are kept, as the code of today makes them."""
    return Path(".cache/images", image_files.cache_key(), "8x8x3-crop")


def pixels(official: RawDataset, part: str) -> np.ndarray:
    images = getattr(official, f"{part}_images")
    return images[np.arange(len(images))]


def test_a_tree_is_split_evenly_and_every_image_keeps_its_class():
    tree()
    official = read()
    assert official.classes == ("ant", "bee", "cat")
    assert np.bincount(official.train_labels).tolist() == [6, 6, 6]
    assert np.bincount(official.test_labels).tolist() == [2, 2, 2]
    assert sorted(official.train_names + official.test_names) == sorted(
        path.relative_to("mine").as_posix() for path in Path("mine").rglob("*.png")
    )
    for part in ("train", "test"):
        images, labels = pixels(official, part), getattr(official, f"{part}_labels")
        assert images.shape == (len(labels), 8, 8, 3)
        assert (images[:, 4, 4].argmax(axis=1) == labels).all()
        names = getattr(official, f"{part}_names")
        for name, label, image in zip(names, labels, images, strict=True):
            assert name.startswith(official.classes[label])
            number = int(Path(name).stem)
            assert abs(int(image[4, 4].max()) - (200 - number)) <= 1


def test_the_split_depends_only_on_the_seed():
    tree()
    assert read().test_names == read().test_names != read(split_seed=1).test_names


def test_splits_given_by_folders_are_kept():
    tree("train/", 4)
    tree("valid/", 2, start=4)
    tree("test/", 3, start=6)
    official = read()
    train, val = train_val_split(official, 0.5, 0)
    assert {name.split("/")[0] for name in official.test_names} == {"test"} and len(official.test_names) == 9
    assert {official.train_names[index].split("/")[0] for index in val} == {"valid"} and len(val) == 6
    assert {official.train_names[index].split("/")[0] for index in train} == {"train"} and len(train) == 12


def test_without_a_test_folder_a_fraction_of_the_training_images_is_the_test_split():
    tree("train/", 8)
    tree("val/", 2, start=8)
    official = read()
    assert len(official.test_names) == 6 and {name.split("/")[0] for name in official.test_names} == {"train"}
    assert len(train_val_split(official, 0.5, 0)[1]) == 6


@pytest.mark.parametrize(("fit", "top"), [("crop", (200, 0, 0)), ("pad", (0, 0, 0)), ("stretch", (200, 0, 0))])
def test_images_are_padded_or_cropped(fit, top):
    tree()
    picture("ant/0.png", (200, 0, 0), (40, 10))
    official = read(resize_mode=fit)
    assert official.resize_mode == fit
    everything = dict(zip(official.train_names, pixels(official, "train"), strict=True))
    everything |= zip(official.test_names, pixels(official, "test"), strict=True)
    assert tuple(everything["ant/0.png"][0, 4]) == top
    assert everything["ant/0.png"][4, 4].tolist() == [200, 0, 0]


def test_stretched_images_keep_everything_and_change_their_proportions():
    tree()
    half = Image.new("RGB", (40, 10), (200, 0, 0))
    half.paste((0, 0, 200), (20, 0, 40, 10))
    half.save(picture("ant/0.png"))
    shown = {}
    for mode in ("crop", "pad", "stretch"):
        official = read(resize_mode=mode)
        everything = dict(zip(official.train_names, pixels(official, "train"), strict=True))
        everything |= zip(official.test_names, pixels(official, "test"), strict=True)
        shown[mode] = everything["ant/0.png"]
    stretched = shown["stretch"]
    assert (stretched[:, 0] == (200, 0, 0)).all() and (stretched[:, -1] == (0, 0, 200)).all()
    assert (shown["pad"][0] == 0).all() and not (stretched == shown["crop"]).all()


class Counted:
    """Counts the images that are decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number, self.lock, self.real = 0, threading.Lock(), image_files.load_image
        monkeypatch.setattr(image_files, "load_image", self)

    def __call__(self, *arguments):
        with self.lock:
            self.number += 1
        return self.real(*arguments)

    def since(self) -> int:
        number, self.number = self.number, 0
        return number


def test_nothing_is_resized_twice(monkeypatch):
    monkeypatch.setattr(image_files, "MAX_SHARD_IMAGES", 5)
    tree()
    counted = Counted(monkeypatch)
    before = pixels(read(), "train")
    assert counted.since() == 24
    np.testing.assert_array_equal(pixels(read(), "train"), before)
    assert counted.since() == 0
    picture("ant/new.png", (99, 98, 97))
    Path("mine/bee/1.png").rename("mine/bee/renamed.png")
    read()
    assert counted.since() == 1
    read(size=9)
    assert counted.since() == 25


def test_unused_shards_are_removed(monkeypatch):
    monkeypatch.setattr(image_files, "MAX_SHARD_IMAGES", 4)
    tree()
    read()
    shards = {path.name for path in kept().iterdir()}
    shutil.rmtree("mine/cat")
    read()
    left = {path.name for path in kept().iterdir()}
    assert left < shards and len(left) == 8


@pytest.mark.parametrize("damage", ["cut", "foreign", "flipped", "no list", "removed list", "removed"])
def test_a_damaged_shard_is_made_again(damage):
    tree()
    before = pixels(read(), "train")
    (shard,) = kept().glob("*.npy")
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "foreign":
        np.save(shard, np.zeros((24, 9, 9, 3), np.uint8))
    elif damage == "flipped":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 255
        shard.write_bytes(content)
    elif damage == "no list":
        shard.with_suffix(".json").write_text("[")
    else:
        shard.with_suffix(".json" if damage == "removed list" else ".npy").unlink()
    np.testing.assert_array_equal(pixels(read(), "train"), before)


def test_unreadable_files_are_listed_and_skipped_up_to_a_limit(capsys):
    tree()
    Path("mine/ant/broken.jpg").write_bytes(b"no image")
    Path("mine/bee/empty.png").write_bytes(b"")
    Path("mine/bee/notes.txt").write_text("not meant", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"2 files cannot be read, more than data\.max_unreadable=1: .*max_unreadable: 2"
    ):
        read(max_unreadable=1)
    said = capsys.readouterr().err
    assert "mine/ant/broken.jpg: not an image of a supported format." in said
    assert "mine/bee/empty.png: empty file." in said
    assert len(read(max_unreadable=2).train_names) == 18
    assert "Skipped 2 unreadable files, at most 2 (data.max_unreadable)." in capsys.readouterr().err


def test_an_image_bomb_is_skipped(capsys):
    tree()
    Image.new("1", (3000, 3000)).save("mine/ant/large.png")
    read(max_unreadable=1, max_megapixels=1)
    assert "more than 1 million pixels (data.max_megapixels)" in capsys.readouterr().err


def skipped_of(**options) -> dict[str, str]:
    source = ImageFolder(**{**OPTIONS, **options})
    source.read(Path("raw"))
    return {Path(path).relative_to("mine").as_posix(): reason for path, reason in source.skipped}


def test_every_skipped_file_is_counted_with_its_reason(capsys):
    tree()
    Path("mine/README.md").write_text("about these", encoding="utf-8")
    for name in ("ant/notes.txt", "ant/deep/more.txt", "bee/NOSUFFIX", "bee/Thumbs.db", "cat/.DS_Store"):
        Path("mine", name).write_bytes(b"x")
    os.mkfifo("mine/cat/pipe.png")
    Path("mine/cat/broken.jpg").write_bytes(b"no image")
    assert skipped_of(max_unreadable=1) == {
        "README.md": "outside of the class folders and not named like an image",
        "ant/notes.txt": ".txt is not an image suffix",
        "ant/deep/more.txt": ".txt is not an image suffix",
        "bee/NOSUFFIX": "no suffix such as .jpg",
        "bee/Thumbs.db": "hidden or system file",
        "cat/.DS_Store": "hidden or system file",
        "cat/pipe.png": "a named pipe, not a file",
        "cat/broken.jpg": "not an image of a supported format",
    }
    said = capsys.readouterr()
    assert "mine/ant/notes.txt: .txt is not an image suffix." in said.err
    assert "Skipped 5 files, listed in reports/skipped.csv: .txt is not an image suffix (2); " in said.err
    assert "Ignored 3 files: hidden or system file (2); " in said.out


def test_ten_skipped_files_are_named_with_some_of_each_reason(capsys):
    tree()
    for number in range(300):
        Path(f"mine/ant/{number}.txt").touch()
    Path("mine/bee/nothing").touch()
    assert len(skipped_of()) == 301
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7 and "mine/bee/nothing: no suffix such as .jpg." in lines


def test_hidden_names_are_skipped_at_every_depth():
    """A network drive puts a thumbnail of each image there: small copies would lie in both parts."""
    tree()
    for place in ("@eaDir", "__MACOSX", ".thumbnails", "#recycle"):
        for name in ("1.png", "deep/2.png"):
            picture(f"ant/deep/{place}/{name}", (1, 2, 3))
        picture(f"{place}/1.png")
    official = read()
    assert len(official.train_names) + len(official.test_names) == 24
    assert official.classes == ("ant", "bee", "cat")


def broken(*classes: str) -> None:
    tree()
    for name in classes:
        for path in Path("mine", name).rglob("*.png"):
            path.write_bytes(b"no image")


def all_heic() -> None:
    tree()
    Path("mine/dog").mkdir()
    for number in range(3):
        Path(f"mine/dog/{number}.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))


def parts_without(part: str) -> None:
    for name in ("train", "val", "test"):
        tree(f"{name}/", 4)
    for path in Path("mine", part).rglob("*.png"):
        path.write_bytes(b"")


def empty_part() -> None:
    tree("train/")
    Path("mine/test").mkdir()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            lambda: broken("cat"),
            r"No images are left in cat \[8 files skipped: not an image of a supported format \(8\)\]: fix",
        ),
        (lambda: broken("ant", "bee"), r"left in ant \[8 files skipped: .*\], bee \[8 files skipped: "),
        (lambda: [tree(), Path("mine/dog").mkdir()], r"No images are left in dog \[empty\]"),
        (
            all_heic,
            r"left in dog \[3 files skipped: HEIC needs the extra heif: `pip install .*'\.\[heif\]'` \(3\)\]",
        ),
        (lambda: [tree(), picture("dog/@eaDir/1.png")], r"left in dog \[1 file skipped: hidden or system file"),
        (lambda: parts_without("val"), r"left in val/ant \[4 files skipped: empty file \(4\)\], val/bee"),
        (lambda: parts_without("test"), "left in test/ant"),
        (empty_part, "mine/test contains no class folder"),
    ],
)
def test_a_class_without_readable_images_is_refused_with_the_reasons(made, words, monkeypatch):
    monkeypatch.setattr(decoding, "HEIC_PLUGIN", "not_installed")
    made()
    source = ImageFolder(**{**OPTIONS, "max_unreadable": 100})
    with pytest.raises(UserError, match=words):
        source.read(Path("raw"))


def test_the_split_is_drawn_from_the_readable_images():
    tree(count=2)
    Path("mine/ant/0.png").unlink(missing_ok=True)
    Path("mine/ant/1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"Class ant has a single image left.*data\.test_fraction"):
        read(max_unreadable=1)


def test_a_split_without_a_class_is_warned_about(capsys):
    tree("train/")
    tree("test/", start=8)
    for path in Path("mine/test/bee").rglob("*.png"):
        path.unlink()
    for folder in ("deep", ""):
        Path("mine/test/bee", folder).rmdir()
    assert len(read().test_names) == 16
    assert "The test split has no images of bee, so they are not measured there." in capsys.readouterr().err


def test_a_pipe_among_the_images_is_refused_before_dvc_waits_for_it(tmp_path):
    tree()
    os.mkfifo("mine/cat/deep/pipe.png")
    with pytest.raises(UserError, match=r"mine/cat/deep/pipe\.png: a named pipe, not a file\. Remove it"):
        ImageFolder(**OPTIONS).fetch(tmp_path / "raw", [], 1, tmp_path)


def test_other_code_or_libraries_invalidate_the_cache(monkeypatch):
    """The key of the cache holds what made the pixels; what another key kept is removed."""
    tree()
    counted = Counted(monkeypatch)
    before = cache_of(read())
    assert counted.since() == 24 and cache_of(read()) == before and counted.since() == 0
    made = image_files.decoders
    monkeypatch.setattr(image_files, "decoders", lambda: {**made(), "pillow": "99.0"})
    assert cache_of(read()) != before and counted.since() == 24
    assert len(list(Path(".cache/images").iterdir())) == 1


def cache_of(official: RawDataset) -> str:
    assert len(official.train_labels) == 18
    (place,) = Path(".cache/images").iterdir()
    return place.name


def test_an_image_beyond_a_lowered_limit_is_skipped():
    tree()
    picture("ant/large.png", size=(1500, 1000))
    assert "ant/large.png" not in skipped_of()
    assert skipped_of(max_megapixels=1, max_unreadable=1) == {
        "ant/large.png": "more than 1 million pixels (data.max_megapixels)"
    }


def test_images_outside_of_the_class_folders_are_warned_about(capsys):
    tree()
    picture("lonely.png")
    assert len(read().train_names) == 18
    assert "mine/lonely.png: outside of the class folders." in capsys.readouterr().err


def single() -> None:
    tree()
    picture("dog/alone.png")


def mixed() -> None:
    tree()
    tree("train/")


def only_test() -> None:
    tree("test/")


def one_class() -> None:
    picture("ant/1.png")
    picture("ant/2.png")


def untrained() -> None:
    tree("train/")
    tree("test/", start=8)
    picture("test/dog/1.png")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: None, r"There is no folder mine: set `image_dir: FOLDER`"),
        (lambda: Path("mine").mkdir(), "mine contains no classes: put the images of each class"),
        (one_class, "mine contains only the class ant"),
        (single, r"Class dog has a single image.*data\.test_fraction"),
        (mixed, r"split folders \(train\) next to others \(ant, bee, cat\)"),
        (only_test, "mine has test but no `train`"),
        (untrained, "no training images of dog"),
    ],
)
def test_folders_that_make_no_dataset_are_refused(made, words):
    made()
    with pytest.raises(UserError, match=words):
        read()


@pytest.mark.parametrize("name", ["ant/caf\udce9.png", "caf\udce9/1.png", "ant/.caf\udce9", "caf\udce9.txt"])
def test_a_name_that_is_not_utf8_is_refused(name: str, tmp_path: Path) -> None:
    tree()
    shutil.copy(picture("ant/ä猫.png"), tmp_path / "odd.png")
    read()
    path = Path("mine", name)
    path.parent.mkdir(exist_ok=True)
    shutil.copy(tmp_path / "odd.png", path)
    words = r"mine/.*caf\\udce9.*: the name is not UTF-8.*; rename it"
    with pytest.raises(UserError, match=words):
        read()
    with pytest.raises(UserError, match=words):
        ImageFolder(**OPTIONS).fetch(tmp_path / "raw", [], 1, tmp_path)


def test_the_download_stage_checks_the_images_before_any_is_resized(tmp_path):
    source = ImageFolder(**OPTIONS)
    with pytest.raises(UserError, match="There is no folder mine"):
        source.fetch(tmp_path / "raw", [], 1, tmp_path)
    tree()
    assert source.fetch(tmp_path / "raw", [], 1, tmp_path) == "mine (24 files of 3 classes, left in place)"
    assert source.is_complete(tmp_path / "raw")
    # The note must not say where: the same images elsewhere are the same data.
    assert "mine" not in (tmp_path / "raw" / "source.txt").read_text()


def table(*rows: str, head: str = "path,label,split") -> None:
    Path("mine").mkdir(exist_ok=True)
    Path("mine/labels.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")


def read_table(**options) -> RawDataset:
    return read(CsvTable, csv_file="labels.csv", **options)


def test_a_table_lists_images_classes_and_splits():
    for number in range(6):
        picture(f"files/{number}.jpg", (40 * number, 0, 0))
    rows = ["train,dog", "test,dog", "train,äpfel", "val,äpfel", "train,dog", "test,äpfel"]
    table(*[f"files/{number}.jpg,{label},{part}" for number, (part, label) in enumerate(r.split(",") for r in rows)])
    official = read_table()
    assert official.classes == ("dog", "äpfel")
    assert official.train_names == tuple(f"files/{number}.jpg" for number in (0, 2, 3, 4))
    assert official.train_labels.tolist() == [0, 1, 1, 0]
    assert train_val_split(official, 0.5, 0)[1].tolist() == [2]
    assert official.test_labels.tolist() == [0, 1]
    np.testing.assert_allclose(pixels(official, "test")[:, 4, 4, 0], [40, 200], atol=3)


def test_a_table_without_splits_is_split_like_a_tree():
    tree()
    paths = sorted(path.relative_to("mine").as_posix() for path in Path("mine").rglob("*.png"))
    table(*[f"{path},{path[:3]}" for path in reversed(paths)], head="path,label")
    assert read_table().test_names == read().test_names


@pytest.mark.parametrize(
    ("rows", "head", "words"),
    [
        (
            ["a.png,x"],
            "file,label",
            "has no column path: its first line must contain path and label.*but is file,label",
        ),
        (["a.png,x", "a.png,y"], "path,label", "line 3: a.png is already in line 2"),
        (["../a.png,x"], "path,label", r"line 2: \.\./a\.png is outside of mine"),
        (["/a.png,x"], "path,label", "is outside of"),
        (["a.png,x,tests"], "path,label,split", "line 2: split is tests; it must be train, val or test"),
        (["a.png"], "path,label", r"line 2: the row has 1 cell for 2 columns \(path,label\)\.$"),
        (["a.png,x", "00a.png,cat, big one"], "path,label", "line 3: the row has 3 cells for 2 columns.*needs quotes"),
        (["a.png,x,"], "path,label", "line 2: the row has 3 cells for 2 columns"),
        (["a.png,x"], "path,label,split", "line 2: the row has 2 cells for 3 columns"),
        (["a.png,x,y"], "path,label,label", "line 1: the column label occurs twice"),
        (["a.png,x,,"], "path,label,,", "line 1: a column without a name occurs twice"),
        (["a.png, "], "path,label", "line 2: the row has no label"),
        ([" ,x"], "path,label", "line 2: the row has no path"),
        (["a.png,x", "", "b.png,y"], "path,label", "line 3: the line is blank, but rows follow"),
        (["a.png,x", ","], "path,label", "line 3: the row has no path"),
        ([], "path,label", "lists no images"),
        (["a.png,x", '"b.png,y', "c.png,z"], "path,label", "line 3: invalid CSV .a quote is not closed"),
        (["a.png,x", '"b.png,y', 'c.png,z"'], "path,label", "line 3: a cell continues in the next line"),
        (["a.png,x", '"b.png,y', '"c.png",z'], "path,label", "line 3: invalid CSV"),
        (["a.png,x\0"], "path,label", "line 2: NUL byte"),
        (["a.png;x"], "path;label", "columns are separated by semicolons; save it with commas"),
        (["a.png\tx"], "path\tlabel", "columns are separated by tabs"),
        (["a.png,x", "./a.png,x"], "path,label", r"line 3: a\.png is already in line 2"),
        (["d/a.png,x", "d//a.png,y"], "path,label", r"line 3: d/a\.png is already in line 2"),
        (["a.png,x,train"], "path,label,Split", "line 1: write split instead of Split"),
        (["a.png,cold tea", "b.png,cold  tea"], "path,label", "look the same"),
        (["a.png,x"], "path,label", "contains only the class x: the CSV file must list at least two classes"),
    ],
)
def test_an_invalid_table_is_refused_with_its_line(rows, head, words):
    table(*rows, head=head)
    with pytest.raises(UserError, match=words):
        read_table()


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("train", "test", "shown"),
    [(COMPOSED, DECOMPOSED, COMPOSED), (DECOMPOSED, COMPOSED, COMPOSED), (DECOMPOSED, DECOMPOSED, DECOMPOSED)],
)
def test_a_class_is_one_in_both_spellings_of_unicode(train, test, shown):
    for number in range(4):
        picture(f"train/{train}/{number}.png", (number, 0, 0))
        picture(f"test/{test}/{number}.png", (number, 9, 0))
        for split in ("train", "test"):
            picture(f"{split}/tea/{number}.png", (number, 0, 9))
    official = read()
    assert official.classes == (shown, "tea")
    assert np.bincount(official.train_labels).tolist() == np.bincount(official.test_labels).tolist() == [4, 4]
    assert f"test/{test}/0.png" in official.test_names


def test_a_table_finds_its_files_and_groups_in_both_spellings_of_unicode():
    for number in range(8):
        picture(f"{DECOMPOSED if number % 2 else COMPOSED}/{number}.png", (number, 9, 9))
    rows = [f"{COMPOSED}/{number}.png,{'tea' if number < 4 else COMPOSED}" for number in range(8)]
    groups = [COMPOSED, DECOMPOSED, "a", "b", "c", "d", "e", "f"]
    table(*(f"{row},{group}" for row, group in zip(rows, groups, strict=True)), head="path,label,person")
    official = read_table(group="person", test_fraction=0.5)
    names = official.train_names + official.test_names
    assert sorted(names) == sorted(path.relative_to("mine").as_posix() for path in Path("mine").rglob("*.png"))
    splits = [{Path(name).stem for name in part} for part in (official.train_names, official.test_names)]
    assert any({"0", "1"} <= split for split in splits)
    assert DECOMPOSED not in official.train_groups


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path,label\na.png,x\n".encode("utf-16"), r"labels\.csv is UTF-16: save it as UTF-8"),
        ("path,label\na.png,x\n".encode("utf-32"), r"labels\.csv is UTF-32"),
        ("path,label\na.png,x\nb.png,\u00e4pfel\n".encode("latin-1"), r"line 3: not UTF-8 \(byte 0xe4\)"),
    ],
)
def test_a_table_in_another_encoding_is_refused(content, words):
    Path("mine").mkdir()
    Path("mine/labels.csv").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_table()


def test_a_table_that_is_no_regular_file_is_refused():
    Path("mine").mkdir()
    os.mkfifo("mine/labels.csv")
    with pytest.raises(UserError, match=r"labels\.csv is a named pipe, not a file"):
        read_table()


def test_a_table_of_a_spreadsheet_is_read_with_its_quotes_and_other_columns(capsys):
    tree()
    paths = sorted(path.relative_to("mine").as_posix() for path in Path("mine").rglob("*.png"))
    rows = [f'"{path}", "{path[:3]}, big",taken' for path in paths]
    rows = [row.replace(', "', ',"') for row in rows]
    Path("mine/labels.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["path, label ,remark", *rows, "", ""]).encode())
    assert read_table().classes == ("ant, big", "bee, big", "cat, big")
    assert "read the columns path and label, ignored remark" in capsys.readouterr().out


def test_labels_that_differ_only_in_case_are_warned_about(capsys):
    tree()
    paths = sorted(path.relative_to("mine").as_posix() for path in Path("mine").rglob("*.png"))
    table(*[f"{path},{'Ant' if number % 2 else 'ant'}" for number, path in enumerate(paths)], head="path,label")
    assert read_table().classes == ("Ant", "ant")
    assert "The classes Ant and ant differ only in case" in capsys.readouterr().err


def test_a_missing_table_is_refused_with_the_expected_first_line():
    Path("mine").mkdir()
    with pytest.raises(UserError, match=r"mine/labels\.csv is missing: .*`path,label`"):
        read_table()


def test_a_row_without_its_file_counts_as_unreadable(capsys):
    tree()
    paths = sorted(path.relative_to("mine").as_posix() for path in Path("mine").rglob("*.png"))
    table(*[f"{path},{path[:3]}" for path in [*paths, "ant/gone.png"]], head="path,label")
    assert len(read_table(max_unreadable=1).train_names) == 18
    assert "mine/ant/gone.png: no such file." in capsys.readouterr().err


def test_the_cache_index_has_each_content_once(monkeypatch):
    monkeypatch.setattr(image_files, "MAX_SHARD_IMAGES", 3)
    tree()
    Path("mine/ant/copy.png").write_bytes(Path("mine/ant/1.png").read_bytes())
    read()
    indices = [json.loads(path.read_text()) for path in Path(".cache/images").rglob("*.json")]
    kept = [digest for index in indices for digest in index["files"]]
    assert len(kept) - len(set(kept)) <= 1 and len(set(kept)) == 24


def patient_images() -> None:
    """Write 4 images of each of 6 patients, two of each class; the files have the patients in their names."""
    for patient in range(6):
        for number in range(4):
            picture(f"{'ant' if number < 2 else 'bee'}/p{patient}_{number}.png", (40 * patient, 60 * number, 0))


def of_patients(names) -> set[str]:
    return {Path(name).name.partition("_")[0] for name in names}


@pytest.mark.parametrize("group", [r"/(p\d+)_", r"p\d+"])
def test_a_regular_expression_keeps_the_files_of_a_patient_in_one_split(group):
    patient_images()
    official = read(group=group, test_fraction=0.3)
    train, val = train_val_split(official, 0.25, 0)
    names = official.train_names
    splits = [of_patients(names[index] for index in split) for split in (train, val)] + [
        of_patients(official.test_names)
    ]
    assert sorted(patient for split in splits for patient in split) == [f"p{number}" for number in range(6)]
    assert {group.strip("/_") for group in official.train_groups} == splits[0] | splits[1]
    folds = [train_val_split(official, 0.1, 0, folds=4, fold=fold)[1] for fold in range(4)]
    assert sorted(patient for val in folds for patient in of_patients(names[index] for index in val)) == sorted(
        splits[0] | splits[1]
    )


def test_a_column_of_a_table_names_the_patients():
    patient_images()
    paths = sorted(path.relative_to("mine").as_posix() for path in Path("mine").rglob("*.png"))
    table(*(f"{path},{path[:3]},{of_patients([path]).pop()}" for path in paths), head="path,label,patient")
    official = read_table(group="patient", test_fraction=0.3)
    assert not of_patients(official.train_names) & of_patients(official.test_names)
    assert official.train_groups == tuple(Path(name).name.partition("_")[0] for name in official.train_names)


@pytest.mark.parametrize(
    ("rows", "head", "group", "message"),
    [
        (
            ["a.png,ant,p1"],
            "path,label,patient",
            "person",
            r"no column person, which data\.group names.*path,label,patient",
        ),
        (["a.png,ant, "], "path,label,patient", "patient", r"line 2: patient \(data\.group\) is empty"),
        (
            ["a.png,ant,train,p1", "b.png,bee,train,p2", "c.png,ant,test,p3", "d.png,bee,test,p1"],
            "path,label,split,patient",
            "patient",
            r"The group p1 \(data\.group\) has images in the train and in the test split",
        ),
    ],
)
def test_a_table_without_usable_groups_is_refused_when_it_is_fetched(rows, head, group, message, tmp_path):
    for name in "abcd":
        picture(f"{name}.png")
    table(*rows, head=head)
    source = CsvTable(csv_file="labels.csv", **OPTIONS, group=group)
    with pytest.raises(UserError, match=message):
        source.fetch(tmp_path / "raw", [], 1, tmp_path)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (r"(\d", r"data\.group=\(\\d is not a regular expression"),
        (r"q\d", r"data\.group=q\\d does not match ant/p0_0\.png"),
    ],
)
def test_an_expression_that_does_not_suit_the_files_is_refused(group, message):
    patient_images()
    with pytest.raises(UserError, match=message):
        read(group=group)
