"""Measure what a sweep's trial adds to MLflow's database and the file system, for docs/scaling.md.

    python benchmarks/sweep_storage.py --trials 20 --epochs 10

Logs runs with the project's own code and metrics of real epochs to a temporary database, without training. Counts
bytes, not seconds, and leaves out the models, whose size depends on the network.
"""

import environment  # noqa: F401

# isort: split

import os
import sqlite3
import sys
import tempfile
from argparse import ArgumentParser
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
EPOCH = {
    "train/loss": 1.234567, "train/accuracy": 0.567891, "val/loss": 1.345678, "val/accuracy": 0.543219, "lr": 0.001,
    "images_per_second": 12345.678901,
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Growth per trial: bytes and rows of the database, files and their bytes."""

    database_bytes: float
    rows: float
    files: float
    file_bytes: float


@dataclass(frozen=True)
class Usage:
    """Current size of the database and of the artifact files."""

    database_bytes: int
    rows: int
    files: int
    file_bytes: int


def measure(folder: Path, trials: int, epochs: int, warm_up: int) -> Cost:
    """Log `trials` runs of `epochs` epochs below `folder`, after `warm_up` runs that fill the first pages."""
    os.environ["DVC_ROOT"] = str(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    from cifar_pipeline.config.compose import compose_config, stage_config
    from cifar_pipeline.tracking.runs import training_run

    config = stage_config(compose_config(["data=digits"]), "train")
    data = {
        "name": "digits",
        "hash": 64 * "0",
        "source": "scikit-learn",
        "shape": (8, 8, 1),
        "sizes": {"train": 9},
        "classes": 2,
    }

    def log(first: int, count: int) -> Usage:
        for number in range(first, first + count):
            values = config | {"seed": number}
            with training_run(f"{number:016x}", f"sgd-cross_entropy-{number}", values, data, rerun="measured") as run:
                for epoch in range(1, epochs + 1):
                    run.log_metrics(EPOCH, epoch)
        return measure_usage(folder)

    before = log(0, warm_up)
    after = log(warm_up, trials)
    return Cost(
        (after.database_bytes - before.database_bytes) / trials,
        (after.rows - before.rows) / trials,
        (after.files - before.files) / trials,
        (after.file_bytes - before.file_bytes) / trials,
    )


def measure_usage(folder: Path) -> Usage:
    """Measure the database and files in `folder`."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = sum(database.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0] for table in tables)
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        (free,) = database.execute("PRAGMA freelist_count").fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    files = [path for path in (folder / "mlruns").rglob("*") if path.is_file()]
    return Usage((pages - free) * size, rows, len(files), sum(path.stat().st_size for path in files))


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=20)
    args = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "src"))
    with tempfile.TemporaryDirectory() as folder:
        cost = measure(Path(folder), args.trials, args.epochs, args.warm_up)
    print(
        f"A trial of {args.epochs} epochs, mean of {args.trials}: {cost.rows:,.1f} rows and "
        f"{cost.database_bytes:,.0f} bytes in the database, {cost.files:,.1f} files of {cost.file_bytes:,.0f} bytes."
    )


if __name__ == "__main__":
    main()
