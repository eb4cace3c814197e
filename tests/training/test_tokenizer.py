"""A student's tokenizer: lower-casing, no begin or end tokens, the same when served."""

from pathlib import Path

from transformers import Tipsv2Tokenizer

from model.text import TextTokenizer
from training.data.batch import tokenize
from training.tokenizer import train_tokenizer

TEXTS = ["a dog on the left", "Two Cats", "a DOG", "caf\u00e9 \u732b", "an unheard-of word, truly"]


def test_case_is_ignored_and_unseen_letters_become_bytes(tokenizer: Tipsv2Tokenizer) -> None:
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 257]) == ["<pad>", "<unk>", "<0x00>", "<0xFF>"]
    assert tokenizer.pad_token_id == 0
    assert tokenizer("A Dog")["input_ids"] == tokenizer("a dog")["input_ids"]
    alone, twice = tokenizer("red")["input_ids"], tokenizer("red red")["input_ids"]
    assert twice == alone * 2
    pieces = tokenizer.tokenize("\u732b")
    assert pieces[-3:] == ["<0xE7>", "<0x8C>", "<0xAB>"]
    assert tokenizer.unk_token_id not in tokenizer("caf\u00e9 \u732b!")["input_ids"]


def test_training_and_server_read_the_same_tokens(
    tokenizer: Tipsv2Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = Tipsv2Tokenizer.from_pretrained(tmp_path)
    expected = tokenize(tokenizer, TEXTS)
    again = tokenize(loaded, TEXTS)
    served = TextTokenizer(tmp_path / "tokenizer.json").encode(TEXTS)
    assert again.token_ids_BL.tolist() == expected.token_ids_BL.tolist()
    assert served.token_ids_BL.tolist() == expected.token_ids_BL.tolist()
    assert served.mask_BL.tolist() == expected.mask_BL.tolist()


def test_the_vocabulary_has_the_requested_size() -> None:
    words = [f"word{number} thing{number} stuff{number}" for number in range(60)]
    assert len(train_tokenizer(words, 320)) == 320
