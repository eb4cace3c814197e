"""Furniture renders and stamps: named by catalogues and captions."""

import io
import zipfile
from pathlib import Path

from PIL import Image

from training.data.art import furniture_drawings, stamp_drawings
from training.data.concepts import Concept

CATALOGUE = """id=test
name#1=Garden chair
icon#1=/icons/chair.png
name#2=Imac
icon#2=/icons/imac.png \n\
name#3=Chair with lamp stand
icon#3=/icons/chair.png
name#4=Table
"""


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(stream, "PNG")
    return stream.getvalue()


def test_renders_are_known_by_the_last_word(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.sh3f", "w") as catalogue:
        catalogue.writestr("PluginFurnitureCatalog.properties", CATALOGUE)
        catalogue.writestr("icons/chair.png", png())
        catalogue.writestr("icons/imac.png", png())
    drawings = list(furniture_drawings(tmp_path))
    assert [name for name, _ in drawings] == ["chair", "computer"]
    assert all(drawing.mode == "RGBA" for _, drawing in drawings)


def test_stamps_count_where_the_caption_is_the_name(
    tmp_path: Path, few_concepts: tuple[Concept, ...]
) -> None:
    captions = {
        "a": "A dog.\nnl.utf8=Een hond.",
        "b": "The star",
        "c": "A dog with a bone.",
        "d": "Dog",
        "d_mirror": "Dog",
        "e": "",
        "f": "A wolf.",
    }
    for name, text in captions.items():
        (tmp_path / f"{name}.png").write_bytes(png())
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "z.png").write_bytes(png())
    names = [name for name, _ in stamp_drawings(tmp_path, few_concepts)]
    # The wolf is kept from training, and stamps never are training.
    assert names == ["dog", "star", "dog", "wolf"]
