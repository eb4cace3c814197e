"""`tipserve segment`: the mask of an image, or the instances of many as one COCO file."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, get_args

import numpy as np

from model.files import atomic_write
from model.image_codec import ImageLimits, decode_image
from model.winner_map import Labels, count_labels
from service.commands.program import (
    DONE,
    DONE_WITH_SKIPPED_IMAGES,
    add_engine_options,
    new_parser,
    opened_engine,
    served_name,
)
from service.engines.engine import EngineError, ImageRefused, find_model
from service.images import image_errors
from service.messages import SegmentClass, SegmentImagesRequest, SegmentMode
from service.outputs.masks import (
    MAX_PALETTE_CLASSES,
    class_color,
    encode_labels_png,
    encode_mask_png,
    encode_npy,
    encode_overlay_png,
)
from service.settings import Settings

# Endings of the output, by format.
SUFFIXES: Final = {
    "mask": (".png", ".npy"),
    "labels": (".png",),
    "overlay": (".png",),
    "coco": (".json",),
}


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: The masks cannot be computed or written.
        SystemExit: The command line is wrong, or asks for help.
    """
    options = _parse(list(arguments))
    classes = _names(options.classes)
    request = SegmentImagesRequest(
        images=(),
        classes=tuple(SegmentClass(name=name) for name in classes),
        background_classes=tuple(SegmentClass(name=n) for n in _names(options.background_classes)),
        background_threshold=options.background_threshold,
        model=served_name(options),
        resolution=options.resolution,
        fit=options.fit,
        mode=options.mode,
    )
    _check_output(options, classes)
    if options.format == "coco":
        share = options.min_area_share
        return _write_coco(options, replace(request, include_instances=True, min_area_share=share))
    if len(options.image) > 1 or Path(options.image[0]).is_dir():
        raise EngineError(f"--format {options.format} is of one image; coco takes a folder.")
    image = _read(options.image[0])
    with opened_engine(options) as engine:
        try:
            labels_HW = engine.segment(replace(request, images=(image,))).result().labels_HW
        except ImageRefused as error:
            raise EngineError(f"{options.image[0]}: {error}") from error
    _write(options.output, _encode(options, labels_HW, image))
    _describe(labels_HW, classes)
    return DONE


def _write_coco(options: argparse.Namespace, request: SegmentImagesRequest) -> int:
    """Write the instances of all images."""
    # Imported here, because the inputs need pyarrow, which a single mask does not.
    from service.bulk.coco import (  # noqa: PLC0415
        CocoJob,
        is_finished,
        opened_journal,
        segment_files,
        write_coco,
    )
    from service.bulk.inputs import find_inputs  # noqa: PLC0415
    from service.commands.progress import shown_progress  # noqa: PLC0415

    inputs = find_inputs(options.image, sys.stdin, 1)
    folder = options.image[0]
    root = folder if len(options.image) == 1 and Path(folder).is_dir() else None
    with opened_engine(options) as engine:
        model = find_model(engine, served_name(options))
        job = CocoJob(inputs=inputs, root=root, request=request, model=model)
        num_images = len(job.paths)
        if not options.overwrite and is_finished(options.output, job):
            print(f"{options.output}: complete")
            return DONE
        with opened_journal(options.output, job, overwrite=options.overwrite) as journal:
            num_done = journal.num_images
            with shown_progress(
                num_images, num_done, num_images - num_done, nouns=("image", "instances")
            ) as progress:
                segment_files(engine, job, journal, progress)
            num_good, num_instances, num_bad = write_coco(options.output, job, journal)
    print(f"{options.output}: {num_instances} instances in {num_good} images")
    if not num_bad:
        return DONE
    errors = options.output.with_name(f"{options.output.stem}.errors.jsonl")
    print(f"{errors}: {num_bad} images were skipped", file=sys.stderr)
    return DONE_WITH_SKIPPED_IMAGES


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = new_parser(
        "segment",
        "Write a mask of the image's size: k for the k-th class, 0 for background. Or write the\n"
        "instances of many images as one COCO file; run an interrupted command again to continue\n"
        "where it stopped.",
        (
            'photo.jpg --classes "dog, grass" -o mask.png',
            'photo.jpg --classes "dog, grass" --format overlay -o seen.png',
            'photos/ --classes "dog, cat" --background-threshold 0.1 --format coco -o found.json',
            "photo.jpg --classes dog --background-threshold 0.1 -o mask.npy "
            "--url grpc://localhost:8001",
        ),
    )
    _add_output_options(parser)
    _add_mask_options(parser)
    add_engine_options(parser)
    return parser.parse_args(arguments)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "image",
        nargs="+",
        help="an image file, or - for standard input; for coco also folders, patterns, and - for "
        "a list of paths",
    )
    parser.add_argument("--classes", required=True, help="names, separated by commas")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="a .png or .npy file; for coco .json"
    )
    parser.add_argument(
        "--format",
        choices=tuple(SUFFIXES),
        default="mask",
        help="mask: labels, as PNG in colours; labels: a grey PNG; overlay: the image with "
        "coloured classes; coco: instances with boxes, scores and run lengths (default: mask)",
    )
    parser.add_argument(
        "--min-area-share",
        type=float,
        default=SegmentImagesRequest.min_area_share,
        help="share of the pixels of the smallest instance, for coco (default: %(default)s)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="start a stopped job again, for coco"
    )


def _add_mask_options(parser: argparse.ArgumentParser) -> None:
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
    allowed = SUFFIXES[options.format]
    if suffix not in allowed:
        raise EngineError(
            f"--output must end in {' or '.join(allowed)} for --format {options.format}, "
            f"not {options.output.name}."
        )
    folder = options.output.parent
    if not folder.is_dir():
        raise EngineError(f"{options.output} cannot be written: {folder} is not a folder.")
    is_palette = suffix == ".png" and options.format == "mask"
    if is_palette and len(classes) > MAX_PALETTE_CLASSES:
        raise EngineError(
            f"{len(classes)} classes given, at most {MAX_PALETTE_CLASSES} fit into a PNG mask; "
            "use --format labels, or an --output that ends in .npy."
        )


def _encode(options: argparse.Namespace, labels_HW: Labels, image: bytes) -> bytes:
    if options.output.suffix.lower() == ".npy":
        return encode_npy(labels_HW.astype(np.uint16, copy=False))
    if options.format == "labels":
        return encode_labels_png(labels_HW)
    if options.format == "mask":
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
