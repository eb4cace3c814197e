"""Labelled images in folders or shards: what evaluation scores and heads are trained on.

Readers only list files. Images and masks are read when they are needed.
"""

import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from model.labelled.captions import FoundCaptions, read_captions, tally
from model.scores.pixels import BACKGROUND, NO_CLASS

# Tasks, as reports name them.
SEGMENTATION: Final = "zero-shot segmentation"
OWN_SEGMENTATION: Final = "segmentation by own classes"
RETRIEVAL: Final = "image-text retrieval"
CLASSIFICATION: Final = "zero-shot classification"
INSTANCES: Final = "instance retrieval"
DEPTH: Final = "depth"
NORMALS: Final = "surface normals"
IMAGES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MASK_MODES: Final = ("1", "L", "P", "I", "I;16")
MAPS: Final = (".npy", ".png")
IGNORED: Final = 255
BACKGROUND_NAME: Final = "background"
# Length of a normal may differ from 1 by less.
UNIT_TOLERANCE: Final = 0.5
Floats = NDArray[np.float64]


class SetError(ValueError):
    """A set is incomplete or malformed; the message says what to change."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An encoded image: a file, or `size` bytes from `start` of an uncompressed tar file."""

    path: Path
    start: int = 0
    size: int | None = None
    name: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.name}" if self.name else str(self.path)

    @property
    def label(self) -> str:
        """The image's name without its folder."""
        return self.name or self.path.name

    def read(self) -> bytes:
        """Read the image; SetError if it cannot be read."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                return file.read() if self.size is None else file.read(self.size)
        except OSError as error:
            raise SetError(f"{self} cannot be read: {error.strerror}.") from error


@dataclass(frozen=True, slots=True)
class Published:
    """A published score of a known set: in percent, or in the metric's unit, by a protocol."""

    model: str
    task: str
    metric: str
    value: float
    protocol: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Images that are scored, and published scores of them."""

    name: str
    images: Sequence[ImageSource]
    published: Sequence[Published] = ()


Kind = TypeVar("Kind", bound=ImageSet)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledSet(ImageSet):
    """Images of one class each: `labels` are indices in `names`."""

    labels: Sequence[int]
    names: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedSet(ImageSet):
    """Images with one or more captions each, and the number of those left out, by the reason."""

    captions: Sequence[Sequence[str]]
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSet(ImageSet):
    """Images with a true map of each, in a file."""

    maps: Sequence[Path]

    def read(self, index: int) -> NDArray[Any]:
        """The map of an image, [H, W, ...]; SetError if the file has none."""
        raise NotImplementedError


Maps = TypeVar("Maps", bound=MapSet)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationSet(MapSet):
    """Images with a class for each pixel, in a mask that is grey or has a palette.

    Attributes:
        names: Of the classes, in the order of the labels.
        reduce_zero_label: Whether label 0 means no class and label k the k-th name from 1. Else
            label k is the k-th name from 0.
        stuff: Classes that are no objects, such as sky.
    """

    names: Sequence[str]
    reduce_zero_label: bool = False
    stuff: frozenset[int] = frozenset()

    def read(self, index: int) -> NDArray[np.int64]:
        """Class of every pixel of an image [H, W], from 0; -1 is no class.

        Raises:
            SetError: It is no mask, or has a label without a name.
        """
        classes_HW = self._read(index)
        classes_HW[classes_HW == BACKGROUND] = NO_CLASS
        return classes_HW

    def read_objects(self, index: int) -> NDArray[np.int64] | None:
        """Class of every pixel [H, W]; -1 does not count, -2 is background.

        None if the set has no background: neither label 0 without a class nor a class `background`.
        """
        if BACKGROUND_NAME in self.names:
            classes_HW = self._read(index)
            classes_HW[classes_HW == self.names.index(BACKGROUND_NAME)] = BACKGROUND
            return classes_HW
        return self._read(index) if self.reduce_zero_label else None

    def shown(self, index: int) -> frozenset[int]:
        """Classes that an image shows."""
        return frozenset(np.unique(self.read(index)).tolist()) - {NO_CLASS}

    def _read(self, index: int) -> NDArray[np.int64]:
        """Class of every pixel; -1 is label 255, -2 is label 0 if it means no class."""
        path = self.maps[index]
        meaning = "a mask is a grey or palette image with a label in each pixel"
        labels_HW = _read_png(path, MASK_MODES, meaning)
        classes_HW: NDArray[np.int64] = labels_HW.astype(np.int64)
        is_ignored_HW = classes_HW == IGNORED
        is_none_HW = (classes_HW == 0) & self.reduce_zero_label
        classes_HW -= self.reduce_zero_label
        classes_HW[is_ignored_HW] = NO_CLASS
        classes_HW[is_none_HW] = BACKGROUND
        if classes_HW.max(initial=-1) >= len(self.names):
            label = int(classes_HW.max()) + self.reduce_zero_label
            advice = "" if self.reduce_zero_label else ", or give --reduce-zero-label if 0 is none"
            raise SetError(
                f"{path} has the label {label}, and there are {len(self.names)} names. Add its "
                f"name{advice}."
            )
        return classes_HW


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthSet(MapSet):
    """Images with depth, in `.npy` or `.png`.

    Attributes:
        range_m: True depths between these count, and estimated ones are moved into it.
        crop: The rows and columns that count: first, end, first, end; None for all.
        size_hw: Height and width that the maps must have for the crop.
    """

    range_m: tuple[float, float] = (0.0, np.inf)
    crop: tuple[int, int, int, int] | None = None
    size_hw: tuple[int, int] | None = None

    def read(self, index: int) -> Floats:
        """Depth of every pixel of an image in metres [H, W]; NaN is none, or does not count.

        Raises:
            SetError: It is no depth.
        """
        path = self.maps[index]
        if path.suffix == ".npy":
            depth_HW = _read_npy(path, "depth in metres has a floating-point number", ())
        else:
            meaning = "a depth PNG is grey, with millimetres in 16 bits"
            depth_HW = _read_png(path, ("I", "I;16"), meaning) / 1000.0
        nearest_m, farthest_m = self.range_m
        depth_HW[~((depth_HW > nearest_m) & (depth_HW < farthest_m))] = np.nan
        if self.size_hw is not None and depth_HW.shape != self.size_hw:
            raise SetError(f"{path} has {depth_HW.shape} rows and columns, not {self.size_hw}.")
        if self.crop is not None:
            top, bottom, left, right = self.crop
            counted_HW = np.zeros(depth_HW.shape, bool)
            counted_HW[top:bottom, left:right] = True
            depth_HW[~counted_HW] = np.nan
        return depth_HW


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalSet(MapSet):
    """Images with normals; `by_image` is whether scores are means over images, not over pixels."""

    by_image: bool = False

    def read(self, index: int) -> Floats:
        """Unit normal of every pixel of an image [H, W, 3]; NaN is none.

        Raises:
            SetError: It has no normals.
        """
        path = self.maps[index]
        if path.suffix == ".npy":
            normals_HW3 = _read_npy(path, "normals have three floating-point numbers", (3,))
        else:
            normals_HW3 = _read_png(path, ("RGB",), "a PNG of normals is RGB") / 127.5 - 1
        length_HW1 = np.linalg.norm(normals_HW3, axis=-1, keepdims=True)
        # Black or white pixels have the length 1.73, grey ones 0.
        is_unit_HW1 = np.abs(length_HW1 - 1) < UNIT_TOLERANCE
        unit_HW3: Floats = np.where(
            is_unit_HW1, normals_HW3 / np.where(is_unit_HW1, length_HW1, 1), np.nan
        )
        return unit_HW3


def _read_npy(path: Path, meaning: str, ends: tuple[int, ...]) -> Floats:
    """Numbers of each pixel [H, W, *ends]."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SetError(f"{path} is no .npy file that can be read.") from error
    shape = getattr(array, "shape", ())
    if len(shape) != 2 + len(ends) or shape[2:] != ends or array.dtype.kind != "f":
        form = ", ".join(("H", "W", *map(str, ends)))
        raise SetError(f"{path}: {meaning} in each pixel, float32 [{form}].")
    numbers: Floats = array.astype(np.float64)
    return numbers


