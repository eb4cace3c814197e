"""A package as a frozen encoder, and a labelled set as what a head is trained and scored on.

Shapes: P images, B batch, H W pixels, S rows and columns of a square, m rows and columns of a map,
D embedding width, h w patch rows and columns.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from pydantic import JsonValue

from model.graphs import DenseTask, PatchOutput
from model.head import vision_digest
from model.image_codec import FORMATS, ImageError, ImageLimits, decode_image
from model.labelled.navi import NaviNormals
from model.labelled.sets import DepthSet, ImageSource, NormalSet, SegmentationSet, SetError
from model.package import ModelPackage
from model.preprocess import Fit, prepare_image, target_size
from model.runtime.base import Runtime
from model.runtime.load import load_runtime
from training.dense.head import MAP_SCALE, NO_CLASS, Examples

_BATCH: Final = 8
PATCHES: Final[tuple[PatchOutput, ...]] = ("patches",)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """Embeddings of images: float16 first CLS token and patches of the last layer."""

    cls_PD: NDArray[np.float16]
    patches_PhwD: NDArray[np.float16]


@dataclass(frozen=True, slots=True, eq=False)
class FrozenEncoder:
    """A package with its runtime loaded."""

    package: ModelPackage
    runtime: Runtime

    @classmethod
    def load(cls, package: ModelPackage) -> Self:
        """Load the package's usual runtime."""
        return cls(package, load_runtime(package))

    def embed(self, images: Iterable[NDArray[np.uint8]]) -> Embeddings:
        """Embed images [H, W, 3] at the native size, as the service does for maps by default."""
        side = self.package.manifest.native_size
        waiting, parts = iter(images), []
        while batch := list(islice(waiting, _BATCH)):
            parts.append(self._encode([prepare_image(image, (side, side)) for image in batch]))
        return Embeddings(
            cls_PD=np.concatenate([part.cls_PD for part in parts]),
            patches_PhwD=np.concatenate([part.patches_PhwD for part in parts]),
        )

    def as_served(self, image_HW3: NDArray[np.uint8], fit: Fit) -> Embeddings:
        """Embed one image at the size at which the service does for a dense head."""
        manifest = self.package.manifest
        height, width = image_HW3.shape[:2]
        size_hw = target_size(
            height,
            width,
            resolution=manifest.map_side(manifest.native_size),
            fit=fit,
            multiple=manifest.map_multiple,
        )
        return self._encode([prepare_image(image_HW3, size_hw)])

    def _encode(self, planes: Sequence[NDArray[np.float32]]) -> Embeddings:
        output = self.runtime.encode_images(np.stack(planes), patch_outputs=PATCHES)
        patches_BND = output.patches_BND.astype(np.float16)
        return Embeddings(
            cls_PD=output.cls1_BD.astype(np.float16),
            patches_PhwD=patches_BND.reshape(len(planes), *output.grid_hw, -1),
        )


