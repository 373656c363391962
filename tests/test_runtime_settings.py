"""What takes Python's collector seconds is left out, where it frees nothing."""

import subprocess
import sys

AT_THE_END = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 0))
from cifar_pipeline.utils.process import relax_gc
relax_gc()
"""


def test_a_process_that_ends_does_not_look_through_all_libraries_once_more(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "src")
    ended = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["True"]
