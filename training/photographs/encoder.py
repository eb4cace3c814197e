"""Builds the encoder from cached cells: heads, and the known names of both spaces."""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer

from model.cell_encoder import NUM_CLASSES, CellConfig, CellEncoder, CellVision, Sentence
from model.efficientnet_lite import Trunk
from model.segmentation import l2_normalize
from training.data.concepts import all_concepts
from training.photographs.heads import (
    DrawingSpace,
    Moments,
    class_axes,
    class_names,
    fit_discriminant,
    join,
    merged,
)
from training.photographs.regions import region_names
from training.photographs.scenes import withheld
from training.photographs.trunk_features import Cells
from training.pretrained.text import package_folder, sentence_embeddings
from training.pretrained.weights import load_trunk

# What is drawn and photographed, such as a cloud, has two vectors, which are averaged: the cells of
# drawings are more than a hundred times as many.
PHOTOGRAPHED = " (photographed)"
# Of the difference between the means of drawings and of photographs.
_SHIFT = 0.75
DRAWING_WIDTH = 256
CLASS_WIDTH = 512
# Names of ImageNet's classes and of the groups above them in WordNet 3.0, with their classes.
CLASSES_FILE = Path(__file__).with_name("imagenet_names.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNames:
    """Known names of one space, MiniLM's embeddings [K, E] and their vectors [K, width]."""

    names: tuple[str, ...]
    keys_KE: NDArray[np.float32]
    vectors_KD: NDArray[np.float32]

    def without(self, is_left_out: NDArray[np.bool_]) -> "KnownNames":
        """The names that are not marked."""
        return KnownNames(
            names=tuple(n for n, out in zip(self.names, is_left_out, strict=True) if not out),
            keys_KE=self.keys_KE[~is_left_out],
            vectors_KD=self.vectors_KD[~is_left_out],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitMoments:
    """Moments of cells by the hash split: the evaluation twin is fitted without `withheld`."""

    names: tuple[str, ...]
    kept: Moments
    withheld: Moments

    @staticmethod
    def of(parts: Iterable[tuple[Cells, Sequence[str]]], names: tuple[str, ...]) -> "SplitMoments":
        """Sum cells of several sources, read one after the other.

        Args:
            parts: Cells, and the names that their `name_n` counts.
            names: All names, in lower case, each once.
        """
        index = {name: number for number, name in enumerate(names)}
        is_withheld_K = withheld(names)

        def summed(cells: Cells, own_names: Sequence[str]) -> "SplitMoments":
            name_n = np.asarray([index[name.lower()] for name in own_names])[cells.name_n]
            named, is_out_n = replace(cells, name_n=name_n), is_withheld_K[name_n]
            kept, left_out = (
                Moments.of(named.where(chosen_n), len(names)) for chosen_n in (~is_out_n, is_out_n)
            )
            return SplitMoments(names=names, kept=kept, withheld=left_out)

        return functools.reduce(SplitMoments.__add__, (summed(*part) for part in parts))

    def __add__(self, other: "SplitMoments") -> "SplitMoments":
        kept, withheld = self.kept + other.kept, self.withheld + other.withheld
        return replace(self, kept=kept, withheld=withheld)

    def all(self) -> Moments:
        """Moments of all names."""
        return self.kept + self.withheld


def aligned(cells: Cells, drawings: Moments) -> Cells:
    """Shift cells of photographs, so that their mean comes closer to that of drawings.

    The two differ as a whole. Without the shift, "sky" and "street" were the best of thirty names
    for a photograph of a dog. With a shift by the whole difference, the sky of photographs that
    gave no regions was often called otherwise.
    """
    offset_2F = _SHIFT * (drawings.mean() - cells.cells_n2F.mean(0, dtype=np.float64))
    return replace(cells, cells_n2F=(cells.cells_n2F + offset_2F).astype(np.float16))


def all_names(drawings: Sequence[str]) -> tuple[str, ...]:
    """Names of drawings in lower case, equal ones joined, and those of regions."""
    return tuple(dict.fromkeys([*(name.lower() for name in drawings), *photographed_names()]))


def photographed_names() -> tuple[str, ...]:
    """Names of regions, told apart from those of drawings."""
    return tuple(name + PHOTOGRAPHED for name in region_names())


def fit_drawings(moments: Moments, names: Sequence[str]) -> tuple[DrawingSpace, KnownNames]:
    """Fit the first space; concepts with several drawings become names of their own."""
    fine, coarse = (fit_discriminant(moments, scale) for scale in range(2))
    space = join(fine, coarse, DRAWING_WIDTH)
    groups = known_groups(names)
    vectors_KD = merged(space.names_KD, list(groups.values()))
    known = tuple(groups)
    return space, KnownNames(names=known, keys_KE=unit_texts(known), vectors_KD=vectors_KD)


def known_groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Names that texts reach, each with the places of the names whose mean it is."""
    index = {name: number for number, name in enumerate(names)}
    groups: dict[str, list[int]] = {}
    for name, number in index.items():
        groups.setdefault(name.removesuffix(PHOTOGRAPHED), []).append(number)
    for concept in all_concepts():
        drawings = [index[d.lower()] for d in concept.drawings if d.lower() in index]
        if drawings:
            groups.setdefault(concept.name.lower(), drawings)
    return groups


def read_classes() -> dict[str, list[int]]:
    """Classes of ImageNet by name."""
    content: dict[str, list[int]] = json.loads(CLASSES_FILE.read_text(encoding="utf-8"))
    return content


@lru_cache(maxsize=4)
def unit_texts(names: tuple[str, ...]) -> NDArray[np.float32]:
    """MiniLM's embeddings; kept, because the twin asks for the same ones."""
    order = sorted(range(len(names)), key=lambda place: len(names[place]))
    embedded = sentence_embeddings([names[place] for place in order]).numpy()
    unit_KE = np.empty_like(embedded)
    unit_KE[order] = l2_normalize(embedded)
    return unit_KE


def fit_classes(members: Mapping[str, Sequence[int]]) -> tuple[NDArray[np.float32], KnownNames]:
    """Axes [D2, C] and known names of the second space."""
    single: dict[int, list[str]] = {}
    for name, classes in members.items():
        if len(classes) == 1:
            single.setdefault(classes[0], []).append(name)
    leaves = tuple(", ".join(single.get(number, ["thing"])) for number in range(NUM_CLASSES))
    axes_DC = class_axes(unit_texts(leaves), CLASS_WIDTH)
    vectors_KD = class_names(list(members.values()), axes_DC)
    # The vectors of regions that are no class follow from their cells.
    further = [name for name in region_names() if name not in members]
    vectors_KD = np.concatenate([vectors_KD, np.zeros((len(further), CLASS_WIDTH), np.float32)])
    known = (*members, *further)
    return axes_DC, KnownNames(names=known, keys_KE=unit_texts(known), vectors_KD=vectors_KD)


def build_encoder(
    trunk: Trunk, moments: SplitMoments, regions: Cells, *, is_twin: bool = False
) -> CellEncoder:
    """Fit all heads and put the encoder together.

    Args:
        trunk: That the cells come from.
        moments: Of cells of drawings and of labelled regions.
        regions: Cells of the regions; ImageNet's classes lack their names, such as sky.
        is_twin: Leave out every name that mentions a concept of the hash split.
    """
    fitted = moments.kept if is_twin else moments.all()
    space, drawings = fit_drawings(fitted, moments.names)
    axes_DC, classes = fit_classes(read_classes())
    if is_twin:
        drawings, classes = (one.without(withheld(one.names)) for one in (drawings, classes))
    tokenizer = load_tokenizer()
    config = CellConfig(
        drawing_width=DRAWING_WIDTH,
        class_width=CLASS_WIDTH,
        num_drawing_names=len(drawings.names),
        num_class_names=len(classes.names),
        vocabulary=tokenizer.get_vocab_size(),
    )
    encoder = CellEncoder(config, tokenizer)
    _fill_vision(encoder.vision, trunk, space, axes_DC)
    regional = region_classes(encoder.vision, regions)
    for place, name in enumerate(classes.names):
        if name in regional:
            classes.vectors_KD[place] = l2_normalize(regional[name])
    load_minilm(encoder.text.sentence)
    for kernel, known in ((encoder.text.drawings, drawings), (encoder.text.classes, classes)):
        kernel.keys.weight.copy_(torch.from_numpy(known.keys_KE))
        kernel.values.weight.copy_(torch.from_numpy(known.vectors_KD.T.copy()))
    return encoder


def _fill_vision(
    vision: CellVision, trunk: Trunk, space: DrawingSpace, axes_DC: NDArray[np.float32]
) -> None:
    _, weight_CF, bias_C = load_trunk()
    vision.cells.trunk.load_state_dict(trunk.state_dict())
    vision.fine.weight.copy_(torch.from_numpy(space.fine_DF))
    vision.fine_mean.copy_(torch.from_numpy(space.fine_mean_F))
    vision.coarse_mean.copy_(torch.from_numpy(space.coarse_mean_F))
    vision.coarse.weight.copy_(torch.from_numpy(space.coarse_DF))
    vision.classes.weight.copy_(weight_CF)
    vision.classes.bias.copy_(bias_C)
    vision.space.weight.copy_(torch.from_numpy(axes_DC))


@torch.inference_mode()
def region_classes(vision: CellVision, regions: Cells) -> dict[str, NDArray[np.float32]]:
    """Mean description of each region's cells in the second space, by its name.

    ImageNet has no class of sky or grass. Without these vectors, 17 % of the cells of sky in
    photographs that gave none of the sky's own were called sky; with them, 47 %.
    """
    fine, coarse = torch.from_numpy(regions.cells_n2F.astype(np.float32)).transpose(0, 1)[:, None]
    classes_nD = vision.describe_classes(fine, coarse)[0].numpy()
    return {
        name: classes_nD[regions.name_n == number].mean(0)
        for number, name in enumerate(region_names())
    }


_POSITIONS = "embeddings.position_embeddings.weight"


def load_tokenizer() -> Tokenizer:
    """MiniLM's tokenizer, with its begin and end tokens."""
    return Tokenizer.from_file(str(package_folder() / "tokenizer.json"))


def load_minilm(sentence: Sentence) -> None:
    """Read the package's weights, with as many positions as the tower reads."""
    weights = load_file(package_folder() / "model.safetensors")
    wanted = sentence.network.state_dict()
    weights[_POSITIONS] = weights[_POSITIONS][: len(wanted[_POSITIONS])]
    sentence.network.load_state_dict({name: weights[name] for name in wanted})
