"""`python -m training head`: a head for a package, from a handful of labelled images."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from rich.progress import track

from model.head import SUFFIX, Head, HeadFeatures, HeadInfo, vision_digest, write_head
from model.labelled.sets import (
    ImageSource,
    SegmentationSet,
    images_below,
    maps_of,
    read_classes,
    read_names,
)
from model.package import ModelPackage, open_package
from model.preprocess import Fit, prepare_image, target_size
from model.runtime.base import Runtime, VisionOutput
from model.runtime.load import load_runtime
from model.segmentation import l2_normalize, patch_shares
from training.dense.labelled import read_example, read_pixels
from training.label_head import HeldOut, Labelled, fit_head
from training.options import option


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the job."""

    images: Path = option("folder of images; without --masks, a folder of images for each class")
    masks: Path | None = option(
        "folder of masks, grey or palette PNGs of the images' names and sizes: label k is the k-th "
        "name, 0 the background, 255 no label",
        None,
    )
    names: str | None = option(
        "with --masks: names of the labels 1, 2, ...: separated by commas, or a .txt file with a "
        "name a line",
        None,
    )
    reduce_zero_label: bool = option(
        "in masks, label 0 means no label instead of the background", False
    )
    model: str = option("a package, bundled or bundled-student", "bundled")
    resolution: PositiveInt | None = option("short side in pixels (default: the model's)", None)
    output: Path = option(f"file to write, NAME{SUFFIX}")


def run(options: Options) -> None:
    """Fit a head and write it.

    Raises:
        ValueError: An option, an image or a mask is wrong.
    """
    start = time.monotonic()
    if options.output.suffix != SUFFIX:
        raise ValueError(f"--output ends in {SUFFIX}, unlike {options.output}")
    if (options.masks is None) != (options.names is None):
        raise ValueError("give --masks and --names together, or neither of them")
    package = open_package(options.model)
    encoder = _Encoder(package, load_runtime(package), options.resolution)
    features: HeadFeatures = "cls1"
    if options.masks is not None and options.names is not None:
        given = _masked(options, options.masks, options.names)
        names, labelled = _read_masked(given, encoder)
        features = package.manifest.zero_shot.features
    else:
        names, labelled = _read_folders(options.images, encoder)
    classes_KD, sharpness, held_out = fit_head(labelled)
    info = HeadInfo(
        names=tuple(names),
        has_background=labelled.shares_PK.shape[1] > len(names),
        features=features,
        temperature=1 / sharpness,
        model=package.manifest.name,
        vision_sha256=vision_digest(package.manifest),
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_head(options.output, Head(info, classes_KD))
    print(_report(info, labelled, held_out), flush=True)
    print(
        f"{options.output}: {time.monotonic() - start:.1f} s. Serve it with "
        f"--heads {options.output.parent}, and ask for the class head:{options.output.stem}.",
        flush=True,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Encoder:
    """Embeds images as the service does by default."""

    package: ModelPackage
    runtime: Runtime
    resolution: int | None

    def encode(self, pixels_HW3: NDArray[np.uint8], fit: Fit) -> list[VisionOutput]:
        """The outputs of an image and of its mirror image."""
        manifest = self.package.manifest
        size_hw = target_size(
            *pixels_HW3.shape[:2],
            resolution=self.resolution or manifest.native_size,
            fit=fit,
            multiple=manifest.size_multiple,
        )
        planes = [
            prepare_image(np.ascontiguousarray(image_HW3), size_hw, manifest.zero_shot.scaling)
            for image_HW3 in (pixels_HW3, pixels_HW3[:, ::-1])
        ]
        return [self.runtime.encode_images(planes_3HW[None]) for planes_3HW in planes]


def _masked(options: Options, masks: Path, names: str) -> SegmentationSet:
    listed = (
        read_names(Path(names))
        if names.endswith(".txt")
        else [name.strip() for name in names.split(",") if name.strip()]
    )
    images = images_below(options.images)
    return SegmentationSet(
        name="images",
        images=[ImageSource(path) for path in images],
        maps=maps_of(images, options.images, masks),
        names=listed if options.reduce_zero_label else ["background", *listed],
        reduce_zero_label=options.reduce_zero_label,
    )


def _read_masked(given: SegmentationSet, encoder: _Encoder) -> tuple[Sequence[str], Labelled]:
    """Names, and patches with the shares of labels in them; the background, if any, is last."""
    features, shares, image = [], [], []
    attribute = f"{encoder.package.manifest.zero_shot.features}_BND"
    for index in track(range(len(given.images)), "embedding images"):
        pixels_HW3, labels_HW = read_example(given, index)
        outputs = encoder.encode(pixels_HW3, "aspect")
        for output, seen_HW in zip(outputs, (labels_HW, labels_HW[:, ::-1]), strict=True):
            share_NK = patch_shares(seen_HW, output.grid_hw, len(given.names))
            is_labelled_N = share_NK.any(1)
            features.append(l2_normalize(getattr(output, attribute)[0])[is_labelled_N])
            shares.append(share_NK[is_labelled_N])
            image.append(np.full(is_labelled_N.sum(), index))
    names, shares_PK = given.names, np.concatenate(shares)
    if not given.reduce_zero_label:
        names, shares_PK = names[1:], np.roll(shares_PK, -1, axis=1)
    missing = [name for name, total in zip(names, shares_PK.sum(0), strict=False) if not total]
    if missing:
        raise ValueError(f"no mask has a pixel of: {', '.join(missing)}")
    if not shares_PK[:, -1].any():
        shares_PK = shares_PK[:, :-1]
    return names, Labelled(np.concatenate(features), shares_PK, np.concatenate(image))


def _read_folders(folder: Path, encoder: _Encoder) -> tuple[Sequence[str], Labelled]:
    """Whole images with the names of their folders as classes."""
    given = read_classes(folder)
    # In this order each fold has images of each class.
    outputs = [
        output
        for image in track(given.images, "embedding images")
        for output in encoder.encode(read_pixels(image), "squash")
    ]
    features = np.concatenate([l2_normalize(output.cls1_BD) for output in outputs])
    shares_PK = np.eye(len(given.names), dtype=np.float32)[np.repeat(given.labels, 2)]
    return given.names, Labelled(features, shares_PK, np.repeat(np.arange(len(given.images)), 2))


def _report(info: HeadInfo, labelled: Labelled, held_out: HeldOut | None) -> str:
    count = len(np.unique(labelled.image_P))
    background = " and the background" * info.has_background
    text = f"{count} images, {len(info.names)} classes{background}"
    if held_out is None:
        return f"{text}; too few images to hold any out"
    is_whole = info.features == "cls1"
    measure, score_K = ("accuracy", held_out.recall_K) if is_whole else ("IoU", held_out.iou_K)
    rows = zip([*info.names, "background"], score_K, strict=False)
    scores = ", ".join(f"{name} {value:.0f}" for name, value in rows)
    return f"{text}; on held-out images mean {measure} {score_K.mean():.1f} ({scores})"
