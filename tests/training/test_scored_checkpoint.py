"""A finished run becomes the checkpoint folder that export reads."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import Tipsv2Model, Tipsv2Tokenizer

from model.encoder import Tipsv2Encoder
from model.manifest import ScoreEntry
from training import scored_checkpoint
from training.data.folder import DataFolder
from training.evaluate.chosen_encoder import ChosenEncoder
from training.export.package import NEEDED_FILES, build_manifest
from training.scored_checkpoint import ScoredRuns, write_scored_checkpoint

ENTRY = ScoreEntry(
    task="zero-shot segmentation", split="s", row="student", metric="mIoU", value=12.5, count=9
)


@pytest.fixture
def run(student_model: Tipsv2Model, tokenizer: Tipsv2Tokenizer, tmp_path: Path) -> Path:
    """A run's folder with a model, a log and its configuration."""
    folder = tmp_path / "runs/student"
    student_model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"step": step, "loss": 1.0} for step in (20, 40)]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "log.jsonl").write_text(text, encoding="utf-8")
    config = {"num_steps": 40, "data": {"folder": "/disk/data", "styles": ["noto"]}}
    record = {"starts": [{"config": config}]}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def test_export_finds_all_that_it_needs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tmp_path / "card.md"
    card.write_text("# Card\n", encoding="utf-8")
    model = Tipsv2Model.from_pretrained(run / "model")
    tokenizer = Tipsv2Tokenizer.from_pretrained(run / "model")
    other = shutil.copytree(run, tmp_path / "runs/student-seed-7")
    package = shutil.copytree(run / "model", tmp_path / "student/20261125T201500Z-0123456789ab")
    (tmp_path / "student/current").symlink_to(package.name)

    def evaluate(
        student: Path,
        teacher: Path,
        data: DataFolder,
        *,
        further: Sequence[Path],
        served: Path | None,
        num_scenes: int,
    ) -> tuple[ChosenEncoder, list[ScoreEntry]]:
        assert (student, teacher, num_scenes) == (run / "model", other / "model", 3)
        assert (list(further), served) == ([other / "model"], package.parent / "current")
        assert data.path == tmp_path
        chosen = ChosenEncoder(
            encoder=Tipsv2Encoder(model, tokenizer),
            features="values",
            templates="tcl",
            class_templates="none",
        )
        return chosen, [ENTRY]

    monkeypatch.setattr(scored_checkpoint, "evaluate", evaluate)
    output = tmp_path / "checkpoint"
    entries = write_scored_checkpoint(
        ScoredRuns(student=run, teacher=other, further=[other], served=package.parent / "current"),
        data=DataFolder(path=tmp_path),
        card=card,
        output=output,
        num_scenes=3,
    )
    assert entries == [ENTRY]
    assert not [name for name in NEEDED_FILES if not (output / name).is_file()]
    manifest = build_manifest(Tipsv2Encoder(model, tokenizer), output, name="tiny")
    assert manifest.scores == [ENTRY]
    assert manifest.licence == "Apache-2.0"
    assert (manifest.zero_shot.features, manifest.zero_shot.templates) == ("values", "tcl")
    check_provenance(manifest.provenance)


def check_provenance(provenance: Mapping[str, Any]) -> None:
    assert provenance["classification"] == {"templates": "none"}
    assert provenance["compared_with"] == "20261125T201500Z-0123456789ab"
    assert (provenance["steps"], provenance["recipe"]) == (40, "student")
    # The package has no path of this machine.
    assert provenance["configs"] == [
        {"num_steps": 40, "data": {"folder": "data", "styles": ["noto"]}}
    ]
    seed = {"row": "student, seed 1", "run": "student-seed-7", "steps": 40}
    assert provenance["other_seeds"] == [seed]
    art, held_out = provenance["art"], provenance["evaluation_only_art"]
    assert isinstance(art, dict)
    assert isinstance(held_out, dict)
    assert {"noto", "clipart"} <= set(art)
    assert {"fluent-3d", "openmoji", "stamps"} == set(held_out)


def test_a_run_without_a_model_is_named(run: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for folders in (
        {"student": nowhere},
        {"student": run, "teacher": nowhere},
        {"student": run, "further": [nowhere]},
        {"student": run, "served": nowhere},
    ):
        with pytest.raises(FileNotFoundError, match=r"nowhere \(yet\)"):
            ScoredRuns(**folders)
