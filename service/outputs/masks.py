"""Masks and embeddings from raw outputs of the runtime, and masks as PNG and npy.

Shape legend: N patches, D width, h w patch grid, P prompts, K classes with background classes, H W
pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.dense_maps import make_map
from model.foreground import Foreground
from model.general_words import GeneralWords
from model.graphs import PATCH_OUTPUTS, DenseTask
from model.outlines import outline
from model.segmentation import (
    NO_BACKGROUND,
    Background,
    Classes,
    PooledClasses,
    SegmentationMap,
    average_groups,
    bilinear_matrix,
    cosine_map,
    l2_normalize,
    label_maps,
    upsample_bilinear,
)
from model.separation import separate_patches, separate_places
from model.winner_map import Labels, find_winners
from service.lanes.work import Outputs
from service.messages import (
    FloatArray,
    ImageOutput,
    Instance,
    Segmentation,
    SegmentImagesRequest,
)
from service.outputs.colours import (
    COLOUR_SCALE,
    MAX_PALETTE_CLASSES,
    PALETTE,
    contrasting,
    levels_between,
    palette_index,
)
from service.outputs.png import write_png
from service.outputs.regions import (
    Calibration,
    class_probabilities,
    class_scores,
    find_instances,
    score_pixels,
)
from service.outputs.run_lengths import Runs
from service.outputs.slide import Geometry, segment_windows
from service.validation import PromptGroup
from service.waiting import Steps

# Of classes, which are outlined too; of black over the rest; and of cosines. The page, and the
# Python client, draw classes by the same rules.
TINT: Final = 0.4
DIM: Final = 0.55
HEATMAP_OPACITY: Final = 0.55
# Within the edge of a class: a line in its colour, which differs from the dark rest, and within it
# a black one, because the class itself may be as bright as its colour.
OUTLINE_PX: Final = 2
SHADE_PX: Final = 1
# Share of the larger of two sizes: it knows outlines better, and names worse.
FINER_SHARE: Final = np.float32(1 / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRules:
    """How masks are made of patch embeddings.

    Attributes:
        features: Name of the patch embeddings.
        temperature: Divisor of cosines in the scores of classes.
        background: What counts as background.
        people: Which of the classes mean people.
        animals: Which of the classes are animals, if there is a background.
        calibration: Of the confidence in masks; None if it is not known.
    """

    features: ImageOutput
    temperature: float
    background: Background = NO_BACKGROUND
    people: Sequence[int] = ()
    animals: Sequence[int] = ()
    calibration: Calibration | None = None

    @property
    def uses_foreground(self) -> bool:
        """Whether a class depends on the foreground."""
        return bool(self.people or self.animals)


def image_outputs(
    raw: Outputs,
    names: Sequence[ImageOutput | DenseTask],
    *,
    grid_hw: tuple[int, int],
    normalize: bool,
) -> dict[str, NDArray[Any]]:
    """Select the requested outputs; see `EmbedImagesResponse` for their shapes."""
    outputs: dict[str, NDArray[Any]] = {}
    for name in names:
        match name:
            case "depth" | "normals":
                outputs[name] = make_map(name, raw[name])
            case "segmentation":
                outputs[name] = raw[name]
            case _:
                array = l2_normalize(raw[name]) if normalize else raw[name]
                outputs[name] = array.reshape(*grid_hw, -1) if name in PATCH_OUTPUTS else array
    return outputs


def text_embedding(
    prompts: Sequence[str], raw: Mapping[str, FloatArray], *, normalize: bool
) -> FloatArray:
    """Embedding [D] of a text: of its only prompt, or the mean of its prompts' unit vectors."""
    if len(prompts) == 1:
        embedding_D = raw[prompts[0]]
    else:
        embedding_D = l2_normalize(np.stack([raw[p] for p in prompts])).mean(axis=0)
    return l2_normalize(embedding_D) if normalize else embedding_D


