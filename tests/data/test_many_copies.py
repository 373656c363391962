"""One image many times: threads that write the same file at once."""

from PIL import Image

from cifar_pipeline.data.sources import image_files
from cifar_pipeline.data.sources.image_files import ResizedImageCache

COPIES = 300


def test_many_copies_of_one_image_are_cached_once_by_threads_that_all_write_it(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_SHARD_IMAGES", 1)  # a block for each copy
    monkeypatch.setattr(image_files, "available_cores", lambda: 8)
    files = [tmp_path / f"{number}.png" for number in range(COPIES)]
    Image.new("RGB", (8, 8), (200, 100, 50)).save(files[0])
    for file in files[1:]:
        file.write_bytes(files[0].read_bytes())
    kept = ResizedImageCache(tmp_path / "cache", (8, 8, 3), "crop")
    places = kept.resize_all(files)
    assert len(set(places)) == 1
    assert sorted(path.suffix for path in kept.folder.iterdir()) == [".json", ".npy"]
    (image,) = kept.view(places[:1])[[0]]
    assert (image == (200, 100, 50)).all()
