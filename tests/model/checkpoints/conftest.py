"""Small models on disk: transformers folders, official pairs, a tokenizer."""

import io
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentencepiece
import torch
from transformers import Tipsv2Model

from model.checkpoints.tokenizer import read_sentencepiece
from tests.model.checkpoints.official_layout import SHAPES, small_model, write_pair

VOCAB_SIZE = 340
WORDS = "a photo of the cat dog grass naïve straße blue running runner catalog don't x-ray 3d"


class Release(NamedTuple):
    """One model in both layouts. Do not change the folders: copy them first."""

    model: Tipsv2Model
    folder: Path
    pair: Path


def trained(sentences: list[str], **options: Any) -> bytes:
    """A SentencePiece model with the release's settings, and these."""
    content = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "byte_fallback": True,
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": -1,
        "eos_id": -1,
        "minloglevel": 2,
        "num_threads": 1,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=content, **(settings | options)
    )
    return content.getvalue()


@pytest.fixture(scope="session")
def spm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece model."""
    draw = random.Random(0)
    words = WORDS.split()
    sentences = [" ".join(draw.choices(words, k=6)) for _ in range(300)]
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model"
    path.write_bytes(trained(sentences, vocab_size=VOCAB_SIZE, character_coverage=1.0))
    return path


@pytest.fixture(scope="session")
def releases(spm_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    """Each small model as a transformers folder and as the official pair."""
    torch.set_num_threads(1)
    tokenizer = read_sentencepiece(spm_file)
    found: dict[str, Release] = {}
    for like in SHAPES:
        model = small_model(like, vocab_size=VOCAB_SIZE)
        root = tmp_path_factory.mktemp(like)
        model.save_pretrained(root / "transformers")
        tokenizer.save_pretrained(root / "transformers")
        write_pair(model, root / "pair")
        shutil.copy(spm_file, root / "pair" / "tokenizer.model")
        found[like] = Release(model, root / "transformers", root / "pair")
    return found


@pytest.fixture
def pair(releases: dict[str, Release], tmp_path: Path) -> Path:
    """A copy of the B-like pair that tests may change."""
    return Path(shutil.copytree(releases["b-like"].pair, tmp_path / "pair"))


@pytest.fixture
def folder(releases: dict[str, Release], tmp_path: Path) -> Path:
    """A copy of the B-like transformers folder that tests may change."""
    return Path(shutil.copytree(releases["b-like"].folder, tmp_path / "transformers"))
