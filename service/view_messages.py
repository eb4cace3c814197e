"""Requests and answers about what images show, their classes and their features; as `messages`.

Shape legend: K classes, H W pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.preprocess import Fit
from service.messages import (
    EmbedImagesResponse,
    EmbedTextsResponse,
    EstimateMapsResponse,
    Features,
    FloatArray,
    ItemErrors,
    MapSize,
    MaybeEncoded,
    SegmentClass,
    SegmentImagesResponse,
    TemplateSet,
)

GlobalFeatures = Literal["cls1", "cls2"]
FeatureKind = Literal["colors", "component", "groups"]
FeatureScope = Literal["image", "request"]


@dataclass(frozen=True, kw_only=True)
class ClassifyImagesRequest:
    """Images and the classes of which each shows one.

    Attributes:
        images: Encoded images.
        classes: The k-th has the label k, from 1.
        model: Name of a served model; None is the default model.
        templates: None is what the model's manifest chose.
        features: Which global embedding is compared.
        temperature: What cosines are divided by; None is what the model learnt.
        top_k: How many of the best classes are sent; None is all.
        resolution: Short side in pixels; None is the model's native size.
        fit: How an image is brought to the resolution.
        partial: Whether images that cannot be read leave the others their answers.
    """

    images: tuple[MaybeEncoded, ...]
    classes: tuple[SegmentClass, ...]
    model: str | None = None
    templates: TemplateSet | tuple[str, ...] | None = None
    features: GlobalFeatures = "cls1"
    temperature: float | None = None
    top_k: int | None = None
    resolution: int | None = None
    fit: Fit = "squash"
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """The classes of one image, the best first: labels from 1, shares of all classes, cosines."""

    labels_K: NDArray[np.uint16]
    probabilities_K: FloatArray
    cosines_K: FloatArray

    def rows(self) -> Iterable[tuple[int, float, float]]:
        """Label, probability and cosine of each class."""
        columns = (self.labels_K, self.probabilities_K, self.cosines_K)
        return zip(*(column.tolist() for column in columns), strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyImagesResponse:
    """One classification for each image that has no error, in the order of the request."""

    model: str
    classes: tuple[str, ...]
    classifications: tuple[Classification, ...]
    errors: ItemErrors = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VisualizeFeaturesRequest:
    """Images whose patch embeddings are to be made visible.

    Attributes:
        images: Encoded images.
        model: Name of a served model; None is the default model.
        kind: Colours, the first component, or groups of patches that are alike.
        features: Which embeddings.
        scope: Whether components and groups are of each image or of all together.
        group_count: From 2 to 20; None is six. Only for groups.
        seed: Of the first centres of groups; None is 0. Only for groups.
        resolution: Short side in pixels; None is the model's native size.
        fit: How an image is brought to the resolution.
        size: Whether a map has its image's size or one element for each patch.
        partial: Whether images that cannot be read leave the others their answers.
    """

    images: tuple[MaybeEncoded, ...]
    model: str | None = None
    kind: FeatureKind = "colors"
    features: Features = "patches"
    scope: FeatureScope = "image"
    group_count: int | None = None
    seed: int | None = None
    resolution: int | None = None
    fit: Fit = "aspect"
    size: MapSize = "image"
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualizeFeaturesResponse:
    """One map for each image that has no error, in the order of the request.

    Colours are float32 [H, W, 3] and components float32 [H, W], from 0 to 1; groups are uint16
    [H, W], from 1.
    """

    model: str
    maps: tuple[NDArray[Any], ...]
    errors: ItemErrors = field(default_factory=dict)


# What there is of each item that has no error, and the errors.
ListResponse = (
    EmbedImagesResponse
    | EmbedTextsResponse
    | SegmentImagesResponse
    | ClassifyImagesResponse
    | VisualizeFeaturesResponse
    | EstimateMapsResponse
)
