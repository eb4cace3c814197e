"""A student's tokenizer: lower-casing, no begin or end tokens, the same when served."""

from pathlib import Path

from transformers import Tipsv2Tokenizer

from model.text import TextTokenizer
from training.data.batch import tokenize

TEXTS = ["a dog on the left", "Two Cats", "a DOG", "caf\u00e9 \u732b", "an unheard-of word, truly"]


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
