"""Checks of requests that are the same for both transports. Pure functions.

Every error names its field and, for an item of a list, its index.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, cast, get_type_hints

import numpy as np
from numpy.typing import NDArray

from model.foreground import PEOPLE_WORDS
from model.graphs import DenseTask
from model.manifest import Manifest, ZeroShot
from model.text import TEMPLATES, fill
from service.errors import InvalidRequest, NotSupported, RequestTooLarge, ServiceError
from service.messages import (
    ClassifyImagesRequest,
    EmbedTextsRequest,
    ImageOutput,
    MaybeImage,
    ModelInfo,
    RequestLimits,
    SegmentClass,
    SegmentImagesRequest,
    TemplateSet,
    VisualizeFeaturesRequest,
    Within,
)

MAX_TEXT_CHARS: Final = 2000
MAX_TEMPLATES: Final = 64
# Values of all classes at all pixels of a request's masks in slide mode; a value takes some
# 17 ns, and 25 with scores or a background threshold.
MAX_SLIDE_VALUES: Final = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptGroup:
    """The filled prompts of one text or class, and the request field for their errors.

    Attributes:
        param: Field of the request.
        prompts: In the order of the texts, each in all templates.
        num_vectors: How many embeddings the class has, each the mean of as many prompts.
        name: Of a class without prompts of its own; None for others.
    """

    param: str
    prompts: tuple[str, ...]
    num_vectors: int = 1
    name: str | None = None


def _refused(param: str, text: str, *, code: str | None = None) -> InvalidRequest:
    """The error for a field: its name and this text."""
    return InvalidRequest(f"{param}{text}", code=code, param=param)


def check_bounds(request: object) -> None:
    """Check the fields of a request that have fixed bounds in `service.messages`.

    Raises:
        InvalidRequest: A value is out of bounds, or not a number.
    """
    kind: Any = type(request)  # mypy does not know that a type can be hashed
    for field, within in _bounds(kind).items():
        value = getattr(request, field)
        if value is not None and not within.low <= value <= within.high:
            text = within.text.format(low=within.low, high=within.high, value=value)
            raise _refused(field, f" {text}.")


@cache
def _bounds(kind: type) -> Mapping[str, Within]:
    hints: dict[str, Any] = get_type_hints(kind, include_extras=True)
    return {
        name: one
        for name, hint in hints.items()
        for one in getattr(hint, "__metadata__", ())
        if isinstance(one, Within)
    }


def check_images(images: Sequence[object], limits: RequestLimits) -> None:
    """Check the number of images.

    Raises:
        InvalidRequest: There is none.
        RequestTooLarge: There are too many.
    """
    _check_count(len(images), limits.max_images, "images", "image")


def check_texts(texts: Sequence[str], limits: RequestLimits) -> None:
    """Check the number of texts; raises as `check_images`."""
    _check_count(len(texts), limits.max_texts, "texts", "text")


def check_pixels(images: Sequence[MaybeImage], manifest: Manifest) -> None:
    """Check the shapes of images that are given as pixels.

    Raises:
        InvalidRequest: An image is neither uint8 [H, W, 3] nor float32 [3, H, W], or it is float32
            in a size that the model does not accept without scaling.
    """
    for index, image in enumerate(images):
        if not isinstance(image, (bytes, ServiceError)):
            _check_pixels(image, manifest, f"images[{index}]")


def _check_pixels(image: NDArray[Any], manifest: Manifest, param: str) -> None:
    is_planes = image.dtype == np.float32
    is_known = image.ndim == 3 and (is_planes or image.dtype == np.uint8)
    if not is_known or image.shape[0 if is_planes else 2] != 3 or image.size == 0:
        raise _refused(
            param,
            ": pixels must be uint8 [height, width, 3] or float32 [3, height, width], "
            f"not {image.dtype} {list(image.shape)}.",
            code="invalid_image",
        )
    if not is_planes:
        return
    height, width = image.shape[1:]
    is_multiple = height % manifest.size_multiple == width % manifest.size_multiple == 0
    if not is_multiple or not manifest.min_size <= min(height, width) <= manifest.max_size:
        raise _refused(
            param,
            ": float32 pixels are not scaled, so both sides must be multiples of "
            f"{manifest.size_multiple} and the shorter one from {manifest.min_size} to "
            f"{manifest.max_size}, not {height} x {width}. uint8 pixels are scaled.",
            code="invalid_image",
        )


def check_outputs(outputs: Sequence[str], info: ModelInfo) -> tuple[ImageOutput | DenseTask, ...]:
    """The requested outputs without duplicates.

    Raises:
        InvalidRequest: The list is empty, or the model does not have one of them.
    """
    if not outputs:
        raise _refused("outputs", " is empty; give at least one.", code="empty_list")
    known = info.image_outputs
    for index, name in enumerate(outputs):
        if name not in known:
            text = f": {info.manifest.name} has no output {name!r}; it has {', '.join(known)}."
            raise _refused(f"outputs[{index}]", text, code="unknown_output")
    return cast("tuple[ImageOutput | DenseTask, ...]", tuple(dict.fromkeys(outputs)))


def check_resolution(resolution: int | None, manifest: Manifest, *, is_map: bool = False) -> int:
    """The resolution in pixels, by default the native size of the model.

    Args:
        resolution: As requested.
        manifest: Of the model.
        is_map: Whether a dense head sees the image; its sides have larger steps.

    Raises:
        InvalidRequest: It is outside the model's range, or not a multiple of its step.
    """
    if resolution is None:
        return manifest.map_side(manifest.native_size) if is_map else manifest.native_size
    multiple = manifest.map_multiple if is_map else manifest.size_multiple
    if resolution % multiple or not manifest.min_size <= resolution <= manifest.max_size:
        raise _refused(
            "resolution",
            f" must be a multiple of {multiple} from {max(multiple, manifest.min_size)} to "
            f"{manifest.max_size} for {manifest.name}, not {resolution}.",
        )
    return resolution


def check_dimensions(dimensions: int | None, manifest: Manifest) -> int:
    """The number of elements of an embedding to keep, by default all.

    Raises:
        InvalidRequest: It is less than one, or more than the model has.
    """
    if dimensions is None:
        return manifest.embed_dim
    if not 1 <= dimensions <= manifest.embed_dim:
        text = f" must be from 1 to {manifest.embed_dim} for {manifest.name}, not {dimensions}."
        raise _refused("dimensions", text)
    return dimensions


def check_features(features: ImageOutput | None, manifest: Manifest) -> ImageOutput:
    """The features to use, by default those of the manifest.

    Raises:
        InvalidRequest: The model does not have them.
    """
    chosen = features or manifest.zero_shot.features
    if chosen not in manifest.outputs:
        raise _refused(
            "features", f": {manifest.name} has no output {chosen!r}.", code="unknown_output"
        )
    return chosen


def check_task(task: DenseTask, info: ModelInfo) -> None:
    """Check that the model has a dense head.

    Raises:
        NotSupported: The package has no such head or no names for its classes, or its runtime does
            not compute it.
    """
    if task in info.tasks:
        return
    if task not in info.manifest.outputs:
        text = (
            f"no head for {task}; use a model that has one, such as a package converted from a "
            "TIPSv2 checkpoint whose name ends in -dpt."
        )
    elif task == "segmentation" and not info.manifest.segmentation_labels:
        text = f"no names for the classes of its head for {task}; convert it again."
    else:
        text = (
            f"a head for {task}, but the runtime {info.runtime} does not compute it; use another "
            "runtime."
        )
    raise NotSupported(f"{info.manifest.name} has {text}", param="model")


def check_slide(sizes_hw: Sequence[tuple[int, int]], request: SegmentImagesRequest) -> None:
    """Check the values of all classes at all pixels of the masks: slide mode computes every one.

    Raises:
        RequestTooLarge: There are more than slide mode computes within a minute.
    """
    num_pixels = sum(height * width for height, width in sizes_hw)
    num_classes = len(request.classes) + len(request.background_classes)
    if num_pixels * num_classes > MAX_SLIDE_VALUES:
        raise RequestTooLarge(
            f"The masks would have {num_pixels} pixels in total for {num_classes} classes; slide "
            f"mode allows {MAX_SLIDE_VALUES // num_classes} pixels for so many. Send fewer "
            "classes, fewer or smaller images, or use mode whole.",
            param="images",
        )


def with_mask_defaults(
    request: SegmentImagesRequest, defaults: ZeroShot, *, has_head: bool
) -> SegmentImagesRequest:
    """Replace the options of masks that are not given by their defaults.

    Args:
        request: With the classes of its head, if it has one.
        defaults: Of the model's manifest.
        has_head: Whether the classes are those of a head.

    Raises:
        InvalidRequest: Two options exclude each other.
    """
    mode, quality, background = request.mode or defaults.mode, request.quality, request.background
    has_threshold, level = request.background_threshold is not None, request.background_level
    if background is None:
        is_alone = len(request.classes) == 1
        background = "auto" if is_alone else defaults.background
        has_other = has_head or has_threshold or bool(request.background_classes)
        background = "none" if has_other else background
    if quality is None:
        quality = "published" if mode == "slide" else defaults.quality
        quality = "fast" if has_head and quality == "fine" else quality
    is_auto = background == "auto"
    for excludes, param, text in (
        (is_auto and has_head, "background", " auto: a head learns its background; leave it out."),
        (is_auto and has_threshold, "background_threshold", ": leave it out with background auto."),
        (level is not None and not is_auto, "background_level", " needs background auto."),
        (mode == "slide" and quality != "published", "quality", f" {quality} needs mode whole."),
        (has_head and quality == "fine", "quality", " fine: a head has one size; use fast."),
    ):
        if excludes:
            raise _refused(param, text)
    return replace(
        request,
        mode=mode,
        quality=quality,
        background=background,
        background_level=defaults.background_level if level is None else level,
    )


def check_examples(request: SegmentImagesRequest | ClassifyImagesRequest) -> bool:
    """Check the examples of classes; returns whether the classes have examples instead of prompts.

    Raises:
        InvalidRequest: Some classes have examples and others do not, a class has prompts or a pool
            too, an example is of no image or has two regions, or the request does not segment.
    """
    members = [
        (f"{field}[{index}]", one)
        for field in ("classes", "background_classes")
        for index, one in enumerate(getattr(request, field, ()))
    ]
    if not any(one.examples for _, one in members):
        return False
    for param, one in members:
        if isinstance(request, ClassifyImagesRequest):
            raise _refused(param, ": only segmentation takes examples.")
        if not one.examples or one.prompts:
            raise _refused(
                param,
                ": cosines with texts and with patches are not comparable; give either all classes "
                "and background classes examples, or none.",
            )
        if one.pool != "mean":
            raise _refused(f"{param}.pool", ": examples are averaged; leave the field out.")
        for index, example in enumerate(one.examples):
            place, last = f"{param}.examples[{index}]", len(request.images) - 1
            if not 0 <= example.image <= last:
                text = f" is the index of an image, from 0 to {last}, not {example.image}."
                raise _refused(f"{place}.image", text)
            if sum(x is not None for x in (example.point, example.box, example.mask)) > 1:
                raise _refused(place, ": give one of point, box and mask.")
    return True


def check_view(request: VisualizeFeaturesRequest) -> None:
    """Check that options of groups are given for groups only; raises `InvalidRequest`."""
    for field in ("group_count", "seed"):
        if request.kind != "groups" and getattr(request, field) is not None:
            raise _refused(field, " needs kind=groups.")


def text_groups(
    request: EmbedTextsRequest, limits: RequestLimits
) -> tuple[dict[int, PromptGroup], dict[int, ServiceError]]:
    """The prompts of each text by its index; and the errors of a partial request.

    Raises:
        InvalidRequest: There is no text, one is blank or too long, or a template does not contain
            exactly one `{}`.
        RequestTooLarge: There are too many texts.
    """
    check_texts(request.texts, limits)
    chosen = _check_templates(request.templates)
    groups: dict[int, PromptGroup] = {}
    errors: dict[int, ServiceError] = {}
    for index, text in enumerate(request.texts):
        try:
            groups[index] = _group([text], f"texts[{index}]", chosen)
        except InvalidRequest as error:
            if not request.partial:
                raise
            errors[index] = error.with_traceback(None)
    return groups, errors


def split_blank(
    groups: Mapping[int, PromptGroup], errors: Mapping[int, ServiceError], blank: Set[str]
) -> tuple[dict[int, PromptGroup], dict[int, ServiceError]]:
    """Move the texts that have a blank prompt to the errors."""
    bad = {i: group for i, group in groups.items() if not blank.isdisjoint(group.prompts)}
    good = {i: group for i, group in groups.items() if i not in bad}
    return good, {**errors, **{i: blank_text(group.param) for i, group in bad.items()}}


def blank_text(param: str) -> InvalidRequest:
    """The error for a text without a token."""
    return _refused(param, " contains no characters that the tokenizer knows.", code="blank_text")


def class_groups(
    classes: Sequence[SegmentClass],
    background: Sequence[SegmentClass],
    templates: TemplateSet | tuple[str, ...],
    limits: RequestLimits,
) -> list[PromptGroup]:
    """The prompts of each class, then of each background class.

    Raises:
        InvalidRequest: There is no class, a name or prompt is blank, a name is given twice, or a
            template is invalid.
        RequestTooLarge: There are too many classes or prompts.
    """
    total = len(classes) + len(background) if classes else 0
    _check_count(total, limits.max_classes, "classes", "class")
    num_prompts = sum(max(1, len(c.prompts), len(c.examples)) for c in (*classes, *background))
    _check_count(num_prompts, limits.max_texts, "classes", "prompt", counted=" prompts")
    chosen = _check_templates(templates)
    groups: dict[str, PromptGroup] = {}
    for field, members in (("classes", classes), ("background_classes", background)):
        for index, member in enumerate(members):
            param = f"{field}[{index}]"
            _check_text(member.name, f"{param}.name")
            if member.name in groups:
                text = f"{param}: the class {member.name!r} is given twice."
                raise InvalidRequest(text, param=f"{param}.name")
            group = _group(member.prompts or (member.name,), param, chosen)
            groups[member.name] = replace(
                group,
                name=None if member.prompts else member.name,
                num_vectors=len(member.prompts) if member.pool == "max" and member.prompts else 1,
            )
    return list(groups.values())


def find_people(groups: Sequence[PromptGroup]) -> list[int]:
    """Indices of the classes that mean people, each given by its name alone."""
    names = [(group.name or "").strip().lower() for group in groups]
    return [k for k, name in enumerate(names) if name in PEOPLE_WORDS]


def _group(texts: Sequence[str], param: str, templates: Sequence[str]) -> PromptGroup:
    for index, text in enumerate(texts):
        _check_text(text, param if len(texts) == 1 else f"{param}.prompts[{index}]")
    prompts = [prompt for text in texts for prompt in fill(text, templates)]
    return PromptGroup(param=param, prompts=tuple(prompts))


def _check_text(text: str, param: str) -> None:
    if not text.strip():
        raise _refused(param, " is blank.", code="blank_text")
    if len(text) > MAX_TEXT_CHARS:
        more = f" has {len(text)} characters, at most {MAX_TEXT_CHARS} allowed."
        raise _refused(param, more, code="text_too_long")


def _check_templates(templates: TemplateSet | tuple[str, ...]) -> Sequence[str]:
    if isinstance(templates, str):
        return TEMPLATES[templates]
    _check_count(len(templates), MAX_TEMPLATES, "templates", "template")
    for index, template in enumerate(templates):
        param = f"templates[{index}]"
        _check_text(template, param)
        if template.count("{}") != 1:
            raise _refused(param, " must contain {} exactly once.")
    return templates


def _check_count(count: int, limit: int, field: str, noun: str, *, counted: str = "") -> None:
    if count == 0:
        raise _refused(field, f" is empty; give at least one {noun}.", code="empty_list")
    if count > limit:
        text = f"{field}: {count}{counted} given, at most {limit} allowed."
        raise RequestTooLarge(text, code="too_many_items", param=field)
