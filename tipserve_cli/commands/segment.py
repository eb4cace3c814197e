"""`tipserve segment`: the mask of an image, or the instances of many as one COCO file."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from cyclopts import Parameter

from model.image_codec import ImageLimits, decode_image
from model.preprocess import Fit
from model.winner_map import Labels, count_labels
from service.images import image_errors
from service.messages import SegmentClass, SegmentImagesRequest, SegmentMode
from service.outputs.colours import class_color
from service.outputs.masks import (
    MAX_PALETTE_CLASSES,
    encode_labels_png,
    encode_mask_png,
    encode_npy,
    encode_overlay_png,
)
from service.settings import Settings
from tipserve_cli.commands.files import check_output, read_image, split_names, write_file
from tipserve_cli.commands.model_options import Model, ModelOptions, opened_engine, refusals_of
from tipserve_cli.commands.program import DONE, DONE_WITH_SKIPPED_IMAGES, reject_options
from tipserve_cli.engines.engine import EngineError, Mask, find_model

# Endings of the output, by format.
SUFFIXES: Final = {
    "mask": (".png", ".npy"),
    "labels": (".png",),
    "overlay": (".png",),
    "coco": (".json",),
}


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Options of the command, apart from those of the model."""

    classes: Annotated[
        str,
        Parameter(help="Names, separated by commas; or model, for those of the model's own head."),
    ]
    output: Annotated[
        Path,
        Parameter(name=("--output", "-o"), help="A .png or .npy file; for coco .json."),
    ]
    format: Annotated[
        Literal["mask", "labels", "overlay", "coco"],
        Parameter(
            help="mask: labels, as PNG in colours; labels: a grey PNG; overlay: the image with "
            "coloured classes; coco: instances with boxes, scores and run lengths."
        ),
    ] = "mask"
    min_area_share: Annotated[
        float, Parameter(help="Share of the pixels of the smallest instance, for coco.")
    ] = SegmentImagesRequest.min_area_share
    overwrite: Annotated[
        bool, Parameter(help="Start a stopped job again, for coco.", show_default=False)
    ] = False
    background_classes: Annotated[
        str,
        Parameter(help="Names that count as background, separated by commas.", show_default=False),
    ] = ""
    background_threshold: Annotated[
        float | None, Parameter(help="Pixels with a lower cosine are background.")
    ] = None
    resolution: Annotated[
        int | None, Parameter(help="Resize the short side to this many pixels.")
    ] = None
    fit: Annotated[Fit, Parameter(help="Keep the aspect ratio, or resize to a square.")] = (
        SegmentImagesRequest.fit
    )
    mode: Annotated[
        SegmentMode | None,
        Parameter(
            help="Process the whole image at once, which is faster, or in overlapping windows. "
            "Default: the model's own."
        ),
    ] = None


def run(
    *images: Annotated[
        str,
        Parameter(
            help="An image file, or - for standard input; for coco also folders, patterns, and - "
            "for a list of paths.",
            allow_leading_hyphen=True,
            validator=reject_options,
            required=True,
        ),
    ],
    options: Annotated[SegmentOptions, Parameter(name="*")],
    model: Model = ModelOptions(),
) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: The masks cannot be computed or written.
    """
    classes = split_names(options.classes)
    request = SegmentImagesRequest(
        images=(),
        classes=tuple(SegmentClass(name=name) for name in classes),
        background_classes=tuple(
            SegmentClass(name=n) for n in split_names(options.background_classes)
        ),
        background_threshold=options.background_threshold,
        model=model.served_name,
        resolution=options.resolution,
        fit=options.fit,
        mode=options.mode,
    )
    _check_output(options, classes)
    if options.format == "coco":
        share = options.min_area_share
        request = replace(request, include_instances=True, min_area_share=share)
        return _write_coco(images, options, model, request)
    if len(images) > 1 or Path(images[0]).is_dir():
        raise EngineError(f"--format {options.format} is of one image; coco takes a folder.")
    image = read_image(images[0])
    with opened_engine(model) as engine, refusals_of(images[0]):
        mask = engine.segment(replace(request, images=(image,))).result()
    # A head's classes are known only now.
    _check_palette(options, mask.classes)
    write_file(options.output, _encode(options, mask.labels_HW, image))
    _describe(mask)
    return DONE


def _write_coco(
    images: Sequence[str],
    options: SegmentOptions,
    model: ModelOptions,
    request: SegmentImagesRequest,
) -> int:
    """Write the instances of all images."""
    # Imported here, because the inputs need pyarrow, which a single mask does not.
    from tipserve_cli.bulk.coco import is_finished, segment_files, write_coco  # noqa: PLC0415
    from tipserve_cli.bulk.inputs import find_inputs  # noqa: PLC0415
    from tipserve_cli.bulk.journal import FilesJob, common_root, opened_journal  # noqa: PLC0415
    from tipserve_cli.commands.progress import shown_progress  # noqa: PLC0415

    inputs = find_inputs(images, sys.stdin, 1)
    with opened_engine(model) as engine:
        found = find_model(engine, model.served_name)
        job = FilesJob(inputs=inputs, root=common_root(images), request=request, model=found)
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


def _check_output(options: SegmentOptions, classes: Sequence[str]) -> None:
    """Check the output before anything is computed."""
    purpose = f" for --format {options.format}"
    check_output(options.output, SUFFIXES[options.format], purpose)
    _check_palette(options, classes)


def _check_palette(options: SegmentOptions, classes: Sequence[str]) -> None:
    is_palette = options.output.suffix.lower() == ".png" and options.format == "mask"
    if is_palette and len(classes) > MAX_PALETTE_CLASSES:
        raise EngineError(
            f"{len(classes)} classes given, at most {MAX_PALETTE_CLASSES} fit into a PNG mask; "
            "use --format labels, or an --output that ends in .npy."
        )


def _encode(options: SegmentOptions, labels_HW: Labels, image: bytes) -> bytes:
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


def _describe(mask: Mask) -> None:
    counts = count_labels(mask.labels_HW, len(mask.classes) + 1)
    for label, name in enumerate(("background", *mask.classes)):
        colour = class_color(label) if label else "#000000"
        if label or counts[0]:
            print(f"{label} {name}: {100 * counts[label] / mask.labels_HW.size:.1f} % {colour}")
