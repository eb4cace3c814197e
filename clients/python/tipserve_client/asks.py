"""What a client asks for, before it is written for either protocol."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Final, Literal, TypedDict, cast

from tipserve_client.errors import InvalidRequest, TipserveError
from tipserve_client.images import ImageInput, encode_image

# One image, or several.
ImageInputs = ImageInput | Iterable[ImageInput]
# As what numbers embeddings are sent; None is the server's default, which is float32.
Dtype = Literal["float32", "float16", "int8"]
Float32 = Literal["float32"] | None
Output = Literal["cls1", "cls2", "patches", "values"]
Fit = Literal["squash", "aspect"]
MapSize = Literal["image", "model"]
Features = Literal["values", "patches"]
Templates = Literal["none", "tcl"] | Sequence[str]
# Names of classes, each with the prompts that mean it; or names alone.
Classes = Mapping[str, Sequence[str]] | Sequence[str]
GlobalFeatures = Literal["cls1", "cls2"]
FeatureKind = Literal["colors", "component", "groups"]
Method = Literal[
    "embed_images",
    "embed_texts",
    "segment_images",
    "classify_images",
    "visualize_features",
    "estimate_depth",
    "estimate_normals",
]

# Where the map of an image is.
MAPS: Final[Mapping[Method, str]] = {
    "visualize_features": "features",
    "estimate_depth": "depth",
    "estimate_normals": "normals",
}


class CallOptions(TypedDict, total=False):
    """For every request: the served model, and seconds for all tries together."""

    model: str
    timeout_s: float


class EmbedTextsOptions(CallOptions, total=False):
    """How texts are embedded."""

    templates: Templates
    normalize: bool


class ImageOptions(CallOptions, total=False):
    """How the model sees images: its short side in pixels, and how it is brought to that."""

    resolution: int
    fit: Fit


class EmbedImagesOptions(ImageOptions, total=False):
    """How images are embedded."""

    outputs: Output | Sequence[Output]
    normalize: bool


class SegmentOptions(ImageOptions, total=False):
    """How things are found."""

    templates: Templates
    features: Features
    mode: Literal["whole", "slide"]
    background_threshold: float
    background_classes: Classes
    include_scores: bool


class MapOptions(ImageOptions, total=False):
    """How maps of depth and normals are made."""

    size: MapSize


class ClassifyOptions(ImageOptions, total=False):
    """How images are compared with classes."""

    templates: Templates
    features: GlobalFeatures
    temperature: float
    top_k: int


class FeaturesOptions(ImageOptions, total=False):
    """How patch embeddings are made visible."""

    kind: FeatureKind
    features: Features
    scope: Literal["image", "request"]
    group_count: int
    seed: int
    size: MapSize


# The names of each method's options; `partial` goes apart, for a stream has none.
OPTIONS: Final[Mapping[Method, frozenset[str]]] = {
    "embed_images": EmbedImagesOptions.__optional_keys__ | {"dtype"},
    "embed_texts": EmbedTextsOptions.__optional_keys__ | {"dtype"},
    "segment_images": SegmentOptions.__optional_keys__,
    "classify_images": ClassifyOptions.__optional_keys__,
    "visualize_features": FeaturesOptions.__optional_keys__,
    "estimate_depth": MapOptions.__optional_keys__,
    "estimate_normals": MapOptions.__optional_keys__,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request.

    Attributes:
        method: What is asked for.
        images: Encoded images; a stream asks the same of each, and has none here.
        texts: For `embed_texts`.
        fields: The rest, by the names that both protocols have for it; what is None is not sent.
        timeout_s: For all tries together; None is the client's own.
        errors: With `partial`, why images cannot be sent, by their place, where empty ones are.
    """

    method: Method
    images: tuple[bytes, ...] = ()
    texts: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None
    errors: Mapping[int, TipserveError] = field(default_factory=dict)

    @property
    def is_partial(self) -> bool:
        """Whether what is wrong with single images or texts leaves the others their answers."""
        return bool(self.fields.get("partial"))


def make_ask(
    method: Method,
    options: Mapping[str, Any],
    *,
    images: ImageInputs = (),
    texts: Iterable[str] = (),
    classes: Classes | None = None,
    partial: bool = False,
) -> Ask:
    """A request from what a caller gave.

    Args:
        method: What is asked for.
        options: As `OPTIONS` has them for the method; None is the server's default.
        images: One or several.
        texts: For `embed_texts`.
        classes: For `segment_images` and `classify_images`.
        partial: Whether an image that cannot be used leaves the others their answers.

    Raises:
        InvalidRequest: An image cannot be used, and the request is not partial.
        TypeError: An option that the method does not have.
    """
    known = OPTIONS[method]
    for name in options:
        if name not in known:
            raise TypeError(f"{method} has no option {name!r}; it has {', '.join(sorted(known))}")
    given = {n: v for n, v in options.items() if v is not None and n != "timeout_s"}
    if classes is not None:
        given["classes"] = classes
    for name in ("classes", "background_classes"):
        if name in given:
            given[name] = class_list(given[name], name)
    if isinstance(given.get("outputs"), str):
        given["outputs"] = [given["outputs"]]
    if "templates" in given and not isinstance(given["templates"], str):
        given["templates"] = list(given["templates"])
    if isinstance(texts, str):
        raise InvalidRequest("texts: give a list.", code="invalid_field", param="texts")
    if partial:
        given["partial"] = True
    encoded, errors = encode_all(images, is_partial=partial)
    return Ask(
        method=method,
        images=encoded,
        texts=tuple(texts),
        fields=given,
        timeout_s=options.get("timeout_s"),
        errors=errors,
    )


def encode_all(
    images: ImageInputs, *, is_partial: bool
) -> tuple[tuple[bytes, ...], dict[int, TipserveError]]:
    """Encoded images; in a partial request also why some cannot be sent.

    Those are sent empty, so that all others keep their places in what the server says.

    Raises:
        InvalidRequest: An image cannot be used, and the request is not partial.
    """
    encoded: list[bytes] = []
    errors: dict[int, TipserveError] = {}
    for index, image in enumerate(as_images(images)):
        try:
            encoded.append(encode_image(image, f"images[{index}]"))
        except InvalidRequest as error:
            if not is_partial:
                raise
            errors[index] = error
            encoded.append(b"")
    return tuple(encoded), errors


def as_images(images: ImageInputs) -> Iterable[ImageInput]:
    """Several images from one or several; an array is one image, and so is a path."""
    is_one = isinstance(images, str | bytes | PathLike) or hasattr(images, "shape")
    if is_one or hasattr(images, "save"):
        return [cast("ImageInput", images)]
    return cast("Iterable[ImageInput]", images)


def class_list(classes: Classes, param: str) -> list[dict[str, Any]]:
    """Classes by name and prompts; without prompts the name is the prompt.

    Raises:
        InvalidRequest: It is one text instead of a list.
    """
    if isinstance(classes, str):
        raise InvalidRequest(f"{param}: give a list.", code="invalid_field", param=param)
    if isinstance(classes, Mapping):
        return [{"name": name, "prompts": list(prompts)} for name, prompts in classes.items()]
    return [{"name": name, "prompts": []} for name in classes]
