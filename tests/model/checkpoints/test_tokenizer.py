"""A tokenizer made from a SentencePiece file gives SentencePiece's ids for lower-case text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Tipsv2Tokenizer

from model.checkpoints.checkpoint import CheckpointError
from model.checkpoints.tokenizer import lowered, read_sentencepiece, read_tokenizer
from model.text import TextTokenizer
from tests.model.checkpoints.conftest import trained

TEXTS = [
    "\u00c9CLAIR \u00c4pfel",
    "A photo of a CAT",
    "  two   spaces\tand a tab ",
    "STRASSE straße ﬁne ①",
    "🙂 unseen 漢字",
    "non\u00a0breaking",
    "don't run",
    "",
]


def ascii_lower(text: str) -> str:
    """As the release's code lowers a text before SentencePiece."""
    return "".join(c.lower() if c.isascii() else c for c in text)


def with_options(**options: Any) -> bytes:
    """A model trained with other options than the release's."""
    sentences = ["a cat runs to the other running cat"] * 20
    return trained(sentences, **({"vocab_size": 300} | options))


@pytest.fixture(scope="module")
def reference(spm_file: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(spm_file))


@pytest.fixture(scope="module")
def tokenizer(spm_file: Path) -> Tipsv2Tokenizer:
    return read_sentencepiece(spm_file)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_sentencepiece_and_padded(
    reference: sentencepiece.SentencePieceProcessor, tokenizer: Tipsv2Tokenizer, text: str
) -> None:
    expected = reference.encode(ascii_lower(text))
    padded = tokenizer(text, padding="max_length", max_length=64)
    assert padded["input_ids"] == expected + [0] * (64 - len(expected))
    assert padded["attention_mask"] == [1] * len(expected) + [0] * (64 - len(expected))


@settings(max_examples=60)
@given(text=st.text(st.sampled_from("abcdefghinoprstuxyz AÉß'-.3🙂漢é\u00a0ﬁ"), max_size=30))
def test_ids_are_those_of_sentencepiece_for_any_text(
    reference: sentencepiece.SentencePieceProcessor, tokenizer: Tipsv2Tokenizer, text: str
) -> None:
    assert tokenizer(text)["input_ids"] == reference.encode(ascii_lower(text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: with_options(model_type="unigram", vocab_size=275), "is no BPE model"),
        (lambda _: with_options(pad_id=-1, unk_id=0), "no padding piece with id 0"),
        (lambda _: with_options(byte_fallback=False, vocab_size=20), "unknown characters as bytes"),
        (lambda _: with_options(remove_extra_whitespaces=False), "keeps runs of spaces"),
        (lambda _: with_options(add_dummy_prefix=False), "puts no space before a text"),
        (lambda whole: whole[: len(whole) // 2], r"tokenizer\.model"),
        (lambda whole: whole[:-1], r"tokenizer\.model"),
        *((lambda _, c=c: c, "SentencePiece model") for c in (b"", b"hello", b"\xff" * 40)),
        (lambda _: None, "has no tokenizer"),
    ],
)
def test_another_model_is_refused(
    spm_file: Path, tmp_path: Path, change: Callable[[bytes], bytes | None], message: str
) -> None:
    content = change(spm_file.read_bytes())
    if content is not None:
        (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_tokenizer(tmp_path, vocab_size=1000)


@pytest.mark.parametrize("content", ["", "[1]", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path, vocab_size=1000)


def test_lower_casing_is_kept_by_writing_and_reading(
    tokenizer: Tipsv2Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    read, path = read_tokenizer(tmp_path, vocab_size=1000)
    served = TextTokenizer(path)
    for text in TEXTS[:-1]:
        expected = tokenizer(text)["input_ids"]
        assert read(text)["input_ids"] == expected
        assert served.encode([text]).token_ids_BL[0].tolist() == expected
    assert lowered(read) == "ASCII letters"
    Tipsv2Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "transformers")
    assert lowered(read_tokenizer(tmp_path / "transformers", vocab_size=1000)[0]) == "all letters"
