"""Images with masks as polygons in a file in COCO's format, as label tools write it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from model.labelled.sets import ImageSource, SegmentationSet, SetError, existing
from model.scores.pixels import BACKGROUND, NO_CLASS

FILE: Final = "annotations.json"


@dataclass(frozen=True, slots=True)
class Polygon:
    """A region: its class from 0, corners (x, y) in pixels, and whether its pixels count."""

    label: int
    points: Sequence[tuple[float, float]]
    counts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PolygonSet(SegmentationSet):
    """Images with their sizes and polygons; a later polygon covers an earlier one."""

    sizes_hw: Sequence[tuple[int, int]]
    polygons: Sequence[Sequence[Polygon]]

    def read(self, index: int) -> NDArray[np.int64]:
        """Class of every pixel of an image [H, W], from 0; -1 is no class."""
        return self._painted(index, NO_CLASS)

    def read_objects(self, index: int) -> NDArray[np.int64]:
        """Class of every pixel; pixels of stuff and of no polygon are background."""
        classes_HW = self._painted(index, BACKGROUND)
        classes_HW[np.isin(classes_HW, list(self.stuff))] = BACKGROUND
        return classes_HW

    def shown(self, index: int) -> frozenset[int]:
        """Classes that an image shows, also where its pixels do not count."""
        return frozenset(one.label for one in self.polygons[index])

    def _painted(self, index: int, unpainted: int) -> NDArray[np.int64]:
        height, width = self.sizes_hw[index]
        canvas = Image.new("I", (width, height), unpainted)
        draw = ImageDraw.Draw(canvas)
        for one in self.polygons[index]:
            draw.polygon(one.points, fill=one.label if one.counts else NO_CLASS)
        return np.asarray(canvas).astype(np.int64)


def read_polygons(folder: Path) -> PolygonSet:
    """Images of a folder with an `annotations.json` in COCO's format.

    A category with `isthing` 0 is stuff, as in COCO's panoptic files, and pixels of `iscrowd` do
    not count. Objects are complete: where an image names a category, each object has a polygon.

    Raises:
        SetError: The file is malformed, or an image is missing.
    """
    file = folder / FILE
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        images = [*document["images"]]
        categories = [*document["categories"]]
        polygons = _polygons(document["annotations"], categories)
        found = [ImageSource(folder / one["file_name"]) for one in images]
        sizes_hw = [(int(one["height"]), int(one["width"])) for one in images]
        names = [str(one["name"]) for one in categories]
        own = [polygons.get(one["id"], []) for one in images]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetError(
            f"{file} cannot be read as COCO's format with polygons: {error!r}."
        ) from error
    existing(image.path for image in found)
    stuff = frozenset(k for k, one in enumerate(categories) if not one.get("isthing", 1))
    return PolygonSet(
        name=folder.resolve().name,
        images=found,
        maps=[file] * len(found),
        names=names,
        stuff=stuff,
        sizes_hw=sizes_hw,
        polygons=own,
    )


def _polygons(
    annotations: Sequence[Mapping[str, Any]], categories: Sequence[Mapping[str, Any]]
) -> dict[Any, list[Polygon]]:
    """Polygons by the id of their image, in the order of the file."""
    label_of = {one["id"]: label for label, one in enumerate(categories)}
    found: dict[Any, list[Polygon]] = {}
    for one in annotations:
        parts = one["segmentation"]
        if not isinstance(parts, list) or any(len(part) < 6 or len(part) % 2 for part in parts):
            raise ValueError(f"annotation {one['id']} is no polygon; run lengths are not read")
        found.setdefault(one["image_id"], []).extend(
            Polygon(
                label_of[one["category_id"]],
                list(zip(part[::2], part[1::2], strict=True)),
                counts=not one.get("iscrowd", 0),
            )
            for part in parts
        )
    return found
