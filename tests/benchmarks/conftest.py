"""The scripts of benchmarks/ find each other as in a process of their own."""

import sys

from helpers.config_project import ROOT

sys.path.append(str(ROOT / "benchmarks"))
