"""Starts two ranks as processes, and joins them to one group over gloo."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600


@contextmanager
def two_ranks(module: str, folder: Path, *arguments: object) -> Iterator[None]:
    """Run `python -m MODULE RANK FOLDER ...` for both ranks beside the block; both must succeed.

    Their output is in `rank-R.out` and `rank-R.err` of the folder.
    """
    with ExitStack() as files:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, str(rank), str(folder), *map(str, arguments)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=files.enter_context((folder / f"rank-{rank}.out").open("w")),
                stderr=files.enter_context((folder / f"rank-{rank}.err").open("w")),
            )
            for rank in range(2)
        ]
        try:
            yield
            for process in processes:
                process.wait(timeout=TIMEOUT_S)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    errors = [(folder / f"rank-{rank}.err").read_text("utf-8") for rank in range(2)]
    assert [process.returncode for process in processes] == [0, 0], errors


def join(rank: int, folder: Path, name: str = "store", *, num_ranks: int = 2) -> None:
    """Join the group of ranks; they meet through a file, so no port is needed."""
    os.environ |= {"WORLD_SIZE": str(num_ranks), "RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/{name}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=200),
    )


def leave() -> NoReturn:
    """End this rank, which succeeded.

    Threads of gloo live on after operations of DTensor, also when the group is destroyed, and now
    and then abort the interpreter's own exit: "terminate called without an active exception".
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
