"""Makes a finished run into a checkpoint that export takes: scores, provenance, card text."""

import json
import shutil
import subprocess
from pathlib import Path

import torch

from model.manifest import ScoreEntry
from training.data.art import ART_SETS
from training.data.folder import DataFolder
from training.evaluate.report import Encoder, evaluate, write_scores
from training.methods.teacher import MODEL_FOLDER

LICENCE = "Apache-2.0"


def _commit() -> str:
    """Commit of the code that evaluates, or "unknown" outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _provenance(run: Path, encoder: Encoder) -> dict[str, object]:
    log = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    return {
        "licence": LICENCE,
        "zero_shot": {"features": encoder.features, "templates": encoder.templates},
        "recipe": run.name,
        "commit": _commit(),
        "configs": (run / "config.txt").read_text(encoding="utf-8").splitlines(),
        "steps": log[-1]["step"],
        "art": {art.name: f"{art.package}, {art.licence}" for art in ART_SETS if art.trainable},
        "evaluation_only_art": {
            art.name: f"{art.package}, {art.licence}" for art in ART_SETS if not art.trainable
        },
        "frozen_teachers": {
            "EfficientNet-Lite0": "features of single drawings, Apache-2.0, trained on ImageNet-1k",
            "all-MiniLM-L6-v2": "start of the text tower, Apache-2.0, trained on web text",
        },
        "masks": "measured with, never trained on",
    }


def publish(
    run: Path, *, teacher: Path, data: DataFolder, card: Path, output: Path, num_scenes: int
) -> list[ScoreEntry]:
    """Evaluate a run and write the checkpoint folder.

    Args:
        run: A student's run folder.
        teacher: Its teacher's run folder.
        data: The data folder.
        card: The model card's text.
        output: The checkpoint folder to write.
        num_scenes: Scenes a test set.

    Raises:
        FileNotFoundError: A run has no model yet.
    """
    torch.set_num_threads(1)
    for folder in (run, teacher):
        if not (folder / MODEL_FOLDER / "config.json").exists():
            raise FileNotFoundError(f"{folder} holds no model yet; train it first")
    encoder, entries = evaluate(
        run / MODEL_FOLDER, teacher / MODEL_FOLDER, data, num_scenes=num_scenes
    )
    shutil.copytree(run / MODEL_FOLDER, output, dirs_exist_ok=True)
    write_scores(output, entries)
    text = json.dumps(_provenance(run, encoder), indent=1)
    (output / "provenance.json").write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(card, output / "card.md")
    return entries
