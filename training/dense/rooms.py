"""Rendered rooms as what heads are trained and scored on: depth and normals.

They are kept in folders, as `tipserve evaluate --depth` and `--normals` read them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from model.files import atomic_file
from model.graphs import DenseTask
from model.labelled.sets import DepthSet, NormalSet, read_depth, read_normals
from training.data.backgrounds import load_photos
from training.data.folder import DataFolder, fetch_debian
from training.data.renders.catalogues import (
    HELD_OUT,
    PACKAGE,
    Furniture,
    catalogue_files,
    read_catalogue,
)
from training.data.renders.rooms import RoomSource
from training.dense.labelled import LabelledData

IMAGES: Final = "images"
DEPTHS: Final = "depths"
NORMALS: Final = "normals"
TEST_SEED: Final = 1
SPLIT: Final = f"rooms with furniture of {HELD_OUT}, rendered"
PHOTOS_PACKAGE: Final = "lomiri-wallpapers-16.04"
OUTPUTS: Final[Mapping[DenseTask, str]] = {
    "depth": "metres, up to 10 m",
    "normals": "x to the right, y up, z towards the camera",
}
ReadMaps = Callable[[Path, Path], DepthSet | NormalSet]


def rendered_rooms(
    data: DataFolder, folder: Path, *, side: int, num_renders: int, num_tests: int
) -> list[LabelledData]:
    """Render what is missing, and read it once for depth and once for normals.

    Args:
        data: The data folder; furniture and photographs are fetched if they are missing.
        folder: Rooms and embeddings are kept here.
        side: Of an image, in pixels.
        num_renders: Rooms to train on.
        num_tests: Rooms with furniture of the held-out catalogue.
    """
    art = data.art.furniture
    for package, place in ((PACKAGE, art), (PHOTOS_PACKAGE, data.photos)):
        if not place.exists():
            fetch_debian(data.path, (package,))

    def open_source(catalogues: list[str], photos: str, seed: int) -> RoomSource:
        return RoomSource(
            furniture=load_furniture(art, catalogues),
            photos=load_photos(data.photos, photos),
            side=side,
            seed=seed,
        )

    shown = [name for name in catalogue_files(art) if name != HELD_OUT]
    train, test = folder / f"rooms-{side}-{num_renders}", folder / f"tests-{side}-{num_tests}"
    write_rooms(partial(open_source, shown, "train", 0), train, num_renders)
    write_rooms(partial(open_source, [HELD_OUT], "held-out", TEST_SEED), test, num_tests)
    readers: tuple[tuple[DenseTask, ReadMaps, str], ...] = (
        ("depth", read_depth, DEPTHS),
        ("normals", read_normals, NORMALS),
    )
    return [
        LabelledData(
            train=read(train / IMAGES, train / maps),
            test=replace(read(test / IMAGES, test / maps), name=SPLIT),
            folder=folder,
            about={
                "output": OUTPUTS[task],
                "data": f"{num_renders} rendered rooms with furniture of real size, and no "
                "photograph of a room; outlines are coarse",
                "furniture": f"Debian {PACKAGE}, CC0 and CC-BY-3.0; {HELD_OUT} for evaluation only",
                "photographs": f"{PHOTOS_PACKAGE} (CC0, CC-BY-4.0)",
            },
        )
        for task, read, maps in readers
    ]


def load_furniture(folder: Path, catalogues: Iterable[str]) -> list[Furniture]:
    """Models of some catalogues.

    Raises:
        FileNotFoundError: There is no catalogue, or one of them is missing.
    """
    files = catalogue_files(folder)
    for name in catalogues:
        if name not in files:
            raise FileNotFoundError(f"{folder} lacks the catalogue {name}")
    return [model for name in catalogues for model in read_catalogue(files[name])]


def write_rooms(open_source: Callable[[], RoomSource], folder: Path, num_rooms: int) -> None:
    """Write images as PNG, depth in metres and normals as npy; a stopped run continues.

    The models are read only if a room is missing.
    """
    images = [folder / IMAGES / f"{index:04d}.png" for index in range(num_rooms)]
    missing = [index for index, path in enumerate(images) if not path.exists()]
    if not missing:
        return
    for name in (IMAGES, DEPTHS, NORMALS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    source = open_source()
    for index in missing:
        room = source.render(index)
        np.save(folder / DEPTHS / f"{index:04d}.npy", room.depth_SS)
        np.save(folder / NORMALS / f"{index:04d}.npy", room.normals_SS3.astype(np.float16))
        with atomic_file(images[index]) as temporary:
            Image.fromarray(room.pixels_SS3).save(temporary, "PNG")
