"""Run a script with a limit of the size of each file that it writes, as `ulimit -f` sets it.

python limit_files.py KILOBYTES src/STAGE.py [arguments]
"""

import resource
import runpy
import sys
from pathlib import Path

size = int(sys.argv[1]) * 1024
sys.argv = sys.argv[2:]
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
runpy.run_path(sys.argv[0], run_name="__main__")
