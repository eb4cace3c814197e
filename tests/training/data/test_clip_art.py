"""Clip art is believed only where its title or keywords plainly name one concept."""

from pathlib import Path

import numpy as np
import pytest

from training.data.art import clip_art_drawings
from training.data.concepts import Concept

CIRCLE = '<circle cx="50" cy="50" r="40" fill="blue"/>'


def write(
    folder: Path, name: str, *, title: str, keywords: tuple[str, ...] = (), attributes: str = ""
) -> None:
    listed = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    path = folder / "animals" / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:rdf="urn:rdf" xmlns:dc="urn:dc" {attributes}>'
        f"<metadata><dc:title>{title}</dc:title>{listed}</metadata>{CIRCLE}</svg>",
        encoding="utf-8",
    )


@pytest.mark.parametrize(
    ("title", "keywords", "found"),
    [
        ("Running Dog", (), "dog"),
        ("dog", ("animal",), "dog"),
        ("A dog with a bone and a hat", ("dog",), "dog"),
        ("A dog with a bone and a hat", (), None),
        ("dog house", (), None),
        ("dog and star", ("dog",), "dog"),
        ("dog and star", ("dog", "star"), None),
        ("dog icon", ("dog",), None),
        ("star", ("sign",), None),
        ("hotdog", (), None),
        ("grey wolf", ("wolf",), None),
        ("", ("dog",), None),
    ],
)
def test_which_titles_are_believed(
    tmp_path: Path,
    few_concepts: tuple[Concept, ...],
    title: str,
    keywords: tuple[str, ...],
    found: str | None,
) -> None:
    write(tmp_path, "a", title=title, keywords=keywords, attributes='viewBox="0 0 100 100"')
    names = [name for name, _ in clip_art_drawings(tmp_path, few_concepts)]
    assert names == ([] if found is None else [found])


@pytest.mark.parametrize(
    "attributes",
    [
        'viewBox="0 0 100 100" width="20" height="20"',
        'width="100" height="100"',
        'width="75pt" height="75pt"',
        'width="26.4583mm" height="26.4583mm"',
    ],
)
def test_old_files_are_scaled_and_not_cropped(
    tmp_path: Path, few_concepts: tuple[Concept, ...], attributes: str
) -> None:
    write(tmp_path, "a", title="dog", attributes=attributes)
    ((_, drawing),) = clip_art_drawings(tmp_path, few_concepts)
    solid = np.asarray(drawing.getchannel("A")) > 127
    for axis in (0, 1):
        (reached,) = np.nonzero(solid.any(axis))
        edges = reached[[0, -1]] / len(solid)
        assert edges.tolist() == pytest.approx([0.1, 0.9], abs=0.015)


def test_broken_files_are_left_out(tmp_path: Path, few_concepts: tuple[Concept, ...]) -> None:
    write(tmp_path, "good", title="star", attributes='viewBox="0 0 100 100"')
    broken = tmp_path / "animals/broken.svg"
    broken.write_text("<svg><dc:title>dog</dc:title><circle", encoding="utf-8")
    assert [name for name, _ in clip_art_drawings(tmp_path, few_concepts)] == ["star"]
