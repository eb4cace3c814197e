"""A batch: tokens, ids, names, and the processes that make batches."""

import os

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Tipsv2Tokenizer

from training.data.batch import begin_loading, text_ids, tokenize


def test_texts_are_cut_and_padded(tokenizer: Tipsv2Tokenizer) -> None:
    texts = tokenize(tokenizer, ["dog " * 100, "dog"])
    assert texts.token_ids_BL.shape == (2, 64)
    assert texts.mask_BL.sum(1).tolist() == [64, len(tokenizer("dog")["input_ids"])]
    texts = tokenize(tokenizer, ["dog", "a dog on the left"])
    assert len(texts) == 2
    assert torch.equal(texts.mask_BL == 0, texts.token_ids_BL == 0)
    assert texts.mask_BL[1].all()
    assert not texts.mask_BL[0].all()
    texts = tokenize(tokenizer, [])
    assert len(texts) == 0
    assert texts.token_ids_BL.shape == texts.mask_BL.shape == (0, 1)
    assert texts.token_ids_BL.dtype == torch.int64


def test_the_id_of_a_text_does_not_depend_on_others() -> None:
    dog, cat, again = text_ids(["a dog", "a cat", "a dog"]).tolist()
    assert dog == again != cat
    assert text_ids(["a cat"]).tolist() == [cat]
    assert text_ids([]).shape == (0,)


class ProcessInfo(Dataset[tuple[int, int, int]]):
    """Each item describes the process that makes it."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        return os.getpid(), os.getpgid(0), torch.get_num_threads()


def test_a_loading_process_has_its_own_process_group_and_one_thread() -> None:
    loader = DataLoader(ProcessInfo(), batch_size=None, num_workers=1, worker_init_fn=begin_loading)
    items = iter(loader)
    pid, group, threads = next(items)
    assert pid != os.getpid()
    assert (group, threads) == (pid, 1)
    assert os.getpgid(0) != group
    assert len(list(items)) == 3
