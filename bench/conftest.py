"""The source tree last on the path: the benchmarks share modules and twins, and measure the hvcore that is installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
