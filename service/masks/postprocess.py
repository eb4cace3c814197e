"""From raw outputs of the runtime to answers: pure functions on arrays.

Shape legend: N patches, D width, h w patch grid, P prompts, K classes with background classes, H W
pixels.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from model.segmentation import Background, average_groups, l2_normalize, segment
from service.lanes.work import Outputs
from service.masks.slide import Geometry, segment_windows
from service.messages import FloatArray, ImageOutput, Segmentation, SegmentImagesRequest

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


def shorten(embeddings_ND: FloatArray, dimensions: int) -> FloatArray:
    """The first elements of each row [N, dimensions], at unit length again."""
    return l2_normalize(embeddings_ND[:, :dimensions])


def class_embeddings(groups: Sequence[Sequence[str]], raw: Mapping[str, FloatArray]) -> FloatArray:
    """One unit vector for each class [K, D], averaged over its prompts as the reference does."""
    text_PD = np.stack([raw[prompt] for prompts in groups for prompt in prompts])
    return average_groups(text_PD, [len(prompts) for prompts in groups])


def segment_image(
    parts: Sequence[FloatArray],
    classes_KD: FloatArray,
    geometry: Geometry,
    request: SegmentImagesRequest,
) -> Segmentation:
    """The mask of one image at its own size; scores only where they are asked for.

    Args:
        parts: Patch embeddings [N, D] of the whole image, or of each window.
        classes_KD: One unit vector for each class, then for each background class.
        geometry: Which of the two, and how large.
        request: With what counts as background.
    """
    background = Background(
        threshold=request.background_threshold, num_classes=len(request.background_classes)
    )
    if geometry.windows is not None:
        return segment_windows(
            parts, classes_KD, geometry, background, with_scores=request.include_scores
        )
    (features_ND,) = parts
    result = segment(
        features_ND,
        classes_KD,
        grid_hw=geometry.grid_hw,
        size_hw=geometry.size_hw,
        background=background,
        with_scores=request.include_scores,
    )
    return Segmentation(
        labels_HW=result.labels_HW,
        scores_HW=result.score_HW,
        area_shares=tuple((result.counts / result.labels_HW.size).tolist()),
    )
