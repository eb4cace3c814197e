"""Masks over images and in notebooks."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tipserve_client import ClassArea, Segmentation
from tipserve_client.drawing import BRIGHT, LEAST_CONTRAST

RED, BLUE, GREY = (255, 0, 0), (0, 0, 255), (100, 100, 100)


@pytest.fixture
def mask() -> Segmentation:
    """Background, then two classes side by side; the third has no pixel."""
    labels_HW = np.zeros((20, 30), np.uint16)
    labels_HW[:, 10:20], labels_HW[:, 20:] = 1, 2
    colors = ("#ff0000", "#0000ff", "#00ff00")
    names = ("<b>dog", "sky & sea", "none")
    areas = [
        ClassArea(label=k, name=name, color=color, area_share=np.mean(labels_HW == k), score=1)
        for k, (name, color) in enumerate(zip(names, colors, strict=True), start=1)
    ]
    return Segmentation(labels=labels_HW, scores=None, classes=tuple(areas), background_share=1 / 3)


def test_an_overlay_tints_classes_outlines_them_and_darkens_the_rest(mask: Segmentation) -> None:
    image = Image.new("RGB", (30, 20), GREY)
    seen = np.asarray(mask.overlay(image))
    tinted = [round(0.6 * grey + 0.4 * red) for grey, red in zip(GREY, RED, strict=True)]
    row = [tuple(map(int, pixel)) for pixel in seen[10]]
    assert row[:10] == [(45, 45, 45)] * 10
    line = [RED, RED, (0, 0, 0)]
    assert row[10:20] == line + [tuple(tinted)] * 4 + line[::-1]
    assert row[20:22] == [BLUE] * 2
    assert row[29] not in {BLUE, GREY}  # the border of the image is no edge
    plain = np.asarray(mask.overlay(image, opacity=1, outline_px=0))
    np.testing.assert_array_equal(plain[:, 10:20], np.broadcast_to(RED, (20, 10, 3)))


def test_a_class_whose_colour_is_that_of_the_image_gets_another_one(mask: Segmentation) -> None:
    drawn = np.asarray(mask.overlay(Image.new("RGB", (30, 20), RED)))
    line = tuple(map(int, drawn[10, 10]))
    assert "#{:02x}{:02x}{:02x}".format(*line) in BRIGHT
    assert np.linalg.norm(np.subtract(line, RED)) >= LEAST_CONTRAST
    assert tuple(drawn[10, 20]) == BLUE


def test_an_overlay_has_the_size_of_the_image_turned_as_in_its_file(
    mask: Segmentation, tmp_path: Path
) -> None:
    photo = Image.new("RGB", (40, 90), GREY)
    exif = photo.getexif()
    exif[0x0112] = 6  # turn right
    photo.save(tmp_path / "photo.jpg", exif=exif)
    seen = mask.overlay(tmp_path / "photo.jpg")
    assert seen.size == (90, 40)
    assert seen.getpixel((75, 5)) != seen.getpixel((45, 5)) != seen.getpixel((15, 5))
    tensor = np.full((3, 20, 30), 0.5, np.float32)
    assert mask.overlay(tensor).size == (30, 20)


def test_a_notebook_shows_the_mask_and_a_legend(mask: Segmentation) -> None:
    html = mask._repr_html_()
    assert "<b>" not in html
    found = re.findall(r"background:(#\w+)\">&emsp;</span> (.*?)</span>", html)
    assert found == [
        ("#000000", "background 33.3 %"),
        ("#ff0000", "&lt;b&gt;dog 33.3 %"),
        ("#0000ff", "sky &amp; sea 33.3 %"),
        ("#00ff00", "none 0.0 %"),
    ]
    (encoded,) = re.findall(r"base64,([^\"]+)", html)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    assert [tuple(shown[10, x]) for x in (5, 15, 25)] == [(0, 0, 0), RED, BLUE]
