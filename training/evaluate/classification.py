"""Zero-shot classification of images of one thing each: CLS1 against every candidate's name.

The protocol is TIPSv2's: each name's prompts embedded, normalised and averaged, cosine with CLS1,
best first.

Shapes: M images, S their side in pixels, K candidate names, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.segmentation import l2_normalize
from training.data.concepts import all_concepts
from training.data.scenes import Scene
from training.data.sprites import SpriteBank
from training.evaluate.encoder import encode_images, encode_names
from training.evaluate.ranking import Ranking, rank

IMAGE_SIZE = 112
# Lighter than most drawings and darker than white ones, so that few lose their outline.
_BACKGROUND = 200
_SHARE = 0.75  # longer side of a drawing, share of the image's


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationBenchmark:
    """Images of one thing each, and the names it is one of.

    Attributes:
        name: Of the set.
        images: uint8 RGB [S, S, 3] each.
        labels: What each shows; every one is among the names.
        names: The candidates, without repeats.
    """

    name: str
    images: Sequence[NDArray[np.uint8]]
    labels: Sequence[str]
    names: Sequence[str]

    def __post_init__(self) -> None:
        """Check what no score would show.

        Raises:
            ValueError: A label that is no candidate, or labels and images that do not pair.
        """
        if len(self.images) != len(self.labels) or not self.labels:
            raise ValueError(f"{self.name}: every image needs one label, and there must be some")
        missing = sorted(set(self.labels) - set(self.names))
        if missing:
            raise ValueError(f"{self.name}: {missing} are shown but are no candidates")

    def classify(self, model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, templates: str) -> Ranking:
        """Rank all candidates for every image by a template set of `model.text`."""
        cls1_MD = encode_images(model, self.images)["cls1"]
        return self.rank(cls1_MD, encode_names(model, tokenizer, self.names, templates))

    def rank(self, cls1_MD: NDArray[np.float32], classes_KD: NDArray[np.float32]) -> Ranking:
        """Rank all candidates by cosine; neither side need be normalised."""
        scores_MK = l2_normalize(cls1_MD) @ l2_normalize(classes_KD).T
        right_MK = np.asarray(self.labels)[:, None] == np.asarray(self.names)
        return rank(scores_MK, right_MK)


def plain_images(bank: SpriteBank, drawings: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """Put single drawings, unturned and whole, on a plain light gray: uint8 [S, S, 3] each."""
    side = round(IMAGE_SIZE * _SHARE)
    start = (IMAGE_SIZE - side) // 2
    images = []
    for rgba_SS4 in bank.rgba_MSS4[drawings]:
        alpha_SS1 = rgba_SS4[..., 3:].astype(np.float32) / 255.0
        premultiplied_SS4 = np.dstack([rgba_SS4[..., :3] * alpha_SS1, alpha_SS1])
        fitted = cv2.resize(premultiplied_SS4, (side, side), interpolation=cv2.INTER_LINEAR)
        image = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), _BACKGROUND, np.float32)
        inner = image[start : start + side, start : start + side]
        inner[:] = inner * (1 - fitted[..., 3:]) + fitted[..., :3]
        images.append(np.clip(image + 0.5, 0, 255).astype(np.uint8))
    return images


def single_drawings(
    name: str,
    bank: SpriteBank,
    *,
    styles: Sequence[str],
    shown: frozenset[str],
    names: frozenset[str],
) -> ClassificationBenchmark:
    """Every drawing of some names in some styles, once, on a plain background.

    Args:
        name: Of the set.
        bank: The drawings.
        styles: Which of its styles are shown.
        shown: Names whose drawings are images; those without a drawing are left out.
        names: The candidates.
    """
    concepts = all_concepts()
    by_name = {concepts[i].name: rows for i, rows in bank.by_concept(styles).items()}
    found = {label: by_name[label] for label in sorted(shown & by_name.keys())}
    labels = [label for label, rows in found.items() for _ in rows]
    drawings = np.concatenate([np.zeros(0, np.int64), *found.values()])
    return ClassificationBenchmark(
        name=name,
        images=plain_images(bank, drawings),
        labels=labels,
        names=sorted(names),
    )


def single_object_scenes(
    name: str, scenes: Sequence[Scene], names: frozenset[str]
) -> ClassificationBenchmark:
    """Take scenes of one object each as images to classify."""
    return ClassificationBenchmark(
        name=name,
        images=[scene.pixels_SS3 for scene in scenes],
        labels=[scene.captions.names[0] for scene in scenes],
        names=sorted(names),
    )
