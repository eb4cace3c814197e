"""`tipserve segment`: write the mask of an image for named classes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

import numpy as np

from model.files import atomic_write
from model.image_codec import ImageLimits, decode_image
from model.winner_map import Labels, count_labels
from service.commands.program import (
    DONE,
    add_engine_options,
    new_parser,
    opened_engine,
    served_name,
)
from service.engines.engine import EngineError, ImageRefused
from service.images import image_errors
from service.messages import SegmentClass, SegmentImagesRequest, SegmentMode
from service.outputs.masks import (
    MAX_PALETTE_CLASSES,
    class_color,
    encode_mask_png,
    encode_npy,
    encode_overlay_png,
)
from service.settings import Settings

SUFFIXES: Final = (".png", ".npy")


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status.

    Raises:
        EngineError: The mask cannot be computed or written.
        SystemExit: The command line is wrong, or asks for help.
    """
    options = _parse(list(arguments))
    classes = _names(options.classes)
    request = SegmentImagesRequest(
        images=(_read(options.image),),
        classes=tuple(SegmentClass(name=name) for name in classes),
        background_classes=tuple(SegmentClass(name=n) for n in _names(options.background_classes)),
        background_threshold=options.background_threshold,
        model=served_name(options),
        resolution=options.resolution,
        fit=options.fit,
        mode=options.mode,
    )
    _check_output(options, classes)
    with opened_engine(options) as engine:
        try:
            labels_HW = engine.segment(request)
        except ImageRefused as error:
            raise EngineError(f"{options.image}: {error}") from error
    image = request.images[0]
    assert isinstance(image, bytes)
    _write(options.output, _encode(options, labels_HW, image))
    _describe(labels_HW, classes)
    return DONE


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = new_parser(
        "segment",
        "Write a mask of the image's size: k for the k-th class, 0 for background.",
        (
            'photo.jpg --classes "dog, grass" -o mask.png',
            'photo.jpg --classes "dog, grass" --overlay -o seen.png',
            "photo.jpg --classes dog --background-threshold 0.1 -o mask.npy "
            "--url grpc://localhost:8001",
        ),
    )
    parser.add_argument("image", help="an image file, or - for standard input")
    parser.add_argument("--classes", required=True, help="names, separated by commas")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .png or .npy file")
    parser.add_argument(
        "--overlay",
        action="store_true",
        help="write the image with coloured classes instead (.png)",
    )
    parser.add_argument(
        "--background-classes",
        default="",
        help="names that count as background, separated by commas",
    )
    parser.add_argument(
        "--background-threshold", type=float, help="pixels with a lower cosine are background"
    )
    parser.add_argument("--resolution", type=int, help="resize the short side to this many pixels")
    parser.add_argument(
        "--fit",
        choices=("aspect", "squash"),
        default=SegmentImagesRequest.fit,
        help="keep the aspect ratio, or resize to a square (default: %(default)s)",
    )
    parser.add_argument(
        "--mode",
        choices=get_args(SegmentMode),
        help="process the whole image at once, or in overlapping windows (default: the model's "
        "own; whole is the faster one)",
    )
    add_engine_options(parser)
    return parser.parse_args(arguments)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _read(image: str) -> bytes:
    if image == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise EngineError(f"{image} cannot be read: {error.strerror}.") from error


def _check_output(options: argparse.Namespace, classes: Sequence[str]) -> None:
    """Check the output before anything is computed."""
    suffix = options.output.suffix.lower()
    if suffix not in SUFFIXES:
        raise EngineError(f"--output must end in .png or .npy, not {options.output.name}.")
    folder = options.output.parent
    if not folder.is_dir():
        raise EngineError(f"{options.output} cannot be written: {folder} is not a folder.")
    if options.overlay and suffix != ".png":
        raise EngineError("An overlay is an image: --output must end in .png.")
    if suffix == ".png" and not options.overlay and len(classes) > MAX_PALETTE_CLASSES:
        raise EngineError(
            f"{len(classes)} classes given, at most {MAX_PALETTE_CLASSES} fit into a PNG mask; "
            "use an --output that ends in .npy."
        )


def _encode(options: argparse.Namespace, labels_HW: Labels, image: bytes) -> bytes:
    if options.output.suffix.lower() == ".npy":
        return encode_npy(labels_HW.astype(np.uint16, copy=False))
    if not options.overlay:
        return encode_mask_png(labels_HW)
    fields = Settings.model_fields
    limits = ImageLimits(
        max_bytes=fields["max_image_bytes"].default, max_pixels=fields["max_image_pixels"].default
    )
    with image_errors("image"):
        return encode_overlay_png(labels_HW, decode_image(image, limits))


def _write(file: Path, content: bytes) -> None:
    """Write a file atomically."""
    try:
        atomic_write(file, content)
    except OSError as error:
        raise EngineError(f"{file} cannot be written: {error.strerror}.") from error


def _describe(labels_HW: Labels, classes: Sequence[str]) -> None:
    counts = count_labels(labels_HW, len(classes) + 1)
    for label, name in enumerate(("background", *classes)):
        colour = class_color(label) if label else "#000000"
        if label or counts[0]:
            print(f"{label} {name}: {100 * counts[label] / labels_HW.size:.1f} % {colour}")
