"""Import this before NumPy: matrix products then use one thread, and CPU times are repeatable."""

import os
import sys
from typing import Final

ONE_THREAD: Final = "one thread"

if "numpy" in sys.modules:
    raise ImportError("NumPy was imported first, and has chosen its number of threads")
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
