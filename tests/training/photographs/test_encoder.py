"""The encoder is put together from cells: names join, the twin lacks withheld ones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.efficientnet_lite import Trunk
from training.photographs import encoder as build
from training.photographs.encoder import SplitMoments
from training.photographs.trunk_features import Cells

NAMES = ("dog face", "poodle", "lion", "trumpet")
REGION_NAMES = ("grass", "rock", "sky")


def cells(seed: int, num_names: int) -> Cells:
    """Twenty cells of each name, each around a mean of its own."""
    rng = np.random.default_rng(seed)
    name_n = np.repeat(np.arange(num_names), 20)
    means = rng.normal(size=(2, num_names, 1280))
    fine, coarse = (m[name_n] + rng.normal(size=(len(name_n), 1280)) for m in means)
    return Cells(
        fine_nF=fine.astype(np.float16), coarse_nF=coarse.astype(np.float16), name_n=name_n
    )


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random embeddings in place of MiniLM's, and few classes."""

    def embed(texts: Sequence[str]) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(len(texts), 384, generator=generator)

    monkeypatch.setattr(build, "sentence_embeddings", embed)
    monkeypatch.setattr(build, "read_classes", lambda: {"lion": [291], "guitar": [402, 546]})
    monkeypatch.setattr(build, "region_names", lambda: REGION_NAMES)
    monkeypatch.setattr(build, "DRAWING_WIDTH", 4)
    build._unit_texts.cache_clear()


REGIONS = replace(cells(2, 3), name_n=np.repeat(np.arange(3), 20))


def moments(*parts: tuple[Cells, Sequence[str]]) -> SplitMoments:
    """Moments of several sources."""
    names = dict.fromkeys(name.lower() for _, own in parts for name in own)
    return SplitMoments.of(parts, tuple(names))


def test_cells_of_equal_names_become_one() -> None:
    joined = moments((cells(0, 4), NAMES), (cells(1, 2), ("Lion", "sky")))
    assert joined.names == (*NAMES, "sky")
    assert joined.all().fine.count_K.tolist() == [20, 20, 40, 20, 20]


@pytest.mark.usefixtures("_quick")
def test_what_is_drawn_and_photographed_counts_both_alike() -> None:
    photographed = (f"lion{build.PHOTOGRAPHED}", f"sky{build.PHOTOGRAPHED}")
    both = moments((cells(0, 4), NAMES), (cells(1, 2), photographed))
    space, known = build.fit_drawings(both.all(), both.names)
    assert known.names == (*NAMES, "sky", "dog")
    lion = space.names_KD[2] + space.names_KD[4]
    assert np.allclose(known.vectors_KD[2], lion / np.linalg.norm(lion), atol=1e-6)


def test_withheld_names_are_summed_apart() -> None:
    split = moments((cells(0, 4), NAMES))
    assert split.withheld.coarse.count_K.tolist() == [0, 0, 20, 0]  # "lion"
    assert split.kept.coarse.count_K.tolist() == [20, 20, 0, 20]


def test_photographs_are_shifted_to_the_mean_of_drawings() -> None:
    drawings, photographs = cells(0, 4), cells(1, 2)
    shifted = build.aligned(photographs, moments((drawings, NAMES)).all())
    assert np.allclose(shifted.fine_nF.mean(0), drawings.fine_nF.mean(0), atol=5e-3)
    spread = shifted.coarse_nF[0] - shifted.coarse_nF[1]
    assert np.allclose(spread, photographs.coarse_nF[0] - photographs.coarse_nF[1], atol=2e-2)


@pytest.mark.usefixtures("_quick")
def test_a_cell_is_closest_to_the_vector_of_its_name() -> None:
    shown = cells(0, 4)
    encoder = build.build_encoder(Trunk(), moments((shown, NAMES)), REGIONS)
    assert encoder.config.num_class_names == 2 + len(REGION_NAMES)
    assert encoder.config.num_drawing_names == len(NAMES) + 1  # and "dog", for both drawings of it
    fine, coarse = (
        torch.from_numpy(x.astype(np.float32))[None] for x in (shown.fine_nF, shown.coarse_nF)
    )
    with torch.inference_mode():
        drawing_nD = encoder.vision.describe(fine, coarse)[0, :, :4]
        names_KD = F.normalize(encoder.text.drawings.values.weight.T, dim=-1)
    found = (drawing_nD @ names_KD[:4].T).argmax(1).numpy()
    assert (found == shown.name_n).mean() > 0.95


@pytest.mark.usefixtures("_quick")
def test_the_twin_knows_no_withheld_name() -> None:
    twin = build.build_encoder(Trunk(), moments((cells(0, 4), NAMES)), REGIONS, is_twin=True)
    assert twin.config.num_drawing_names == len(NAMES)  # "dog" joined, "lion" left out
    assert twin.config.num_class_names == 1 + len(REGION_NAMES)  # without "lion"


@pytest.mark.usefixtures("_quick")
def test_regions_have_the_mean_of_their_cells_in_the_second_space() -> None:
    encoder = build.build_encoder(Trunk(), moments((cells(0, 4), NAMES)), REGIONS)
    fine, coarse = (
        torch.from_numpy(x[REGIONS.name_n == 2].astype(np.float32))[None]
        for x in (REGIONS.fine_nF, REGIONS.coarse_nF)
    )
    with torch.inference_mode():
        sky_D = encoder.vision.describe_classes(fine, coarse)[0].mean(0)
        found_D = encoder.text.classes.values.weight[:, -1]
    assert torch.allclose(found_D, F.normalize(sky_D, dim=-1), atol=1e-5)
