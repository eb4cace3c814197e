"""Trains the last blocks of the trunk by gradient: points of drawings learn their names.

The head that they are trained under starts as the discriminant of the frozen trunk, and is thrown
away: the encoder's heads are then fitted in closed form to the trained trunk. ImageNet's
probabilities stay close to those of the frozen trunk, because the second space is made of them.
Odd parts of scenes show views of drawings, even ones crowds.

Shapes: B scenes, C channels, F features, h w cells, p points along a side, P points of drawings, D
width of the first space, K names, L labels.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from model.cell_encoder import smooth
from model.efficientnet_lite import Trunk
from model.files import atomic_file
from training.data.folder import DataFolder
from training.photographs.activations import (
    POINT_PIXELS,
    Activations,
    Labels,
    LowerScales,
    Tail,
    shown,
)
from training.photographs.encoder import (
    SplitMoments,
    aligned,
    all_names,
    fit_drawings,
    photographed_names,
)
from training.photographs.heads import DrawingSpace
from training.photographs.regions import region_view
from training.photographs.scenes import CrowdSource, Scene, ViewSource
from training.photographs.trunk_features import Cells, Grids, collect_cells, compile_scales
from training.targets import averaged_copy, update_ema

BATCH = 16
_PHOTOGRAPHS = 2  # crops of photographs in a step
_POINTS = 24  # of each drawing in a step
_RATE = 2e-3  # of a tensor's root mean square, at the peak
_TEMPERATURE_RATE = 2e-3
_MIN_SIZE = 1e-3
_WARM_UP = 40
_DISTIL = 2.0
_SMOOTHING = 0.05
_MAX_GRADIENT = 5.0
_AVERAGE = 0.99
_TEMPERATURE = 0.06
_CLASS_TEMPERATURE = 2.5
_COARSE_SHARE = 0.15
_NEIGHBOUR_SHARPNESS = 4.0
_REPORT_STEPS = 20
_SEED = 1


def enlarged(coarse_BFhw: Tensor) -> Tensor:
    """Coarse cells on the fine grid, as in `model.cell_encoder.TwoScales`."""
    return F.interpolate(coarse_BFhw, scale_factor=2.0, mode="bilinear")


class NameHead(nn.Module):
    """The first space and its names, as trainable tensors."""

    def __init__(self, space: DrawingSpace) -> None:
        super().__init__()
        fine_DF, coarse_DF = torch.tensor(space.fine_DF), torch.tensor(space.coarse_DF)
        self.fine, self.coarse = nn.Parameter(fine_DF), nn.Parameter(coarse_DF)
        mean_D = fine_DF @ torch.from_numpy(space.fine_mean_F)
        self.bias = nn.Parameter(-(mean_D + coarse_DF @ torch.from_numpy(space.coarse_mean_F)))
        self.names_KD = nn.Parameter(torch.tensor(space.names_KD))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(_TEMPERATURE)))

    def forward(self, fine_BFhw: Tensor, coarse_BFhw: Tensor) -> Tensor:
        """Cells averaged with alike neighbours: [B, h, w, D], of unit length."""
        whitened = F.conv2d(fine_BFhw, self.fine[..., None, None], self.bias)
        whitened = whitened + F.conv2d(coarse_BFhw, self.coarse[..., None, None])
        unit_BhwD = F.normalize(whitened, dim=1).permute(0, 2, 3, 1)
        return F.normalize(smooth(unit_BhwD, _NEIGHBOUR_SHARPNESS), dim=-1)

    def log_probabilities(self, points_PD: Tensor) -> Tensor:
        """[P, K]."""
        cosines_PK = points_PD @ F.normalize(self.names_KD, dim=1).T
        return F.log_softmax(cosines_PK / self.log_temperature.exp(), dim=1)


# Scene, row and column of points of drawings in a batch, each int64 [P].
Places = tuple[Tensor, Tensor, Tensor]


def draw_points(label_Bpp: Tensor, random: torch.Generator) -> Places:
    """As many points of each drawing, however large it is."""
    chosen = []
    for scene, label_pp in enumerate(label_Bpp):
        for label in label_pp.unique():
            if label >= 0:
                inside = (label_pp == label).nonzero()
                rows = inside[torch.randint(len(inside), (_POINTS,), generator=random)]
                chosen.append(torch.cat((torch.full((_POINTS, 1), scene), rows), dim=1))
    scene_P, row_P, column_P = torch.cat(chosen).unbind(1)
    return scene_P, row_P, column_P


class TailTrainer:
    """Trains a copy of the trunk's tail; see the module."""

    def __init__(
        self, trunk: Trunk, classes: nn.Linear, space: DrawingSpace, labels: Labels
    ) -> None:
        tail = Tail(deepcopy(trunk))
        nn.utils.convert_conv2d_weight_memory_format(tail, torch.channels_last)
        self.tail, self.head = tail.train(), NameHead(space)
        self._frozen, self.average = averaged_copy(tail), averaged_copy(tail)
        self._classes = classes.requires_grad_(requires_grad=False)
        self._labels = labels
        self._log_member_LK = torch.where(torch.from_numpy(labels.member_LK), 0.0, -1e4)
        weights = [*tail.parameters(), *list(self.head.parameters())[:-1]]
        groups = [{"params": [w], "base": _RATE * max(_size(w), _MIN_SIZE)} for w in weights]
        groups.append({"params": [self.head.log_temperature], "base": _TEMPERATURE_RATE})
        self._optimizer = torch.optim.AdamW(groups, lr=_RATE, betas=(0.9, 0.99), weight_decay=0)
        self._random = np.random.default_rng(_SEED)
        self._torch_random = torch.Generator().manual_seed(_SEED)
        self.steps = 0

    def save(self, path: Path) -> None:
        """Write everything that a later run needs to go on."""
        state = {
            "parts": [part.state_dict() for part in self._parts()],
            "steps": self.steps,
            "numpy": self._random.bit_generator.state,
            "torch": self._torch_random.get_state(),
        }
        with atomic_file(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, weights_only=True)
        for part, values in zip(self._parts(), state["parts"], strict=True):
            part.load_state_dict(values)
        self.steps = state["steps"]
        self._random.bit_generator.state = state["numpy"]
        self._torch_random.set_state(state["torch"])

    def _parts(self) -> tuple[Any, ...]:
        return self.tail, self.head, self.average, self._optimizer

    def train(
        self, part: Activations, photographs: Activations, total: int
    ) -> list[tuple[float, float, float]]:
        """Show each scene of a part once; classes are kept on the photographs.

        Returns:
            For each step, of which the training has `total`, the loss of names, that of classes,
            and the share of points that are named rightly, in percent.
        """
        rows: list[tuple[float, float, float]] = []
        for chosen in self._batches(len(part.fine_nChw)):
            crops = self._random.choice(len(photographs.fine_nChw), _PHOTOGRAPHS, replace=False)
            crops.sort()
            for group in self._optimizer.param_groups:
                group["lr"] = group["base"] * _rate(self.steps, total)
            grids = tuple(
                torch.from_numpy(np.concatenate([a[crops], b[chosen]]).astype(np.float32))
                for a, b in (
                    (photographs.fine_nChw, part.fine_nChw),
                    (photographs.coarse_nChw, part.coarse_nChw),
                )
            )
            rows.append(self._step(grids, shown(part.label_npp[chosen], self._labels)))
            if self.steps % _REPORT_STEPS == 0:
                names, classes, right = np.mean(rows[-_REPORT_STEPS:], axis=0)
                print(
                    f"step {self.steps} of {total}: names {names:.3f}, classes {classes:.4f}, "
                    f"points named rightly {right:.1f} %",
                    flush=True,
                )
        return rows

    def _batches(self, count: int) -> Iterator[NDArray[np.int64]]:
        order = self._random.permutation(count)
        for start in range(0, count - BATCH + 1, BATCH):
            yield np.sort(order[start : start + BATCH])

    def _step(self, grids: Sequence[Tensor], label_Bpp: Tensor) -> tuple[float, float, float]:
        fine, coarse = (grid.contiguous(memory_format=torch.channels_last) for grid in grids)
        # Photographs come first; as many scenes take part in what keeps the classes.
        kept = 2 * _PHOTOGRAPHS
        with torch.no_grad():
            wanted = self._probabilities(
                self._frozen(fine[:kept]), enlarged(self._frozen(coarse[:kept]))
            )
        fine_BFhw, coarse_BFhw = self.tail(fine), enlarged(self.tail(coarse))
        given = self._probabilities(fine_BFhw[:kept], coarse_BFhw[:kept])
        classes_loss = (wanted.exp() * (wanted - given)).sum(-1).mean()
        cells_BhwD = self.head(fine_BFhw[_PHOTOGRAPHS:], coarse_BFhw[_PHOTOGRAPHS:])
        places = draw_points(label_Bpp, self._torch_random)
        points_BDpp = F.interpolate(
            cells_BhwD.permute(0, 3, 1, 2), size=label_Bpp.shape[1:], mode="bilinear"
        )
        log_PK = self.head.log_probabilities(points_BDpp.permute(0, 2, 3, 1)[places])
        log_member_PK = self._log_member_LK[label_Bpp[places]]
        log_right_P = torch.logsumexp(log_PK + log_member_PK, 1)
        names_loss = -log_right_P.mean() * (1 - _SMOOTHING) - _SMOOTHING * log_PK.mean()
        self._optimizer.zero_grad(set_to_none=True)
        (names_loss + _DISTIL * classes_loss).backward()
        trained = [*self.tail.parameters(), *self.head.parameters()]
        nn.utils.clip_grad_norm_(trained, _MAX_GRADIENT)
        self._optimizer.step()
        self.steps += 1
        update_ema(self.average, self.tail, min(_AVERAGE, (1 + self.steps) / (10 + self.steps)))
        is_right_P = log_member_PK.gather(1, log_PK.argmax(1, keepdim=True)) == 0
        return names_loss.item(), classes_loss.item(), 100 * is_right_P.float().mean().item()

    def _probabilities(self, fine_BFhw: Tensor, coarse_BFhw: Tensor) -> Tensor:
        """Logarithms of ImageNet's probabilities of cells, as the encoder mixes both scales."""
        fine, coarse = fine_BFhw.permute(0, 2, 3, 1), coarse_BFhw.permute(0, 2, 3, 1)
        logits = self._classes(torch.lerp(fine, coarse, _COARSE_SHARE)) / _CLASS_TEMPERATURE
        return F.log_softmax(logits, dim=-1)


