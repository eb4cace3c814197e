"""A server whose lanes make labels answers as one that makes them of patches, over REST and gRPC.

The device is a CPU here: reductions are switched on for it, by a program that wraps the server.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Service

# Logs each reduction, so that the test knows where a mask was made.
PROGRAM = """
import logging, sys
from model.runtime import load, reducer
from service.__main__ import run as serve

load.REDUCES_ON.add("cpu")
run = reducer.OnnxReducer.run

def noted(self, reduction, rows_ND):
    if rows_ND.shape[0] < 1024:  # not the trial at the load
        logging.getLogger("service").warning("reduced")
    return run(self, reduction, rows_ND)

reducer.OnnxReducer.run = noted
sys.exit(serve())
"""
IMAGES = [(1, (90, 60)), (2, (60, 90)), (3, (61, 60))]
CLASSES = ["dog", {"name": "cat", "prompts": ["a cat", "the small cat"]}, "grass"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"features": "patches", "resolution": 84, "fit": "squash"},
    {"background_classes": ["sky", {"name": "sea"}], "background_threshold": 0.05},
    {"size": "model"},
    {"size": "patch", "templates": "none"},
    {"include_instances": True},
]


@pytest.fixture(scope="module")
def reducing_service(run_service: Callable[..., Any]) -> Iterator["Service"]:
    with run_service("--runtime=onnx", program=("-c", PROGRAM)) as running:
        yield running


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_answers_of_both_ways_are_equal_over_both_protocols(
    reducing_service: "Service",
    photo: Callable[..., bytes],
    options: dict[str, Any],
) -> None:
    service = reducing_service
    images = [photo(*image) for image in IMAGES]
    fields = {"images": images, "classes": CLASSES, **options}
    # Scores of pixels need the patches, so these masks are made of them; then the texts are known.
    of_patches = service.over_grpc("segment_images", {**fields, "include_scores": True})
    before = len(service.program.records("reduced"))
    rest, rpc = (ask("segment_images", fields) for ask in (service.over_rest, service.over_grpc))
    assert (of_patches.status, rest.status, rpc.status) == ("OK", "200", "OK"), rest.message
    for _ in range(2 * len(images)):
        service.program.wait_for("reduced")
    assert len(service.program.records("reduced")) - before == 2 * len(images)
    for index in range(len(images)):
        name = f"{index}.labels"
        expected = of_patches.arrays[name]
        assert expected.any()
        scores = of_patches.arrays[f"{index}.class_scores"]
        for answer in (rest, rpc):
            np.testing.assert_allclose(answer.arrays[f"{index}.class_scores"], scores, atol=1e-4)
            assert answer.arrays[name].dtype == expected.dtype
            np.testing.assert_array_equal(answer.arrays[name], expected)
