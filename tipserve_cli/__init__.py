"""The command `tipserve`: masks, embeddings, bulk jobs and scores, by a model here or a server."""

import os

# OpenBLAS reads this when NumPy is first imported. Its threads would take the model's processors.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
