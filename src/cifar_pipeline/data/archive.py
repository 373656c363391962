"""Named files out of a tar archive that nobody vouches for, into memory: nothing is extracted to a path it chooses."""

import lzma
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from cifar_pipeline.data.failures import Unusable


def members(archive: Path, names: Collection[str], most: int) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) for each regular file in `archive` that bears one of `names`, in whatever folder it lies.

    `most` is the number of bytes that one file may have. Stops after the last name; other files are passed over.
    Raises Unusable for a damaged archive, a path that climbs out of the archive, a link or device under one of the
    names, a name that stands twice, or sizes beyond any sense.
    """
    wanted = set(names)
    total = 0
    try:
        with tarfile.open(archive, "r|*") as tar:
            for entry in tar:
                path = PurePosixPath(entry.name.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts:
                    raise Unusable(f"the archive holds {entry.name!r}, a path that leads out of it")
                total += entry.size
                if entry.size > most or total > 4 * most * len(names):
                    raise Unusable(f"the archive holds more than was expected ({entry.name!r}: {entry.size:,} bytes)")
                if path.name not in names or entry.isdir():
                    continue
                if not entry.isreg():
                    raise Unusable(f"in the archive {entry.name!r} is a link or a device, not a file")
                if path.name not in wanted:
                    raise Unusable(f"the archive holds {path.name!r} twice")
                wanted.remove(path.name)
                file = tar.extractfile(entry)
                assert file is not None
                yield path.name, file.read()
                if not wanted:
                    return
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise Unusable(f"this is no whole tar archive ({error})") from error
