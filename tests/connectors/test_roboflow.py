"""Requests of Roboflow's inference-sdk, as version 1.8 sends them."""

from typing import Any

import numpy as np
import pytest

from tests.connectors.conftest import Call, Dogs

SEGMENT = "/sam3/concept_segment"


def body(encoded: str, *prompts: Any, **options: Any) -> dict[str, Any]:
    image = {"type": "base64", "value": encoded}
    asked = list(prompts) or [{"type": "text", "text": "dog"}, {"text": "horse"}]
    return {"api_key": "any", "model_id": "sam3/sam3_final", "image": image, "prompts": asked,
            "output_prob_thresh": 0.5, **options}  # fmt: skip


async def test_each_text_has_its_polygons(call: Call, encoded: str, dogs: Dogs) -> None:
    answer = (await call(SEGMENT, body(encoded))).json()
    dog, horse = answer["prompt_results"]
    assert (dog["echo"]["text"], dog["prompt_index"]) == ("dog", 0)
    (found,) = dog["predictions"]
    assert sorted(found["masks"][0]) == [[1, 2], [1, 4], [4, 2], [4, 4]]
    assert (found["confidence"], found["format"]) == (0.75, "polygon")
    assert not horse["predictions"]
    assert answer["time"] > 0
    # Each concept alone, as SAM 3 has it: overlaps are allowed.
    assert [len(one.fields["classes"]) for one in dogs.requests] == [1, 1]


async def test_thresholds_and_run_lengths(call: Call, encoded: str) -> None:
    async def num_found(*prompts: Any, **options: Any) -> int:
        answer = (await call(SEGMENT, body(encoded, *prompts, **options))).json()
        return len(answer["prompt_results"][0]["predictions"])

    assert await num_found(output_prob_thresh=0.8) == 0
    assert await num_found({"text": "dog", "output_prob_thresh": 0.7}, output_prob_thresh=0.8) == 1
    answer = (await call(SEGMENT, body(encoded, format="rle"))).json()
    masks = answer["prompt_results"][0]["predictions"][0]["masks"]
    assert masks == {"size": [40, 60], "counts": "Z12V1000nU2"}


async def test_boxes_are_examples(call: Call, encoded: str, dogs: Dogs) -> None:
    boxes = [{"x": 1, "y": 2, "width": 3, "height": 4}, {"x0": 1, "y0": 2, "x1": 4, "y1": 6}]
    prompt = {"type": "visual", "text": "dog", "boxes": boxes, "box_labels": [1, 1]}
    assert (await call(SEGMENT, body(encoded, prompt))).status_code == 200
    (asked,) = dogs.requests
    (one,) = asked.fields["classes"]
    assert [example["box"] for example in one["examples"]] == [[1, 2, 3, 4]] * 2


async def test_clip_embeds_and_compares(call: Call, encoded: str) -> None:
    image = {"type": "base64", "value": encoded}
    found = (await call("/clip/embed_image", {"image": image, "clip_version_id": "x"})).json()
    np.testing.assert_array_equal(found["embeddings"], [[1, 0, 0, 0]])
    assert found["frame_id"] is None
    texts = (await call("/clip/embed_text", {"text": ["a", "b"]})).json()
    np.testing.assert_array_equal(texts["embeddings"], np.eye(4)[:2])
    asked = {"subject": image, "subject_type": "image", "prompt": ["a", "b"]}
    assert (await call("/clip/compare", asked)).json()["similarity"] == [1, 0]
    assert (await call("/clip/embed_text", {"text": []})).status_code == 400
    named = {"subject": "a", "subject_type": "text", "prompt": {"one": image}}
    assert (await call("/clip/compare", named)).json()["similarity"] == {"one": 1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": {"type": "url", "value": "http://other.example/x"}}, "not allowed"),
        ({"image": {"type": "url", "value": "/data/upload/deleted.png"}}, "status 404"),
        ({"image": {"type": "numpy", "value": "x"}}, "image.type"),
        ({"image": {"type": "base64", "value": "?"}}, "no base64"),
        ({"image": {"type": "base64", "value": "YWJj"}}, "cannot be decoded"),
        ({"prompts": [{"type": "text"}]}, "text or boxes"),
        ({"prompts": [{"boxes": [{"x": 1, "y": 1}], "box_labels": [0]}]}, "not supported"),
        ({"format": "png"}, "format"),
    ],
)
async def test_bad_input_is_the_sdks_error(
    call: Call, encoded: str, changes: Any, reason: str
) -> None:
    answer = await call(SEGMENT, body(encoded, **changes))
    assert answer.status_code == 400
    assert reason in answer.json()["message"]
    assert answer.headers["content-type"] == "application/json"
    assert (await call(SEGMENT, body(encoded))).status_code == 200


async def test_a_server_that_is_away(call: Call, encoded: str, dogs: Dogs) -> None:
    dogs.is_away = True
    assert (await call(SEGMENT, body(encoded))).status_code == 503
    assert (await call("/health")).status_code == 200
    dogs.is_away = False
    assert (await call(SEGMENT, body(encoded))).status_code == 200
