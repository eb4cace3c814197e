"""Checks of a request that both transports need, made once: counts, names, sizes. Pure functions.

Every error names its field and, for an item of a list, its index.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from model.dense_maps import MapTask
from model.package import Manifest
from model.text import TEMPLATES, fill
from service.errors import InvalidRequest, NotSupported, RequestTooLarge, ServiceError
from service.messages import (
    IMAGE_OUTPUTS,
    ClassifyImagesRequest,
    EmbedTextsRequest,
    ImageOutput,
    MaybeImage,
    ModelInfo,
    RequestLimits,
    SegmentClass,
    TemplateSet,
    VisualizeFeaturesRequest,
)

MAX_TEXT_CHARS: Final = 2000
MAX_TEMPLATES: Final = 64
GROUP_COUNTS: Final = range(2, 21)
MAX_SEED: Final = 2**31 - 1
# Below it the best class would have all of the probability, whatever the others have.
MIN_TEMPERATURE: Final = 1e-4
# A pixel of a mask has two bytes on its way out, one of a map four at the least.
MASKS_FOR_A_MAP: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptGroup:
    """One text or class: its filled prompts, and the field that an error in them is about."""

    param: str
    prompts: tuple[str, ...]


def check_images(images: Sequence[MaybeImage | str], limits: RequestLimits) -> None:
    """Refuse no images, and too many.

    Raises:
        InvalidRequest: There is none.
        RequestTooLarge: There are more than the limit.
    """
    _check_count(len(images), limits.max_images, field="images", noun="image")


def check_pixels(images: Sequence[MaybeImage], manifest: Manifest) -> None:
    """Of images that come as pixels: refuse other shapes, and sizes that the model does not see.

    Raises:
        InvalidRequest: One is neither uint8 [H, W, 3] nor float32 [3, H, W], or is the latter and
            of a size that would have to be scaled.
    """
    for index, image in enumerate(images):
        if not isinstance(image, bytes | ServiceError):
            _check_pixels(image, manifest, f"images[{index}]")


def _check_pixels(
    image: NDArray[np.uint8] | NDArray[np.float32], manifest: Manifest, param: str
) -> None:
    is_planes = image.dtype == np.float32
    is_known = image.ndim == 3 and (is_planes or image.dtype == np.uint8)
    if not is_known or image.shape[0 if is_planes else 2] != 3 or image.size == 0:
        raise InvalidRequest(
            f"{param}: pixels are uint8 [height, width, 3] or float32 [3, height, width], not "
            f"{image.dtype} {list(image.shape)}.",
            code="invalid_image",
            param=param,
        )
    if not is_planes:
        return
    height, width = image.shape[1:]
    is_multiple = height % manifest.size_multiple == width % manifest.size_multiple == 0
    if not is_multiple or not manifest.min_size <= min(height, width) <= manifest.max_size:
        raise InvalidRequest(
            f"{param}: float32 pixels are taken as they are, so both sides must be multiples of "
            f"{manifest.size_multiple} and the shorter one from {manifest.min_size} to "
            f"{manifest.max_size}, not {height} x {width}; uint8 pixels are scaled.",
            code="invalid_image",
            param=param,
        )


def check_outputs(outputs: Sequence[str], manifest: Manifest) -> tuple[ImageOutput, ...]:
    """The outputs asked for, each once.

    Raises:
        InvalidRequest: There is none, or one that the model does not have.
    """
    if not outputs:
        raise InvalidRequest("outputs is empty; name one.", code="empty_list", param="outputs")
    known = [name for name in IMAGE_OUTPUTS if name in manifest.outputs]
    for index, name in enumerate(outputs):
        if name not in known:
            raise InvalidRequest(
                f"outputs[{index}]: {manifest.name} has no output {name!r}; "
                f"it has {', '.join(known)}.",
                code="unknown_output",
                param=f"outputs[{index}]",
            )
    return cast("tuple[ImageOutput, ...]", tuple(dict.fromkeys(outputs)))


def check_resolution(resolution: int | None, manifest: Manifest) -> int:
    """The resolution to use, in pixels.

    Raises:
        InvalidRequest: It is outside the model's range, or no multiple of its step.
    """
    if resolution is None:
        return manifest.native_size
    in_range = manifest.min_size <= resolution <= manifest.max_size
    if not in_range or resolution % manifest.size_multiple:
        raise InvalidRequest(
            f"resolution must be a multiple of {manifest.size_multiple} from "
            f"{manifest.min_size} to {manifest.max_size} for {manifest.name}, not {resolution}.",
            param="resolution",
        )
    return resolution


def check_dimensions(dimensions: int | None, manifest: Manifest) -> int:
    """How many elements of an embedding to keep.

    Raises:
        InvalidRequest: Fewer than one, or more than there are.
    """
    if dimensions is None:
        return manifest.embed_dim
    if not 1 <= dimensions <= manifest.embed_dim:
        raise InvalidRequest(
            f"dimensions is from 1 to {manifest.embed_dim} for {manifest.name}, not {dimensions}.",
            param="dimensions",
        )
    return dimensions


def check_features(features: ImageOutput | None, manifest: Manifest) -> ImageOutput:
    """The embeddings to compare with classes, or to look at.

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


def check_task(task: MapTask, info: ModelInfo) -> None:
    """Refuse a map that the model cannot make, and say what is missing.

    Raises:
        NotSupported: The package has no such head, or its runtime does not compute it.
    """
    if task in info.tasks:
        return
    name = info.manifest.name
    if task in info.manifest.outputs:
        raise NotSupported(
            f"{name} has a head for {task}, but the runtime {info.runtime} does not compute it; "
            "serve it by another runtime.",
            param="model",
        )
    raise NotSupported(
        f"{name} has no head for {task}; name or serve a model that has one, such as a package "
        "made from a TIPSv2 checkpoint whose name ends in -dpt.",
        param="model",
    )


