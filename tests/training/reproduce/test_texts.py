"""Texts as fixed vectors, and batches of cells."""

from pathlib import Path

import pytest
import torch

from model.text import TEMPLATES
from tests.training.reproduce.conftest import SCALE, toy_scenes
from training.data.captions import SCENE_CAPTIONS
from training.methods.terms import embed_texts
from training.reproduce import texts as texts_module
from training.reproduce.cells import NAMES
from training.reproduce.plan import arms
from training.reproduce.runner import Setup, build_method
from training.reproduce.texts import CellBatches, cached_texts


def test_the_model_reads_a_text_as_its_vector(toy: Setup) -> None:
    method = build_method(toy, arms(SCALE, 0, toy.runs)[0][0].config)
    chosen = [TEMPLATES["tcl"][0].format("cat"), TEMPLATES["tcl"][3].format("bus")]
    expected = toy.texts.vectors_CD[[toy.texts.rows[text] for text in chosen]]
    assert torch.equal(embed_texts(method.model, toy.texts.batch(chosen)), expected)
    assert not any(p.requires_grad for p in method.model.text_model.parameters())


def test_a_class_is_the_mean_of_its_prompts(toy: Setup) -> None:
    rows = [toy.texts.rows[prompt.format(NAMES[3])] for prompt in TEMPLATES["tcl"]]
    mean = toy.texts.vectors_CD[rows].mean(0)
    torch.testing.assert_close(toy.texts.classes()[3], mean / mean.norm())


def test_texts_are_embedded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def embed(texts: list[str]) -> torch.Tensor:
        calls.append(len(texts))
        return torch.randn(len(texts), 32, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(texts_module, "sentence_embeddings", embed)
    first = cached_texts(toy_scenes(8, 0), SCALE.width, tmp_path)
    again = cached_texts(toy_scenes(8, 0), SCALE.width, tmp_path)
    assert len(calls) == 1
    assert torch.equal(first.vectors_CD, again.vectors_CD)
    torch.testing.assert_close(first.vectors_CD.norm(dim=1), torch.ones(len(first.rows)))


def test_batch_i_is_always_the_same_and_captions_belong_to_their_scenes(toy: Setup) -> None:
    batches = CellBatches(
        scenes=toy.sets["train"],
        texts=toy.texts,
        captions=SCENE_CAPTIONS,
        batch_size=4,
        num_steps=3,
        seed=5,
    )
    first, second, third = batches.loader(0, num_workers=0)
    (again,) = batches.loader(2, num_workers=0)
    assert torch.equal(third.pixels_B3HW, again.pixels_B3HW)
    assert not torch.equal(first.pixels_B3HW, second.pixels_B3HW)
    train = toy.sets["train"]
    for cells, row in zip(third.pixels_B3HW, third.cls1_ids_T.tolist(), strict=True):
        (number,) = [n for n, known in enumerate(train.cells_SKhw) if (known == cells).all()]
        assert toy.texts.rows[train.captions[number].short] == row
