"""Outlines of regions, by the bundled model and the real client."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from connectors.app import Backend, ImageFetcher
from connectors.regions import find_regions, outline
from tests.connectors.conftest import Dogs
from tipserve_cli.local import load
from tipserve_client import Example, Instance


def test_an_outline_is_the_outer_one() -> None:
    mask_HW = np.zeros((40, 60), np.uint8, order="F")
    mask_HW[2:12, 5:25] = 1
    mask_HW[5:9, 9:20] = 0
    region = Instance(
        label=1,
        name="ring",
        area=int(mask_HW.sum()),
        box=(5, 2, 20, 10),
        score=1,
        size=(40, 60),
        counts=coco.encode(mask_HW)["counts"].decode(),
    )
    assert sorted(outline(region)) == [(5, 2), (5, 12), (25, 2), (25, 12)]


def test_a_label_named_model_is_a_word(backend: Backend, dogs: Dogs) -> None:
    find_regions(backend, b"\x89PNG", {"model": [], "dog": []})
    (asked,) = dogs.requests
    assert [one["prompts"] for one in asked.fields["classes"]] == [["model"], []]


@pytest.mark.slow
def test_outlines_are_one_pixel_from_the_mask(project_root: Path) -> None:
    image = (project_root / "examples" / "squirrel.jpg").read_bytes()
    engine = load(["--model=bundled", "--runtime=onnx", "--precision=fp32"], heads=())
    backend = Backend(client=engine.client, images=ImageFetcher())
    try:
        (squirrel, *_) = found = find_regions(backend, image, {"squirrel": [], "horse": []})
        assert {region.name for region in found} == {"squirrel"}
        drawn = Image.new("1", squirrel.size[::-1])
        ImageDraw.Draw(drawn).polygon(outline(squirrel), fill=1)
        assert np.mean(np.array(drawn) != squirrel.mask) < 0.01
        assert len(outline(squirrel)) < 400
        left, top, width, height = squirrel.box
        inner = (left + width / 4, top + height / 4, width / 2, height / 2)
        (again, *_) = find_regions(backend, image, {"this": [Example(box=inner)]})
        assert (again.mask & squirrel.mask).sum() > 0.5 * (again.mask | squirrel.mask).sum()
    finally:
        engine.close()
