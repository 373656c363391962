"""The folder of a multirun, which no other one writes to."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from omegaconf import DictConfig, open_dict, read_write

KEY = "hydra.sweep.dir"


@contextmanager
def own_folder(config: DictConfig) -> Iterator[Path]:
    """Make the folder of a multirun, which no other one has: the second of one second gets a `-2` to its name.

    Every job composes its configuration anew, so the name that was found is added to Hydra's overrides. A folder that
    the command line names is taken as it is. The folder is removed where the block does not end well.
    """
    wanted = Path(config.hydra.sweep.dir)
    if any(word.lstrip("+").startswith(f"{KEY}=") for word in config.hydra.overrides.hydra):
        yield wanted
        return
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra.append(f"{KEY}='{_escaped(str(folder))}'")
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def _escaped(text: str) -> str:
    return text.replace("'", "\\'")
