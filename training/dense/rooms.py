"""Rendered rooms as what heads are trained and scored on: depth and normals."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from model.graphs import DenseTask
from model.labelled.sets import DepthSet, NormalSet, read_depth, read_normals
from training.data.backgrounds import load_photos
from training.data.folder import DataFolder, fetch_debian
from training.data.renders.catalogues import HELD_OUT, PACKAGE, catalogue_files
from training.data.renders.rooms import RoomSource
from training.data.renders.store import DEPTHS, IMAGES, NORMALS, load_furniture, write_rooms
from training.dense.labelled import LabelledData

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