def shorten(embeddings_ND: FloatArray, dimensions: int, *, normalize: bool = True) -> FloatArray:
    """Keep the first elements of each row [N, dimensions], by default scaled to unit length."""
    kept = embeddings_ND[:, :dimensions]
    return l2_normalize(kept) if normalize else kept


def class_embeddings(
    groups: Sequence[PromptGroup],
    raw: Mapping[str, FloatArray],
    words: GeneralWords | None = None,
) -> PooledClasses:
    """Average the prompts of each vector of a class, as the reference does.

    Args:
        groups: Of each class.
        raw: Embeddings of the prompts.
        words: Those that stand for their members too, where a class has no prompts of its own.
    """
    text_PD = np.stack([raw[prompt] for group in groups for prompt in group.prompts])
    means = [len(g.prompts) // g.num_vectors for g in groups for _ in range(g.num_vectors)]
    vectors_VD, sizes = average_groups(text_PD, means), [g.num_vectors for g in groups]
    if words is None:
        return PooledClasses(vectors_VD, sizes)
    parts = np.split(vectors_VD, np.cumsum(sizes)[:-1])
    for k, group in enumerate(groups):
        # A class that is given by its name has one vector.
        wider_VD = None if group.name is None else words.widen(group.name, parts[k][0])
        parts[k] = parts[k] if wider_VD is None else wider_VD
    return PooledClasses(np.concatenate(parts), [len(part_VD) for part_VD in parts])


@dataclass(frozen=True, slots=True)
class SeenImage:
    """What the model has made of an image at one size.

    Attributes:
        parts: Outputs of the whole image, or of each window, with patch embeddings [N, D].
        geometry: Sizes of mask and image, and the image's windows if any.
        guide_3YX: See `model.outlines`; None scales the cosines of patches bilinearly.
        foreground: None if no class depends on it.
    """

    parts: Sequence[Outputs]
    geometry: Geometry
    guide_3YX: NDArray[np.uint8] | None = None
    foreground: Foreground | None = None

    def cosines(self, classes: Classes, features: ImageOutput) -> FloatArray:
        """Cosines of all classes with the whole image at its patches."""
        (whole,) = self.parts
        return cosine_map(whole[features], classes, self.geometry.grid_hw)

    def outlined(self, cosine_Khw: FloatArray, rules: MaskRules) -> FloatArray:
        """Maps of patches at places of the guide, if there is one.

        With a level of the background, classes are separated from it; see `model.separation`.
        """
        maps_Khw, background = cosine_Khw, rules.background
        if background.level is not None:
            (whole,) = self.parts
            maps_Khw = separate_patches(cosine_Khw, whole[rules.features], background.least_cosine)
        return maps_Khw if self.guide_3YX is None else outline(maps_Khw, self.guide_3YX)


def segment_image(
    views: Sequence[SeenImage], classes: Classes, request: SegmentImagesRequest, rules: MaskRules
) -> Steps[Segmentation]:
    """Steps that segment one image at the size of its mask.

    Args:
        views: The image at one size, or without windows at two, the larger one last.
        classes: Of each class, then of each background class.
        request: What to return.
        rules: How to make it.
    """
    (first, *more), features = views, rules.features
    geometry = first.geometry
    cosines_KHW: FloatArray | None = None
    if request.include_all_scores:
        cosines_KHW = np.empty((len(request.classes), *geometry.size_hw), np.float32)
    if geometry.windows is not None:
        result = yield from segment_windows(
            [part[features] for part in first.parts],
            classes,
            geometry,
            rules.background,
            with_scores=request.include_scores,
            cosines_KHW=cosines_KHW,
        )
    else:
        patches_Khw = first.cosines(classes, features)
        cosine_Khw = first.outlined(patches_Khw, rules)
        for second in more:
            yield
            finer_Khw = second.outlined(second.cosines(classes, features), rules)
            cosine_Khw = upsample_bilinear(cosine_Khw, finer_Khw.shape[1:])
            cosine_Khw += FINER_SHARE * (finer_Khw - cosine_Khw)
        yield
        guide_3YX, background = views[-1].guide_3YX, rules.background
        if first.foreground is not None:
            first.foreground.raise_maps(
                cosine_Khw,
                patches_Khw,
                people=rules.people,
                animals=rules.animals,
                least_cosine=background.least_cosine,
            )
        if guide_3YX is not None and background.level is not None:
            cosine_Khw = separate_places(cosine_Khw, guide_3YX, background.least_cosine)
            yield
        result = label_maps(
            cosine_Khw,
            geometry.size_hw,
            background=rules.background,
            with_scores=request.include_scores,
        )
        if cosines_KHW is not None:
            yield from _upsample(cosine_Khw, cosines_KHW)
    yield
    described = yield from _described(result, request, rules.temperature, rules.calibration)
    return replace(described, cosines_KHW=cosines_KHW)


def _upsample(cosine_Khw: FloatArray, cosines_KHW: FloatArray) -> Steps[None]:
    """Steps that fill maps of pixels from those of patches, which may be of more classes."""
    (rows, columns), (height, width) = cosine_Khw.shape[1:], cosines_KHW.shape[1:]
    down_Hh, across_wW = bilinear_matrix(rows, height), bilinear_matrix(columns, width).T
    for cosine_hw, cosine_HW in zip(cosine_Khw, cosines_KHW, strict=False):
        np.matmul(down_Hh, cosine_hw @ across_wW, out=cosine_HW)
        yield


def segment_by_head(
    logits_Khw: FloatArray, size_hw: tuple[int, int], request: SegmentImagesRequest
) -> Steps[Segmentation]:
    """Steps that label each pixel with the class of the highest bilinearly scaled logit.

    Args:
        logits_Khw: Of the package's segmentation head.
        size_hw: Height and width of the mask.
        request: With the classes of the head, and what to return.

    Source: google-deepmind/tips, `pytorch/TIPS_decoder_inference.ipynb`.
    """
    value_hwK = np.ascontiguousarray(np.moveaxis(logits_Khw, 0, -1))
    yield
    found = find_winners(value_hwK, size_hw, with_scores=request.include_scores)
    yield
    result = SegmentationMap(
        labels_HW=found.labels_HW,
        counts=found.counts,
        score_HW=found.score_HW,
        cosine_Khw=logits_Khw,
    )
    return (yield from _described(result, request, temperature=1.0))


def _described(
    result: SegmentationMap,
    request: SegmentImagesRequest,
    temperature: float,
    calibration: Calibration | None = None,
) -> Steps[Segmentation]:
    """Steps that add areas, and scores, confidences and instances if requested."""
    labels_HW = result.labels_HW
    scores: tuple[float, ...] = ()
    confidences: tuple[float, ...] = ()
    instances: tuple[Instance, ...] = ()
    if request.include_class_scores or request.include_instances:
        assert result.cosine_Khw is not None
        runs = Runs.of(labels_HW)
        yield
        probability_Khw = class_probabilities(result.cosine_Khw, temperature, result.floor_K)
        sum_R = score_pixels(runs, probability_Khw, labels_HW.shape)
        if request.include_class_scores:
            scores = class_scores(runs, sum_R, len(request.classes))
            if calibration is not None:
                confidences = calibration.confidences(labels_HW, result.cosine_Khw, result.counts)
        if request.include_instances:
            yield
            instances = find_instances(
                runs, sum_R, labels_HW.shape, request.min_area_share, holes=request.holes
            )
    return Segmentation(
        labels_HW=labels_HW,
        scores_HW=result.score_HW,
        area_shares=tuple((result.counts / labels_HW.size).tolist()),
        class_scores=scores,
        confidences=confidences,
        instances=instances,
    )


def encode_mask_png(labels_HW: Labels) -> bytes:
    """Encode a palette PNG whose pixel values are the labels.

    Raises:
        ValueError: A label above 255.
    """
    if labels_HW.dtype != np.uint8 and labels_HW.max(initial=0) > MAX_PALETTE_CLASSES:
        raise ValueError(f"a palette holds at most {MAX_PALETTE_CLASSES} classes")
    size_hw, colours = labels_HW.shape, PALETTE.tobytes()
    return write_png(size_hw, lambda rows: labels_HW[rows].astype(np.uint8, copy=False), colours)


def encode_labels_png(labels_HW: Labels) -> bytes:
    """Encode a grey PNG whose pixel values are the labels: 8 bits if they suffice, else 16."""
    return write_png(labels_HW.shape, lambda rows: labels_HW[rows])


def encode_overlay_png(labels_HW: Labels, pixels_HW3: NDArray[np.uint8]) -> bytes:
    """Encode the image with tinted and outlined classes; background is dark.

    Raises:
        ValueError: Mask and image differ in size.
    """
    if labels_HW.shape != pixels_HW3.shape[:2]:
        raise ValueError(f"a mask {labels_HW.shape} does not fit an image {pixels_HW3.shape}")

    palette = contrasting(PALETTE, labels_HW, pixels_HW3)

    def mixed(rows: slice) -> NDArray[np.uint8]:
        labels_hW = labels_HW[rows]
        image, painted = (
            Image.fromarray(pixels_HW3[rows]),
            _painted(palette_index(labels_hW), palette),
        )
        blended = Image.blend(image, painted, TINT)
        dark = Image.blend(image, Image.new("RGB", image.size), DIM)
        blended.paste(dark, mask=Image.fromarray(labels_hW == 0))
        for line, width in (("black", OUTLINE_PX + SHADE_PX), (painted, OUTLINE_PX)):
            near_hW = _near_edge(labels_HW, rows, width) & (labels_hW > 0)
            blended.paste(line, mask=Image.fromarray(near_hW))
        return np.asarray(blended)

    return write_png(labels_HW.shape, mixed)


def _painted(index_hW: NDArray[np.unsignedinteger], palette: NDArray[np.uint8]) -> Image.Image:
    """Colours of a palette; Pillow looks them up several times faster than NumPy."""
    image = Image.fromarray(index_hW)
    image.putpalette(palette.tobytes())
    return image.convert("RGB")


def _near_edge(labels_HW: Labels, rows: slice, width: int) -> NDArray[np.bool_]:
    """Pixels of some rows with another label in row or column, at most so many pixels away."""
    top = max(0, rows.start - width)
    labels_hW = labels_HW[top : rows.stop + width]
    near_hW = np.zeros(labels_hW.shape, np.bool_)
    for labels, near in ((labels_hW, near_hW), (labels_hW.T, near_hW.T)):
        for step in range(1, width + 1):
            differs = labels[step:] != labels[:-step]
            near[step:] |= differs
            near[:-step] |= differs
    return near_hW[rows.start - top : rows.stop - top]


def encode_heatmap_png(cosine_HW: FloatArray, pixels_HW3: NDArray[np.uint8]) -> bytes:
    """Encode the image with colours of cosines laid over it.

    From dark violet for the image's least cosine to pale yellow for its largest.
    """
    least, largest = cosine_HW.min(), cosine_HW.max()

    def mixed(rows: slice) -> NDArray[np.uint8]:
        painted = _painted(levels_between(cosine_HW[rows], largest, least), COLOUR_SCALE)
        return np.asarray(Image.blend(Image.fromarray(pixels_HW3[rows]), painted, HEATMAP_OPACITY))

    return write_png(cosine_HW.shape, mixed)


def encode_npy(array: NDArray[np.generic]) -> bytes:
    """Encode an array as a little-endian `.npy` file."""
    stream = BytesIO()
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    np.save(stream, np.ascontiguousarray(little), allow_pickle=False)
    return stream.getvalue()
