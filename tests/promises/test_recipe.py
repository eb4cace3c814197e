"""The recipe of the bundled encoder runs as a command, on art in miniature."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.processes.server import ROOT, run
from training.data.backgrounds import PHOTOS
from training.photographs.regions import photograph

PHOTOGRAPHS = ROOT / "training" / "photographs"
# The first space of the encoder needs at least so many names as it has numbers.
NAMES = {chr(0x1F300 + index): f"thing {index}" for index in range(260)}
SETS = ("noto", "twemoji", "noto-v1", "emojione")


def write_art(data: Path) -> None:
    """Drawings of one set, and noise for photographs, laid out as the packages are."""

    def write(name: str, content: Any) -> None:
        path = data / "npm" / "node_modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")

    words = {emoji: {"tts": [name], "default": [name]} for emoji, name in NAMES.items()}
    content = {"annotations": {"annotations": words}}
    write("cldr-annotations-full/annotations/en/annotations.json", content)
    emojis = {emoji: {"name": name, "group": "Objects"} for emoji, name in NAMES.items()}
    write("unicode-emoji-json/data-by-emoji.json", emojis)
    drawn = {
        name: {"body": f'<circle cx="8" cy="8" r="{4 + index % 4}" fill="hsl({index},80%,50%)"/>'}
        for index, name in enumerate(NAMES.values())
    }
    for style in SETS:
        write(f"@iconify-json/{style}/icons.json", {"icons": drawn if style == SETS[0] else {}})
        codes = {f"{ord(emoji):x}": name for emoji, name in NAMES.items()}
        write(f"@iconify-json/{style}/chars.json", codes if style == SETS[0] else {"0": "none"})
    share, rng = data / "debian/usr/share", np.random.default_rng(0)
    labelled = json.loads((PHOTOGRAPHS / "regions.json").read_text(encoding="utf-8"))
    backgrounds = [share / "backgrounds" / file for file, _, _ in PHOTOS]
    for path in (*(photograph(data, key) for key in labelled), *backgrounds):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_encoder_is_built_by_its_command(tmp_path: Path) -> None:
    write_art(tmp_path / "data")
    job = [sys.executable, "-m", "training"]
    built = ["--passes=1", "--tail-parts=0", "--scenes=0", f"--folder={tmp_path / 'run'}"]
    run(*job, "photographs", *built, f"--data={tmp_path / 'data'}", timeout_s=500)
    checkpoint = tmp_path / "run" / "checkpoint"
    provenance = json.loads((checkpoint / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["recipe"] == "photographs"
    assert (checkpoint / "card.md").exists()
    assert (tmp_path / "run" / "twin" / "config.json").exists()
