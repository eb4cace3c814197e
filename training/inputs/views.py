"""Views with a teacher's cells, and scenes without, as a run's inputs.

Views are cropped at random. Everyday words fill most of the scenes, which have captions and cost
no pass of the teacher, so none is shown twice.

Shapes: B images, V of them crops of views, S side of an image, N = g * g patches of the student,
D width, U names of a batch.
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
from training.data.batch import (
    NO_TEXTS,
    Batch,
    RunShare,
    TeacherCells,
    collate,
    prefetch,
    tokenize,
    uncropped,
)
from training.data.captions import SCENE_CAPTIONS
from training.data.concepts import all_concepts
from training.data.folder import TRAIN_STYLES, DataFolder, seen_names
from training.data.scenes import Scene, SceneSource, compose_scene
from training.evaluate.encoder import encode_texts, load_for_evaluation
from training.evaluate.sets import SegmentationBenchmark, development_benchmarks
from training.photographs.regions import region_names
from training.photographs.scenes import CrowdSource, NamedDrawings, ViewSource, build_drawings
from training.photographs.teacher_views import Pool, Views, compile_vision
from training.run_record import digest
from training.targets import Space, fit_space

_STREAM = 29  # separates these random numbers from those of scenes
_MIN_SIDE = 0.65  # of a crop, share of the view's
_POINTS = 2  # along a patch's side, at which names are known
# Names that points are compared with in a step: those that the batch shows, the everyday ones, and
# others by chance.
_NUM_NAMES = 256
_BARE_SHARE = 0.5  # of the steps whose names are in no prompt


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
        self._drawings = NamedDrawings.kept(
            config.folder / "drawings.npz", lambda: build_drawings(self._folder.art)
        )
        names = (*self._drawings.names, *region_names())
        self._names = tuple(dict.fromkeys(name.lower() for name in names))
        self.space = self._load_space()

    def _load_space(self) -> Space:
        path = self._config.folder / "space.pt"
        if not path.exists():
            start_KD, start = None, self._config.start
            if start is not None:
                start_KD = torch.from_numpy(encode_texts(load_for_evaluation(start), self._names))
            space = fit_space(self._embed(self._names), self._config.model.dim, start_KD)
            save_atomically({"axes_TD": space.axes_TD}, path)
        return Space(axes_TD=torch.load(path, weights_only=True)["axes_TD"])

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """The teacher's embeddings; texts of like length are padded together."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        embedded = encode_texts(self._teacher, [texts[place] for place in order])
        return torch.from_numpy(embedded)[np.argsort(order)]

    def describe(self) -> Sequence[str]:
        """See `Inputs`."""
        return (
            f"data: views of {len(self._drawings.name_M)} drawings and of photographs in "
            f"{self._data.folder}, {len(self._names)} names; targets of {self._config.teacher}",
        )

    def tokenizer_texts(self) -> list[str]:
        """Every name of a patch."""
        return list(Labels(self._names).texts)

    def warm_up_texts(self) -> list[str]:
        """See `Inputs`; no text tower is warmed up for this method by default."""
        return self.tokenizer_texts()

    def batches(self, tokenizer: Tipsv2Tokenizer, share: RunShare) -> "ViewBatches":
        """See `Inputs`."""
        source = ViewSource(
            drawings=self._drawings,
            photos=load_photos(self._folder.photos, "train"),
            size=self._teacher.native_size,
        )
        crowds = CrowdSource.of(
            source,
            self._folder.bank(),
            {name: number for number, name in enumerate(self._names)},
            first_concept=len(self._names),
            scenes_per_part=self._data.part_size // 2,
        )
        pool = Pool(
            folder=self._config.folder / "views",
            source=source,
            crowds=crowds,
            data=self._folder.path,
            names=self._names,
            space=self.space,
            look=compile_vision(self._teacher),
            part_size=self._data.part_size,
        )
        scenes = self._folder.source(
            "train", styles=TRAIN_STYLES, names=seen_names(), seed=self._data.seed
        )
        return ViewBatches(pool, scenes=scenes, tokenizer=tokenizer, config=self._data, share=share)

    def benchmarks(self) -> Sequence[SegmentationBenchmark]:
        """The development scenes."""
        return development_benchmarks(self._folder)

    def facts(self) -> dict[str, Any]:
        """See `Inputs`."""
        assert self._config.teacher is not None
        files = sorted(path for path in self._config.teacher.iterdir() if path.is_file())
        return {"folder": str(self._folder.path), "teacher": digest(files)}


