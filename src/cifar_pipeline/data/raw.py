"""data/raw: the published files of the one data set in use, and the way out when they cannot be had."""

from collections.abc import Callable
from pathlib import Path

from cifar_pipeline.console import Refusal, say, warn
from cifar_pipeline.data.failures import Unavailable
from cifar_pipeline.data.sources.source import Source
from cifar_pipeline.files import only_one, whole_folder


def bring(
    raw: Path,
    source: Source,
    fallback: Source | None,
    mirrors: list[str],
    timeout: float,
    cache: Path,
    last_check: Callable[[], None] = lambda: None,
) -> Source:
    """Make `raw` hold the files of `source`, or of `fallback` where no place gives them, and return the one it holds.

    Files that are there and valid are kept. `timeout` is in seconds; `cache` keeps partial downloads. `last_check` is
    called before new files take the place of `raw`, and may raise.
    Raises Refusal when there is neither; `raw` is then as it was.
    """
    try:
        _fill(raw, source, mirrors, timeout, cache, last_check)
        return source
    except Unavailable as failure:
        _report(failure)
        if fallback is None:
            raise Refusal(
                f"{source.title} cannot be had and data.fallback is null: set {source.name.upper()}_SOURCE to an "
                "archive, a folder or an address that has it, or choose a fallback (data/source@data.fallback=digits)."
            ) from failure
    warn(f"Going on with {fallback.title} instead of {source.title}, as data.fallback says.")
    try:
        _fill(raw, fallback, [], timeout, cache, last_check)
    except Unavailable as failure:
        _report(failure)
        raise Refusal(f"Neither {source.title} nor {fallback.title} can be had: see the lines above.") from failure
    warn(
        f"The real data later: `make {source.name}` (or `dvc repro -f download && dvc repro`); in a git clone, the "
        "published results: `git restore dvc.lock reports`."
    )
    return fallback


def present(raw: Path, source: Source, fallback: Source | None) -> Source:
    """Return whichever of `source` and `fallback` has its files in `raw`. Raises Refusal when neither has."""
    for candidate in (source, fallback):
        if candidate is not None and candidate.is_complete(raw / candidate.name):
            return candidate
    titles = source.title + (f" nor of {fallback.title}" if fallback else "")
    raise Refusal(f"{raw} does not hold the files of {titles}: `dvc repro -f download` brings them.")


def _fill(
    raw: Path, source: Source, mirrors: list[str], timeout: float, cache: Path, last_check: Callable[[], None]
) -> None:
    if _is_there(raw, source):
        return
    with only_one(raw):
        # Asked again: the process that was waited for may have brought it, and others may read it by now.
        if _is_there(raw, source):
            return
        with whole_folder(raw) as new:
            place = source.fetch(new / source.name, mirrors, timeout, cache)
            last_check()
    say(f"{source.title}: verified, from {place}.")


def _is_there(raw: Path, source: Source) -> bool:
    """Whether `raw` holds the verified files of `source` and nothing else; it is said where it does."""
    alone = raw.is_dir() and {path.name for path in raw.iterdir()} == {source.name}
    if not (alone and source.is_complete(raw / source.name)):
        return False
    say(f"{source.title}: already in {raw / source.name}, verified.")
    return True


def _report(failure: Unavailable) -> None:
    warn(f"{failure.title} cannot be had:" if failure.reasons else f"{failure.title} cannot be had: no place is named.")
    for place, why in failure.reasons:
        warn(f"  {place}: {why}")
