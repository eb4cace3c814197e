"""The serving process: REST and gRPC over one request core."""

import os

# OpenBLAS reads this when NumPy is first imported. With its own threads, each matrix product spins
# on all processors: masks then cost up to twice the CPU time, taken from the lanes. One pool thread
# for each request spreads the load better.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
