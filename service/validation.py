"""Checks of requests that are the same for both transports. Pure functions.

Every error names its field and, for an item of a list, its index.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final, cast

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
    SegmentBackground,
    SegmentClass,
    SegmentImagesRequest,
    TemplateSet,
    VisualizeFeaturesRequest,
)

MAX_TEXT_CHARS: Final = 2000
MAX_TEMPLATES: Final = 64
GROUP_COUNTS: Final = range(2, 21)
MAX_SEED: Final = 2**31 - 1
# Below it the best class would get all of the probability, whatever the other cosines are.
MIN_TEMPERATURE: Final = 1e-4
# An image has at most 10,000 instances.
MIN_AREA_SHARE: Final = 1e-4
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


def check_images(images: Sequence[MaybeImage | str], limits: RequestLimits) -> None:
    """Check the number of images.

    Raises:
        InvalidRequest: The list is empty.
        RequestTooLarge: There are more images than allowed.
    """
    _check_count(len(images), limits.max_images, field="images", noun="image")


def check_texts(texts: Sequence[str], limits: RequestLimits) -> None:
    """Check the number of texts.

    Raises:
        InvalidRequest: The list is empty.
        RequestTooLarge: There are more texts than allowed.
    """
    _check_count(len(texts), limits.max_texts, field="texts", noun="text")


def check_pixels(images: Sequence[MaybeImage], manifest: Manifest) -> None:
    """Check the shapes of images that are given as pixels.

    Raises:
        InvalidRequest: An image is neither uint8 [H, W, 3] nor float32 [3, H, W], or it is float32
            in a size that the model does not accept without scaling.
    """
    for index, image in enumerate(images):
        if not isinstance(image, (bytes, ServiceError)):
            _check_pixels(image, manifest, f"images[{index}]")


def _check_pixels(
    image: NDArray[np.uint8] | NDArray[np.float32], manifest: Manifest, param: str
) -> None:
    is_planes = image.dtype == np.float32
    is_known = image.ndim == 3 and (is_planes or image.dtype == np.uint8)
    if not is_known or image.shape[0 if is_planes else 2] != 3 or image.size == 0:
        raise InvalidRequest(
            f"{param}: pixels must be uint8 [height, width, 3] or float32 [3, height, width], "
            f"not {image.dtype} {list(image.shape)}.",
            code="invalid_image",
            param=param,
        )
    if not is_planes:
        return
    height, width = image.shape[1:]
    is_multiple = height % manifest.size_multiple == width % manifest.size_multiple == 0
    if not is_multiple or not manifest.min_size <= min(height, width) <= manifest.max_size:
        raise InvalidRequest(
            f"{param}: float32 pixels are not scaled, so both sides must be multiples of "
            f"{manifest.size_multiple} and the shorter one from {manifest.min_size} to "
            f"{manifest.max_size}, not {height} x {width}. uint8 pixels are scaled.",
            code="invalid_image",
            param=param,
        )


def check_outputs(outputs: Sequence[str], info: ModelInfo) -> tuple[ImageOutput | DenseTask, ...]:
    """The requested outputs without duplicates.

    Raises:
        InvalidRequest: The list is empty, or the model does not have one of them.
    """
    if not outputs:
        raise InvalidRequest(
            "outputs is empty; give at least one.", code="empty_list", param="outputs"
        )
    manifest, known = info.manifest, info.image_outputs
    for index, name in enumerate(outputs):
        if name not in known:
            raise InvalidRequest(
                f"outputs[{index}]: {manifest.name} has no output {name!r}; "
                f"it has {', '.join(known)}.",
                code="unknown_output",
                param=f"outputs[{index}]",
            )
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
    in_range = manifest.min_size <= resolution <= manifest.max_size
    if not in_range or resolution % multiple:
        raise InvalidRequest(
            f"resolution must be a multiple of {multiple} from "
            f"{max(multiple, manifest.min_size)} to {manifest.max_size} for {manifest.name}, "
            f"not {resolution}.",
            param="resolution",
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
        raise InvalidRequest(
            f"dimensions must be from 1 to {manifest.embed_dim} for {manifest.name}, "
            f"not {dimensions}.",
            param="dimensions",
        )
    return dimensions


def check_features(features: ImageOutput | None, manifest: Manifest) -> ImageOutput:
    """The features to use, by default those of the manifest.

    Raises:
        InvalidRequest: The model does not have them.
    """
    chosen = features or manifest.zero_shot.features
    if chosen not in manifest.outputs:
        raise InvalidRequest(
            f"features: {manifest.name} has no output {chosen!r}.",
            code="unknown_output",
            param="features",
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
    name = info.manifest.name
    is_unnamed = task == "segmentation" and not info.manifest.segmentation_labels
    if is_unnamed and task in info.manifest.outputs:
        raise NotSupported(
            f"{name} does not name the classes of its head for segmentation; convert it again "
            "with this version.",
            param="model",
        )
    if task in info.manifest.outputs:
        raise NotSupported(
            f"{name} has a head for {task}, but the runtime {info.runtime} does not compute it; "
            "use another runtime.",
            param="model",
        )
    raise NotSupported(
        f"{name} has no head for {task}; use a model that has one, such as a package converted "
        "from a TIPSv2 checkpoint whose name ends in -dpt.",
        param="model",
    )


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


def check_threshold(threshold: float | None) -> None:
    """Check a background threshold: a cosine.

    Raises:
        InvalidRequest: It is outside -1 to 1, or not a number.
    """
    if threshold is not None and not -1 <= threshold <= 1:
        raise InvalidRequest(
            f"background_threshold is a cosine from -1 to 1, not {threshold}; include_scores "
            "returns the cosines of an image.",
            param="background_threshold",
        )


def with_mask_defaults(
    request: SegmentImagesRequest, defaults: ZeroShot, *, has_head: bool
) -> SegmentImagesRequest:
    """Check the options of masks and replace those that are not given by their defaults.

    Args:
        request: With the classes of its head, if it has one.
        defaults: Of the model's manifest.
        has_head: Whether the classes are those of a head.

    Raises:
        InvalidRequest: Two options exclude each other, or a level is out of range.
    """
    mode = request.mode or defaults.mode
    has_rule = request.background_threshold is not None or bool(request.background_classes)
    quality, background = request.quality, request.background
    if background is None:
        is_alone = len(request.classes) == 1 and not has_rule
        background = "auto" if is_alone else defaults.background
        if has_head or request.background_threshold is not None:
            background = "none"
    level = _check_level(request, background, has_head=has_head)
    if quality is None:
        quality = "published" if mode == "slide" else defaults.quality
        quality = "fast" if has_head and quality == "fine" else quality
    elif mode == "slide" and quality != "published":
        raise InvalidRequest(
            f"quality {quality} needs mode whole; in mode slide use published.", param="quality"
        )
    elif has_head and quality == "fine":
        raise InvalidRequest(
            "quality fine: a head sees an image at one size; use published or fast.",
            param="quality",
        )
    return replace(
        request,
        mode=mode,
        quality=quality,
        background=background,
        background_level=defaults.background_level if level is None else level,
    )


def _check_level(
    request: SegmentImagesRequest, background: SegmentBackground, *, has_head: bool
) -> float | None:
    """The level of `background=auto` that the request gives."""
    level = request.background_level
    if background == "auto":
        if has_head:
            raise InvalidRequest(
                "background auto: a head learns its background; leave the field out.",
                param="background",
            )
        if request.background_threshold is not None:
            raise InvalidRequest(
                "background auto finds its own threshold; leave out background_threshold, or "
                "background.",
                param="background_threshold",
            )
    elif level is not None:
        raise InvalidRequest(
            "background_level needs background auto; give that, or leave the level out.",
            param="background_level",
        )
    if level is not None and not 0 <= level <= 1:
        raise InvalidRequest(
            f"background_level must be from 0 to 1, not {level}.", param="background_level"
        )
    return level


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
            raise InvalidRequest(f"{param}: only segmentation takes examples.", param=param)
        if not one.examples or one.prompts:
            raise InvalidRequest(
                f"{param}: cosines with texts and with patches are not comparable; give either "
                "all classes and background classes examples, or none.",
                param=param,
            )
        if one.pool != "mean":
            raise InvalidRequest(
                f"{param}.pool: examples are averaged; leave the field out.", param=f"{param}.pool"
            )
        for index, example in enumerate(one.examples):
            place = f"{param}.examples[{index}]"
            if not 0 <= example.image < len(request.images):
                raise InvalidRequest(
                    f"{place}.image is the index of an image, from 0 to {len(request.images) - 1}, "
                    f"not {example.image}.",
                    param=f"{place}.image",
                )
            if sum(x is not None for x in (example.point, example.box, example.mask)) > 1:
                raise InvalidRequest(f"{place}: give one of point, box and mask.", param=place)
    return True


def check_area_share(share: float) -> None:
    """Check the least share of an instance, which bounds how many there are.

    Raises:
        InvalidRequest: It is out of range.
    """
    if not MIN_AREA_SHARE <= share <= 1:
        raise InvalidRequest(
            f"min_area_share must be from {MIN_AREA_SHARE} to 1, not {share}.",
            param="min_area_share",
        )


def check_choices(request: ClassifyImagesRequest) -> None:
    """Check `temperature` and `top_k`.

    Raises:
        InvalidRequest: One of them is out of range.
    """
    if request.temperature is not None and not MIN_TEMPERATURE <= request.temperature < math.inf:
        raise InvalidRequest(
            f"temperature must be at least {MIN_TEMPERATURE}, not {request.temperature}.",
            param="temperature",
        )
    if request.top_k is not None and request.top_k < 1:
        raise InvalidRequest(f"top_k must be at least 1, not {request.top_k}.", param="top_k")


def check_view(request: VisualizeFeaturesRequest) -> None:
    """Check `group_count` and `seed`.

    Raises:
        InvalidRequest: One of them is out of range, or given without `kind=groups`.
    """
    for field, value, allowed in (
        ("group_count", request.group_count, GROUP_COUNTS),
        ("seed", request.seed, range(MAX_SEED + 1)),
    ):
        if value is None:
            continue
        if request.kind != "groups":
            raise InvalidRequest(f"{field} needs kind=groups.", param=field)
        if value not in allowed:
            raise InvalidRequest(
                f"{field} must be from {allowed[0]} to {allowed[-1]}, not {value}.", param=field
            )


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
    return InvalidRequest(
        f"{param} contains no characters that the tokenizer knows.", code="blank_text", param=param
    )


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
    _check_count(total, limits.max_classes, field="classes", noun="class")
    num_prompts = sum(max(1, len(c.prompts), len(c.examples)) for c in (*classes, *background))
    _check_count(num_prompts, limits.max_texts, field="classes", noun="prompt")
    chosen = _check_templates(templates)
    groups: list[PromptGroup] = []
    seen: set[str] = set()
    for field, members in (("classes", classes), ("background_classes", background)):
        for index, member in enumerate(members):
            param = f"{field}[{index}]"
            _check_text(member.name, f"{param}.name")
            if member.name in seen:
                raise InvalidRequest(
                    f"{param}: the class {member.name!r} is given twice.", param=f"{param}.name"
                )
            seen.add(member.name)
            group = _group(member.prompts or (member.name,), param, chosen)
            if not member.prompts:
                group = replace(group, name=member.name)
            elif member.pool == "max":
                group = replace(group, num_vectors=len(member.prompts))
            groups.append(group)
    return groups


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
        raise InvalidRequest(f"{param} is blank.", code="blank_text", param=param)
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidRequest(
            f"{param} has {len(text)} characters, at most {MAX_TEXT_CHARS} allowed.",
            code="text_too_long",
            param=param,
        )


def _check_templates(templates: TemplateSet | tuple[str, ...]) -> Sequence[str]:
    if isinstance(templates, str):
        return TEMPLATES[templates]
    _check_count(len(templates), MAX_TEMPLATES, field="templates", noun="template")
    for index, template in enumerate(templates):
        param = f"templates[{index}]"
        _check_text(template, param)
        if template.count("{}") != 1:
            raise InvalidRequest(f"{param} must contain {{}} exactly once.", param=param)
    return templates


def _check_count(count: int, limit: int, *, field: str, noun: str) -> None:
    if count == 0:
        raise InvalidRequest(
            f"{field} is empty; give at least one {noun}.", code="empty_list", param=field
        )
    if count > limit:
        # The field `classes` has two limits: of classes, and of the prompts of all classes.
        given = f"{count} prompts" if (field, noun) == ("classes", "prompt") else f"{count}"
        raise RequestTooLarge(
            f"{field}: {given} given, at most {limit} allowed.", code="too_many_items", param=field
        )