def _size(weight: Tensor) -> float:
    return weight.detach().pow(2).mean().sqrt().item()


def _rate(step: int, total: int) -> float:
    warm = min(1.0, (step + 1) / _WARM_UP)
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


# The discriminant that training starts from is fitted to these passes of views.
_START_PASSES = 2
_CROPS = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetuning:
    """Trains on views, crowds and photographs in `parts`; 0 leaves the trunk as it is."""

    source: ViewSource
    data: DataFolder
    folder: Path
    parts: int

    @property
    def first_pass(self) -> int:
        """The first pass of views that takes no part in this training."""
        return 0 if not self.parts else _START_PASSES + (self.parts + 1) // 2

    def run(self, trunk: Trunk, classes: nn.Linear) -> Trunk:
        """Train what is missing, from the trunk and classifier as released."""
        if not self.parts:
            return trunk
        path = self.folder / "tail.safetensors"
        if not path.exists():
            self._train(trunk, classes, path)
        trained = deepcopy(trunk)
        Tail(trained).load_state_dict(load_file(path))
        return trained.eval()

    def _train(self, trunk: Trunk, classes: nn.Linear, path: Path) -> None:
        labels = Labels.of(all_names(self.source.drawings.names))
        run = compile_scales(LowerScales(trunk), self.source.size)
        photographs = Activations.of(self._crops(), run)
        starts = (Activations.of(self._views(n, labels), run) for n in range(_START_PASSES))
        space = start_space(trunk, starts, photographs, labels)
        trainer = TailTrainer(trunk, classes, space, labels)
        state = self.folder / "tail-state.pt"
        if state.exists():
            trainer.load(state)
        steps = self.source.scenes_per_pass // BATCH
        for part in range(trainer.steps // steps, self.parts):
            number, is_crowd = divmod(part, 2)
            views = self._views(_START_PASSES + number, labels)
            scenes = self._crowds(number, labels) if is_crowd else views
            trainer.train(Activations.of(scenes, run), photographs, self.parts * steps)
            trainer.save(state)
        with atomic_file(path) as temporary:
            save_file(
                {name: w.contiguous() for name, w in trainer.average.state_dict().items()},
                temporary,
            )

    def _views(self, number: int, labels: Labels) -> Iterator[Scene]:
        index, names = labels.index(), self.source.drawings.names
        label_of = np.asarray([0, *(1 + index[name.lower()] for name in names)], np.int32)
        for place in range(self.source.scenes_per_pass):
            pixels_SS3, mask_SS = self.source.scene(number * self.source.scenes_per_pass + place)
            yield pixels_SS3, label_of[mask_SS]

    def _crowds(self, number: int, labels: Labels) -> Iterable[Scene]:
        source = CrowdSource.of(
            self.source,
            self.data.bank(),
            labels.index(),
            first_concept=len(labels.names),
            scenes_per_part=self.source.scenes_per_pass,
        )
        return source.part(number)

    def _crops(self) -> Iterator[Scene]:
        """Crops of photographs; a label is a region's number."""
        for place in range(_CROPS):
            yield region_view(self.data.path, self.source.size, place)


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
    """Cells under what each scene shows, as `trunk_features.compute_pass` finds them."""

    def scenes() -> Iterator[tuple[Grids, NDArray[np.int32], np.random.Generator]]:
        for start in range(0, len(part.fine_nChw), BATCH):
            rows = slice(start, start + BATCH)
            fine_BFhw, coarse_BFhw = (
                torch.from_numpy(grid[rows].astype(np.float32))
                for grid in (part.fine_nChw, part.coarse_nChw)
            )
            fine, coarse = tail(fine_BFhw).numpy(), enlarged(tail(coarse_BFhw)).numpy()
            for place, label_pp in enumerate(part.label_npp[rows]):
                mask_SS = np.kron(label_pp + 1, np.ones((POINT_PIXELS, POINT_PIXELS)))
                rng = np.random.default_rng(start + place)
                yield (fine[place], coarse[place]), mask_SS.astype(np.int32), rng

    return collect_cells(scenes())