class Labels:
    """What patches are named: every concept, and the known names that belong to none.

    Attributes:
        texts: One a label.
        of_name: The label of each known name; the last one, -1, is that of no name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        concepts = all_concepts()
        of_text = {
            drawn.lower(): i for i, c in reversed([*enumerate(concepts)]) for drawn in c.drawings
        }
        of_text |= {concept.name.lower(): i for i, concept in enumerate(concepts)}
        texts = [concept.name for concept in concepts]
        for name in names:
            if name not in of_text:
                of_text[name] = len(texts)
                texts.append(name)
        self.texts = tuple(texts)
        self.of_name = np.asarray([*(of_text[name] for name in names), -1], np.int64)
        self._common = np.asarray([i for i, concept in enumerate(concepts) if concept.is_common])

    def choose(
        self, rng: np.random.Generator, shown: NDArray[np.int64], count: int
    ) -> NDArray[np.int64]:
        """`count` distinct labels: those that are shown, the everyday ones, others by chance."""
        needed = np.union1d(shown[shown >= 0], self._common)
        others = np.setdiff1d(np.arange(len(self.texts)), needed)
        missing = min(max(count - len(needed), 0), len(others))
        return np.concatenate([needed, rng.choice(others, missing, replace=False)])


class ViewBatches(Dataset[Batch]):
    """Batches by step number: random crops of views, then scenes."""

    def __init__(
        self,
        pool: Pool,
        *,
        scenes: SceneSource,
        tokenizer: Tipsv2Tokenizer,
        config: ViewsConfig,
        share: RunShare,
    ) -> None:
        self._pool, self._scenes, self._tokenizer = pool, scenes, tokenizer
        self._config, self._share, self._labels = config, share, Labels(pool.names)
        self._parts: dict[int, Views] = {}

    def __len__(self) -> int:
        return self._share.num_steps

    def __getitem__(self, step: int) -> Batch:
        """Make the batch of one step."""
        share, config = self._share, self._config
        rng = np.random.default_rng((config.seed, _STREAM, step, share.rank))
        num_scenes = round(config.scenes_share * share.batch_size)
        chosen = rng.integers(
            config.num_parts * config.part_size, size=share.batch_size - num_scenes
        )
        pixels_V3SS, cells = crop_views(rng, self._rows(chosen), config.size)
        form = replace(config.scenes, size=config.size)
        places = share.places(step, num_scenes)
        scenes = [compose_scene(self._scenes, place, form) for place in places]
        composed = [torch.from_numpy(scene.pixels_SS3).permute(2, 0, 1) / 255.0 for scene in scenes]
        pixels_B3SS = torch.cat([pixels_V3SS, *(pixels_3SS[None] for pixels_3SS in composed)])
        label_Bpp = np.concatenate(
            [self._labels.of_name[cells.name_Bpp.numpy()], *(_labels(scene) for scene in scenes)]
        )
        captions = [None] * len(chosen) + [
            SCENE_CAPTIONS.choose(scene.captions.by_source(), rng) for scene in scenes
        ]
        names = [()] * len(captions)
        batch = collate(captions, names, self._tokenizer, step=step, crops=uncropped(pixels_B3SS))
        return replace(batch, cells=self._named(rng, cells, label_Bpp))

    def _named(
        self, rng: np.random.Generator, cells: TeacherCells, label_Bpp: NDArray[np.int64]
    ) -> TeacherCells:
        """With the names of the batch, and the row among them at each point."""
        labels_U = self._labels.choose(rng, np.unique(label_Bpp), _NUM_NAMES)
        row_of = np.full(len(self._labels.texts) + 1, -1)  # the last one, -1, is no label
        row_of[labels_U] = np.arange(len(labels_U))
        prompt = "{}" if rng.random() < _BARE_SHARE else str(rng.choice(TEMPLATES["tcl"]))
        texts = [prompt.format(self._labels.texts[label]) for label in labels_U]
        return replace(
            cells,
            name_Bpp=torch.from_numpy(row_of[label_Bpp]),
            names=tokenize(self._tokenizer, texts),
        )

    def _rows(self, chosen: NDArray[np.int64]) -> Views:
        """Views by number; parts that no earlier step needed are read or computed."""
        parts, rows = np.divmod(chosen, self._config.part_size)
        for number in {int(part) for part in parts} - self._parts.keys():
            self._parts[number] = self._pool.part(number)
        return Views.join(
            [self._parts[int(part)].row(row) for part, row in zip(parts, rows, strict=True)]
        )

    def loader(self, first_step: int, *, num_workers: int) -> DataLoader[Batch]:
        """Iterate from a step on, prefetched by worker processes."""
        return prefetch(self, range(first_step, len(self)), num_workers=num_workers)


def _labels(scene: Scene) -> NDArray[np.int64]:
    """What a scene's points show, [1, p, p]; -1 for no drawing."""
    stride = PATCH_SIZE // _POINTS
    points_pp = scene.mask_SS[stride // 2 :: stride, stride // 2 :: stride]
    return points_pp[None].astype(np.int64) - 1


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
    cells = TeacherCells(
        patches_VND=patches_BND,
        cls1_VD=torch.from_numpy(views.whole_PD).float(),
        cls2_VD=F.normalize(patches_BND.mean(1), dim=-1),
        name_Bpp=sample(names_B1mm, _POINTS * grid, "nearest")[:, 0].round().long(),
        names=NO_TEXTS,
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
