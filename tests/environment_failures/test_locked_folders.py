"""A read-only folder is detected before any work, and a locked database is waited for."""

import sqlite3
import sys
import time
from contextlib import closing

import pytest

from helpers.workspace import sentences

# Root may write anywhere, unless it drops the capability CAP_DAC_OVERRIDE.
WITHOUT_ROOT_RIGHTS = """
import ctypes, os, sys
if os.geteuid() == 0 and ctypes.CDLL(None).prctl(24, 1):
    sys.exit(77)
os.execvp(sys.argv[1], sys.argv[1:])
"""
LOCKED_FOR = 30  # seconds


@pytest.fixture
def locked(copy):
    """Return a copy whose models/ is read-only."""
    models = copy.root / "models"
    models.chmod(0o555)
    yield copy
    models.chmod(0o755)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="capabilities can be dropped on Linux only")
def test_a_locked_models_folder_is_refused_before_training(locked):
    output = locked.run("python", "-c", WITHOUT_ROOT_RIGHTS, "python", "src/train.py", "seed=1", code=2)
    (sentence,) = sentences(output)
    assert "models is not writable" in sentence
    assert locked.runs() == []


@pytest.mark.long
def test_a_locked_database_is_waited_for_and_no_metric_is_lost(copy):
    training = copy.start("python", "src/train.py", "loss=slow", "trainer.max_epochs=6")
    training.wait_for("epoch 1/6")
    with closing(sqlite3.connect(copy.root / "mlflow.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(LOCKED_FOR)
        database.execute("COMMIT")
    output = training.end()
    assert "Traceback" not in output
    (run,) = copy.runs()
    assert (run.info.status, copy.logged(run)) == ("FINISHED", [1, 2, 3, 4, 5, 6])
