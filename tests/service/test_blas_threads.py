"""The program's matrix products start no threads of their own, unless somebody wants them to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import service.__main__
import os
import numpy as np
square = np.ones((600, 600), np.float32)
square @ square
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one processor there is one thread")
@pytest.mark.parametrize(("wish", "num_threads"), [(None, 1), ("2", 2)])
def test_products_run_in_the_thread_that_asks(
    project_root: Path, wish: str | None, num_threads: int
) -> None:
    environment = {name: value for name, value in os.environ.items() if "_NUM_THREADS" not in name}
    if wish is not None:
        environment["OPENBLAS_NUM_THREADS"] = wish
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=project_root,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert int(result.stdout) == num_threads
