"""A finished run becomes the checkpoint folder that export reads."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.encoder import Tipsv2Encoder
from model.manifest import ScoreEntry
from training import scored_checkpoint
from training.__main__ import main
from training.data.folder import DataFolder
from training.evaluate.report import ChosenEncoder
from training.export import NEEDED_FILES, build_manifest
from training.scored_checkpoint import ScoredRuns

ENTRY = ScoreEntry(
    task="zero-shot segmentation",
    split="s",
    row="student",
    metric="mIoU",
    value=12.5,
    low=11,
    high=14,
    count=9,
)


@pytest.fixture
def run(student_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, tmp_path: Path) -> Path:
    """A run's folder with a model, a log and its configuration."""
    folder = tmp_path / "runs/student"
    student_model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"step": step, "loss": 1.0} for step in (20, 40)]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    config = {"num_steps": 40, "data": {"folder": "/disk/data", "styles": ["noto"]}}
    (folder / "run.json").write_text(json.dumps({"starts": [{"config": config}]}), "utf-8")
    return folder


def test_export_finds_all_that_it_needs(
    run: Path,
    student_model: Tipsv2Model,
    tokenizer: Tipsv2Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    card = tmp_path / "card.md"
    card.write_text("# Card\n", encoding="utf-8")
    encoder = Tipsv2Encoder(student_model, tokenizer)
    other = shutil.copytree(run, tmp_path / "runs/student-seed-7")
    package = shutil.copytree(run / "model", tmp_path / "student/20261125T201500Z-0123456789ab")
    current = tmp_path / "student/current"
    current.symlink_to(package.name)

    def evaluate(
        folders: Mapping[str, Path], data: DataFolder, *, num_scenes: int
    ) -> tuple[ChosenEncoder, list[ScoreEntry]]:
        assert (data.path, num_scenes) == (tmp_path, 3)
        assert folders == {
            "student": run / "model",
            "student, seed 1": other / "model",
            "teacher": other / "model",
            "served": current,
        }
        return ChosenEncoder(encoder=encoder, features="values", templates="tcl"), [ENTRY]

    monkeypatch.setattr(scored_checkpoint, "evaluate", evaluate)
    output = tmp_path / "checkpoint"
    given = {"--teacher": other, "--also": other, "--served": current, "--data": tmp_path}
    given |= {"--card": card, "--output": output}
    options = [str(part) for pair in given.items() for part in pair]
    assert main(["evaluate", str(run), *options, "--scenes", "3"]) == 0
    title = "zero-shot segmentation | s | student | mIoU"
    assert f"{title} | 12.50 [11.00, 14.00] | n 9\n" in capsys.readouterr().out
    assert not [name for name in NEEDED_FILES if not (output / name).is_file()]
    manifest = build_manifest(encoder, output, name="tiny")
    assert (manifest.scores, manifest.licence) == ([ENTRY], "Apache-2.0")
    assert (manifest.zero_shot.features, manifest.zero_shot.templates) == ("values", "tcl")
    check_provenance(manifest.provenance, package.name)


def check_provenance(provenance: Mapping[str, Any], compared_with: str) -> None:
    art, held_out = (provenance[name] for name in ("art", "evaluation_only_art"))
    assert {"noto", "clipart"} <= set(art)
    assert {"fluent-3d", "openmoji", "stamps"} == set(held_out)
    expected = {
        "classification": {"templates": "none"},
        "compared_with": compared_with,
        "steps": 40,
        "recipe": "student",
        # The package has no path of this machine.
        "configs": [{"num_steps": 40, "data": {"folder": "data", "styles": ["noto"]}}],
        "other_seeds": [{"row": "student, seed 1", "run": "student-seed-7", "steps": 40}],
    }
    assert {name: provenance[name] for name in expected} == expected


def test_a_run_without_a_model_is_named(run: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for folders in (
        {"student": nowhere},
        {"student": run, "teacher": nowhere},
        {"student": run, "further": [nowhere]},
        {"student": run, "served": nowhere},
    ):
        with pytest.raises(FileNotFoundError, match=r"nowhere \(yet\)"):
            ScoredRuns(**folders).rows()
