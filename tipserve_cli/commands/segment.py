"""`tipserve segment`: masks of images, or the instances of many as one COCO file."""

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from model.graphs import DenseTask
from model.image_codec import ImageLimits, decode_image
from model.preprocess import Fit
from model.winner_map import count_labels
from tipserve_cli.engine import UsageError, UserError
from tipserve_cli.files import check_output, is_folder, split_names
from tipserve_cli.model_options import (
    OUTPUT_OR_PIPE,
    Flag,
    Input,
    Model,
    ModelOptions,
    Positive,
    as_help,
    between,
)
from tipserve_client import Client, Segmentation
from tipserve_client.drawing import contrasting

# Endings of the output, by format.
SUFFIXES: Final = {
    "mask": (".png", ".npy"),
    "labels": (".png",),
    "overlay": (".png", ".jpg", ".jpeg"),
    "coco": (".json",),
}
# Options that the client has by the same names.
ASKED: Final = (
    *("quality", "background", "background_level", "background_threshold"),
    *("resolution", "fit", "mode"),
)
MAX_PALETTE_CLASSES: Final = 255
JPEG_QUALITY: Final = 90
# The model has accepted the image before, so this only bounds memory.
LIMITS: Final = ImageLimits(max_bytes=2**30, max_pixels=2**30)


@as_help
@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Options of the command, apart from those of the model.

    Attributes:
        classes: Names, separated by commas; or model, for those of the model's own head.
        output: A .png or .npy file (for overlay also .jpg), or - for a PNG on standard output; a
            folder for the PNGs of several images; for coco .json.
        format: mask: labels, as PNG in colours; labels: a grey PNG; overlay: the image with
            tinted and outlined classes over the darkened rest; coco: instances with boxes, scores
            and run lengths.
        min_area_share: Share of the pixels of the smallest instance, for coco; smaller holes are
            filled.
        holes: Keep the other holes of instances, or fill them, for coco. Default: keep.
        overwrite: Start a stopped job again, of several images.
        quality: fast: edges follow the image's colours; fine: and the model also sees the image
            larger; published: as released. Default: the model's own.
        background: auto: pixels far below the class's largest cosine are background, and so is a
            class that is absent. Default: auto for one class, the model's choice for several;
            none with a threshold or background classes.
        background_level: For auto: the cosine that a pixel needs, from 0 for the least to 1 for the
            largest of its class.
        background_classes: Names that count as background, separated by commas.
        background_threshold: Pixels with a lower cosine are background.
        resolution: Resize the short side to this many pixels.
        fit: Keep the aspect ratio, or resize to a square. Default: a square for the classes
            `model`, as released, and the aspect ratio for others.
        mode: Process the whole image at once, which is faster, or in overlapping windows. Default:
            the model's own.
    """

    classes: str
    # No Path, which would make one slash of the two in s3://.
    output: Annotated[str, OUTPUT_OR_PIPE]
    format: Literal["mask", "labels", "overlay", "coco"] = "mask"
    min_area_share: Annotated[float, between(1e-4, 1)] = 0.001
    holes: Literal["fill", "keep"] | None = None
    overwrite: Flag = False
    quality: Literal["published", "fast", "fine"] | None = None
    background: Literal["none", "auto"] | None = None
    background_level: Annotated[float | None, between(0, 1)] = None
    background_classes: Annotated[str, Parameter(show_default=False)] = ""
    background_threshold: Annotated[float | None, between(-1, 1)] = None
    resolution: Positive | None = None
    fit: Fit | None = None
    mode: Literal["whole", "slide"] | None = None

    @property
    def ending(self) -> str:
        """Of the output's name, or of the files in a folder."""
        is_file = not is_folder(self.output) and self.output != "-"
        return Path(self.output).suffix.lower() if is_file else ".png"

    def request(self) -> dict[str, Any]:
        """The options of the client."""
        asked = {name: getattr(self, name) for name in ASKED}
        return {**asked, "background_classes": split_names(self.background_classes) or None}


