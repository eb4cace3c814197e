"""What a process that makes batches does before the first of them."""

import os

import torch


def begin(_worker: int) -> None:
    """Use one thread, and leave the process group of whoever takes the batches.

    A terminal's Ctrl-C and torchrun's SIGTERM go to a whole group, and would end this process while
    its rank still finishes a step and saves. It ends when its rank does: torch looks for that.
    """
    torch.set_num_threads(1)
    os.setpgid(0, 0)
