"""`tipserve segment`: the mask of an image, or the instances of many as one COCO file."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TextIO

import numpy as np
from cyclopts import Parameter

from model.graphs import DenseTask
from model.image_codec import ImageError, ImageLimits, decode_image
from model.preprocess import Fit
from model.winner_map import count_labels
from tipserve_cli.engine import UserError, refusals_of
from tipserve_cli.files import check_output, is_pipe, read_image, split_names, write_output
from tipserve_cli.model_options import (
    OUTPUT_OR_PIPE,
    Flag,
    Input,
    Model,
    ModelOptions,
    as_help,
    opened_engine,
)
from tipserve_cli.program import DONE
from tipserve_client import Segmentation

# Endings of the output, by format.
SUFFIXES: Final = {
    "mask": (".png", ".npy"),
    "labels": (".png",),
    "overlay": (".png",),
    "coco": (".json",),
}
MAX_PALETTE_CLASSES: Final = 255
# The model has accepted the image before, so this only bounds memory.
LIMITS: Final = ImageLimits(max_bytes=2**30, max_pixels=2**30)


@as_help
@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Options of the command, apart from those of the model.

    Attributes:
        classes: Names, separated by commas; or model, for those of the model's own head.
        output: A .png or .npy file, or - for a PNG on standard output; for coco .json.
        format: mask: labels, as PNG in colours; labels: a grey PNG; overlay: the image with
            coloured classes; coco: instances with boxes, scores and run lengths.
        min_area_share: Share of the pixels of the smallest instance, for coco.
        overwrite: Start a stopped job again, for coco.
        background_classes: Names that count as background, separated by commas.
        background_threshold: Pixels with a lower cosine are background.
        resolution: Resize the short side to this many pixels.
        fit: Keep the aspect ratio, or resize to a square. Default: a square for the classes
            `model`, as released, and the aspect ratio for others.
        mode: Process the whole image at once, which is faster, or in overlapping windows. Default:
            the model's own.
    """

    classes: str
    output: Annotated[Path, OUTPUT_OR_PIPE]
    format: Literal["mask", "labels", "overlay", "coco"] = "mask"
    min_area_share: float = 0.001
    overwrite: Flag = False
    background_classes: Annotated[str, Parameter(show_default=False)] = ""
    background_threshold: float | None = None
    resolution: int | None = None
    fit: Fit | None = None
    mode: Literal["whole", "slide"] | None = None

    def request(self) -> dict[str, Any]:
        """The options of the client."""
        return {
            "background_threshold": self.background_threshold,
            "background_classes": split_names(self.background_classes) or None,
            "resolution": self.resolution,
            "fit": self.fit,
            "mode": self.mode,
        }


@as_help
def run(
    *images: Annotated[Input, Parameter(required=True)],
    options: Annotated[SegmentOptions, Parameter(name="*")],
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Args:
        images: An image file, or - for standard input; for coco also folders, patterns, and - for
            a list of paths.
        options: Of the command.
        model: Here, or on a server.
    """
    classes = split_names(options.classes)
    piped = None if options.format == "coco" else ".png"
    check_output(options.output, SUFFIXES[options.format], f" for --format {options.format}", piped)
    _check_palette(options, classes)
    if options.format == "coco":
        return _write_coco(images, classes, options, model)
    if len(images) > 1 or Path(images[0]).is_dir():
        raise UserError(f"--format {options.format} is of one image; coco takes a folder.")
    image = read_image(images[0])
    heads: tuple[DenseTask, ...] = ("segmentation",) if classes == ("model",) else ()
    with opened_engine(model, heads) as engine, refusals_of(images[0]):
        asked = {"model": model.served_name, **options.request()}
        (mask,) = engine.client.segment(image, classes, **asked)
    # A head's classes are known only now.
    _check_palette(options, [one.name for one in mask.classes])
    write_output(options.output, _encode(options, mask, image))
    _describe(mask, sys.stderr if is_pipe(options.output) else sys.stdout)
    return DONE


def _write_coco(
    images: Sequence[str], classes: Sequence[str], options: SegmentOptions, model: ModelOptions
) -> int:
    """Write the instances of all images."""
    from tipserve_cli.bulk.lines import CocoTask, common_root, write_lines  # noqa: PLC0415

    task = CocoTask(
        classes=classes,
        request={**options.request(), "min_area_share": options.min_area_share},
        model=model.served_name,
        root=common_root(images),
    )
    return write_lines(images, options.output, task, model, overwrite=options.overwrite)


def _check_palette(options: SegmentOptions, classes: Sequence[str]) -> None:
    is_palette = options.output.suffix.lower() != ".npy" and options.format == "mask"
    if is_palette and len(classes) > MAX_PALETTE_CLASSES:
        raise UserError(
            f"{len(classes)} classes given, at most {MAX_PALETTE_CLASSES} fit into a PNG mask; "
            "use --format labels, or an --output that ends in .npy."
        )


def _encode(options: SegmentOptions, mask: Segmentation, image: bytes) -> bytes:
    from tipserve_cli import local  # noqa: PLC0415 - slow to import

    if options.output.suffix.lower() == ".npy":
        return local.encode_npy(mask.labels)
    is_small = len(mask.classes) <= MAX_PALETTE_CLASSES
    labels_HW = mask.labels.astype(np.uint8) if is_small else mask.labels
    if options.format == "labels":
        return local.encode_labels_png(labels_HW)
    if options.format == "mask":
        return local.encode_mask_png(labels_HW)
    try:
        return local.encode_overlay_png(labels_HW, decode_image(image, LIMITS))
    except ImageError as error:
        raise UserError(f"image: {error}.") from error


def _describe(mask: Segmentation, stream: TextIO) -> None:
    counts = count_labels(mask.labels, len(mask.classes) + 1)
    if counts[0]:
        print(f"0 background: {100 * counts[0] / mask.labels.size:.1f} % #000000", file=stream)
    for one in mask.classes:
        share = 100 * counts[one.label] / mask.labels.size
        print(f"{one.label} {one.name}: {share:.1f} % {one.color}", file=stream)
