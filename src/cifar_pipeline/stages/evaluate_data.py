"""Measure models on any labeled images: `evaluate.py --model MODEL --data FOLDER`. It is no stage of DVC.

The images are decoded and classified by the code of `predict.py`. Results are written into a folder of their own and
logged to MLflow in runs of their own, so that neither reports/ nor the run of the training changes.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.text import Text

from cifar_pipeline.config.compose import available_cores
from cifar_pipeline.config.params import MLFLOW_SCHEMES, OUTPUTS
from cifar_pipeline.config.tracking_uri import tracking_uri
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.data.image_paths import SkipCounts, SkippedFile, existing_spelling
from cifar_pipeline.data.images import set_max_megapixels
from cifar_pipeline.data.labeled_images import ImagesAsSeen, LabeledImages, open_labeled_images
from cifar_pipeline.data.sources.image_files import report_skipped
from cifar_pipeline.inference.predictor import Predictor, threads_for
from cifar_pipeline.reporting.evaluation import ReportOptions
from cifar_pipeline.reporting.html_report import Rows
from cifar_pipeline.reporting.metrics import finite_metrics
from cifar_pipeline.reporting.model_comparison import (
    COMPARISON_FILES,
    LETTERS,
    ModelComparison,
    write_comparison,
)
from cifar_pipeline.reporting.model_evaluation import (
    EVALUATION_FILES,
    METRICS_FILE,
    REPORT_FILE,
    UNKNOWN,
    ChosenMetrics,
    ModelEvaluation,
    ModelOutputs,
    match_classes,
    write_evaluation,
)
from cifar_pipeline.reporting.tables import with_progress, write_skipped
from cifar_pipeline.tracking.model_uri import resolve_model
from cifar_pipeline.utils.atomic import atomic_replace_dir, exclusive_lock, require_writable
from cifar_pipeline.utils.console import progress_bar, propagate_library_logs, status, stdout_console
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.file_hashes import hash_files
from cifar_pipeline.utils.paths import MODEL_FILE
from cifar_pipeline.utils.process import disable_malloc_trim
from cifar_pipeline.utils.safe_io import parse_json, read_text
from cifar_pipeline.utils.text import count_noun, escape_control, list_names, percent

log = logging.getLogger(__name__)

REPORTS = Path("reports")
EVALUATIONS = REPORTS / "evaluations"
PROCESSED = Path("data/processed")
SKIPPED_FILE = "skipped.csv"
# Files in the folder of an evaluation besides the folders of several models.
FILES = (*EVALUATION_FILES, *COMPARISON_FILES, SKIPPED_FILE)
# File systems allow 255, and temporary names are longer.
MAX_NAME_BYTES = 200


@dataclass(frozen=True)
class OpenModel:
    """A model that was named on the command line; `sha256` is that of its file."""

    address: str
    predictor: Predictor
    sha256: str

    @property
    def facts(self) -> dict[str, str]:
        """Identifiers of the model, for metrics.json."""
        metadata = self.predictor.metadata
        return {
            "address": self.address,
            "sha256": self.sha256,
            "fingerprint": metadata.fingerprint,
            "commit": metadata.commit,
            "dataset": metadata.dataset,
            "dataset_hash": metadata.dataset_hash,
        }

    @property
    def rows(self) -> Rows:
        """Identifiers of the model, for the page."""
        metadata = self.predictor.metadata
        height, width, channels = metadata.shape
        rows = [
            ("model", self.address),
            ("trained on", f"{metadata.dataset} (hash {metadata.dataset_hash[:16]})"),
            ("classes", f"{len(metadata.classes):,}"),
            ("images", f"{height} x {width} pixels, {'gray' if channels == 1 else 'color'}, {metadata.resize_mode}"),
            ("code", f"commit {metadata.commit[:12]}" if metadata.commit else ""),
            ("fingerprint", metadata.fingerprint),
            ("file", f"SHA-256 {self.sha256[:16]}"),
            ("measured on", self.predictor.session.device),
        ]
        return [(name, value) for name, value in rows if value]


def evaluate_models(addresses: Sequence[str], data_path: Path, output: Path | None, config: DictConfig) -> None:
    """Measure models on labeled images, compare them if there are several, and write and log the results.

    Args:
        addresses: of the models; the others are compared with the first.
        data_path: a folder or table (`open_labeled_images`).
        output: the folder of the results; None for a new one in reports/evaluations/.
        config: the composed configuration.

    Raises:
        UserError: there is no such model or data, they have no class in common, too many files are unreadable, or the
            folder of the results cannot be written or has other content.
    """
    disable_malloc_trim()
    _require_different(addresses)
    data_path = existing_spelling(data_path.expanduser())
    tracking_uri()  # Refuses an invalid one before any work.
    _require_free(output, addresses, data_path)
    options = ReportOptions(**{field.name: config.evaluation[field.name] for field in fields(ReportOptions)})
    set_max_megapixels(config.predict.max_megapixels, "predict.max_megapixels")
    data = open_labeled_images(data_path)
    models = [_open_model(address, config) for address in addresses]
    _check_classes(models, data)
    _warn_about_images(models, data)
    chosen = _chosen_metrics(models, config)

    rows, unreadable = _predict(models, data, config)
    readable = np.setdiff1d(np.arange(len(data)), sorted(unreadable))
    outputs = [
        _outputs(model, data, readable, probabilities) for model, probabilities in zip(models, rows, strict=True)
    ]
    _require_images(outputs, data)
    skipped = [*_with_root(data), *(SkippedFile(str(data.files[index]), unreadable[index]) for index in unreadable)]
    status("Computing the metrics")
    propagate_library_logs()
    facts, data_rows = _describe(data, len(unreadable))
    evaluations = [
        ModelEvaluation.of(output_, options, chosen, data.title, model.rows, data_rows, facts)
        for output_, model in zip(outputs, models, strict=True)
    ]
    for letter, evaluation in zip(LETTERS, evaluations, strict=False):
        low, high = evaluation.interval
        prefix = f"{letter.upper()}, " if len(evaluations) > 1 else ""
        _print(
            f"{prefix}{evaluation.outputs.address}: accuracy {percent(evaluation.metrics['accuracy'])} on "
            f"{evaluation.num_images:,} images of {data.title} (95 % interval {percent(low)} to {percent(high)})"
        )
    comparison = None
    if len(evaluations) > 1:
        settings = config.comparison
        comparison = ModelComparison(evaluations, chosen, settings.significance_level, settings.num_differing_images)
        for test in comparison.tests:
            _print(test.sentence)

    status("Drawing the figures and the report page")
    # A stage that ends meanwhile would replace reports/ by a folder without these results.
    is_in_reports = output is None or output.resolve().is_relative_to(REPORTS.resolve())
    with exclusive_lock(REPORTS) if is_in_reports else nullcontext():
        _require_free(output, addresses, data_path)
        folder = output or _new_folder(addresses, data)
        is_replaced = folder.exists() and any(folder.iterdir())
        with atomic_replace_dir(folder) as tmp:
            if comparison is None:
                failed = write_evaluation(tmp, evaluations[0])
            else:
                failed = write_comparison(tmp, comparison, data_rows)
            if skipped:
                write_skipped(skipped, tmp / SKIPPED_FILE)
        failed = {folder / path.relative_to(tmp): error for path, error in failed.items()}
    report_skipped(skipped, str(folder / SKIPPED_FILE))
    status("Uploading the results to MLflow")
    _log_runs(evaluations, data, folder)
    for path in failed:
        log.error(f"{path} could not be made; the numbers and all else are in {folder}/ and in MLflow.")
    for error in failed.values():
        raise error
    log.info(f"Report: {folder / REPORT_FILE}{' (replaced that of the same evaluation)' if is_replaced else ''}")


def _print(result: str) -> None:
    """Print a result, which `-q` shows as well."""
    stdout_console.print(Text(escape_control(result)))


def _require_different(addresses: Sequence[str]) -> None:
    twice = next((address for address in addresses if addresses.count(address) > 1), None)
    if twice is not None:
        raise UserError(f"--model {twice} is given twice: name different models to compare them.")
    if len(addresses) > len(LETTERS):
        raise UserError(f"{len(addresses)} models are given: at most {len(LETTERS)} are compared.")


def _require_free(output: Path | None, addresses: Sequence[str], data_path: Path) -> None:
    """Raise UserError if the results cannot be written, or would replace anything but those of the same evaluation."""
    require_writable(output or EVALUATIONS / "new")
    if output is None:
        return
    target = output.resolve()
    outputs = [Path(folder).resolve() for folder in OUTPUTS]
    if target in outputs or any(target.is_relative_to(folder) for folder in outputs if folder != REPORTS.resolve()):
        raise UserError(
            f"{output} belongs to the outputs of `dvc repro`: choose another folder, such as {EVALUATIONS / 'mine'}."
        )
    if not output.is_dir() or not any(output.iterdir()):
        return
    try:
        content = parse_json(read_text(output / METRICS_FILE))
        entries = [content] if "model" in content else content["models"].values()
        before = [str(entry["model"]["address"]) for entry in entries], str(content["data"]["path"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        raise UserError(f"{output} is not empty, and has no evaluation of a model: choose a new folder.") from None
    if before != (list(addresses), str(data_path)):
        raise UserError(
            f"{output} has the evaluation of {list_names(before[0], ' and ')} on {before[1]}: choose a new folder, or "
            "remove this one."
        )
    if others := sorted({path.name for path in output.iterdir()} - {*FILES, *LETTERS}):
        raise UserError(f"{output} also has {list_names(others)}, which would be lost: move it away.")


def _open_model(address: str, config: DictConfig) -> OpenModel:
    # One core is reserved for the thread that reads the files.
    threads = threads_for(config.runtime.threads, available_cores(), reader_threads=1)
    with resolve_model(address, "", config.evaluation.checkpoint) as folder:
        predictor = Predictor.open(folder, threads, config.runtime.accelerator)
        return OpenModel(address, predictor, hash_files(folder)[MODEL_FILE])


def _check_classes(models: Sequence[OpenModel], data: LabeledImages) -> None:
    """Log which classes the models or the data lack. Raises UserError if they have none in common."""
    counts = Counter(data.labels)
    names = sorted(counts)
    by_classes: dict[tuple[str, ...], list[str]] = {}
    for model in models:
        by_classes.setdefault(model.predictor.metadata.classes, []).append(model.address)
    common = np.ones(len(names), bool)
    for classes, addresses in by_classes.items():
        address, verb = list_names(addresses, " and "), "does" if len(addresses) == 1 else "do"
        indices = match_classes(names, classes)
        common &= indices != UNKNOWN
        unknown = [name for name, index in zip(names, indices.tolist(), strict=True) if index == UNKNOWN]
        if len(unknown) == len(names):
            raise UserError(
                f"{addresses[0]} knows none of the classes in {data.path} ({list_names(names)}): its classes are "
                f"{list_names(classes)}."
            )
        if unknown:
            log.warning(
                f"{address} {verb} not know {len(unknown):,} of the {len(names):,} classes in {data.path} "
                f"({list_names(_with_similar(unknown, classes))}): their {sum(counts[name] for name in unknown):,} "
                "images are left out of the metrics, and their predictions are reported separately."
            )
        absent = [name for index, name in enumerate(classes) if index not in set(indices.tolist())]
        if absent:
            log.info(
                f"{data.path} has no images of {len(absent):,} of the {len(classes):,} classes of {address} "
                f"({list_names(absent)}): they are not measured."
            )
    if not common.any():
        raise UserError(f"No class in {data.path} is known to all of the models: compare models with common classes.")


def _with_similar(unknown: Sequence[str], classes: Sequence[str]) -> Iterator[str]:
    """Yield the names, with the class that differs only in case where there is one."""
    folded = {name.casefold(): name for name in classes}
    for name in unknown:
        similar = folded.get(name.casefold())
        yield f"{name}, which it has as {similar}" if similar else name


def _warn_about_images(models: Sequence[OpenModel], data: LabeledImages) -> None:
    """Log which images are measured, and warn about those that are no fair test of a model."""
    if data.split:
        others = f", not on {' and '.join(data.left_out)}" if data.left_out else ""
        log.info(f"Measuring on the {data.split} split of {data.path}{others}.")
    if data.empty_classes:
        log.warning(f"{data.path} has no images of {list_names(data.empty_classes)}.")
    by_file: dict[str, str] = {}
    for model in models:
        shape = model.predictor.metadata.shape
        if data.pixels is not None and data.pixels.shape[1:] != shape:
            log.warning(
                f"{model.address} takes images of {shape[0]} x {shape[1]} pixels: those in {data.path} "
                f"({data.pixels.shape[1]} x {data.pixels.shape[2]}) are resized once more."
            )
        if other := by_file.get(model.sha256):
            log.warning(f"{other} and {model.address} are the same model.")
        by_file.setdefault(model.sha256, model.address)
        _warn_about_training_images(model, data)


def _warn_about_training_images(model: OpenModel, data: LabeledImages) -> None:
    """Warn if a model was trained on some of the images, or may have been."""
    metadata = model.predictor.metadata
    if data.pixels is not None:
        if data.dataset_hash != metadata.dataset_hash and data.dataset_name == metadata.dataset:
            log.warning(
                f"{model.address} was trained on other files or splits of {metadata.dataset} than {data.path}, whose "
                "test images may be among its training images."
            )
        return
    try:
        dataset = Dataset.open(PROCESSED)
        count = data.count_training_images(dataset) if dataset.hash == metadata.dataset_hash else 0
    except UserError:  # there is no such data
        return
    if count:
        log.warning(
            f"{model.address} was trained on {count:,} of the {len(data):,} images, so the accuracy says little about "
            f"new images: `--data {PROCESSED}` measures its test split."
        )


def _chosen_metrics(models: Sequence[OpenModel], config: DictConfig) -> ChosenMetrics:
    """Return a function that computes the metrics of conf/metrics/. Raises UserError for one that does not work.

    They average over all classes, so they are left out where a class has no images.
    """
    if not config.metrics:
        return lambda probabilities, labels: {}
    import torch  # here, because it takes seconds

    from cifar_pipeline.training.metrics import build_metrics, compute_values

    for num_classes in {len(model.predictor.metadata.classes) for model in models}:
        build_metrics(config.metrics, num_classes)

    def compute(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        num_classes = probabilities.shape[1]
        if len(np.unique(labels)) < num_classes:
            log.info(f"Some classes have no images, so these metrics are left out: {list_names(config.metrics)}.")
            return {}
        metrics = build_metrics(config.metrics, num_classes)
        return finite_metrics(compute_values(metrics, torch.from_numpy(probabilities), torch.from_numpy(labels)))

    return compute


def _predict(
    models: Sequence[OpenModel], data: LabeledImages, config: DictConfig
) -> tuple[list[np.ndarray], dict[int, str]]:
    """Compute the probabilities `[N, K] float32` of each model, and the reason for each image that is unreadable.

    Raises UserError if there are more of these than `predict.max_unreadable`.
    """
    results, unreadable = [], dict[int, str]()
    for model in models:
        predict = _predict_files if data.pixels is None else _predict_arrays
        results.append(predict(model, data, config.predict, unreadable))
    return results, dict(sorted(unreadable.items()))


def _predict_files(
    model: OpenModel, data: LabeledImages, options: DictConfig, unreadable: dict[int, str]
) -> np.ndarray:
    classes = model.predictor.metadata.classes
    index_of = {name: index for index, name in enumerate(classes)}
    probabilities = np.zeros((len(data), len(classes)), np.float32)
    predictions = model.predictor.predictions(data.files, options.batch_size, len(classes))
    for row, prediction in enumerate(with_progress(predictions, len(data), options.batch_size)):
        if prediction.error:
            unreadable[row] = prediction.error
            _check_unreadable(unreadable, data, options.max_unreadable)
        for name, value in prediction.ranking:
            probabilities[row, index_of[name]] = value
    return probabilities


def _predict_arrays(
    model: OpenModel, data: LabeledImages, options: DictConfig, unreadable: dict[int, str]
) -> np.ndarray:
    metadata = model.predictor.metadata
    images = ImagesAsSeen(data, np.arange(len(data)), metadata.shape, metadata.resize_mode)
    batches = []
    with progress_bar("Images", len(data), transient=True) as advance:
        for start in range(0, len(data), options.batch_size):
            batch = images[np.arange(start, min(start + options.batch_size, len(data)))]
            batches.append(model.predictor.probabilities(batch, options.batch_size))
            advance(len(batch))
    return np.concatenate(batches)


def _check_unreadable(unreadable: dict[int, str], data: LabeledImages, limit: int) -> None:
    if len(unreadable) <= limit:
        return
    for path, reason in SkipCounts((str(data.files[index]), reason) for index, reason in unreadable.items()).named():
        log.warning(f"{path}: {reason}.")
    raise UserError(
        f"More than {limit:,} files are unreadable (predict.max_unreadable): fix or remove them, or add "
        f"predict.max_unreadable={len(data)} to the command to leave them out."
    )


def _outputs(model: OpenModel, data: LabeledImages, readable: np.ndarray, probabilities: np.ndarray) -> ModelOutputs:
    metadata = model.predictor.metadata
    paths = data.names if data.pixels is not None else [str(path) for path in data.files]
    return ModelOutputs(
        model.address,
        metadata.classes,
        [data.labels[index] for index in readable],
        [paths[index] for index in readable],
        probabilities[readable],
        ImagesAsSeen(data, readable, metadata.shape, metadata.resize_mode),
        model.facts,
    )


def _require_images(outputs: Sequence[ModelOutputs], data: LabeledImages) -> None:
    if not np.logical_and.reduce([model.is_known for model in outputs]).any():
        raise UserError(f"No readable image in {data.path} is of a class that the model knows: add some.")


def _with_root(data: LabeledImages) -> list[SkippedFile]:
    return [SkippedFile(str(data.root / file.path), file.reason) for file in data.skipped]


def _describe(data: LabeledImages, unreadable: int) -> tuple[dict[str, Any], Rows]:
    """Return what identifies the data, for metrics.json and for the page."""
    digest = data.content_hash()
    facts = {
        "path": str(data.path),
        "split": data.split,
        "images": len(data),
        "classes": len(set(data.labels)),
        "unreadable_files": unreadable,
        "hash": digest,
    }
    left_out = f", not {' and '.join(data.left_out)}" if data.left_out else ""
    rows = [
        ("data", str(data.path)),
        ("split", data.split + left_out),
        ("images", f"{len(data):,} of {len(set(data.labels)):,} classes"),
        (
            "unreadable",
            f"{count_noun(unreadable, 'file')}, listed in {SKIPPED_FILE}" if unreadable else "",
        ),
        ("hash", digest[:16]),
    ]
    return facts, [(name, value) for name, value in rows if value]


def _new_folder(addresses: Sequence[str], data: LabeledImages) -> Path:
    """Return a folder that does not exist yet, named after models and data, with a number if the name is taken."""
    source = data.path.resolve()
    name = f"{'-vs-'.join(map(_model_name, addresses))}-on-{source.stem if source.is_file() else source.name}"
    name = re.sub(r"[^\w.@-]+", "-", name).encode(errors="replace")[:MAX_NAME_BYTES].decode(errors="ignore").strip("-.")
    number, folder = 1, EVALUATIONS / name
    while folder.exists():
        number += 1
        folder = EVALUATIONS / f"{name}-{number}"
    return folder


def _model_name(address: str) -> str:
    """Shorten an address for a folder's name: `flowers-champion`, `1a2b3c4d-best`, `models-best`."""
    scheme = next((scheme for scheme in MLFLOW_SCHEMES if address.startswith(scheme)), "")
    parts = [part for part in re.split(r"[/@]+", address.removeprefix(scheme)) if part not in ("", ".", "..")][-2:]
    return "-".join(part[:8] if re.fullmatch(r"[0-9a-f]{32}", part) else part for part in parts)


def _log_runs(evaluations: Sequence[ModelEvaluation], data: LabeledImages, folder: Path) -> None:
    """Log the results of each model to a run of its own; of several, also the comparison."""
    from cifar_pipeline.tracking.runs import log_evaluation  # here, because MLflow takes seconds

    is_comparison = len(evaluations) > 1
    for letter, evaluation in zip(LETTERS, evaluations, strict=False):
        own = folder / letter if is_comparison else folder
        files = dict.fromkeys(sorted(own.iterdir()), "")
        if is_comparison:
            files |= {path: "comparison" for path in sorted(folder.iterdir()) if path.is_file()}
        run_id = log_evaluation(
            f"evaluate {evaluation.title}",
            evaluation.outputs.facts,
            {**evaluation.metrics, "images": evaluation.num_images},
            {"name": data.title, "digest": evaluation.data["hash"], "source": str(data.path)},
            files,
        )
        log.debug(f"The results of {evaluation.outputs.address} are in the MLflow run {run_id}.")
