"""What REST requests may say about what images show: their classes, and their features."""

from typing import Annotated

from pydantic import Field

from model.preprocess import Fit
from service.messages import Features, MapSize
from service.rest.schemas import (
    FIT_TEXT,
    TEMPLATES_TEXT,
    ImageBody,
    ImageInputs,
    ImageOptions,
    NamedClass,
    Templates,
    to_class,
    to_templates,
)
from service.view_messages import (
    ClassifyImagesRequest,
    FeatureKind,
    FeatureScope,
    GlobalFeatures,
    VisualizeFeaturesRequest,
)


class ClassifyImagesOptions(ImageOptions):
    """Which classes there are, and how images are compared with them."""

    comma_lists = frozenset({"classes"})

    classes: list[NamedClass] = Field(
        default_factory=list,
        description="Names, or names with several prompts. The k-th has the label k.",
    )
    templates: Annotated[
        Templates | None, Field(description=TEMPLATES_TEXT + " Default: the model's choice.")
    ] = None
    features: Annotated[
        GlobalFeatures,
        Field(
            description="Which global embedding: `cls1` learnt from web captions, `cls2` from "
            "descriptions of the whole scene."
        ),
    ] = ClassifyImagesRequest.features
    temperature: Annotated[
        float | None,
        Field(
            description="What cosines are divided by before the softmax. Default: what the model "
            "learnt."
        ),
    ] = ClassifyImagesRequest.temperature
    top_k: Annotated[
        int | None, Field(description="How many of the best classes are sent. Default: all.")
    ] = ClassifyImagesRequest.top_k
    fit: Annotated[Fit, Field(description=FIT_TEXT)] = ClassifyImagesRequest.fit

    def to_message(self, images: ImageInputs) -> ClassifyImagesRequest:
        """The request for the data plane."""
        return ClassifyImagesRequest(
            images=images,
            classes=tuple(map(to_class, self.classes)),
            model=self.model,
            templates=None if self.templates is None else to_templates(self.templates),
            features=self.features,
            temperature=self.temperature,
            top_k=self.top_k,
            resolution=self.resolution,
            fit=self.fit,
            partial=self.partial,
        )


class VisualizeFeaturesOptions(ImageOptions):
    """How patch embeddings are made visible."""

    kind: Annotated[
        FeatureKind,
        Field(
            description="`colors`: the three first principal components, whitened, as red, green "
            "and blue by `sigmoid(2 x)`. `component`: the first, from 0 for the least to 1 for the "
            "greatest. `groups`: patches that are alike, by k-means, numbered from 1 for the "
            "largest group."
        ),
    ] = VisualizeFeaturesRequest.kind
    features: Annotated[Features, Field(description="Which embeddings.")] = (
        VisualizeFeaturesRequest.features
    )
    scope: Annotated[
        FeatureScope,
        Field(
            description="Fit components and groups over each `image`, or once over all images of "
            "the `request`, so that colours and labels agree between images."
        ),
    ] = VisualizeFeaturesRequest.scope
    group_count: Annotated[
        int | None, Field(description="How many groups, from 2 to 20. Default: 6.")
    ] = VisualizeFeaturesRequest.group_count
    seed: Annotated[
        int | None,
        Field(
            description="Of the first centres of groups, from 0; the same request has the same "
            "answer. Default: 0."
        ),
    ] = VisualizeFeaturesRequest.seed
    fit: Annotated[Fit, Field(description=FIT_TEXT)] = VisualizeFeaturesRequest.fit
    size: Annotated[
        MapSize,
        Field(
            description="Maps as large as the `image`, or as the `model` has them: one element "
            "for each patch."
        ),
    ] = VisualizeFeaturesRequest.size

    def to_message(self, images: ImageInputs) -> VisualizeFeaturesRequest:
        """The request for the data plane."""
        return VisualizeFeaturesRequest(
            images=images,
            model=self.model,
            kind=self.kind,
            features=self.features,
            scope=self.scope,
            group_count=self.group_count,
            seed=self.seed,
            resolution=self.resolution,
            fit=self.fit,
            size=self.size,
            partial=self.partial,
        )


class ClassifyImagesBody(ClassifyImagesOptions, ImageBody):
    """Images and the classes that they may show."""


class VisualizeFeaturesBody(VisualizeFeaturesOptions, ImageBody):
    """Images whose features are to be seen."""
