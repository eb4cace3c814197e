"""Rendered rooms in folders, as `tipserve evaluate --depth` and `--normals` read them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from model.files import atomic_file
from training.data.renders.catalogues import Furniture, catalogue_files, read_catalogue
from training.data.renders.rooms import RoomSource

IMAGES: Final = "images"
DEPTHS: Final = "depths"
NORMALS: Final = "normals"


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

    Args:
        open_source: Reads the models; called only if a room is missing.
        folder: Of the rooms.
        num_rooms: Rooms that it holds in the end.
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
