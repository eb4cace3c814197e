"""Retrieval between images and captions: of all captions the image's own, and the reverse.

Captions that say exactly the same are one caption: they stand among the candidates once, and every
image that has it is a right answer to it. So an image has one right caption, a caption one or
more right images, and captions are asked once each.

Shapes: B images, U distinct captions, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.segmentation import l2_normalize
from training.data.scenes import Scene
from training.evaluate.encoder import encode_texts
from training.evaluate.ranking import Ranking, rank


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalSetting:
    """Which captions are searched with which global embedding: as they were trained together."""

    captions: Literal["short", "scene"]
    token: Literal["cls1", "cls2"]


SETTINGS = (
    RetrievalSetting(captions="short", token="cls1"),
    RetrievalSetting(captions="scene", token="cls2"),
)


def retrieve(
    model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
    scenes: Sequence[Scene],
    *,
    features: Mapping[str, NDArray[np.float32]],
    setting: RetrievalSetting,
) -> dict[str, Ranking]:
    """Rank both ways.

    Args:
        model: In evaluation mode.
        tokenizer: Its own.
        scenes: B of them.
        features: What the model gives for them, "cls1" and "cls2" [B, D].
        setting: Captions and embedding.

    Returns:
        "image to text", a query for each image, and "text to image", one for each distinct
        caption.
    """
    captions = [getattr(scene.captions, setting.captions) for scene in scenes]
    distinct = list(dict.fromkeys(captions))
    texts_UD = encode_texts(model, tokenizer, distinct)
    return rank_both_ways(features[setting.token], captions, texts_UD)


def rank_both_ways(
    images_BD: NDArray[np.float32], captions: Sequence[str], texts_UD: NDArray[np.float32]
) -> dict[str, Ranking]:
    """Rank by cosine.

    Args:
        images_BD: A global embedding of each image.
        captions: B; each image's.
        texts_UD: Embeddings of the distinct captions, in the order of first appearance.
    """
    scores_BU = l2_normalize(images_BD) @ l2_normalize(texts_UD).T
    distinct = np.asarray(list(dict.fromkeys(captions)))
    right_BU = np.asarray(captions)[:, None] == distinct
    return {
        "image to text": rank(scores_BU, right_BU),
        "text to image": rank(scores_BU.T, right_BU.T),
    }
