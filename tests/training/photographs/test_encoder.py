"""Closed-form heads against sets with known answers, and the encoder that is made of them."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.cell_encoder import CellEncoder
from model.efficientnet_lite import Trunk
from tests.training.photographs.miniature import cells
from training.photographs import encoder as build
from training.photographs.encoder import SplitMoments
from training.photographs.trunk_features import Cells

NAMES = ("dog face", "poodle", "lion", "trumpet")
REGIONS = cells(2, 3)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random embeddings in place of MiniLM's, and few classes."""

    def embed(texts: Sequence[str]) -> Tensor:
        return torch.randn(len(texts), 384, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(build, "sentence_embeddings", embed)
    monkeypatch.setattr(build, "read_classes", lambda: {"lion": [291], "guitar": [402, 546]})
    monkeypatch.setattr(build, "region_names", lambda: ("grass", "rock", "sky"))
    monkeypatch.setattr(build, "DRAWING_WIDTH", 4)
    build.unit_texts.cache_clear()


def moments(*parts: tuple[Cells, Sequence[str]]) -> SplitMoments:
    """Moments of several sources."""
    names = dict.fromkeys(name.lower() for _, own in parts for name in own)
    return SplitMoments.of(parts, tuple(names))


def test_cells_of_equal_names_become_one_and_withheld_names_are_summed_apart() -> None:
    joined = moments((cells(0, 4), NAMES), (cells(1, 2), ("Lion", "sky")))
    assert joined.names == (*NAMES, "sky")
    assert joined.all().count_K.tolist() == [20, 20, 40, 20, 20]
    assert joined.withheld.count_K.tolist() == [0, 0, 40, 0, 0]  # "lion"
    assert joined.kept.count_K.tolist() == [20, 20, 0, 20, 20]


def described(encoder: CellEncoder, shown: Cells, space: str) -> Tensor:
    fine, coarse = torch.from_numpy(shown.cells_n2F.astype(np.float32)).transpose(0, 1)[:, None]
    found_1nD: Tensor = getattr(encoder.vision, space)(fine, coarse)
    return found_1nD[0]


@torch.inference_mode()
def test_cells_are_closest_to_their_names_and_regions_have_the_mean_of_theirs() -> None:
    shown = cells(0, 4)
    encoder = build.build_encoder(Trunk(), moments((shown, NAMES)), REGIONS)
    assert encoder.config.num_class_names == 2 + 3
    assert encoder.config.num_drawing_names == len(NAMES) + 1  # and "dog", for both drawings of it
    names_KD = F.normalize(encoder.text.drawings.values.weight.T, dim=-1)
    found = (described(encoder, shown, "describe")[:, :4] @ names_KD[:4].T).argmax(1).numpy()
    assert (found == shown.name_n).mean() > 0.95
    is_sky = REGIONS.name_n == 2
    sky_D = described(encoder, REGIONS.where(is_sky), "describe_classes").mean(0)
    own_D = encoder.text.classes.values.weight[:, -1]
    assert torch.allclose(own_D, F.normalize(sky_D, dim=-1), atol=1e-5)


def test_the_twin_knows_no_withheld_name() -> None:
    twin = build.build_encoder(Trunk(), moments((cells(0, 4), NAMES)), REGIONS, is_twin=True)
    assert twin.config.num_drawing_names == len(NAMES)  # "dog" joined, "lion" left out
    assert twin.config.num_class_names == 1 + 3  # without "lion"