def check_map_pixels(sizes_hw: Sequence[tuple[int, int]], limits: RequestLimits) -> None:
    """Refuse maps of images' sizes that would take too much memory together.

    Raises:
        RequestTooLarge: All together have more pixels than one image may have.
    """
    num_pixels = sum(height * width for height, width in sizes_hw)
    if num_pixels > limits.max_image_pixels:
        raise RequestTooLarge(
            f"The maps would have {num_pixels} pixels together; at most {limits.max_image_pixels} "
            "are sent. Send fewer or smaller images, or ask for size model.",
            param="size",
        )


def check_mask_pixels(
    sizes_hw: Sequence[tuple[int, int]], limits: RequestLimits, *, with_scores: bool
) -> None:
    """Refuse masks of images' sizes that would take too much memory together.

    Raises:
        RequestTooLarge: All together have more pixels than two images may have, or than one
            where scores go with them.
    """
    num_pixels = sum(height * width for height, width in sizes_hw)
    most = limits.max_image_pixels * (1 if with_scores else MASKS_FOR_A_MAP)
    if num_pixels > most:
        raise RequestTooLarge(
            f"The masks would have {num_pixels} pixels together; at most {most} are sent"
            f"{' with scores' if with_scores else ''}. Send fewer or smaller images.",
            param="images",
        )


def check_threshold(threshold: float | None) -> None:
    """Refuse what is no cosine.

    Raises:
        InvalidRequest: It is outside -1 to 1, or not a number.
    """
    if threshold is not None and not -1 <= threshold <= 1:
        raise InvalidRequest(
            f"background_threshold is a cosine from -1 to 1, not {threshold}.",
            param="background_threshold",
        )


def check_choices(request: ClassifyImagesRequest) -> None:
    """Refuse a temperature that divides nothing, and fewer classes than one.

    Raises:
        InvalidRequest: It is so.
    """
    if request.temperature is not None and not MIN_TEMPERATURE <= request.temperature < math.inf:
        raise InvalidRequest(
            f"temperature is a number from {MIN_TEMPERATURE}, not {request.temperature}.",
            param="temperature",
        )
    if request.top_k is not None and request.top_k < 1:
        raise InvalidRequest(f"top_k is at least 1, not {request.top_k}.", param="top_k")


def check_view(request: VisualizeFeaturesRequest) -> None:
    """Refuse numbers of groups and seeds out of range, and where there are no groups.

    Raises:
        InvalidRequest: It is so.
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
                f"{field} is from {allowed[0]} to {allowed[-1]}, not {value}.", param=field
            )


def text_groups(
    request: EmbedTextsRequest, limits: RequestLimits
) -> tuple[dict[int, PromptGroup], dict[int, ServiceError]]:
    """The prompts of each text by its place; and where the request is partial, what is wrong.

    Raises:
        InvalidRequest: No text, a blank or overlong one, or a template without exactly one `{}`.
        RequestTooLarge: Too many texts.
    """
    _check_count(len(request.texts), limits.max_texts, field="texts", noun="text")
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
    """Texts by their place without those that have a blank prompt, which are errors too."""
    bad = {i: group for i, group in groups.items() if not blank.isdisjoint(group.prompts)}
    good = {i: group for i, group in groups.items() if i not in bad}
    return good, {**errors, **{i: blank_text(group.param) for i, group in bad.items()}}


def blank_text(param: str) -> InvalidRequest:
    """What is told of a text without a token."""
    return InvalidRequest(
        f"{param} holds nothing that the tokenizer knows.", code="blank_text", param=param
    )


def class_groups(
    classes: Sequence[SegmentClass],
    background: Sequence[SegmentClass],
    templates: TemplateSet | tuple[str, ...],
    limits: RequestLimits,
) -> list[PromptGroup]:
    """The prompts of each class, then of each background class.

    Raises:
        InvalidRequest: No class, a blank name or prompt, a name given twice, or a bad template.
        RequestTooLarge: Too many classes or prompts.
    """
    total = len(classes) + len(background) if classes else 0
    _check_count(total, limits.max_classes, field="classes", noun="class")
    num_prompts = sum(max(1, len(c.prompts)) for c in (*classes, *background))
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
            groups.append(_group(member.prompts or [member.name], param, chosen))
    return groups


def _group(texts: Sequence[str], param: str, templates: Sequence[str]) -> PromptGroup:
    for index, text in enumerate(texts):
        _check_text(text, param if len(texts) == 1 else f"{param}.prompts[{index}]")
    prompts = [prompt for text in texts for prompt in fill(text, templates)]
    return PromptGroup(param=param, prompts=tuple(prompts))


def _check_text(text: str, param: str) -> None:
    if not text.strip():
        raise InvalidRequest(f"{param} is blank; give it a word.", code="blank_text", param=param)
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidRequest(
            f"{param} has {len(text)} characters; at most {MAX_TEXT_CHARS} are read.",
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
            raise InvalidRequest(f"{param} must hold {{}} exactly once.", param=param)
    return templates


def _check_count(count: int, limit: int, *, field: str, noun: str) -> None:
    if count == 0:
        raise InvalidRequest(
            f"{field} is empty; give at least one {noun}.", code="empty_list", param=field
        )
    if count > limit:
        raise RequestTooLarge(
            f"{field}: {count} are too many; at most {limit} of kind {noun} are taken at once.",
            code="too_many_items",
            param=field,
        )
