"""Regions of words or of examples: the instances of a mask, and their outlines."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from connectors.app import Backend
from tipserve_cli import local
from tipserve_client import Example, Instance

# Of the image: smaller regions are left out.
LEAST_SHARE: Final = 0.001
TOLERANCE_PX: Final = 1.0
# Without prompts this name stands for the classes of the model's head; a tool means the word.
MODEL: Final = "model"
# A class by its name: what asks for it; without prompts the name itself.
Classes = Mapping[str, Sequence[str]] | Mapping[str, Sequence[Example]]


def find_regions(backend: Backend, image: bytes, classes: Classes) -> list[Instance]:
    """The regions of an image; a class that the image lacks has none."""
    asked: Any = dict(classes)
    if MODEL in asked and not asked[MODEL]:
        asked[MODEL] = [MODEL]
    (found,) = backend.client.segment(
        image,
        asked,
        background="auto",
        include_instances=True,
        min_area_share=LEAST_SHARE,
        **backend.asked,
    )
    return list(found.instances)


def outline(region: Instance) -> list[tuple[int, int]]:
    """The outline of a region: x and y of its corners in pixels, at most one pixel off.

    Holes are filled, because editors draw the cut to a hole as a slit.
    """
    left, top, _, _ = region.box
    (polygons,) = local.polygons.class_polygons(region.crop.astype("uint16"), 1, holes="fill")
    points = local.polygons.simplify(max(polygons, key=len), TOLERANCE_PX)
    return [(left + x, top + y) for x, y in zip(points[::2], points[1::2], strict=True)]
