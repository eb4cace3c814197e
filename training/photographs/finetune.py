"""The trunk with its tail trained: parts of scenes, the start, and what a stopped run goes on from.

Odd parts show views of drawings, even ones crowds; a part's file goes when it has been learnt.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from model.efficientnet_lite import Trunk
from model.files import atomic_file
from training.data.sprites import SpriteBank
from training.photographs.activations import Activations, Labels, LowerScales, Scene, Tail
from training.photographs.build import (
    SplitMoments,
    aligned,
    all_names,
    fit_drawings,
    photographed_names,
)
from training.photographs.cells import Cells, RunTrunk, compile_scales, covered_cells
from training.photographs.crowds import CrowdSource, crowd_sprites
from training.photographs.heads import DrawingSpace
from training.photographs.regions import region_view
from training.photographs.tail import BATCH, TailTrainer, enlarged, with_tail
from training.photographs.views import ViewSource

# The discriminant that training starts from is fitted to these passes of views.
_START_PASSES = 2
_CROPS = 240
_POINT_PIXELS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetuning:
    """Settings.

    Attributes:
        source: Views of the drawings.
        bank: Has the further drawings of crowds.
        data: The data folder, with the photographs.
        folder: Of the run.
        parts: Parts that are learnt; 0 leaves the trunk as it is.
    """

    source: ViewSource
    bank: SpriteBank
    data: Path
    folder: Path
    parts: int

    @property
    def first_pass(self) -> int:
        """The first pass of views that takes no part in this training."""
        return 0 if not self.parts else _START_PASSES + (self.parts + 1) // 2

    def run(self, trunk: Trunk, classes: nn.Linear) -> Trunk:
        """Train what is missing.

        Args:
            trunk: As released.
            classes: Its classifier.
        """
        if not self.parts:
            return trunk
        path = self.folder / "tail.safetensors"
        if not path.exists():
            self._train(trunk, classes, path)
        tail = Tail(deepcopy(trunk))
        tail.load_state_dict(load_file(path))
        return with_tail(trunk, tail)

    def _train(self, trunk: Trunk, classes: nn.Linear, path: Path) -> None:
        labels = Labels.of(all_names(self.source.drawings.names))
        run = compile_scales(LowerScales(trunk), self.source.size)
        photographs = self._kept("photographs", 0, labels, run)
        starts = [self._kept("views", number, labels, run) for number in range(_START_PASSES)]
        trainer = TailTrainer(
            trunk, classes, start_space(trunk, starts, photographs, labels), labels
        )
        state = self.folder / "tail-state.pt"
        if state.exists():
            trainer.load(state)
        steps = self.source.scenes_per_pass // BATCH
        for part in range(trainer.steps // steps, self.parts):
            number, is_crowd = divmod(part, 2)
            kind = ("crowds", number) if is_crowd else ("views", _START_PASSES + number)
            trainer.train(self._kept(*kind, labels, run), photographs, self.parts * steps)
            trainer.save(state)
            self._path(*kind).unlink()
        with atomic_file(path) as temporary:
            save_file(
                {name: w.contiguous() for name, w in trainer.average.state_dict().items()},
                temporary,
            )

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / f"activations-{kind}-{number:03d}.npz"

    def _kept(self, kind: str, number: int, labels: Labels, run: RunTrunk) -> Activations:
        scenes = {"views": self._views, "crowds": self._crowds, "photographs": self._crops}[kind]
        return Activations.kept(self._path(kind, number), partial(scenes, number, labels), run)

    def _views(self, number: int, labels: Labels) -> Iterator[Scene]:
        index, names = labels.index(), self.source.drawings.names
        label_of = np.asarray([0, *(1 + index[name.lower()] for name in names)], np.int32)
        for place in range(self.source.scenes_per_pass):
            pixels_SS3, mask_SS = self.source.scene(number * self.source.scenes_per_pass + place)
            yield pixels_SS3, label_of[mask_SS]

    def _crowds(self, number: int, labels: Labels) -> Iterable[Scene]:
        first = len(labels.names)
        rgba, label_M = crowd_sprites(self.source.drawings, self.bank, labels.index(), first)
        return CrowdSource(
            rgba_MSS4=rgba,
            label_M=label_M,
            photos=self.source.photos,
            size=self.source.size,
            scenes_per_part=self.source.scenes_per_pass,
        ).part(number)

    def _crops(self, _number: int, _labels: Labels) -> Iterator[Scene]:
        """Crops of photographs; a label is a region's number."""
        for place in range(_CROPS):
            yield region_view(self.data, self.source.size, place)


@torch.inference_mode()
def start_space(
    trunk: Trunk, starts: Iterable[Activations], photographs: Activations, labels: Labels
) -> DrawingSpace:
    """The discriminant of the frozen trunk's cells under drawings and regions."""
    tail = Tail(trunk)
    parts = ((activation_cells(tail, start), labels.names) for start in starts)
    moments = SplitMoments.of(parts, labels.names)
    regions = aligned(activation_cells(tail, photographs), moments.all())
    moments += SplitMoments.of([(regions, photographed_names())], labels.names)
    return fit_drawings(moments.all(), labels.names)[0]


def activation_cells(tail: Tail, part: Activations) -> Cells:
    """Cells under what each scene shows, as `cells.compute_pass` finds them."""
    fine, coarse, names = [], [], []
    for start in range(0, len(part.fine_nChw), BATCH):
        rows = slice(start, start + BATCH)
        fine_BFhw, coarse_BFhw = (
            torch.from_numpy(grid[rows].astype(np.float32))
            for grid in (part.fine_nChw, part.coarse_nChw)
        )
        both = tail(fine_BFhw).numpy(), enlarged(tail(coarse_BFhw)).numpy()
        for place, label_pp in enumerate(part.label_npp[rows]):
            mask_SS = np.kron(label_pp + 1, np.ones((_POINT_PIXELS, _POINT_PIXELS))).astype(
                np.int32
            )
            found = covered_cells(mask_SS, np.random.default_rng(start + place))
            for row, column, name in found:
                fine.append(both[0][place, :, row, column].astype(np.float16))
                coarse.append(both[1][place, :, row, column].astype(np.float16))
                names.append(name)
    return Cells(fine_nF=np.stack(fine), coarse_nF=np.stack(coarse), name_n=np.asarray(names))
