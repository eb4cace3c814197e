"""Processes that make batches: out of the reach of signals to their rank's group."""

import os

import torch
from torch.utils.data import DataLoader, Dataset

from training.data.batch import begin_loading


class WhoMakesIt(Dataset[tuple[int, int, int]]):
    """Items that say where they were made."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        return os.getpid(), os.getpgid(0), torch.get_num_threads()


def test_it_has_a_group_and_a_thread_of_its_own() -> None:
    loader = DataLoader(WhoMakesIt(), batch_size=None, num_workers=1, worker_init_fn=begin_loading)
    items = iter(loader)
    pid, group, threads = next(items)
    assert pid != os.getpid()
    assert (group, threads) == (pid, 1)
    assert os.getpgid(0) != group
    assert len(list(items)) == 3
