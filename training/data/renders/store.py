"""Rendered rooms on disk: parts to train on, and a folder that `tipserve evaluate` reads.

Shapes: P renders of a part, S side of an image, m rows and columns of a map.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.array_record import ArrayRecord
from training.data.renders.catalogues import Furniture, catalogue_files, read_catalogue
from training.data.renders.rooms import Render

PART_SIZE: Final = 100
# Renders room number i, as `RoomSource.render`.
RenderRoom = Callable[[int], Render]
IMAGES, DEPTHS, NORMALS = "images", "depths", "normals"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RenderPart(ArrayRecord):
    """Renders with maps at fewer pixels.

    Attributes:
        pixels_PSS3: uint8.
        depth_Pmm: float32, metres at the centres of the cells.
        normals_P3mm: float16, unit vectors at the same places.
    """

    pixels_PSS3: NDArray[np.uint8]
    depth_Pmm: NDArray[np.float32]
    normals_P3mm: NDArray[np.float16]

    @classmethod
    def of(cls, renders: Iterable[Render], map_side: int) -> Self:
        """Keep the images, and the maps at `map_side` rows and columns."""
        pixels, depths, normals = [], [], []
        for render in renders:
            pixels.append(render.pixels_SS3)
            depths.append(at_centres(render.depth_SS, map_side))
            normals_mm3 = at_centres(render.normals_SS3, map_side)
            normals.append(normals_mm3.transpose(2, 0, 1).astype(np.float16))
        return cls(
            pixels_PSS3=np.stack(pixels),
            depth_Pmm=np.stack(depths),
            normals_P3mm=np.stack(normals),
        )


def at_centres(map_HW: NDArray[Any], map_side: int) -> NDArray[Any]:
    """A map at the centres of `map_side` rows and columns of cells."""
    rows, columns = (
        ((np.arange(map_side) + 0.5) * side / map_side).astype(np.int64)
        for side in map_HW.shape[:2]
    )
    return map_HW[np.ix_(rows, columns)]


def load_furniture(folder: Path, catalogues: Iterable[str] | None = None) -> list[Furniture]:
    """Models of some catalogues, by default of all.

    Raises:
        FileNotFoundError: There is no catalogue, or one of them is missing.
    """
    files = catalogue_files(folder)
    wanted = files if catalogues is None else list(catalogues)
    missing = [name for name in wanted if name not in files]
    if missing:
        raise FileNotFoundError(f"{folder} lacks the catalogue {missing[0]}")
    return [model for name in wanted for model in read_catalogue(files[name])]


def render_parts(
    render: RenderRoom, folder: Path, *, num_renders: int, map_side: int
) -> Iterator[RenderPart]:
    """Yield whole parts of `PART_SIZE` renders, from the folder if an earlier run wrote them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(-(-num_renders // PART_SIZE)):
        path = folder / f"renders-{number:03d}.npz"
        if not path.exists():
            indices = range(number * PART_SIZE, (number + 1) * PART_SIZE)
            RenderPart.of(map(render, indices), map_side).save(path)
        yield RenderPart.load(path)


def write_test_set(render: RenderRoom, folder: Path, num_renders: int) -> None:
    """Write images as PNG, depth and normals as npy, unless they are there.

    `tipserve evaluate --depth images depths --normals images normals` reads them.
    """
    if folder.exists():
        return
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in (IMAGES, DEPTHS, NORMALS):
        (unfinished / name).mkdir(parents=True)
    for index in range(num_renders):
        room = render(index)
        Image.fromarray(room.pixels_SS3).save(unfinished / IMAGES / f"{index:04d}.png")
        np.save(unfinished / DEPTHS / f"{index:04d}.npy", room.depth_SS)
        np.save(unfinished / NORMALS / f"{index:04d}.npy", room.normals_SS3)
    unfinished.rename(folder)


def read_test_set(folder: Path) -> Iterator[Render]:
    """Read what `write_test_set` wrote."""
    for path in sorted((folder / IMAGES).glob("*.png")):
        with Image.open(path) as image:
            pixels_SS3 = np.asarray(image)
        yield Render(
            pixels_SS3=pixels_SS3,
            depth_SS=np.load(folder / DEPTHS / f"{path.stem}.npy"),
            normals_SS3=np.load(folder / NORMALS / f"{path.stem}.npy"),
        )
