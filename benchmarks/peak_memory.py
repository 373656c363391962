"""Run a command, and print its seconds and the peak of the anonymous memory of its processes together.

python benchmarks/peak_memory.py python src/preprocess.py
"""

import subprocess
import sys
import time

import psutil
from common import anonymous_bytes, print_result

INTERVAL = 0.5


def anonymous_total(root: psutil.Process) -> int:
    """Sum the anonymous memory of a process and its descendants, in bytes."""
    total = 0
    try:
        for process in (root, *root.children(recursive=True)):
            total += anonymous_bytes(process.pid)
    except (psutil.NoSuchProcess, OSError):
        pass  # It has ended meanwhile.
    return total


start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
root, peak = psutil.Process(process.pid), 0
while True:
    try:
        status = process.wait(INTERVAL)
        break
    except subprocess.TimeoutExpired:
        peak = max(peak, anonymous_total(root))
seconds = time.perf_counter() - start
if status:
    sys.exit(f"the command ended with {status}")
print_result(seconds=seconds, anonymous_megabytes=peak / 10**6)
