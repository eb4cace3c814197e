"""`python -m training head`: a head for a package, from a handful of labelled images."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.head import SUFFIX, Head, HeadFeatures, HeadInfo, vision_digest, write_head
from model.image_codec import FORMATS, ImageError, ImageLimits, decode_image
from model.package import ModelPackage, open_package
from model.preprocess import Fit, prepare_image, target_size
from model.runtime.base import Runtime, VisionOutput
from model.runtime.load import load_runtime
from model.segmentation import l2_normalize, patch_shares
from training.label_head import Fitted, Labelled, fit_head

HELP = "Fit a head to a few images with masks, or in folders by class; seconds on a CPU."
NO_LABEL: Final = 255
IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
)
LIMITS: Final = ImageLimits(max_bytes=2**30, max_pixels=100_000_000)
MASK_MODES: Final = ("1", "L", "P", "I", "I;16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the job's options."""
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        help="folder of images; without --masks, a folder of images for each class",
    )
    parser.add_argument(
        "--masks",
        type=Path,
        help="folder of masks, grey or palette PNGs of the images' names and sizes: label k is the "
        "k-th name, 0 the background, 255 no label",
    )
    parser.add_argument(
        "--names",
        help="with --masks: names of the labels 1, 2, ...: separated by commas, or a .txt file "
        "with a name a line",
    )
    parser.add_argument(
        "--ignore",
        type=int,
        nargs="+",
        default=[],
        metavar="LABEL",
        help="further labels that mean no label, such as 0 where it is not the background",
    )
    parser.add_argument(
        "--model", default="bundled", help="a package, or bundled (default) or bundled-student"
    )
    parser.add_argument(
        "--resolution", type=int, help="short side in pixels (default: the model's)"
    )
    parser.add_argument("--output", type=Path, required=True, help=f"file to write, NAME{SUFFIX}")


