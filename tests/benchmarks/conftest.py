"""Put benchmarks/ on the path, as for a script started there."""

import sys

from helpers.config_project import ROOT

sys.path.append(str(ROOT / "benchmarks"))
