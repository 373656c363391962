"""Open the dataset of a trial: data/processed if it has the trial's `data` values, or else one in a cache.

    .cache/processed/KEY    a dataset as in data/processed, and skipped.csv
    .cache/raw/SOURCE       raw files as in data/raw, of a source that data/raw does not have

KEY is a hash of the values of `data`, of the code and the package versions of `preprocess`, and of the names, sizes and
times of the files that it reads. The first trial that needs a dataset makes it, and the others wait for that one.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cifar_pipeline.config.compose import compose_config, digest, recorded_config, stage_config, stage_targets
from cifar_pipeline.config.schema import validate
from cifar_pipeline.config.source_files import UsedFiles, loaded_sources
from cifar_pipeline.data.dataset import Dataset, differing_values
from cifar_pipeline.data.preprocessing import process, read, require_usable, sources
from cifar_pipeline.data.sources.base import (
    AllSourcesFailed,
    RawDataset,
    Source,
    available_source,
    download_options,
    fetch,
    log_failure,
)
from cifar_pipeline.data.sources.image_files import CACHE
from cifar_pipeline.data.splits import train_val_split
from cifar_pipeline.reporting.tables import write_skipped
from cifar_pipeline.utils.atomic import (
    atomic_replace_dir,
    claim_tmp_path,
    exclusive_lock,
    exclusive_lock_if_free,
    is_claimed,
    remove,
    remove_all_stale_tmp,
)
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.file_hashes import hash_stats
from cifar_pipeline.utils.paths import main_workspace
from cifar_pipeline.utils.safe_io import parse_json

log = logging.getLogger(__name__)

RAW, PROCESSED, PARTIAL = Path("data/raw"), Path("data/processed"), Path(".cache/downloads")
SKIPPED = "skipped.csv"

_in_use = ExitStack()


def processed_cache_dir() -> Path:
    """Return the folder with the datasets of trials, one subfolder for each key."""
    return main_workspace() / ".cache" / "processed"


def read_matching(config: DictConfig) -> dict[str, Any] | None:
    """Read the dataset.json of data/processed; None if it was made with other values of `data`, or is unreadable."""
    try:
        content: dict[str, Any] = parse_json((PROCESSED / "dataset.json").read_text(encoding="utf-8"))
        differences = differing_values(stage_config(config, "preprocess")["data"], content["requested"])
        return content if next(differences, None) is None else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def open_trial_dataset(config: DictConfig, overrides: Sequence[str]) -> Dataset:
    """Open the dataset with the `data` values of a trial, verified; make it first where it is missing.

    Raises UserError if that is not possible.

    Args:
        config: of the trial.
        overrides: of the trial, which compose the configuration with all keys.
    """
    if read_matching(config):
        dataset = Dataset.open(PROCESSED)
        dataset.verify()
        return dataset
    config = compose_config(list(overrides))
    raw_dir = _fetched_raw_dir(config)
    path = processed_cache_dir() / _key(config, raw_dir)
    with exclusive_lock(path):
        dataset = _open_intact(path) or _make(config, raw_dir, path)
        _in_use.close()
        _in_use.enter_context(claim_tmp_path(path, path.parent))
        os.utime(path / "dataset.json")
    _prune(config.runtime.max_cached_datasets)
    return dataset


def check_trial_datasets(combinations: Iterable[Sequence[str]]) -> None:
    """Raise UserError if the data of a trial cannot be split as its `data` values ask, before any trial begins.

    Raw files that have not been fetched are not checked.

    Args:
        combinations: the overrides of trials that differ in their data.
    """
    checked: set[str] = set()
    read_raw = _OneRawDataset()
    for overrides in combinations:
        config = compose_config(list(overrides))
        validate(config)
        values = digest(stage_config(config, "preprocess")["data"])
        if values in checked or read_matching(config):
            continue
        checked.add(values)
        source, fallback = sources(config.data)
        raw_dir = _raw_dir(config, source, fallback)
        if raw_dir is None or (processed_cache_dir() / _key(config, raw_dir)).is_dir():
            continue
        source = available_source(raw_dir, source, fallback)
        raw = read_raw(digest([stage_config(config, "download"), source.name]), source, raw_dir)
        data = config.data
        train, _ = train_val_split(raw, data.val_fraction, data.split_seed, data.folds, data.fold)
        require_usable(raw, train, source.title)


class _OneRawDataset:
    """Read raw datasets, and keep the last one, because successive trials usually have the same source."""

    def __init__(self) -> None:
        self.last: dict[str, RawDataset] = {}

    def __call__(self, key: str, source: Source, raw_dir: Path) -> RawDataset:
        if key not in self.last:
            self.last.clear()
            with exclusive_lock(CACHE):
                self.last[key] = read(source, raw_dir, Path("reports") / SKIPPED)
        return self.last[key]


def _fetched_raw_dir(config: DictConfig) -> Path:
    """Return the folder with the raw files that `config.data` asks for; fetch them if they are missing."""
    source, fallback = sources(config.data)
    if folder := _raw_dir(config, source, fallback):
        return folder
    folder = _raw_cache_dir(source)
    try:
        fetch(folder, source, *download_options(config.data), PARTIAL)
    except AllSourcesFailed as failure:
        log_failure(failure)
        raise UserError(
            f"{source.title} could not be fetched, and a trial uses no fallback: set {source.name.upper()}_SOURCE to "
            "an archive, a folder or a URL of it, or leave it out of the sweep."
        ) from failure
    return folder


def _raw_dir(config: DictConfig, source: Source, fallback: Source | None) -> Path | None:
    """Return the folder that has the raw files already; None if they have to be fetched.

    The fallback counts only where the pipeline uses it in place of this source as well.
    """
    if (RAW / source.name).is_dir():
        return RAW
    if fallback is not None and (RAW / fallback.name).is_dir() and _is_fallback_of(config):
        return RAW
    return _raw_cache_dir(source) if (_raw_cache_dir(source) / source.name).is_dir() else None


def _raw_cache_dir(source: Source) -> Path:
    return main_workspace() / ".cache" / "raw" / source.name


def _is_fallback_of(config: DictConfig) -> bool:
    """Whether data/processed was asked for the source of `config.data`, but has its fallback."""
    try:
        dataset = Dataset.open(PROCESSED)
    except UserError:
        return False
    return dataset.is_fallback and dataset.requested["source"] == stage_config(config, "preprocess")["data"]["source"]


def _code(config: DictConfig) -> UsedFiles:
    return loaded_sources().used("preprocess", stage_targets(config, "preprocess"))


def _key(config: DictConfig, raw_dir: Path) -> str:
    inputs = [raw_dir, *([Path(config.image_dir)] if "root" in config.data else [])]
    recorded = recorded_config(config, ["preprocess"])["preprocess"]
    return digest([recorded, _code(config).hashes, hash_stats(*inputs)])


def _open_intact(path: Path) -> Dataset | None:
    """Open and verify a cached dataset; None if there is none, or if it is damaged."""
    if not path.is_dir():
        return None
    try:
        dataset = Dataset.open(path)
        dataset.verify()
    except UserError as error:
        log.warning(f"A cached dataset is damaged and is made again: {str(error).partition(';')[0]}.")
        return None
    return dataset


def _make(config: DictConfig, raw_dir: Path, path: Path) -> Dataset:
    code = _code(config)
    with exclusive_lock(CACHE), atomic_replace_dir(path) as folder:
        process(folder, raw_dir, config.data, folder / SKIPPED, write_skipped)
        if file := code.changed():
            raise UserError(f"{file} was edited while the data were prepared: type the same command again.")
    dataset = Dataset.open(path)
    for sentence in dataset.describe_duplicates():
        log.warning(sentence)
    shown = path.relative_to(main_workspace())
    log.info(f"Made the data of this trial: {dataset.caption}, {dataset.describe_sizes()} images, in {shown}")
    return dataset


def _prune(max_datasets: int) -> None:
    """Remove what killed processes left, and the datasets that were used least recently, except those in use."""
    folder = processed_cache_dir()
    remove_all_stale_tmp(folder)
    datasets = [path for path in folder.iterdir() if not path.name.startswith(".")]
    datasets.sort(key=_last_use, reverse=True)
    for path in datasets[max_datasets:]:
        with exclusive_lock_if_free(path) as is_free:
            if is_free and not is_claimed(path):
                remove(path)


def _last_use(path: Path) -> float:
    try:
        return (path / "dataset.json").stat().st_mtime
    except OSError:
        return 0.0
