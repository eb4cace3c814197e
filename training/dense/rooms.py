"""Rendered rooms as what heads are trained and scored on: depth and normals."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from model.graphs import DenseTask
from training.data.backgrounds import load_photos
from training.data.folder import DataFolder, fetch_debian
from training.data.renders.catalogues import HELD_OUT, PACKAGE, catalogue_files
from training.data.renders.rooms import Render, RoomSource
from training.data.renders.store import (
    RenderPart,
    RenderRoom,
    load_furniture,
    read_test_set,
    render_parts,
    write_test_set,
)
from training.dense.encoder import Embeddings, FrozenEncoder
from training.dense.head import MAP_SCALE, Examples, Maps

TEST_SEED: Final = 1
PHOTOS_PACKAGE: Final = "lomiri-wallpapers-16.04"
DESCRIPTIONS: Final[Mapping[DenseTask, str]] = {
    "depth": "metres, up to 10 m",
    "normals": "x to the right, y up, z towards the camera",
}


@dataclass(frozen=True, kw_only=True)
class RenderedRooms:
    """Rooms that are rendered when they are first needed.

    Attributes:
        data: The data folder; furniture and photographs are fetched if they are missing.
        folder: Renders and embeddings are kept here, and the test set for `tipserve evaluate`.
        side: Of an image, in pixels.
        patch_size: In pixels.
        num_renders: Rooms to train on, rounded up to whole parts.
        num_tests: Rooms with furniture of the held-out catalogue.
    """

    data: DataFolder
    folder: Path
    side: int
    patch_size: int
    num_renders: int
    num_tests: int
    tasks: tuple[DenseTask, ...] = ("depth", "normals")
    split: str = f"rooms with furniture of {HELD_OUT}, rendered"
    labels: tuple[str, ...] = ()

    def examples(self, encoder: FrozenEncoder, task: DenseTask) -> Examples:
        """Embeddings and maps of the rooms to train on."""
        seen = Embeddings.join(
            encoder.cached(part.pixels_PSS3, self.folder, f"{self._map_side}-{number:03d}")
            for number, part in enumerate(self._parts)
        )
        maps: Maps = (
            np.concatenate([part.depth_Pmm for part in self._parts])
            if task == "depth"
            else np.concatenate([part.normals_P3mm for part in self._parts])
        )
        return Examples(cls_PD=seen.cls_PD, patches_PhwD=seen.patches_PhwD, maps=maps)

    def tests(
        self, encoder: FrozenEncoder, task: DenseTask
    ) -> Iterator[tuple[Embeddings, NDArray[Any]]]:
        """Embeddings and true map of each room of the held-out catalogue."""
        pixels = (render.pixels_SS3 for render in self._truth)
        seen = encoder.cached(pixels, self.folder, self._test_folder.name)
        for index, render in enumerate(self._truth):
            one = slice(index, index + 1)
            truth = render.depth_SS if task == "depth" else render.normals_SS3
            yield Embeddings(cls_PD=seen.cls_PD[one], patches_PhwD=seen.patches_PhwD[one]), truth

    def record(self, task: DenseTask) -> Mapping[str, JsonValue]:
        """What a head is fitted to, for the manifest."""
        return {
            "output": DESCRIPTIONS[task],
            "data": f"{self.num_renders} rendered rooms with furniture of real size, and no "
            "photograph of a room; outlines are coarse",
            "furniture": f"Debian {PACKAGE}, CC0 and CC-BY-3.0; {HELD_OUT} for evaluation only",
            "photographs": f"{PHOTOS_PACKAGE} (CC0, CC-BY-4.0)",
        }

    @property
    def _map_side(self) -> int:
        return MAP_SCALE * self.side // self.patch_size

    @property
    def _test_folder(self) -> Path:
        return self.folder / f"test-{self.num_tests}"

    @cached_property
    def _parts(self) -> list[RenderPart]:
        self._fetch()
        furniture = self.data.art.furniture
        folder = self.folder / f"renders-{self._map_side}"
        names = [name for name in catalogue_files(furniture) if name != HELD_OUT]
        render = self._rooms(names, "train", seed=0)
        found = []
        for part in render_parts(
            render, folder, num_renders=self.num_renders, map_side=self._map_side
        ):
            found.append(part)
            print(f"part {len(found)} of the renders is ready", flush=True)
        return found

    @cached_property
    def _truth(self) -> list[Render]:
        self._fetch()
        render = self._rooms([HELD_OUT], "held-out", seed=TEST_SEED)
        write_test_set(render, self._test_folder, self.num_tests)
        return list(read_test_set(self._test_folder))

    def _fetch(self) -> None:
        for package, place in (
            (PACKAGE, self.data.art.furniture),
            (PHOTOS_PACKAGE, self.data.photos),
        ):
            if not place.exists():
                fetch_debian(self.data.path, (package,))

    def _rooms(self, catalogues: list[str], photos: str, *, seed: int) -> RenderRoom:
        """Renders rooms; the models are read before the first one."""

        @cache
        def source() -> RoomSource:
            return RoomSource(
                furniture=load_furniture(self.data.art.furniture, catalogues),
                photos=load_photos(self.data.photos, photos),
                side=self.side,
                seed=seed,
            )

        return lambda index: source().render(index)
