"""Masks of photographs and composed scenes stay as good as they are."""

from collections.abc import Iterator
from typing import Any, Final

import pytest
from numpy.typing import NDArray

from model.labelled.sets import SegmentationSet
from tests.processes.server import Server, start_server
from tests.promises.conftest import DEFAULT
from tests.scored_masks import given_iou, object_iou, photographs, scenes
from tipserve_client import Client

# Two points below what is measured with AVX2: mean IoU in percent of objects with the background,
# and of all names that an image shows.
FLOORS: Final = {
    "photographs": {"fast": (43.9, 47.1), "fine": (47.0, 49.1)},
    "scenes": {"fast": (43.1, 60.8), "fine": (50.6, 63.1)},
}


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """The default model, whose image cache is full after these tests: others measure memory."""
    with start_server(*DEFAULT) as server:
        yield server


@pytest.mark.parametrize("quality", ["fast", "fine"])
@pytest.mark.parametrize("given", [photographs(), scenes()], ids=list(FLOORS))
def test_masks_reach_their_scores(own: Server, given: SegmentationSet, quality: Any) -> None:
    with Client(f"grpc://{own.grpc}") as client:

        def segment(image: bytes, names: list[str]) -> NDArray[Any]:
            return client.segment(image, names, quality=quality)[0].labels

        objects, all_names = object_iou(given, segment), given_iou(given, segment)
    least_objects, least_names = FLOORS[given.name][quality]
    assert objects >= least_objects
    assert all_names >= least_names
