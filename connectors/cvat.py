"""CVAT's auto-annotation function, which cvat-cli loads; tipserve is installed beside it.

cvat-cli task auto-annotate TASK --function-file cvat.py -p words=str:dog,grass

Source: cvat_sdk/auto_annotation/interface.py of cvat-sdk 2.80.0.
"""

import atexit
import io
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from connectors.app import Backend, ImageFetcher
from connectors.regions import find_regions, outline
from tipserve_cli.model_options import ModelOptions, opened_engine

SHAPES = ("mask", "polygon", "rectangle")


def create(
    words: str, *, shape: str = "polygon", url: str = "", model: str = "", key_file: str = ""
) -> "Function":
    """Make the function.

    Args:
        words: Names of labels of the task, separated by commas; `name=grass|a lawn` gives a label
            prompts of its own.
        shape: polygon, mask or rectangle.
        url: Of a server; without it the model runs in this process.
        model: As for `tipserve segment`.
        key_file: File with the server's API key.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape: {shape!r} given, one of {', '.join(SHAPES)} required")
    classes = read_words(words)
    options = ModelOptions(
        url=url or None, model=model or None, api_key_file=Path(key_file) if key_file else None
    )
    stack = ExitStack()
    engine = stack.enter_context(opened_engine(options, heads=()))
    atexit.register(stack.close)
    backend = Backend(client=engine.client, model=options.served_name, images=ImageFetcher())
    return Function(backend, classes, shape)


def read_words(words: str) -> dict[str, list[str]]:
    """Prompts by label."""
    classes = {}
    for word in words.split(","):
        name, _, prompts = (part.strip() for part in word.partition("="))
        if name:
            classes[name] = [text.strip() for text in prompts.split("|") if text.strip()]
    if not classes:
        raise ValueError("words: no name given, such as words=str:dog,grass")
    return classes


class Function:
    """Regions of each frame, as shapes of the labels.

    Attributes:
        spec: The labels, for cvat-cli.
    """

    def __init__(self, backend: Backend, classes: dict[str, list[str]], shape: str) -> None:
        try:
            import cvat_sdk.auto_annotation as cvataa  # noqa: PLC0415 - optional
            from cvat_sdk import masks  # noqa: PLC0415
        except ImportError as error:
            raise ImportError("cvat-sdk is not installed. Run: pip install cvat-cli") from error
        self._sdk, self._masks = cvataa, masks
        self._backend, self._classes, self._shape = backend, classes, shape
        self._ids = {name: index for index, name in enumerate(classes)}
        labels = [cvataa.label_spec(name, index, type=shape) for name, index in self._ids.items()]
        self.spec = cvataa.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Any) -> list[Any]:
        """The shapes of a frame, given as PIL's image."""
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "PNG", compress_level=1)
        regions = find_regions(self._backend, stream.getvalue(), self._classes)
        least = context.conf_threshold or 0.0
        is_polygon = self._shape == "polygon" or context.conv_mask_to_poly
        shapes = []
        for region in regions:
            label = self._ids[region.name]
            if region.score < least:
                continue
            if self._shape == "rectangle":
                shapes.append(self._sdk.rectangle(label, [float(x) for x in region.xyxy]))
            elif is_polygon:
                points = [float(number) for point in outline(region) for number in point]
                shapes.append(self._sdk.polygon(label, points))
            else:
                shapes.append(self._sdk.mask(label, self._masks.encode_mask(region.mask)))
        return shapes
