"""Benchmarks of ``clead_kernels``: fair, interleaved, and silent about anything that is not correct.

Never installed; ``python -m bench`` from a checkout measures the kernels of that checkout.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if str(ROOT / "kernels") not in sys.path:
    sys.path.insert(0, str(ROOT / "kernels"))
