"""The benchmarks' shared folder is no part of the package: tests find it where the scripts do."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
