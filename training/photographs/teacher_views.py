"""Views of drawings and photographs with what a teacher says about them: computed once and kept.

Shapes: P views of a part, S their side in pixels, g the teacher's patches along a side, m points of
the map of names along a side, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from model.encoder import Encoder
from training.data.array_record import ArrayRecord
from training.photographs.regions import region_names, region_view
from training.photographs.scenes import CrowdSource, ViewSource
from training.pretrained.compiled import compile_for_images
from training.targets import Space

# Crops of these are enlarged by little: the student sees 112 pixels.
VIEW_SIDE = 128
_POINTS = 64
_PHOTO_EVERY = 8  # one view of so many shows a photograph
# Value-path patches and the embedding of the whole image.
Look = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Views(ArrayRecord):
    """A part of the pool.

    Attributes:
        pixels_PSS3: uint8.
        patches_PggD: float16, unit vectors; the teacher's value path.
        whole_PD: float16, likewise; the teacher's CLS1.
        names_Pmm: int16; the known name at each point, -1 for none.
    """

    pixels_PSS3: NDArray[np.uint8]
    patches_PggD: NDArray[np.float16]
    whole_PD: NDArray[np.float16]
    names_Pmm: NDArray[np.int16]

    def row(self, number: int) -> Self:
        """One view."""
        rows = slice(number, number + 1)
        return type(self)(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """All views of several parts."""
        return cls(
            **{
                item.name: np.concatenate([getattr(part, item.name) for part in parts])
                for item in fields(cls)
            }
        )


def compile_vision(teacher: Encoder) -> Look:
    """The teacher's vision tower in OpenVINO, for images of its native size."""
    run = compile_for_images(teacher.vision, teacher.native_size)

    def look(pixels_SS3: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        cls1_D, _, _, values_ND = run(pixels_SS3)
        return values_ND, cls1_D

    return look


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Computes and keeps parts of `part_size` views; part i is always the same.

    Attributes:
        source: Views of drawings at the teacher's native size.
        crowds: Overlapping drawings, labelled by `names` or by what is behind them; a part of the
            pool takes its scenes from one part of these.
        names: The known names, in lower case.
        look: The teacher.
    """

    folder: Path
    source: ViewSource
    crowds: CrowdSource
    data: Path
    names: Sequence[str]
    space: Space
    look: Look
    part_size: int

    def part(self, number: int) -> Views:
        """Read a part, or compute it."""
        path = self.folder / f"views-{number:04d}.npz"
        return Views.kept(
            path, lambda: Views.join([self._view(*scene) for scene in self._scenes(number)])
        )

    def _scenes(self, number: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int16]]]:
        """Scenes of a part, and the known name at each of their pixels, -1 for none."""
        number_of = {name: row for row, name in enumerate(self.names)}

        def numbers(shown: Sequence[str]) -> NDArray[np.int16]:
            return np.asarray([-1, *(number_of[name.lower()] for name in shown)], np.int16)

        photographed, drawn = numbers(region_names()), numbers(self.source.drawings.names)
        crowds = iter(self.crowds.part(number))
        for index in range(number * self.part_size, (number + 1) * self.part_size):
            round_, place = divmod(index, _PHOTO_EVERY)
            if place == 0:
                pixels_SS3, mask_SS = region_view(self.data, self.source.size, round_)
                yield pixels_SS3, photographed[mask_SS]
            elif place % 2 and (scene := next(crowds, None)) is not None:
                pixels_SS3, mask_SS = scene
                is_name_SS = mask_SS <= len(self.names)  # further drawings are known by concept
                yield pixels_SS3, np.where(is_name_SS, mask_SS - 1, -1).astype(np.int16)
            else:
                pixels_SS3, mask_SS = self.source.scene(round_ * (_PHOTO_EVERY - 1) + place - 1)
                yield pixels_SS3, drawn[mask_SS]

    def _view(self, pixels_SS3: NDArray[np.uint8], name_SS: NDArray[np.int16]) -> Views:
        patches_NT, whole_T = self.look(pixels_SS3)
        grid = round(len(patches_NT) ** 0.5)
        reduced_ND = self.space.reduce(torch.from_numpy(np.vstack([patches_NT, whole_T]))).numpy()
        points = cv2.resize(name_SS, (_POINTS, _POINTS), interpolation=cv2.INTER_NEAREST)
        small = cv2.resize(pixels_SS3, (VIEW_SIDE, VIEW_SIDE), interpolation=cv2.INTER_AREA)
        return Views(
            pixels_PSS3=np.asarray(small, np.uint8)[None],
            patches_PggD=reduced_ND[:-1].reshape(1, grid, grid, -1).astype(np.float16),
            whole_PD=reduced_ND[-1:].astype(np.float16),
            names_Pmm=np.asarray(points, np.int16)[None],
        )
