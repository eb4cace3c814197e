"""Renders, embeddings, heads, their scores and the package with them. Resumable up to the fit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from model.dense_maps import MAPS, MapTask
from model.export.added_heads import AddedHeads, add_heads
from model.export.exact import round_weights
from model.manifest import ScoreEntry
from model.package import ModelPackage
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
from training.dense.encoder import Embeddings, FrozenEncoder, shuffled
from training.dense.head import (
    MAP_SCALE,
    EmbeddingHead,
    Examples,
    HeadKind,
    fit_dense_head,
)
from training.dense.score import HEAD, MEAN, RANDOM, ImageSums, RawMap, compare, entries, raw_maps
from training.run_record import code_version

TASKS: Final[tuple[MapTask, ...]] = tuple(MAPS)
TEST_SEED: Final = 1
PHOTOS_PACKAGE: Final = "lomiri-wallpapers-16.04"
TEST: Final = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseHeadsJob:
    """Settings of a run.

    Attributes:
        package: The encoder; its graphs are copied.
        data: The data folder; furniture and photographs are fetched if they are missing.
        folder: Renders and embeddings are kept here, and the test set for `tipserve evaluate`.
        kind: Linear heads, or with DPT's decoder.
        num_renders: Rooms to train on, rounded up to whole parts.
        num_tests: Rooms with furniture of the held-out catalogue.
        num_steps: Of each fit.
        card: Text of the heads' part of the model card.
    """

    package: ModelPackage
    data: DataFolder
    folder: Path
    kind: HeadKind
    num_renders: int
    num_tests: int
    num_steps: int
    card: Path

    def run(self, output: Path) -> ModelPackage:
        """Fit and score heads for depth and normals; write the package with them.

        Raises:
            ValueError: The package has dense heads of its own, or `output` is no package.
        """
        # Threads that wait for each other take most of the time on a busy machine.
        torch.set_num_threads(1)
        self._fetch()
        parts = list(self._parts())
        truth = self._test_set()
        own = self._fit(FrozenEncoder.load(self.package), parts, truth)
        random = shuffled(self.package, self.folder / "shuffled")
        other = self._fit(FrozenEncoder.load(random), parts, truth)
        scores: list[ScoreEntry] = []
        for task in TASKS:
            mean = compare(task, [mean_map(task, parts)] * len(truth), truth)
            rows = {HEAD: own[task][1], MEAN: mean, RANDOM: other[task][1]}
            scores += entries(task, f"rooms with furniture of {HELD_OUT}, rendered", rows)
        heads = AddedHeads(
            modules={task: head for task, (head, _) in own.items()},
            card=self.card.read_text(encoding="utf-8"),
            scores=scores,
            provenance=self._provenance(),
        )
        return add_heads(self.package, heads, output, progress=_say)

    def _fetch(self) -> None:
        for package, place in (
            (PACKAGE, self.data.art.furniture),
            (PHOTOS_PACKAGE, self.data.photos),
        ):
            if not place.exists():
                fetch_debian(self.data.path, (package,))

    @property
    def _map_side(self) -> int:
        manifest = self.package.manifest
        return MAP_SCALE * manifest.native_size // manifest.patch_size

    @property
    def _test_folder(self) -> Path:
        return self.folder / f"{TEST}-{self.num_tests}"

    def _parts(self) -> Iterable[RenderPart]:
        furniture = self.data.art.furniture
        folder = self.folder / f"renders-{self._map_side}"
        names = [name for name in catalogue_files(furniture) if name != HELD_OUT]
        render = self._rooms(names, "train", seed=0)
        parts = render_parts(render, folder, num_renders=self.num_renders, map_side=self._map_side)
        for number, part in enumerate(parts, 1):
            _say(f"part {number} of the renders is ready")
            yield part

    def _test_set(self) -> list[Render]:
        render = self._rooms([HELD_OUT], "held-out", seed=TEST_SEED)
        write_test_set(render, self._test_folder, self.num_tests)
        return list(read_test_set(self._test_folder))

    def _rooms(self, catalogues: list[str], photos: str, *, seed: int) -> RenderRoom:
        """Renders rooms; the models are read before the first one."""

        @cache
        def source() -> RoomSource:
            return RoomSource(
                furniture=load_furniture(self.data.art.furniture, catalogues),
                photos=load_photos(self.data.photos, photos),
                side=self.package.manifest.native_size,
                seed=seed,
            )

        return lambda index: source().render(index)

    def _fit(
        self, encoder: FrozenEncoder, parts: list[RenderPart], truth: list[Render]
    ) -> dict[MapTask, tuple[EmbeddingHead, ImageSums]]:
        """A head for each task, with its scores."""
        seen = Embeddings.join(
            encoder.cached(part.pixels_PSS3, self.folder, f"{self._map_side}-{number:03d}")
            for number, part in enumerate(parts)
        )
        tests = encoder.cached(
            np.stack([r.pixels_SS3 for r in truth]), self.folder, self._test_folder.name
        )
        encoder.runtime.close()
        fitted: dict[MapTask, tuple[EmbeddingHead, ImageSums]] = {}
        for task in TASKS:
            _say(f"fitting {task} to {len(seen.cls_PD)} renders")
            examples = Examples(
                cls_PD=seen.cls_PD,
                patches_PhwD=seen.patches_PhwD,
                maps=np.concatenate([true_maps(task, part) for part in parts]),
            )
            head = fit_dense_head(examples, task, self.kind, num_steps=self.num_steps)
            round_weights(head, "fp16")  # what is scored is what the graph stores
            fitted[task] = head, compare(task, raw_maps(head, tests), truth)
        return fitted

    def _provenance(self) -> Mapping[str, JsonValue]:
        return {
            "job": "dense-heads",
            "commit": code_version()["commit"] or "unknown",
            "kind": self.kind,
            "renders": self.num_renders,
            "steps": self.num_steps,
            "furniture": f"Debian {PACKAGE}, CC0 and CC-BY-3.0; {HELD_OUT} for evaluation only",
            "photographs": f"{PHOTOS_PACKAGE} (CC0, CC-BY-4.0)",
        }


def true_maps(task: MapTask, part: RenderPart) -> NDArray[np.float32] | NDArray[np.float16]:
    """The maps of a part's renders that a head learns."""
    return part.depth_Pmm if task == "depth" else part.normals_P3mm


def mean_map(task: MapTask, parts: Iterable[RenderPart]) -> RawMap:
    """The mean map of all renders: the best answer without a look at the image."""
    means = [true_maps(task, part).mean(axis=0, dtype=np.float64) for part in parts]
    mean: RawMap = np.mean(means, axis=0).astype(np.float32)
    return mean


def _say(step: str) -> None:
    print(step, flush=True)
