"""Requests, before they are written for either protocol, and the options of each method."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Final, Literal, TypedDict, cast

from tipserve_client.errors import InvalidRequest, TipserveError
from tipserve_client.images import ImageInput, encode_image

# One or several.
Texts = Iterable[str] | str
Images = ImageInput | Iterable[ImageInput]
# Number format of embeddings; None is the server's default, float32.
Dtype = Literal["float32", "float16", "int8"]
Plain = Literal["float32"] | None
Half = Literal["float16"]
Int8 = Literal["int8"]
Output = Literal["cls1", "cls2", "patches", "values", "depth", "normals", "segmentation"]
Fit = Literal["squash", "aspect"]
MapSize = Literal["image", "model"]
MaskSize = Literal["image", "model", "patch"]
Features = Literal["values", "patches"]
Templates = Literal["none", "tcl"] | Sequence[str]
# A pixel or image is compared with the mean of a class's prompts, or with the best of them.
PromptPool = Literal["mean", "max"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Patches that show a class, for `segment`; without a point, box or mask the whole image.

    Attributes:
        image: Index of the image in the request, from 0.
        point: x and y in pixels: the patch around it.
        box: Left, top, width and height in pixels: the patches within it.
        mask: Run lengths as pycocotools writes them, `size` and `counts`, in the image's size.
    """

    image: int = 0
    point: tuple[float, float] | None = None
    box: tuple[float, float, float, float] | None = None
    mask: Mapping[str, Any] | None = None


# A class name, several, or a mapping from each name to its prompts or its examples.
Classes = Mapping[str, Sequence[str] | Sequence[Example]] | Sequence[str] | str
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
    "list_models",
]
# Of a batch of images, such as [images, 3, height, width].
BATCH_AXES: Final = 4
# Name of the map in an answer.
MAPS: Final[Mapping[Method, str]] = {
    "visualize_features": "features",
    "estimate_depth": "depth",
    "estimate_normals": "normals",
}


class CallOptions(TypedDict, total=False):
    """Options of every request: the served model, and seconds for all attempts."""

    model: str
    timeout_s: float


class TextsOptions(CallOptions, total=False):
    """Options of `embed_texts`."""

    templates: Templates
    normalize: bool


class PlainTextsOptions(TextsOptions, total=False):
    """Options of `embed_texts` in float32, the default."""

    dtype: Plain


class ImageOptions(CallOptions, total=False):
    """Options of every request with images: short side in pixels, and how an image is resized."""

    resolution: int
    fit: Fit


class EmbedOptions(ImageOptions, total=False):
    """Options of `embed_images` and `stream_images`."""

    outputs: Output | Sequence[Output]
    normalize: bool


class PlainEmbedOptions(EmbedOptions, total=False):
    """Options of `embed_images` and `stream_images` in float32, the default."""

    dtype: Plain


class SegmentOptions(ImageOptions, total=False):
    """Options of `segment`. `pool` is for all classes with prompts."""

    templates: Templates
    pool: PromptPool
    features: Features
    mode: Literal["whole", "slide"]
    quality: Literal["published", "fast", "fine"]
    background: Literal["none", "auto"]
    background_level: float
    background_threshold: float
    background_classes: Classes
    include_scores: bool | Literal["all"]
    include_instances: bool
    min_area_share: float
    holes: Literal["fill", "keep"]
    size: MaskSize


class MapOptions(ImageOptions, total=False):
    """Options of `depth` and `normals`."""

    size: MapSize


class ClassifyOptions(ImageOptions, total=False):
    """Options of `classify`. `pool` is for all classes with prompts."""

    templates: Templates
    pool: PromptPool
    features: GlobalFeatures
    temperature: float
    top_k: int


class FeaturesOptions(ImageOptions, total=False):
    """Options of `features`."""

    kind: FeatureKind
    features: Features
    scope: Literal["image", "request"]
    group_count: int
    seed: int
    size: MapSize


