"""A batch: tokens, ids, names, and the processes that make batches."""

import os

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Tipsv2Tokenizer

from model.text import TEMPLATES
from training.data.batch import collate, prefetch, text_ids, tokenize
from training.data.folder import common_names


@pytest.mark.parametrize(
    ("texts", "shape"), [(["dog " * 100, "dog"], (2, 64)), (["dog", "a dog on the left"], None)]
)
def test_texts_are_cut_and_padded(
    tokenizer: Tipsv2Tokenizer, texts: list[str], shape: tuple[int, int] | None
) -> None:
    found = tokenize(tokenizer, texts)
    assert len(found) == 2
    lengths = [min(len(tokenizer(text)["input_ids"]), 64) for text in texts]
    assert found.mask_BL.sum(1).tolist() == lengths
    assert found.token_ids_BL.shape == (shape or (2, max(lengths)))
    assert torch.equal(found.mask_BL == 0, found.token_ids_BL == 0)


def test_no_texts_have_their_own_shape(tokenizer: Tipsv2Tokenizer) -> None:
    texts = tokenize(tokenizer, [])
    assert len(texts) == 0
    assert texts.token_ids_BL.shape == texts.mask_BL.shape == (0, 1)
    assert texts.token_ids_BL.dtype == torch.int64


def test_the_id_of_a_text_does_not_depend_on_others() -> None:
    dog, cat, again = text_ids(["a dog", "a cat", "a dog"]).tolist()
    assert dog == again != cat
    assert text_ids(["a cat"]).tolist() == [cat]
    assert text_ids([]).shape == (0,)


def test_a_batch_holds_the_names_and_captions_of_its_images(
    tokenizer: Tipsv2Tokenizer,
) -> None:
    crops = torch.zeros(3, 3, 14, 14), torch.zeros(0, 3, 3, 14, 14)
    chosen = [("a dog", "a brown dog"), None, ("a cat", "a black cat")]
    names_by_image = [["dog"], [], ["dog", "cat"]]
    batch = collate(chosen, names_by_image, tokenizer, step=0, crops=crops)
    assert batch.captioned_B.tolist() == [True, False, True]
    assert torch.equal(batch.cls1_ids_T, text_ids(["a dog", "a cat"]))
    assert torch.equal(batch.cls2_ids_T, text_ids(["a brown dog", "a black cat"]))
    assert torch.equal(batch.name_ids_U, text_ids(["cat", "dog"]))
    assert batch.present_BU.tolist() == [[False, True], [False, False], [True, True]]
    bare = collate([None] * 3, [()] * 3, tokenizer, step=0, crops=crops)
    assert len(bare.cls1) == len(bare.cls2) == len(bare.names) == 0
    assert bare.present_BU.shape == (3, 0)


def test_a_name_has_the_same_prompt_on_every_rank_and_another_in_other_steps(
    tokenizer: Tipsv2Tokenizer,
) -> None:
    def prompts(names: list[str], step: int) -> list[str]:
        crops = torch.zeros(1, 3, 14, 14), torch.zeros(0, 1, 3, 14, 14)
        batch = collate([None], [names], tokenizer, step=step, crops=crops)
        return [str(tokenizer.decode(ids[ids > 0])).strip() for ids in batch.names.token_ids_BL]

    names = sorted(common_names())[:8]
    everything = prompts(names, 3)
    assert prompts(names[:3], 3) == everything[:3]
    assert any(prompts(names, step) != everything for step in range(4, 8))
    for name, text in zip(names, everything, strict=True):
        assert text in {t.format(name).lower() for t in ("{}", *TEMPLATES["tcl"])}


class ProcessInfo(Dataset[tuple[int, int, int]]):
    """Each item describes the process that makes it."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        return os.getpid(), os.getpgid(0), torch.get_num_threads()


def test_a_loading_process_has_its_own_process_group_and_one_thread() -> None:
    loader = prefetch(ProcessInfo(), range(4), num_workers=1)
    items = iter(loader)
    pid, group, threads = next(items)
    assert pid != os.getpid()
    assert (group, threads) == (pid, 1)
    assert os.getpgid(0) != group
    assert len(list(items)) == 3
