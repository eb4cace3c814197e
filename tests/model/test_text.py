"""Texts become padded ids with a mask, the same ids as transformers' tokenizer gives."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import Tipsv2Tokenizer

from model.package import ModelPackage, PackageError
from model.text import TEMPLATES, TextTokenizer, fill

TEXTS = [
    "a photo of the cat",
    "A LARGE Red  Ball",
    " dog ",
    "zebra",
    "an na\u00efve \u00c9clair, \U0001f355 and \u72ac!",
    "\u0130stanbul \u1e9e",
    "tab\tand\nnew line",
    "sky " * 100,
]


@pytest.fixture(scope="module")
def tokenizer(tiny_package: ModelPackage) -> TextTokenizer:
    return TextTokenizer.from_package(tiny_package)


def test_ids_are_those_of_transformers(
    tokenizer: TextTokenizer, tiny_package: ModelPackage
) -> None:
    reference = Tipsv2Tokenizer.from_pretrained(tiny_package.path)
    expected = reference(TEXTS, padding="longest", truncation=True, max_length=64)
    batch = tokenizer.encode(TEXTS)
    np.testing.assert_array_equal(batch.token_ids_BL, expected["input_ids"])
    np.testing.assert_array_equal(batch.mask_BL, expected["attention_mask"])
    assert batch.token_ids_BL.shape == (len(TEXTS), 64)


@pytest.mark.parametrize("kind", ["tokenizer", "word_pieces"])
@pytest.mark.parametrize("blank", ["", "\n\t "])
def test_blank_and_absent_texts_are_refused(
    kind: str, blank: str, request: pytest.FixtureRequest
) -> None:
    given = request.getfixturevalue(kind)
    tokenizer = given if kind == "tokenizer" else TextTokenizer(given)
    with pytest.raises(ValueError, match="text 1 is blank"):
        tokenizer.encode(["cat", blank])
    with pytest.raises(ValueError, match="no texts"):
        tokenizer.encode([])


@pytest.mark.parametrize("kind", ["tokenizer", "word_pieces"])
def test_the_end_of_a_long_text_is_what_a_text_of_it_alone_is(
    kind: str, request: pytest.FixtureRequest
) -> None:
    given = request.getfixturevalue(kind)
    tokenizer = given if kind == "tokenizer" else TextTokenizer(given, max_tokens=8)
    tail = "a photo of a dog"
    long = "cat " * 200 + tail
    assert tokenizer.is_too_long(long)
    assert not tokenizer.is_too_long(tail)
    assert tokenizer.drop_start(tail) == tail
    end = tokenizer.drop_start(long)
    assert end.endswith(tail)
    assert not tokenizer.is_too_long(end)
    ids_BL = tokenizer.encode([end]).token_ids_BL
    assert ids_BL.shape == (1, tokenizer.max_tokens)


@pytest.fixture(scope="module")
def word_pieces() -> Tokenizer:
    """A small WordPiece tokenizer as BERT's: lower case, `[CLS]` before a text, `[SEP]` after."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "##s", "sky", "[", "]"]
    pieces += ["cls", "sep", "pad", "unk", "<", ">"]
    built = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    built.add_special_tokens(pieces[:4])
    built.enable_padding(length=50)
    return built


def test_a_word_piece_tokenizer_adds_what_its_file_asks_for(word_pieces: Tokenizer) -> None:
    batch = TextTokenizer(word_pieces, max_tokens=5).encode(["A Cats", "cat", "cat " * 9])
    np.testing.assert_array_equal(
        batch.token_ids_BL, [[2, 4, 5, 6, 3], [2, 5, 3, 0, 0], [2, 5, 5, 5, 3]]
    )
    np.testing.assert_array_equal(batch.mask_BL[1], [1, 1, 1, 0, 0])
    assert word_pieces.padding is not None  # the given tokenizer is left as it was


@pytest.mark.parametrize("name", ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "<pad>", "<unk>"])
def test_special_tokens_of_a_caller_are_spelled_out(
    word_pieces: Tokenizer, tokenizer: TextTokenizer, name: str
) -> None:
    inner = TextTokenizer(word_pieces).encode([f"a {name} cat{name}"]).token_ids_BL[0, 1:-1]
    assert inner.min() > 3
    assert tokenizer.encode([f"a {name} cat{name}"]).token_ids_BL.min() > 1


def test_a_tokenizer_whose_texts_could_become_padding_is_refused(tmp_path: Path) -> None:
    words = {"<pad>": 0, "<unk>": 1, "A": 2, "a": 3, "cat": 4}
    built = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    cased = TextTokenizer(built)
    np.testing.assert_array_equal(cased.encode(["A a"]).token_ids_BL, [[2, 3]])
    built.add_special_tokens(["<pad>", "<unk>"])
    built.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(PackageError, match="takes the text '<pad>' for a special token"):
        TextTokenizer(tmp_path / "tokenizer.json")


def test_templates_are_filled_in_order_and_need_one_placeholder() -> None:
    assert fill("dog", TEMPLATES["tcl"])[::8] == ["itap of a dog.", "a photo of dogs."]
    assert fill("{0} {}", ["a {}."]) == ["a {0} {}."]
    for template in ("a photo", "{} and {}", "{name}"):
        with pytest.raises(ValueError, match="exactly one"):
            fill("dog", [template])