# `partial` is not in this table, because streams have no such option.
OPTIONS: Final[Mapping[Method, frozenset[str]]] = {
    "embed_images": PlainEmbedOptions.__optional_keys__,
    "embed_texts": PlainTextsOptions.__optional_keys__,
    "segment_images": SegmentOptions.__optional_keys__,
    "classify_images": ClassifyOptions.__optional_keys__,
    "visualize_features": FeaturesOptions.__optional_keys__,
    "estimate_depth": MapOptions.__optional_keys__,
    "estimate_normals": MapOptions.__optional_keys__,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request.

    Attributes:
        method: What to compute, or `list_models`.
        images: Encoded images; empty in the template of a stream's requests.
        texts: For `embed_texts`.
        fields: All other fields, by the names that both protocols share. No value is None.
        timeout_s: For all attempts; None is the client's default.
        errors: In a partial request, by index: why an image cannot be sent. It is sent empty.
    """

    method: Method
    images: tuple[bytes, ...] = ()
    texts: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None
    errors: Mapping[int, TipserveError] = field(default_factory=dict)

    @property
    def is_partial(self) -> bool:
        """Whether an invalid image or text leaves the answers of the others intact."""
        return bool(self.fields.get("partial"))


@dataclass(frozen=True, slots=True)
class PendingImage:
    """An image of a stream without an answer: its request, or why it cannot be sent."""

    index: int
    request: Any = None
    error: TipserveError | None = None


def make_request(
    method: Method,
    options: Mapping[str, Any],
    *,
    images: Images = (),
    texts: Texts = (),
    classes: Classes | None = None,
    partial: bool = False,
) -> Request:
    """Make a request from a caller's arguments.

    Args:
        method: What to compute.
        options: Those of `OPTIONS` for the method; None is the server's default.
        images: One or several.
        texts: For `embed_texts`: one or several.
        classes: For `segment_images` and `classify_images`.
        partial: Whether an invalid image or text leaves the answers of the others intact.

    Raises:
        InvalidRequest: An image cannot be read, and the request is not partial.
        TypeError: The method has no such option.
    """
    known = OPTIONS[method]
    for name in options:
        if name not in known:
            raise TypeError(f"{method} has no option {name!r}; it has {', '.join(sorted(known))}")
    fields = {n: v for n, v in options.items() if v is not None and n != "timeout_s"}
    if classes is not None:
        fields["classes"] = classes
    pool = fields.pop("pool", None)
    for name in ("classes", "background_classes"):
        if name in fields:
            fields[name] = class_list(fields[name], pool)
    if isinstance(fields.get("outputs"), str):
        fields["outputs"] = [fields["outputs"]]
    if "templates" in fields and not isinstance(fields["templates"], str):
        fields["templates"] = list(fields["templates"])
    if partial:
        fields["partial"] = True
    encoded: list[bytes] = []
    errors: dict[int, TipserveError] = {}
    for index, image in enumerate(as_images(images)):
        try:
            encoded.append(encode_image(image, f"images[{index}]"))
        except InvalidRequest as error:
            if not partial:
                raise
            errors[index] = error
            encoded.append(b"")  # so that indices in the answer match the caller's
    return Request(
        method=method,
        images=tuple(encoded),
        texts=(texts,) if isinstance(texts, str) else tuple(texts),
        fields=fields,
        timeout_s=options.get("timeout_s"),
        errors=errors,
    )


def as_images(images: Images) -> Iterable[ImageInput]:
    """Several images from one or several. An array is one image, unless it has four axes."""
    is_array = hasattr(images, "shape") and len(images.shape) != BATCH_AXES
    is_one = is_array or isinstance(images, str | bytes | PathLike)
    if is_one or hasattr(images, "save"):
        return [cast("ImageInput", images)]
    return cast("Iterable[ImageInput]", images)


def class_list(classes: Classes, pool: PromptPool | None = None) -> list[dict[str, Any]]:
    """Names, prompts and examples of classes, with the fields of REST.

    The server uses the name where there are no prompts.
    """
    if isinstance(classes, str):
        classes = [classes]
    if not isinstance(classes, Mapping):
        return [{"name": name, "prompts": []} for name in classes]
    found = []
    for name, given in classes.items():
        shown = [given] if isinstance(given, str) else given
        prompts = [one for one in shown if isinstance(one, str)]
        examples = [_example(one) for one in shown if isinstance(one, Example)]
        entry: dict[str, Any] = {"name": name, "prompts": prompts}
        entry |= {"examples": examples} if examples else {}
        found.append(entry | ({"pool": pool} if pool and prompts else {}))
    return found


def _example(example: Example) -> dict[str, Any]:
    fields: dict[str, Any] = {"image": example.image}
    for name in ("point", "box"):
        if getattr(example, name) is not None:
            fields[name] = list(getattr(example, name))
    if example.mask is not None:
        counts = example.mask["counts"]
        text = counts.decode() if isinstance(counts, bytes) else counts
        fields["mask"] = {"size": list(example.mask["size"]), "counts": text}
    return fields
