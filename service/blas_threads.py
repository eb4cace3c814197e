"""Import this before NumPy: its matrix products then run in the thread that asks for them.

Left alone, OpenBLAS spreads each over all processors and lets the helpers spin: masks then cost up
to twice the CPU time, taken from the lanes. A thread of the pool for each request spreads better.
"""

import os
from typing import Final

VARIABLE: Final = "OPENBLAS_NUM_THREADS"

os.environ.setdefault(VARIABLE, "1")