def _read_png(path: Path, modes: Sequence[str], meaning: str) -> NDArray[Any]:
    """Pixels of an image of these modes."""
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, UnidentifiedImageError) as error:
        raise SetError(f"{path} is no image that can be read.") from error
    if mode not in modes:
        raise SetError(f"{path}: {meaning}, this one is {mode}.")
    return pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Split(Generic[Kind]):
    """Images to learn from, and others of the same classes to score."""

    train: Kind
    val: Kind

    @property
    def images(self) -> list[ImageSource]:
        """All images."""
        return [*self.train.images, *self.val.images]


@dataclass(frozen=True, slots=True)
class Query:
    """An image that is searched for.

    Attributes:
        place: Of the image in the set; one of the index does not find itself.
        things: What it shows; images of the index that show one of these are right.
        group: Scores are means over groups of the shares in each.
    """

    place: int
    things: tuple[int, ...]
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSet(ImageSet):
    """Images of things: the index, which is searched, then queries that are not in it.

    `things` is what each image of the index shows, `queries` what is searched for.
    """

    things: Sequence[int]
    queries: Sequence[Query]


def read_names(file: Path) -> list[str]:
    """The names in a file, one a line; lines that start with # are comments.

    Raises:
        SetError: It cannot be read, is empty, or has a name twice.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SetError(f"{file} cannot be read as a text file with a name in each line.") from error
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise SetError(f"{file} has no names; write one a line.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SetError(f"{file} has the name {twice[0]!r} twice.")
    return names


def images_below(folder: Path) -> list[Path]:
    """All images below a folder, sorted, without hidden files; SetError if there is none."""
    if not folder.is_dir():
        raise SetError(f"{folder} is not a folder.")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGES and not path.name.startswith(".")
    )
    if not found:
        raise SetError(f"{folder} has no images.")
    return found


def read_segmentation(
    images: Path, masks: Path, names: Path, *, reduce_zero_label: bool = False
) -> SegmentationSet:
    """Images with masks of the same name: `x/a.jpg` has the mask `x/a.png`.

    Raises:
        SetError: A mask is missing, or the names are invalid.
    """
    found = images_below(images)
    return SegmentationSet(
        name=images.resolve().name,
        images=[ImageSource(path) for path in found],
        maps=maps_of(found, images, masks),
        names=read_names(names),
        reduce_zero_label=reduce_zero_label,
    )


def read_depth(images: Path, depths: Path) -> DepthSet:
    """Images with depth of the same name: `.npy` in metres or `.png` in millimetres.

    Raises:
        SetError: A depth is missing.
    """
    return _with_maps(DepthSet, images, depths, "depth maps")


def read_normals(images: Path, normals: Path) -> NormalSet:
    """Images with normals of the same name: `.npy`, or `.png` as the server writes it.

    Raises:
        SetError: Normals are missing.
    """
    return _with_maps(NormalSet, images, normals, "normal maps")


def _with_maps(kind: type[Maps], images: Path, folder: Path, noun: str) -> Maps:
    found = images_below(images)
    maps = maps_of(found, images, folder, suffixes=MAPS, noun=noun)
    sources = [ImageSource(path) for path in found]
    return kind(name=images.resolve().name, images=sources, maps=maps)


def maps_of(
    images: Iterable[Path],
    root: Path,
    folder: Path,
    *,
    suffixes: Sequence[str] = (".png",),
    noun: str = "masks",
) -> list[Path]:
    """For each image below `root`, the file at the same place in `folder`; SetError without one."""
    found = []
    for path in images:
        files = [(folder / path.relative_to(root)).with_suffix(suffix) for suffix in suffixes]
        found.append(next((file for file in files if file.is_file()), files[-1]))
    advice = f": each image needs a {' or '.join(suffixes)} file of its name"
    return existing(found, noun, advice)


def existing(paths: Iterable[Path], noun: str = "images", advice: str = "") -> list[Path]:
    """These files; SetError with one that is missing."""
    listed = list(paths)
    missing = [path for path in listed if not path.is_file()]
    if missing:
        raise SetError(
            f"{len(missing)} of {len(listed)} {noun} are missing, such as {missing[0]}{advice}."
        )
    return listed


def read_classes(folder: Path) -> LabelledSet:
    """Images in a folder for each of two or more classes, named after it; `_` is a space.

    Raises:
        SetError: There are fewer than two classes, or a class has no images.
    """
    folders = sorted(path for path in folder.glob("[!.]*") if path.is_dir())
    if len(folders) < 2:
        raise SetError(f"{folder} needs a folder of images for each of at least two classes.")
    by_class = [images_below(one) for one in folders]
    return LabelledSet(
        name=folder.resolve().name,
        images=[ImageSource(path) for paths in by_class for path in paths],
        labels=[label for label, paths in enumerate(by_class) for _ in paths],
        names=[one.name.replace("_", " ") for one in folders],
    )


def read_split(folder: Path) -> Split[LabelledSet]:
    """Folders `train` and `val` with the same classes; SetError if one is missing."""
    missing = [name for name in ("train", "val") if not (folder / name).is_dir()]
    if missing:
        raise SetError(f"{folder / missing[0]} is missing: the folder needs train/ and val/.")
    train, val = read_classes(folder / "train"), read_classes(folder / "val")
    val = replace(val, name=folder.resolve().name)
    if train.names != val.names:
        other = sorted(set(train.names) ^ set(val.names))
        raise SetError(f"{folder}: the class {other[0]!r} is not in both train/ and val/.")
    return Split(train=train, val=val)


def read_instances(folder: Path) -> InstanceSet:
    """A folder of images for each thing, below `query` and `index` or without them.

    Raises:
        SetError: A folder is missing, or there is nothing to find.
    """
    parts = [part for part in ("query", "index") if (folder / part).is_dir()]
    if len(parts) == 1:
        raise SetError(f"{folder} has {parts[0]}/ only; it needs query/ and index/, or neither.")
    index = read_classes(folder / "index" if parts else folder)
    images, found = list(index.images), list[Query]()
    if parts:
        queries = read_classes(folder / "query")
        missing = sorted(set(queries.names) - set(index.names))
        if missing:
            raise SetError(f"{folder}: {missing[0]!r} of query/ is not in index/.")
        label_of = {name: label for label, name in enumerate(index.names)}
        things = [label_of[queries.names[label]] for label in queries.labels]
        found = [Query(place, (thing,)) for place, thing in enumerate(things, start=len(images))]
        images += queries.images
    elif not (found := own_queries(index.labels)):
        raise SetError(f"{folder}: no thing has two images, so there is nothing to find.")
    name = folder.resolve().name
    return InstanceSet(name=name, images=images, things=index.labels, queries=found)


def own_queries(things: Sequence[int]) -> list[Query]:
    """Images of an index to search for among the others; those of no other image are left out."""
    count_of = Counter(things)
    return [Query(place, (thing,)) for place, thing in enumerate(things) if count_of[thing] > 1]


def read_captioned(folder: Path) -> CaptionedSet:
    """Images with a caption file of the same name, or WebDataset shards: see `read_captions`.

    Raises:
        SetError: There are neither, or an image has no caption.
    """
    shards = [folder] if folder.suffix == ".tar" else sorted(folder.glob("*.tar"))
    rows = [row for shard in shards for row in _shard_rows(shard)] or list(_file_rows(folder))
    left_out = Counter(reason for _, found in rows for reason in found.left_out)
    bare = [source for source, found in rows if not found.by_source]
    if bare:
        raise SetError(
            f"{len(bare)} of {len(rows)} images have no caption, such as {bare[0]}: write one a "
            "line into a .txt file of the image's name."
            + (f" Captions left out: {tally(left_out)}." if left_out else "")
        )
    return CaptionedSet(
        name=folder.resolve().stem,
        images=[source for source, _ in rows],
        captions=[list(dict.fromkeys(found.by_source.values())) for _, found in rows],
        left_out=left_out,
    )


def _file_rows(folder: Path) -> Iterator[tuple[ImageSource, FoundCaptions]]:
    for path in images_below(folder):
        texts = {
            suffix: path.with_suffix(suffix).read_bytes()
            for suffix in (".txt", ".json")
            if path.with_suffix(suffix).is_file()
        }
        yield ImageSource(path), read_captions(texts)


def _shard_rows(shard: Path) -> Iterator[tuple[ImageSource, FoundCaptions]]:
    """Samples of a tar file: files that agree up to the first dot of their name."""
    samples: dict[str, tuple[list[ImageSource], dict[str, bytes]]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                place, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                suffix = f".{ending}".lower()
                images, texts = samples.setdefault(f"{place}/{stem}", ([], {}))
                if suffix in IMAGES and member.isfile():
                    images.append(ImageSource(shard, member.offset_data, member.size, member.name))
                stream = archive.extractfile(member) if suffix in (".txt", ".json") else None
                if stream is not None:
                    texts[suffix] = stream.read()
    except (OSError, tarfile.TarError) as error:
        raise SetError(f"{shard} cannot be read as an uncompressed tar file.") from error
    for images, texts in samples.values():
        for image in images[:1]:
            yield image, read_captions(texts)
