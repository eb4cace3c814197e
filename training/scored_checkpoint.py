"""Turns a finished run into a checkpoint for export: weights, scores, provenance, card text."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.manifest import ScoreEntry
from model.scores.gate import SERVED, STUDENT
from training.data.art import ART_SETS
from training.data.folder import DataFolder
from training.evaluate.report import TEACHER, ChosenEncoder, evaluate
from training.methods.teacher import find_model
from training.observation import read_log
from training.run_record import code_version, read_configs
from training.score_entries import write_scores

LICENCE = "Apache-2.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRuns:
    """Folders of the runs to score; only the student is written, and None leaves rows out.

    Attributes:
        further: Runs of the same recipe with other seeds.
        served: The package that the student would replace.
    """

    student: Path
    teacher: Path | None = None
    further: Sequence[Path] = ()
    served: Path | None = None

    def rows(self) -> dict[str, Path]:
        """The model folder of each row of the report.

        Raises:
            FileNotFoundError: A folder has no model.
        """
        others = {f"{STUDENT}, seed {seed}": run for seed, run in enumerate(self.further, start=1)}
        folders = {STUDENT: self.student, **others, TEACHER: self.teacher, SERVED: self.served}
        return {row: find_model(folder) for row, folder in folders.items() if folder is not None}


def _portable(value: object) -> object:
    """The configuration with absolute paths reduced to file names."""
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def _last_step(run: Path) -> int:
    return int(read_log(run)[-1]["step"])


def _use_of_masks(run: Path) -> str:
    """Only the distillation of a space knows what a patch of a composed scene shows."""
    config: Any = read_configs(run)[-1]
    method = config.get("method", {})
    learns = method.get("kind") == "SpaceConfig" and method["names_weight"] > 0
    return "contrast of patches with names" if learns else "for evaluation only"


def _provenance(runs: ScoredRuns, encoder: ChosenEncoder) -> dict[str, object]:
    run = runs.student
    return {
        "licence": LICENCE,
        "zero_shot": {
            "features": encoder.features,
            "templates": encoder.templates,
            # Chosen for the bundled student on composed scenes.
            "least_cosine": 0.12,
        },
        "classification": {"templates": encoder.class_templates},
        "recipe": run.name,
        "commit": code_version()["commit"] or "unknown",
        "configs": [_portable(config) for config in read_configs(run)],
        "steps": _last_step(run),
        "other_seeds": [
            {"row": f"{STUDENT}, seed {number}", "run": other.name, "steps": _last_step(other)}
            for number, other in enumerate(runs.further, start=1)
        ],
        "art": {art.name: f"{art.package}, {art.licence}" for art in ART_SETS if art.trainable},
        "evaluation_only_art": {
            art.name: f"{art.package}, {art.licence}" for art in ART_SETS if not art.trainable
        },
        "frozen_teachers": {
            "EfficientNet-Lite0": "targets of patches, Apache-2.0, trained on ImageNet-1k",
            "all-MiniLM-L6-v2": "start of the text tower, Apache-2.0, trained on web text",
        },
        "masks": _use_of_masks(run),
        "compared_with": None if runs.served is None else runs.served.resolve().name,
    }


def write_scored_checkpoint(
    runs: ScoredRuns, *, data: DataFolder, card: Path, output: Path, num_scenes: int
) -> list[ScoreEntry]:
    """Evaluate a run and write the checkpoint folder, with the model card's text.

    Raises:
        FileNotFoundError: There is no card, or the student is not a run.
    """
    if not card.is_file():
        raise FileNotFoundError(f"no model card at {card}: write it, or name another by --card")
    read_configs(runs.student)  # fails early: scoring takes an hour
    encoder, entries = evaluate(runs.rows(), data, num_scenes=num_scenes)
    shutil.copytree(find_model(runs.student), output, dirs_exist_ok=True)
    write_scores(output, entries)
    text = json.dumps(_provenance(runs, encoder), indent=1)
    (output / "provenance.json").write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(card, output / "card.md")
    return entries
