"""Files of torch.export.save, changed as somebody with bad intentions would."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

Change = Callable[[bytes], bytes]


def rewrite(path: Path, changes: Mapping[str, Change], new: Mapping[str, bytes] | None = None) -> None:
    """Change records of the archive at `path`, and add new ones, with checksums that fit."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        records = [(name.removeprefix(f"{root}/"), archive.read(name)) for name in archive.namelist()]
    unknown = set(changes) - {name for name, _ in records}
    assert not unknown, f"{path} has no {unknown}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in [*records, *(new or {}).items()]:
            archive.writestr(f"{root}/{name}", changes.get(name, lambda same: same)(content))
