"""Heads that a request names as its only class.

`head:NAME` is one in a folder of the operator, `model` the segmentation head of the package.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from model.head import SUFFIX, Head, HeadError, read_head
from model.manifest import Manifest
from service.errors import InvalidRequest
from service.messages import ClassifyImagesRequest, ModelInfo, SegmentClass, SegmentImagesRequest
from service.validation import check_task

OWN_LABELS: Final = "model"
# Options that the package's own classes do not take.
OWN_OPTIONS: Final = (
    *("features", "templates", "background_classes", "background_threshold"),
    *("background", "background_level", "quality"),
)
PREFIX: Final = "head:"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_LISTED: Final = 20

HeadRequest = TypeVar("HeadRequest", SegmentImagesRequest, ClassifyImagesRequest)


def names_own_labels(request: SegmentImagesRequest) -> bool:
    """Whether the request asks for the classes of the package's segmentation head."""
    return request.classes == (SegmentClass(name=OWN_LABELS),)


def with_own_labels(request: SegmentImagesRequest, info: ModelInfo) -> SegmentImagesRequest:
    """Replace `model` by the names of the package's own classes.

    Raises:
        NotSupported: The package has no segmentation head.
        InvalidRequest: The request has options that the head does not take.
    """
    check_task("segmentation", info)
    for field in OWN_OPTIONS:
        if getattr(request, field) not in (None, (), "none", "published"):
            _refuse(field, f"the classes of {info.manifest.name} are those of its head")
    if request.mode == "slide":
        _refuse("mode", "a head sees whole images")
    if request.include_all_scores:
        _refuse("include_scores", "a dense head has logits, and no cosines of all classes")
    labels = info.manifest.segmentation_labels
    return replace(
        request,
        classes=tuple(SegmentClass(name=name) for name in labels),
        mode="whole",
        quality="published",
        background="none",
    )


def names_head(request: SegmentImagesRequest | ClassifyImagesRequest) -> bool:
    """Whether a class of the request is the name of a head."""
    return any(one.name.startswith(PREFIX) for one in request.classes)


class HeadFolder:
    """Reads heads when they are named, and again after their file has changed. Thread-safe.

    Args:
        folder: With a file `NAME.safetensors` for each head; None for no heads.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        # One assignment replaces an entry, so that no lock is needed.
        self._read: dict[str, tuple[tuple[int, int], Head]] = {}

    def apply(self, request: HeadRequest, manifest: Manifest) -> tuple[HeadRequest, Head]:
        """Replace the name of a head by the names of its classes.

        Returns:
            The request, and the head that its classes belong to.

        Raises:
            InvalidRequest: There is no such head, it was trained on another model or for another
                task, or the request has options that a head does not take.
        """
        if len(request.classes) > 1:
            raise _wrong(f"{PREFIX}NAME must be the only class")
        named = request.classes[0].name
        head = self._find(named.removeprefix(PREFIX))
        try:
            head.check(manifest)
        except HeadError as error:
            raise _wrong(f"{named}: {error}") from error
        _check_options(request, named, head)
        changed: dict[str, Any] = {
            "classes": tuple(SegmentClass(name=name) for name in head.info.names),
            "features": head.info.features,
            "templates": "none",
        }
        if head.info.has_background:
            changed["background_classes"] = (SegmentClass(name="(background)"),)
        return replace(request, **changed), head

    def _find(self, name: str) -> Head:
        if self._folder is None:
            raise _wrong("this server has no heads; start it with the setting heads")
        path = self._folder / f"{name}{SUFFIX}"
        if not NAME.fullmatch(name) or not path.is_file():
            raise _wrong(f"there is no head {name!r}{_known(self._folder)}")
        try:
            state = path.stat()
            version = state.st_mtime_ns, state.st_size
            known = self._read.get(name)
            if known is None or known[0] != version:
                known = version, read_head(path)
                self._read[name] = known
        except (HeadError, OSError) as error:
            raise _wrong(f"the head {name!r} cannot be read: {error}") from error
        return known[1]


def _known(folder: Path) -> str:
    names: Sequence[str] = sorted(path.stem for path in folder.glob(f"*{SUFFIX}"))
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"; known: {', '.join(names[:MAX_LISTED]) or 'none'}{more}"


def _check_options(
    request: SegmentImagesRequest | ClassifyImagesRequest, named: str, head: Head
) -> None:
    """Check the options beside a head."""
    one, features = request.classes[0], head.info.features
    if (features == "cls1") != isinstance(request, ClassifyImagesRequest):
        task = "classify" if features == "cls1" else "segment"
        raise _wrong(f"{named} was trained to {task} images")
    if request.features not in (None, features):
        _refuse("features", f"{named} was trained on {features}")
    if request.templates is not None:
        _refuse("templates", f"{named} has no prompts")
    if one != SegmentClass(name=one.name):
        raise _wrong(f"{named} has neither prompts nor pool nor examples")
    if isinstance(request, SegmentImagesRequest) and request.background_classes:
        _refuse("background_classes", f"{named} takes no others")


def _wrong(text: str) -> InvalidRequest:
    return InvalidRequest(f"classes: {text}.", code="unknown_head", param="classes")


def _refuse(field: str, reason: str) -> NoReturn:
    raise InvalidRequest(f"{field}: {reason}; leave the field out.", param=field)
