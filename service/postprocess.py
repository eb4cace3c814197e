"""From raw outputs of the runtime to answers: pure functions on arrays.

Shape legend: N patches, D width, h w patch grid, P prompts, K classes with background classes, H W
pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.segmentation import average_prompts, l2_normalize, segment
from service.messages import FloatArray, ImageOutput, Segmentation, SegmentImagesRequest
from service.work import Outputs

PATCH_OUTPUTS: tuple[ImageOutput, ...] = ("patches", "values")


def image_outputs(
    raw: Outputs, names: Sequence[ImageOutput], *, grid_hw: tuple[int, int], normalize: bool
) -> dict[str, FloatArray]:
    """The outputs asked for: patches and values [h, w, D], cls1 and cls2 [D]."""
    outputs: dict[str, FloatArray] = {}
    for name in names:
        array = l2_normalize(raw[name]) if normalize else raw[name]
        outputs[name] = array.reshape(*grid_hw, -1) if name in PATCH_OUTPUTS else array
    return outputs


def text_embedding(
    prompts: Sequence[str], raw: Mapping[str, FloatArray], *, normalize: bool
) -> FloatArray:
    """One embedding [D]: of a single prompt its own, of several the mean of their unit vectors."""
    if len(prompts) == 1:
        embedding_D = raw[prompts[0]]
    else:
        embedding_D = l2_normalize(np.stack([raw[p] for p in prompts])).mean(axis=0)
    return l2_normalize(embedding_D) if normalize else embedding_D


def class_embeddings(groups: Sequence[Sequence[str]], raw: Mapping[str, FloatArray]) -> FloatArray:
    """One unit vector for each class [K, D], averaged over its prompts as the reference does."""
    return np.stack([average_prompts(np.stack([raw[p] for p in prompts])) for prompts in groups])


@dataclass(frozen=True, slots=True)
class Geometry:
    """Patch rows and columns of a picture, and its own height and width in pixels."""

    grid_hw: tuple[int, int]
    size_hw: tuple[int, int]


def segment_image(
    features_ND: FloatArray,
    classes_KD: FloatArray,
    geometry: Geometry,
    request: SegmentImagesRequest,
) -> Segmentation:
    """The mask of one picture at its own size; background classes become 0."""
    result = segment(
        features_ND,
        classes_KD,
        grid_hw=geometry.grid_hw,
        size_hw=geometry.size_hw,
        background_threshold=request.background_threshold,
    )
    labels_HW: NDArray[np.uint16] = result.labels_HW
    num_classes = len(request.classes)
    if request.background_classes:
        labels_HW = np.where(labels_HW > num_classes, np.uint16(0), labels_HW)
    counts = np.bincount(labels_HW.ravel(), minlength=num_classes + 1)
    return Segmentation(
        labels_HW=labels_HW,
        scores_HW=result.score_HW if request.include_scores else None,
        area_shares=tuple((counts / labels_HW.size).tolist()),
    )