HeadSet = DepthSet | NormalSet | SegmentationSet
LIMITS: Final = ImageLimits(max_bytes=2**30, max_pixels=100_000_000)
HELD_OUT_EVERY: Final = 5
IMAGES_AT_ONCE: Final = 32
# As the service resizes images for each head by default.
FITS: Final[Mapping[DenseTask, Fit]] = {
    "depth": "squash",
    "normals": "squash",
    "segmentation": "aspect",
}
# Numbers of a map, and channels.
_MAPS: Final[Mapping[DenseTask, tuple[Any, ...]]] = {
    "depth": (np.float32,),
    "normals": (np.float16, 3),
    "segmentation": (np.int16,),
}


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Images to train a head on, and others to score it; embeddings are kept in a folder.

    Without facts `about` the set, `record` finds what it can.
    """

    train: HeadSet
    test: HeadSet
    folder: Path
    about: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def task(self) -> DenseTask:
        """What the set shows."""
        if isinstance(self.train, SegmentationSet):
            return "segmentation"
        return "depth" if isinstance(self.train, DepthSet) else "normals"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes of segmentation."""
        return tuple(self.train.names) if isinstance(self.train, SegmentationSet) else ()

    def examples(self, encoder: FrozenEncoder) -> Examples:
        """Embeddings and maps in files, of which only what is needed is in memory at a time.

        A stopped run continues with the next images.
        """
        place = self.folder / f"{self.task}-{self._digest(encoder)[:16]}"
        place.mkdir(parents=True, exist_ok=True)
        files = self._files(encoder, place)
        record = place / "done.txt"
        done = int(record.read_text()) if record.exists() else 0
        for first in range(done, len(self.train.images), IMAGES_AT_ONCE):
            rows = range(first, min(first + IMAGES_AT_ONCE, len(self.train.images)))
            squares = [self._square(index) for index in rows]
            seen = encoder.embed(pixels for pixels, _ in squares)
            part = slice(rows.start, rows.stop)
            side = files["maps"].shape[-1]
            files["cls"][part], files["patches"][part] = seen.cls_PD, seen.patches_PhwD
            files["maps"][part] = [_cells(self.task, truth, side) for _, truth in squares]
            record.write_text(str(rows.stop))
        return Examples(
            cls_PD=files["cls"],
            patches_PhwD=files["patches"],
            maps=files["maps"],
            num_classes=len(self.labels),
        )

    def tests(self, encoder: FrozenEncoder) -> Iterator[tuple[Embeddings, NDArray[Any]]]:
        """Embeddings of each image to score, as the service sees it, and its true map."""
        for index in range(len(self.test.images)):
            pixels_HW3, truth = read_example(self.test, index)
            yield encoder.as_served(pixels_HW3, FITS[self.task]), truth

    def record(self) -> Mapping[str, JsonValue]:
        """What a head is fitted to, for the manifest: `output` and `data` in words, and facts."""
        if self.about:
            return self.about
        has_camera_axes = isinstance(self.train, NaviNormals)
        camera_axes = "x to the right, y down, z away from the camera"
        outputs = {
            "depth": "metres, up to 10 m",
            "normals": camera_axes if has_camera_axes else "in the axes of the set",
            "segmentation": f"{len(self.labels)} classes",
        }
        data = f"{len(self.train.images)} images of {self.train.name}"
        return {"output": outputs[self.task], "data": data}

    def _square(self, index: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Pixels and true map of an image.

        Segmentation is served with the proportions of the image. It learns squares, which lie at
        another place of the longer side in each image, so that all have one shape.
        """
        pixels, truth = read_example(self.train, index)
        if FITS[self.task] == "squash":
            return pixels, truth
        side = min(truth.shape)
        share = index * 0.618 % 1  # of the golden ratio: spread evenly
        top, left = (int(share * (length - side)) for length in truth.shape)
        place = np.s_[top : top + side, left : left + side]
        return pixels[place], truth[place]

    def _digest(self, encoder: FrozenEncoder) -> str:
        """Of the vision graph, the images' names, sizes and times, and what is read of them."""
        digest = hashlib.sha256(vision_digest(encoder.package.manifest).encode())
        digest.update(f"{type(self.train).__name__} {self.labels}".encode())
        given = self.train
        for path in [*(image.path for image in given.images), *given.maps]:
            state = path.stat()
            digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def _files(self, encoder: FrozenEncoder, place: Path) -> dict[str, Any]:
        """The arrays, new or as an earlier run left them."""
        manifest, num = encoder.package.manifest, len(self.train.images)
        grid, width = manifest.native_size // manifest.patch_size, manifest.embed_dim
        dtype, *channels = _MAPS[self.task]
        forms = {
            "cls": (np.float16, (num, width)),
            "patches": (np.float16, (num, grid, grid, width)),
            "maps": (dtype, (num, *channels, MAP_SCALE * grid, MAP_SCALE * grid)),
        }
        mode = "r+" if (place / "done.txt").exists() else "w+"
        return {
            name: open_memmap(place / f"{name}.npy", mode=mode, dtype=dtype, shape=shape)
            for name, (dtype, shape) in forms.items()
        }


def hold_out(given: HeadSet, folder: Path) -> LabelledData:
    """Keep every fifth image of a set for the scores.

    Raises:
        SetError: There are fewer than five images.
    """
    if len(given.images) < HELD_OUT_EVERY:
        raise SetError(
            f"{given.name} has {len(given.images)} images; a head needs at least five, of which "
            "every fifth is held out."
        )
    is_held = [index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for index in range(len(given.images))]
    test = _chosen(given, is_held)
    return LabelledData(
        train=_chosen(given, [not held for held in is_held]),
        test=replace(test, name=f"every fifth image of {given.name}"),
        folder=folder,
    )


def _chosen(given: HeadSet, keep: Sequence[bool]) -> HeadSet:
    images = [image for image, is_kept in zip(given.images, keep, strict=True) if is_kept]
    kept = [path for path, is_kept in zip(given.maps, keep, strict=True) if is_kept]
    return replace(given, images=images, maps=kept)


def read_pixels(image: ImageSource) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] of an image.

    Raises:
        SetError: It cannot be read.
    """
    try:
        return decode_image(image.read(), LIMITS, formats=FORMATS)
    except ImageError as error:
        raise SetError(f"{image}: {error}") from error


def read_example(given: HeadSet, index: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Pixels [H, W, 3] and true map of an image: see `DepthSet.read` and its like.

    Raises:
        SetError: A file cannot be read, or the two have different sizes.
    """
    pixels_HW3 = read_pixels(given.images[index])
    truth: NDArray[Any] = given.read(index)
    if truth.shape[:2] != pixels_HW3.shape[:2]:
        raise SetError(
            f"{given.images[index]} has {pixels_HW3.shape[:2]}, its map {truth.shape[:2]} rows and "
            "columns."
        )
    return pixels_HW3, truth


def at_centres(map_HW: NDArray[Any], map_side: int) -> NDArray[Any]:
    """A map at the centres of `map_side` rows and columns of cells."""
    rows, columns = (
        ((np.arange(map_side) + 0.5) * side / map_side).astype(np.int64)
        for side in map_HW.shape[:2]
    )
    return map_HW[np.ix_(rows, columns)]


def _cells(task: DenseTask, truth: NDArray[Any], side: int) -> NDArray[Any]:
    """A true map at the centres of cells, as `Examples` has it."""
    small = at_centres(truth, side)
    if task == "segmentation":
        return np.where(small < 0, NO_CLASS, small)
    known: NDArray[Any] = np.nan_to_num(small)
    return known.transpose(2, 0, 1) if task == "normals" else known
