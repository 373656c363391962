"""Python's garbage collector does not run where it takes seconds and frees nothing."""

import subprocess
import sys

AT_THE_END = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 0))
from cifar_pipeline.utils.process import relax_gc
relax_gc()
"""


def test_garbage_is_not_collected_at_exit(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "src")
    ended = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["True"]