@as_help
def run(
    *images: Annotated[Input, Parameter(required=True)],
    options: Annotated[SegmentOptions, Parameter(name="*")],
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Args:
        images: An image file, or - for standard input; for coco or a folder as output also
            folders, patterns, and - for a list of paths.
        options: Of the command.
        model: Here, or on a server.
    """
    from tipserve_cli.bulk import lines  # noqa: PLC0415 - slow to import

    classes = split_names(options.classes)
    if not classes:
        raise UsageError("--classes has no name.")
    task: dict[str, Any] = {"images": images, "classes": classes, "model": model.served_name}
    is_coco, is_many = options.format == "coco", is_folder(options.output)
    if is_coco or not is_many:
        suffixes, purpose = SUFFIXES[options.format], f" for --format {options.format}"
        check_output(Path(options.output), suffixes, purpose, None if is_coco else ".png")
    if is_coco:
        outlines = {"min_area_share": options.min_area_share, "holes": options.holes}
        request = {**options.request(), **outlines}
        coco = lines.CocoTask(request=request, **task)
        return lines.write_lines(Path(options.output), coco, model, overwrite=options.overwrite)
    _check_palette(options, classes, UsageError)

    def render(client: Client, image: bytes) -> bytes:
        asked: dict[str, Any] = {"model": model.served_name, **options.request()}
        (mask,) = client.segment(image, classes, **asked)
        # A head's classes are known only now.
        _check_palette(options, [one.name for one in mask.classes], UserError)
        pixels_HW3 = decode_image(image, LIMITS) if options.format == "overlay" else None
        if not is_many:
            colors = [one.color for one in mask.classes]
            if pixels_HW3 is not None:
                colors = contrasting(colors, mask.labels, pixels_HW3)
            _describe(mask, colors, sys.stderr if options.output == "-" else sys.stdout)
        return _encode(options, mask, pixels_HW3)

    request = {**options.request(), "format": options.format}
    written: dict[str, Any] = {"render": render, "output": options.output, "ending": options.ending}
    heads: tuple[DenseTask, ...] = ("segmentation",) if classes == ("model",) else ()
    files = lines.ImageFilesTask(request=request, **task, **written)
    return lines.write_image_files(files, model, heads, overwrite=options.overwrite)


def _check_palette(options: SegmentOptions, classes: Sequence[str], error: type[UserError]) -> None:
    is_palette = options.format == "mask" and options.ending != ".npy"
    if is_palette and len(classes) > MAX_PALETTE_CLASSES:
        raise error(
            f"{len(classes)} classes given, at most {MAX_PALETTE_CLASSES} fit into a PNG mask; "
            "use --format labels, or an --output that ends in .npy."
        )


def _encode(
    options: SegmentOptions, mask: Segmentation, pixels_HW3: NDArray[np.uint8] | None
) -> bytes:
    from tipserve_cli import local  # noqa: PLC0415 - slow to import

    if pixels_HW3 is not None:
        stream = io.BytesIO()
        drawn = mask.overlay(pixels_HW3)
        if options.ending == ".png":
            drawn.save(stream, "PNG", compress_level=1)
        else:
            drawn.save(stream, "JPEG", quality=JPEG_QUALITY)
        return stream.getvalue()
    if options.ending == ".npy":
        return local.masks.encode_npy(mask.labels)
    is_small = len(mask.classes) <= MAX_PALETTE_CLASSES
    labels_HW = mask.labels.astype(np.uint8) if is_small else mask.labels
    encode = (
        local.masks.encode_labels_png if options.format == "labels" else local.masks.encode_mask_png
    )
    return encode(labels_HW)


def _describe(mask: Segmentation, colors: Sequence[str], stream: Any) -> None:
    counts = count_labels(mask.labels, len(mask.classes) + 1)
    if counts[0]:
        print(f"0 background: {100 * counts[0] / mask.labels.size:.1f} % #000000", file=stream)
    for one, color in zip(mask.classes, colors, strict=True):
        share = 100 * counts[one.label] / mask.labels.size
        is_known = one.confidence is not None and counts[one.label]
        told = f", confidence {one.confidence:.2f}" if is_known else ""
        print(f"{one.label} {one.name}: {share:.1f} % {color}{told}", file=stream)
