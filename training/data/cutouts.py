"""Reads cut-out images that have a name beside them: furniture renders and photo-like stamps."""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from training.data.art import clean_title
from training.data.concepts import FURNITURE_NAMES, Concept


def furniture_drawings(furniture: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield (concept name, RGBA icon) of each 3D model that a catalogue names plainly."""
    for path in sorted(furniture.glob("*.sh3f")):
        with zipfile.ZipFile(path) as catalogue:
            text = catalogue.read("PluginFurnitureCatalog.properties").decode("latin-1")
            pairs = dict(re.findall(r"^((?:name|icon)#\d+)=(.*)$", text, re.MULTILINE))
            for key, name in pairs.items():
                icon = pairs.get(key.replace("name#", "icon#"))
                words = clean_title(name).split() if key.startswith("name#") else []
                if words and icon and words[-1] in FURNITURE_NAMES:
                    data = catalogue.read(icon.strip().lstrip("/"))
                    yield FURNITURE_NAMES[words[-1]], Image.open(io.BytesIO(data)).convert("RGBA")


def stamp_drawings(
    stamps: Path, concepts: tuple[Concept, ...]
) -> Iterator[tuple[str, Image.Image]]:
    """Yield (concept name, RGBA cut-out) of Tux Paint's stamps, read in place; for evaluation only.

    A stamp counts where the first line of its caption is nothing but an article and the name.
    """
    names = {concept.name.lower(): concept.name for concept in concepts}
    for path in sorted(stamps.rglob("*.png")):
        caption = path.with_suffix(".txt")
        if not caption.exists() or path.stem.endswith("_mirror"):
            continue
        lines = caption.read_text(encoding="utf-8", errors="replace").splitlines()
        words = clean_title(lines[0] if lines else "")
        name = names.get(re.sub(r"^(a|an|the|some) ", "", words))
        if name is not None:
            yield name, Image.open(path).convert("RGBA")
