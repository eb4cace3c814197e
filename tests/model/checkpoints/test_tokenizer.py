"""The tokenizer made of a SentencePiece file gives SentencePiece's ids for lower-cased text."""

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from transformers import Tipsv2Tokenizer

from model.checkpoints.checkpoint import CheckpointError
from model.checkpoints.read import read_checkpoint
from model.checkpoints.tokenizer import parse_model, read_tokenizer, tokenizer_from

TEXTS = [
    "A photo of a CAT",
    "  two   spaces\tand a tab ",
    "STRASSE straße ﬁne ①",
    "🙂 unseen 漢字",
    "non\u00a0breaking",
    "don't run",
    "",
]


def with_options(**options: Any) -> bytes:
    """A model trained with other options than the release's."""
    content = io.BytesIO()
    settings: dict[str, Any] = {
        "vocab_size": 300,
        "model_type": "bpe",
        "byte_fallback": True,
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": -1,
        "eos_id": -1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat runs to the other running cat"] * 20),
        model_writer=content,
        **(settings | options),
    )
    return content.getvalue()


@pytest.fixture(scope="module")
def reference(spm_file: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(spm_file))


@pytest.fixture(scope="module")
def tokenizer(spm_file: Path) -> Tipsv2Tokenizer:
    return tokenizer_from(parse_model(spm_file), spm_file)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_sentencepiece(
    reference: sentencepiece.SentencePieceProcessor, tokenizer: Tipsv2Tokenizer, text: str
) -> None:
    expected = reference.encode(text.lower())
    assert tokenizer(text)["input_ids"] == expected
    padded = tokenizer(text, padding="max_length", max_length=64)
    assert padded["input_ids"] == expected + [0] * (64 - len(expected))
    assert padded["attention_mask"] == [1] * len(expected) + [0] * (64 - len(expected))


@given(text=st.text(st.sampled_from("abcdefghinoprstuxyz AÉß'-.3🙂漢é\u00a0ﬁ"), max_size=30))
def test_ids_are_those_of_sentencepiece_for_any_text(
    reference: sentencepiece.SentencePieceProcessor, tokenizer: Tipsv2Tokenizer, text: str
) -> None:
    assert tokenizer(text)["input_ids"] == reference.encode(text.lower())


def test_symbols_that_a_user_defined_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(with_options(user_defined_symbols=["zzzq"]))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = tokenizer_from(parse_model(path), path)
    assert tokenizer("zzzq")["input_ids"][-1] == reference.piece_to_id("zzzq")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram", "vocab_size": 275}, "is no BPE model"),
        ({"pad_id": -1, "unk_id": 0}, "no padding piece with id 0"),
        ({"pad_id": 1, "unk_id": 0}, "no padding piece with id 0"),
        ({"byte_fallback": False, "vocab_size": 20}, "does not write unknown characters as bytes"),
        ({"remove_extra_whitespaces": False}, "keeps runs of spaces"),
    ],
)
def test_a_model_that_works_otherwise_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(with_options(**options))
    with pytest.raises(
        CheckpointError, match=f"{message}.* use the tokenizer.model of the release"
    ):
        read_tokenizer(tmp_path, vocab_size=1000)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 40, b"\x0a\x7f", b"\x0b\x01"])
def test_what_is_no_sentencepiece_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a SentencePiece model or is cut off"):
        read_tokenizer(tmp_path, vocab_size=1000)


def test_a_model_that_was_cut_short_is_refused(spm_file: Path, tmp_path: Path) -> None:
    content = spm_file.read_bytes()
    for length in (1, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "tokenizer.model").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="tokenizer"):
            read_tokenizer(tmp_path, vocab_size=1000)


def test_a_damaged_normaliser_is_refused(spm_file: Path, tmp_path: Path) -> None:
    content = bytearray(spm_file.read_bytes())
    charsmap = parse_model(spm_file).charsmap
    at = content.index(charsmap)
    content[at : at + 4] = b"\xff" * 4  # the length of its first table
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model cannot be read"):
        read_tokenizer(tmp_path, vocab_size=1000)


def test_a_folder_without_a_tokenizer_is_refused(pair: Path) -> None:
    (pair / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer; put the tokenizer\.model"):
        read_checkpoint(pair)


def test_more_ids_than_the_model_embeds_are_refused(spm_file: Path) -> None:
    with pytest.raises(CheckpointError, match="ids up to 339, and the model embeds 339"):
        read_tokenizer(spm_file.parent, vocab_size=339)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_json_is_refused(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_checkpoint(folder)


def test_a_tokenizer_json_is_enough(folder: Path) -> None:
    expected = read_checkpoint(folder).tokenizer(TEXTS)["input_ids"]
    (folder / "tokenizer_config.json").unlink()
    assert read_checkpoint(folder).tokenizer(TEXTS)["input_ids"] == expected
