"""Views with a teacher's cells as a run's inputs: random crops of a growing pool.

Shapes: B images, S side of a crop, N = g * g patches of the student, D width, C texts.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import Tipsv2Tokenizer

from model.encoder import load_encoder
from model.text import TEMPLATES
from model.variants import PATCH_SIZE
from training.checkpoint import save_atomically
from training.config import TrainingConfig, ViewsConfig
from training.data.backgrounds import load_photos
from training.data.batch import Batch, TeacherCells, begin_loading, collate
from training.data.concepts import all_concepts
from training.data.folder import DataFolder
from training.data.shards.batches import RunShare
from training.evaluate.encoder import encode_texts, load_for_evaluation
from training.evaluate.sets import SegmentationBenchmark, development_benchmarks
from training.photographs.build import read_classes
from training.photographs.crowds import CrowdSource, crowd_sprites
from training.photographs.drawings import build_drawings, load_drawings, save_drawings
from training.photographs.pool import Pool, Views, compile_vision
from training.photographs.regions import region_names
from training.photographs.views import ViewSource
from training.run_record import digest
from training.targets import Space, fit_space

_STREAM = 29  # separates these random numbers from those of scenes
_MIN_SIDE = 0.65  # of a crop, share of the view's


class ViewInputs:
    """Views of all named drawings and of photographs.

    Attributes:
        space: The teacher's, in the student's width.
    """

    def __init__(self, config: TrainingConfig, data: ViewsConfig) -> None:
        """Load teacher and drawings, and fit the space; both are kept in the run's folder.

        Raises:
            FileNotFoundError: There is no teacher, or nothing was fetched.
        """
        assert config.teacher is not None  # TrainingConfig checks it
        self._config, self._data, self._folder = config, data, DataFolder(path=data.folder)
        if not config.teacher.is_dir():
            raise FileNotFoundError(
                f"no teacher in {config.teacher}: run `python -m training photographs` first"
            )
        self._teacher = load_encoder(config.teacher)
        path = config.folder / "drawings.npz"
        config.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            save_drawings(build_drawings(self._folder.art), path)
        self._drawings = load_drawings(path)
        self._names = _joined(self._drawings.names, region_names())
        self.space = self._load_space()

    def _load_space(self) -> Space:
        path = self._config.folder / "space.pt"
        if not path.exists():
            start = self._config.start
            names_KT = self._embed(self._names)
            texts = encode_texts(load_for_evaluation(start), self._names) if start else None
            space = fit_space(
                names_KT, self._config.model.dim, None if texts is None else torch.from_numpy(texts)
            )
            save_atomically({"axes_TD": space.axes_TD, "names_KD": space.names_KD}, path)
        return Space(**torch.load(path, weights_only=True))

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """The teacher's embeddings; texts of like length are padded together."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        embedded = encode_texts(self._teacher, [texts[place] for place in order])
        return torch.from_numpy(embedded)[np.argsort(order)]

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """The teacher's embeddings of texts, reduced to the student's width: [C, D]."""
        return self.space.reduce(self._embed(texts))

    def describe(self) -> Sequence[str]:
        """See `Inputs`."""
        return (
            f"data: views of {len(self._drawings.name_M)} drawings and of photographs in "
            f"{self._data.folder}, {len(self._names)} names; targets of {self._config.teacher}",
        )

    def tokenizer_texts(self) -> list[str]:
        """Every known name."""
        return self.warm_up_texts()

    def warm_up_texts(self) -> list[str]:
        """Every name that the teacher knows; those of drawings and regions in a prompt as well."""
        concepts = tuple(concept.name for concept in all_concepts())
        drawn = _joined(self._names, concepts)
        known, prompts = _joined(drawn, tuple(read_classes())), TEMPLATES["tcl"]
        shown = [prompts[i % len(prompts)].format(name) for i, name in enumerate(drawn)]
        return [*known, *shown]

    def batches(self, tokenizer: Tipsv2Tokenizer, share: RunShare) -> "ViewBatches":
        """See `Inputs`."""
        photos, size = load_photos(self._folder.photos, "train"), self._teacher.native_size
        rgba, label_M = self._crowd_sprites()
        pool = Pool(
            folder=self._config.folder / "views",
            source=ViewSource(drawings=self._drawings, photos=photos, size=size),
            crowds=CrowdSource(
                rgba_MSS4=rgba,
                label_M=label_M,
                photos=photos,
                size=size,
                scenes_per_part=self._data.part_size // 2,
            ),
            data=self._folder.path,
            names=self._names,
            space=self.space,
            look=compile_vision(self._teacher),
            part_size=self._data.part_size,
            photo_every=self._data.photo_every,
        )
        return ViewBatches(pool, tokenizer, self._data, share)

    def _crowd_sprites(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        label_of = {name: number for number, name in enumerate(self._names)}
        bank = self._folder.bank()
        return crowd_sprites(self._drawings, bank, label_of, len(self._names))

    def benchmarks(self) -> Sequence[SegmentationBenchmark]:
        """The development scenes."""
        return development_benchmarks(self._folder)

    def facts(self) -> dict[str, Any]:
        """See `Inputs`."""
        assert self._config.teacher is not None
        files = sorted(path for path in self._config.teacher.iterdir() if path.is_file())
        return {"folder": str(self._folder.path), "teacher": digest(files)}


def _joined(*parts: Sequence[str]) -> tuple[str, ...]:
    """Names in lower case; equal ones become one."""
    return tuple(dict.fromkeys(name.lower() for part in parts for name in part))


class ViewBatches(Dataset[Batch]):
    """Batches of random crops by step number."""

    def __init__(
        self, pool: Pool, tokenizer: Tipsv2Tokenizer, config: ViewsConfig, share: RunShare
    ) -> None:
        self._pool, self._tokenizer, self._config, self._share = pool, tokenizer, config, share
        self._parts: list[Views] = []

    def __len__(self) -> int:
        return self._share.num_steps

    def __getitem__(self, step: int) -> Batch:
        """Make the batch of one step."""
        share = self._share
        rng = np.random.default_rng((self._config.seed, _STREAM, step, share.rank))
        chosen = rng.integers(self._num_parts(step) * self._config.part_size, size=share.batch_size)
        views = self._rows(chosen)
        pixels_B3SS, cells = crop_views(rng, views, self._config.size)
        nothing: list[None] = [None] * len(chosen)
        locals_0B3hw = pixels_B3SS.new_zeros((0, *pixels_B3SS.shape))
        crops = (pixels_B3SS, locals_0B3hw)
        batch = collate(nothing, [()] * len(chosen), self._tokenizer, step=step, crops=crops)
        return replace(batch, cells=cells)

    def _num_parts(self, step: int) -> int:
        """Parts that a step draws from: the pool grows by one when its views have been shown."""
        shown = step * self._share.batch_size * self._share.num_ranks
        return 1 + shown // (self._config.part_size * self._config.shows)

    def _rows(self, chosen: np.ndarray[Any, np.dtype[np.int64]]) -> Views:
        """Views by number; parts that no earlier step needed are read or computed."""
        parts, rows = np.divmod(chosen, self._config.part_size)
        for number in range(len(self._parts), int(parts.max()) + 1):
            self._parts.append(self._pool.part(number))
        return Views.join(
            [self._parts[part].row(row) for part, row in zip(parts, rows, strict=True)]
        )

    def loader(self, first_step: int, *, num_workers: int) -> DataLoader[Batch]:
        """Iterate from a step on, prefetched by worker processes."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(first_step, self._share.num_steps),
            num_workers=num_workers,
            prefetch_factor=4 if num_workers else None,
            worker_init_fn=begin_loading,
        )


def crop_views(rng: np.random.Generator, views: Views, size: int) -> tuple[Tensor, TeacherCells]:
    """Crop views at random, mirror half of them, and change their light.

    Args:
        rng: Source of every choice.
        views: B views.
        size: S, a multiple of the patch size.

    Returns:
        float32 [B, 3, S, S] in [0, 1], and the targets at the same places.
    """
    count, grid = len(views.pixels_PSS3), size // PATCH_SIZE
    crops_B23 = _crops(rng, count)

    def sample(values_BChw: Tensor, side: int, mode: str = "bilinear") -> Tensor:
        at = F.affine_grid(crops_B23, [count, 1, side, side], align_corners=False)
        return F.grid_sample(values_BChw, at, mode=mode, padding_mode="border", align_corners=False)

    pixels_B3SS = sample(torch.from_numpy(views.pixels_PSS3).permute(0, 3, 1, 2) / 255.0, size)
    patches_BDgg = sample(torch.from_numpy(views.patches_PggD).permute(0, 3, 1, 2).float(), grid)
    patches_BND = F.normalize(patches_BDgg.flatten(2).transpose(1, 2), dim=-1)
    names_B1mm = torch.from_numpy(views.names_Pmm)[:, None].float()
    points = sample(names_B1mm, 2 * grid, "nearest").reshape(count, grid, 2, grid, 2)
    four_BN4 = points.permute(0, 1, 3, 2, 4).reshape(count, grid * grid, 4).round().long()
    is_one_BN = (four_BN4 == four_BN4[..., :1]).all(-1)
    cells = TeacherCells(
        patches_BND=patches_BND,
        cls1_BD=torch.from_numpy(views.whole_PD).float(),
        cls2_BD=F.normalize(patches_BND.mean(1), dim=-1),
        name_BN=torch.where(is_one_BN, four_BN4[..., 0], -1),
    )
    return _lit(rng, pixels_B3SS), cells


def _crops(rng: np.random.Generator, count: int) -> Tensor:
    """Maps [B, 2, 3] from a crop to its view, in the coordinates of `affine_grid`."""
    side_B = rng.uniform(_MIN_SIDE, 1, count)
    shift_2B = rng.uniform(-1, 1, (2, count)) * (1 - side_B)
    maps_B23 = np.zeros((count, 2, 3), np.float32)
    maps_B23[:, 0, 0] = side_B * rng.choice([-1, 1], count)
    maps_B23[:, 1, 1] = side_B
    maps_B23[:, :, 2] = shift_2B.T
    return torch.from_numpy(maps_B23)


def _lit(rng: np.random.Generator, pixels_B3SS: Tensor) -> Tensor:
    """Other brightness and tint; the targets stay."""
    count = len(pixels_B3SS)
    gain_B3 = np.exp(rng.normal(0, 0.15, (count, 1)) + rng.normal(0, 0.05, (count, 3)))
    lift_B3 = rng.normal(0, 0.03, (count, 3))
    gain, lift = (
        torch.from_numpy(x.astype(np.float32))[..., None, None] for x in (gain_B3, lift_B3)
    )
    return (pixels_B3SS * gain + lift).clamp(0, 1)
