"""Rank-based scores: zero-shot classification of single objects, and retrieval by captions.

Classification follows TIPSv2: the prompts of each name are embedded, normalised and averaged, and
candidates are ranked by cosine with CLS1. In retrieval, equal captions count as one candidate, and
every image that has it is a right answer. So an image has one right caption, a caption has one or
more right images, and each caption is queried once.

Shapes: R resamples of the queries, Q queries, C candidates, M or B images, S their side in pixels,
K candidate names, U distinct captions, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps
from torchvision.datasets import ImageFolder

from model.encoder import Encoder
from model.scores.ranking import Ranking, rank
from model.segmentation import l2_normalize
from training.data.concepts import all_concepts
from training.data.sprites import SpriteBank
from training.evaluate.encoder import encode_images, encode_names

IMAGE_SIZE = 112
# Lighter than most drawings and darker than white ones, so that few drawings lose their outline.
_BACKGROUND = 200
_SHARE = 0.75  # longer side of a drawing, share of the image's


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationBenchmark:
    """Images of single objects, uint8 RGB [S, S, 3] each, their labels, and the candidate names.

    Raises:
        ValueError: A label is no candidate, or labels and images do not pair.
    """

    name: str
    images: Sequence[NDArray[np.uint8]]
    labels: Sequence[str]
    names: Sequence[str]

    def __post_init__(self) -> None:
        """Check labels and sizes; scores would hide such errors."""
        if len(self.images) != len(self.labels) or not self.labels:
            raise ValueError(f"{self.name}: every image needs one label, and there must be some")
        missing = sorted(set(self.labels) - set(self.names))
        if missing:
            raise ValueError(f"{self.name}: {missing} are shown but are no candidates")

    def classify(self, encoder: Encoder, templates: str) -> Ranking:
        """Rank all candidates for every image by a template set of `model.text`."""
        cls1_MD = encode_images(encoder, self.images)["cls1"]
        return self.rank(cls1_MD, encode_names(encoder, self.names, templates))

    def quick_scores(self, encoder: Encoder) -> dict[str, float]:
        """Share of images whose first candidate is right, in percent."""
        return {f"{self.name}/top-1": round(self.classify(encoder, "tcl").found(1), 2)}

    def rank(self, cls1_MD: NDArray[np.float32], classes_KD: NDArray[np.float32]) -> Ranking:
        """Rank all candidates by cosine; neither side need be normalised."""
        scores_MK = l2_normalize(cls1_MD) @ l2_normalize(classes_KD).T
        right_MK = np.asarray(self.labels)[:, None] == np.asarray(self.names)
        return rank(scores_MK, right_MK)


_NUM_PROBED = 500


def labelled_folder(folder: Path, *, size: int) -> ClassificationBenchmark:
    """Images in folders of their classes; at most 500, in even steps.

    Args:
        folder: Holds a folder for each class, named after it; "_" stands for a space.
        size: Side in pixels to which the middle of each image is scaled.

    Raises:
        FileNotFoundError: The folder is missing, or one of its folders has no image.
    """
    found = ImageFolder(str(folder))
    kept = found.samples[:: -(-len(found.samples) // _NUM_PROBED)]
    names = [name.replace("_", " ") for name in found.classes]
    images = [
        np.asarray(ImageOps.fit(found.loader(path), (size, size)))  # in RGB
        for path, _ in kept
    ]
    return ClassificationBenchmark(
        name="probe", images=images, labels=[names[label] for _, label in kept], names=names
    )


def plain_images(bank: SpriteBank, drawings: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """Put single drawings, unrotated and complete, on plain light gray: uint8 [S, S, 3] each."""
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

    Shown names without a drawing are left out; the candidates are all of `names`.
    """
    concepts = all_concepts()
    by_name = {concepts[i].name: rows for i, rows in bank.by_concept(styles).items()}
    found = {label: by_name[label] for label in sorted(shown & by_name.keys())}
    labels = [label for label, rows in found.items() for _ in rows]
    drawings = np.concatenate([np.zeros(0, np.int64), *found.values()])
    return ClassificationBenchmark(
        name=name, images=plain_images(bank, drawings), labels=labels, names=sorted(names)
    )


def rank_both_ways(
    images_BD: NDArray[np.float32], captions: Sequence[str], texts_UD: NDArray[np.float32]
) -> dict[str, Ranking]:
    """Rank by cosine: "image to text", a query for each image, and "text to image".

    Args:
        images_BD: A global embedding of each image.
        captions: Caption of each image, B.
        texts_UD: Embeddings of the distinct captions, in the order of first appearance.
    """
    scores_BU = l2_normalize(images_BD) @ l2_normalize(texts_UD).T
    distinct = np.asarray(list(dict.fromkeys(captions)))
    right_BU = np.asarray(captions)[:, None] == distinct
    return {
        "image to text": rank(scores_BU, right_BU),
        "text to image": rank(scores_BU.T, right_BU.T),
    }
