"""The default model's masks, by a model in this process: a change that makes them worse is seen."""

from collections.abc import Iterator
from typing import Any

import pytest
from numpy.typing import NDArray

from tests.scored_masks import DATA, object_iou, photographs, scenes
from tipserve_cli.local import load
from tipserve_client import Client, Example

EASY = ("butterfly", "dog", "osprey", "otters", "squirrel")
FIRST = tuple(f"{index:04}" for index in range(5))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    engine = load(["--model=bundled", "--runtime=onnx", "--precision=fp32"], heads=())
    yield engine.client
    engine.close()


def test_objects_of_photographs_and_scenes_are_found(client: Client) -> None:
    """Floors are two points below what is measured; a wrong constant costs six or more in one."""

    def segment(image: bytes, names: list[str]) -> NDArray[Any]:
        return client.segment(image, names, quality="fast")[0].labels

    assert object_iou(photographs(), segment, EASY) >= 72.8
    assert object_iou(scenes(), segment, FIRST) >= 37.7


def test_a_mask_of_what_an_image_shows_has_more_confidence_than_one_of_another_word(
    client: Client,
) -> None:
    image = DATA / "photographs" / "squirrel.jpg"

    def confidence(classes: Any) -> float | None:
        return client.segment(image, classes)[0].classes[0].confidence

    shown, other = confidence(["squirrel"]), confidence(["bottle"])
    assert shown is not None
    assert other is not None
    assert shown > 0.8
    assert other < 0.5
    assert confidence({"this": [Example(box=(100, 100, 50, 50))]}) is None
