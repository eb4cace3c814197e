"""Outlines of regions, by the bundled model and the real client."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from connectors.app import Backend, ImageFetcher
from connectors.regions import find_regions, outline
from tests.tipserve_cli.conftest import RUNS
from tipserve_cli.local import load
from tipserve_client import Example, Instance


def test_a_hole_is_joined_to_the_outline() -> None:
    # Rows 2 and 3 of columns 1 to 3.
    region = Instance(
        label=1, name="x", area=6, box=(1, 2, 3, 2), score=1, size=(40, 60), counts=RUNS
    )
    assert sorted(outline(region)) == [(1, 2), (1, 4), (4, 2), (4, 4)]


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
