"""The source tree last on the path: the benchmarks share modules and twins, and measure the installed hvcore."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
