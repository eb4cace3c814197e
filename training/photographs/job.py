"""The whole recipe: drawings, cells, heads, scores, and a checkpoint for export. Resumable."""

import json
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import nn

from model.cell_encoder import CellEncoder
from model.efficientnet_lite import Trunk
from model.export.exact import round_weights
from model.manifest import ScoreEntry
from model.scores.gate import STUDENT
from training.data.art import ART_SETS
from training.data.backgrounds import load_photos
from training.data.folder import DataFolder
from training.evaluate.encoder import encode_names
from training.evaluate.report import PAINTED, count_entries
from training.evaluate.sets import SegmentationBenchmark, held_out_scenes
from training.options import option
from training.photographs.encoder import (
    SplitMoments,
    aligned,
    all_names,
    build_encoder,
    photographed_names,
)
from training.photographs.regions import fetch_photographs, region_cells
from training.photographs.scenes import FURTHER_STYLES, NamedDrawings, ViewSource, build_drawings
from training.photographs.trunk_features import Cells, RunTrunk, compile_trunk, compute_pass
from training.photographs.trunk_training import Finetuning
from training.pretrained.weights import load_trunk
from training.run_record import code_version
from training.score_entries import write_scores

NATIVE_SIZE = 320
TWIN = "evaluation twin"
LICENCE = "Apache-2.0"
PHOTOGRAPHS = (
    "lomiri-wallpapers-16.04 (CC0, CC-BY-4.0), opencv-doc (Apache-2.0), budgie-backgrounds (CC0)"
)


@dataclass(frozen=True, kw_only=True)
class PhotographsJob:
    """Settings of a run."""

    data: Path = option("the data job's folder", Path("data"))
    folder: Path = option("folder of cells and of the checkpoint", Path("runs/photographs"))
    passes: PositiveInt = option("views of each drawing that the heads are fitted to", 8)
    tail_parts: NonNegativeInt = option(
        "parts of 927 scenes that the trunk's last blocks learn from; 0: none", 9
    )
    scenes: NonNegativeInt = option("scenes per test set; 0 scores nothing", 500)
    card: Path = option("the model card's text", Path("training/cards/photographs.md"))

    def run(self) -> Path:
        """Run what is missing; returns the checkpoint's folder."""
        torch.set_num_threads(1)
        self.folder.mkdir(parents=True, exist_ok=True)
        tuning = self._tuning()
        trunk, weight_CF, bias_C = load_trunk()
        classes = nn.Linear(weight_CF.shape[1], weight_CF.shape[0])
        classes.load_state_dict({"weight": weight_CF, "bias": bias_C})
        trunk = tuning.run(trunk, classes)
        moments, regions = self._moments(trunk, tuning)
        models = {STUDENT: self._save(build_encoder(trunk, moments, regions), "checkpoint")}
        models[TWIN] = self._save(build_encoder(trunk, moments, regions, is_twin=True), "twin")
        checkpoint = self.folder / "checkpoint"
        entries = list[ScoreEntry]()
        if self.scenes:
            for benchmark in held_out_scenes(DataFolder(path=self.data), self.scenes):
                entries += _scores(benchmark, models)
        write_scores(checkpoint, entries)
        text = json.dumps(self._provenance(), indent=1)
        (checkpoint / "provenance.json").write_text(text + "\n", encoding="utf-8")
        shutil.copyfile(self.card, checkpoint / "card.md")
        return checkpoint

    def _save(self, encoder: CellEncoder, name: str) -> CellEncoder:
        # What is scored is what an export stores: see `model.export.exact`.
        round_weights(encoder.vision, "fp16")
        round_weights(encoder.text, "int8_tables")
        encoder.save(self.folder / name)
        return encoder

    def _tuning(self) -> Finetuning:
        """The training of the trunk's last blocks, with the views of the drawings."""
        data = DataFolder(path=self.data)
        photos = load_photos(data.photos, "train")
        fetch_photographs(data.path)
        drawings = NamedDrawings.kept(
            self.folder / "drawings.npz", lambda: build_drawings(data.art)
        )
        return Finetuning(
            source=ViewSource(drawings=drawings, photos=photos, size=NATIVE_SIZE),
            data=data,
            folder=self.folder,
            parts=self.tail_parts,
        )

    def _moments(self, trunk: Trunk, tuning: Finetuning) -> tuple[SplitMoments, Cells]:
        """Moments of the cells of all passes and of the regions, and the regions' cells."""
        names = all_names(tuning.source.drawings.names)
        run = compile_trunk(trunk, NATIVE_SIZE)
        shown = SplitMoments.of(self._passes(tuning, run), names)
        regions = Cells.kept(
            self.folder / "cells-of-regions.npz", lambda: region_cells(self.data, run, NATIVE_SIZE)
        )
        part = aligned(regions, shown.all())
        return shown + SplitMoments.of([(part, photographed_names())], names), regions

    def _passes(self, tuning: Finetuning, run: RunTrunk) -> Iterator[tuple[Cells, tuple[str, ...]]]:
        source = tuning.source
        for number in range(tuning.first_pass, tuning.first_pass + self.passes):
            path = self.folder / f"cells-of-part-{number:03d}.npz"
            yield (
                Cells.kept(path, partial(compute_pass, source, run, number)),
                source.drawings.names,
            )
            print(f"{path}: cells are ready", flush=True)

    def _provenance(self) -> dict[str, object]:
        used = {"noto", "twemoji", "noto-v1", "emojione", "furniture"}
        if self.tail_parts:
            used |= set(FURTHER_STYLES)
        return {
            "licence": LICENCE,
            # Chosen on composed scenes and photographs; see `model.outlines`.
            "zero_shot": {
                "features": "values",
                "templates": "none",
                "quality": "fast",
                "background": "auto",
                "least_cosine": 0.12,
                # By `python -m tests.calibration`.
                "confidence_offset": -2.7,
                "confidence_slope": 7.9,
            },
            "recipe": "photographs",
            "commit": code_version()["commit"] or "unknown",
            "passes": self.passes,
            "tail_parts": self.tail_parts,
            "art": {a.name: f"{a.package}, {a.licence}" for a in ART_SETS if a.name in used},
            "evaluation_only_art": {
                a.name: f"{a.package}, {a.licence}" for a in ART_SETS if not a.trainable
            },
            "pretrained_networks": {
                "EfficientNet-Lite0": "cells and classes, Apache-2.0, trained on ImageNet-1k",
                "all-MiniLM-L6-v2": "texts, Apache-2.0, trained on web text",
            },
            "photographs": PHOTOGRAPHS,
        }


def _scores(
    benchmark: SegmentationBenchmark, models: Mapping[str, CellEncoder]
) -> Iterator[ScoreEntry]:
    """Scores of all models on one set, at their own native size."""
    rows = {}
    for row, encoder in models.items():
        features = benchmark.encode(encoder)
        classes_KD = encode_names(encoder, benchmark.names, "none")
        kinds = {row: "values", f"{row}, {PAINTED}": "cls1"}
        if row == STUDENT:
            kinds[f"{row}, patches"] = "patches"
        for title, kind in kinds.items():
            rows[title] = benchmark.count(features[kind], classes_KD)
    return count_entries(benchmark.name, rows)