def run(options: argparse.Namespace) -> None:
    """Fit a head and write it.

    Raises:
        ValueError: An option, an image or a mask is wrong.
        FileNotFoundError: A folder, an image or a mask is missing.
    """
    start = time.monotonic()
    if options.output.suffix != SUFFIX:
        raise ValueError(f"--output ends in {SUFFIX}, unlike {options.output}")
    if (options.masks is None) != (options.names is None):
        raise ValueError("give --masks and --names together, or neither of them")
    package = open_package(options.model)
    encoder = _Encoder(package, load_runtime(package), options.resolution)
    if options.masks is None:
        names, labelled = _read_folders(options.images, encoder)
        features: HeadFeatures = "cls1"
    else:
        names = _read_names(options.names)
        masks = _Masks(options.masks, len(names), frozenset({NO_LABEL, *options.ignore}))
        labelled = _read_masked(options.images, masks, names, encoder)
        features = package.manifest.zero_shot.features
    fitted = fit_head(labelled)
    info = HeadInfo(
        names=tuple(names),
        has_background=labelled.shares_PK.shape[1] > len(names),
        features=features,
        temperature=1 / fitted.sharpness,
        model=package.manifest.name,
        vision_sha256=vision_digest(package.manifest),
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_head(options.output, Head(info, fitted.classes_KD))
    print(_report(names, features, labelled, fitted), flush=True)
    print(
        f"{options.output}: {time.monotonic() - start:.1f} s. Serve it with "
        f"--heads {options.output.parent}, and ask for the class head:{options.output.stem}.",
        flush=True,
    )


@dataclass(frozen=True, slots=True)
class _Encoder:
    """Embeds files as the service does by default."""

    package: ModelPackage
    runtime: Runtime
    resolution: int | None

    def encode(self, path: Path, fit: Fit) -> tuple[tuple[int, int], list[VisionOutput]]:
        """Height and width of the upright image, and the outputs of the image and its mirror image.

        Raises:
            ValueError: It is no image.
        """
        manifest = self.package.manifest
        try:
            pixels_HW3 = decode_image(path.read_bytes(), LIMITS, formats=FORMATS)
        except ImageError as error:
            raise ValueError(f"{path}: {error}") from error
        height, width = pixels_HW3.shape[:2]
        size_hw = target_size(
            height,
            width,
            resolution=self.resolution or manifest.native_size,
            fit=fit,
            multiple=manifest.size_multiple,
        )
        scaling = manifest.zero_shot.scaling
        outputs = []
        for image_HW3 in (pixels_HW3, pixels_HW3[:, ::-1]):
            planes_3HW = prepare_image(np.ascontiguousarray(image_HW3), size_hw, scaling)
            outputs.append(self.runtime.encode_images(planes_3HW[None]))
        return (height, width), outputs


@dataclass(frozen=True, slots=True)
class _Masks:
    """Masks of images, whose labels go from 0 to `num_names`, or are ignored."""

    folder: Path
    num_names: int
    ignored: frozenset[int]

    def read(self, stem: str, size_hw: tuple[int, int]) -> NDArray[np.int64]:
        """Class of each pixel from 0; the background is the last class, -1 stands for no label.

        Raises:
            ValueError: It is no mask of this size, or has a label without a name.
            FileNotFoundError: There is no mask.
        """
        path = self.folder / f"{stem}.png"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: each image needs a mask of its name")
        with Image.open(path) as mask:
            if mask.mode not in MASK_MODES:
                raise ValueError(f"{path}: masks are grey or palette PNGs, this one is {mask.mode}")
            labels_HW = np.asarray(mask).astype(np.int64)
        if labels_HW.shape != size_hw:
            raise ValueError(f"{path} has {labels_HW.shape}, its image {size_hw} rows and columns")
        is_ignored_HW = np.isin(labels_HW, list(self.ignored))
        wrong = np.unique(labels_HW[(labels_HW > self.num_names) & ~is_ignored_HW])
        if len(wrong):
            raise ValueError(
                f"{path} has the label {wrong[0]}, --names has {self.num_names} names: add one, or "
                "--ignore the label"
            )
        classes_HW = np.where(labels_HW == 0, self.num_names, labels_HW - 1)
        return np.where(is_ignored_HW, -1, classes_HW)


def _read_masked(images: Path, masks: _Masks, names: Sequence[str], encoder: _Encoder) -> Labelled:
    """Patches with the shares of labels in them; the background, if any, is the last class."""
    features, shares, image = [], [], []
    attribute = f"{encoder.package.manifest.zero_shot.features}_BND"
    for index, path in enumerate(_images_of(images)):
        size_hw, outputs = encoder.encode(path, "aspect")
        labels_HW = masks.read(path.stem, size_hw)
        for output, seen_HW in zip(outputs, (labels_HW, labels_HW[:, ::-1]), strict=True):
            share_NK = patch_shares(seen_HW, output.grid_hw, len(names) + 1)
            is_labelled_N = share_NK.any(1)
            features.append(l2_normalize(getattr(output, attribute)[0])[is_labelled_N])
            shares.append(share_NK[is_labelled_N])
            image.append(np.full(is_labelled_N.sum(), index))
    shares_PK = np.concatenate(shares)
    missing = [name for name, total in zip(names, shares_PK.sum(0), strict=False) if not total]
    if missing:
        raise ValueError(f"no mask has a pixel of: {', '.join(missing)}")
    if not shares_PK[:, -1].any():
        shares_PK = shares_PK[:, :-1]
    return Labelled(np.concatenate(features), shares_PK, np.concatenate(image))


def _read_folders(folder: Path, encoder: _Encoder) -> tuple[list[str], Labelled]:
    """Whole images with the names of their folders as classes."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(folders) < 2:
        raise ValueError(f"{folder} needs a folder for each of at least two classes")
    features: list[NDArray[np.float32]] = []
    label: list[int] = []
    image: list[int] = []
    for index, one in enumerate(folders):
        for path in _images_of(one):
            _, outputs = encoder.encode(path, "squash")
            features += [l2_normalize(output.cls1_BD) for output in outputs]
            label += [index] * len(outputs)
            image += [len(image) // len(outputs)] * len(outputs)
    shares_PK = np.eye(len(folders), dtype=np.float32)[label]
    names = [one.name.replace("_", " ") for one in folders]
    # In this order each fold has images of each class.
    return names, Labelled(np.concatenate(features), shares_PK, np.array(image))


def _read_names(text: str) -> list[str]:
    if text.endswith(".txt"):
        lines = Path(text).read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip()]
    return [name.strip() for name in text.split(",") if name.strip()]


def _images_of(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{folder} has no image")
    return found


def _report(
    names: Sequence[str], features: HeadFeatures, labelled: Labelled, fitted: Fitted
) -> str:
    count = len(np.unique(labelled.image_P))
    background = " and the background" if labelled.shares_PK.shape[1] > len(names) else ""
    text = f"{count} images, {len(names)} classes{background}"
    if fitted.held_out is None:
        return f"{text}; too few images to hold any out"
    measure, score_K = (
        ("accuracy", fitted.held_out.recall_K)
        if features == "cls1"
        else ("IoU", fitted.held_out.iou_K)
    )
    rows = zip([*names, "background"], score_K, strict=False)
    scores = ", ".join(f"{name} {value:.0f}" for name, value in rows)
    return f"{text}; on held-out images mean {measure} {score_K.mean():.1f} ({scores})"
