"""Label Studio's requests, as version 1.23 sends them."""

import logging
from typing import Any

import httpx2
import numpy as np
import pytest

from connectors.app import Refused
from connectors.label_studio import token_headers
from tests.connectors.conftest import Call, Dogs
from tests.connectors.test_brush import unpack

TASK = {"id": 7, "data": {"image": "/data/upload/1.png"}}
LOST = {"id": 8, "data": {"image": "/data/upload/deleted.png"}}
LABELS = '<Label value="dog"/><Label value="Lawn" prompts="grass, a lawn"/>'
POLYGONS = (
    '<View><Image name="img" value="$image"/>'
    f'<PolygonLabels name="poly" toName="img">{LABELS}</PolygonLabels></View>'
)


def config(tag: str, options: str = "") -> str:
    return POLYGONS.replace("PolygonLabels", tag).replace("<" + tag, f"<{tag} {options}")


def body(label_config: str = POLYGONS, *tasks: Any, context: Any = None) -> dict[str, Any]:
    given = {"tasks": list(tasks) or [TASK], "label_config": label_config, "project": "1.17"}
    return {**given, "params": {"login": None, "password": None, "context": context}}


async def test_polygons_in_percent_with_scores_and_a_version(call: Call, dogs: Dogs) -> None:
    answer = (await call("/predict", body())).json()
    assert answer["model_version"] == "fake-x"
    (prediction,) = answer["results"]
    assert (prediction["score"], prediction["model_version"]) == (0.75, "fake-x")
    # The lawn is absent.
    (region,) = prediction["result"]
    points = region["value"].pop("points")
    corners = [[100 * x / 60, 100 * y / 40] for x in (1, 4) for y in (2, 4)]
    np.testing.assert_allclose(sorted(points), corners)
    assert region == {
        "from_name": "poly", "to_name": "img", "type": "polygonlabels", "score": 0.75,
        "original_width": 60, "original_height": 40, "image_rotation": 0,
        "value": {"polygonlabels": ["dog"], "closed": True},
    }  # fmt: skip
    (asked,) = dogs.requests
    assert asked.fields["background"] == "auto"
    assert asked.fields["classes"] == [
        {"name": "dog", "prompts": []},
        {"name": "Lawn", "prompts": ["grass", "a lawn"]},
    ]


async def test_tags_decide_what_a_region_is(call: Call) -> None:
    boxes = (await call("/predict", body(config("RectangleLabels")))).json()["results"]
    value = boxes[0]["result"][0]["value"]
    assert value.pop("rectanglelabels") == ["dog"]
    place = {"x": 100 / 60, "y": 5.0, "width": 5.0, "height": 5.0, "rotation": 0}
    assert value == pytest.approx(place)
    brushed = (await call("/predict", body(config("BrushLabels")))).json()["results"]
    packed = brushed[0]["result"][0]["value"]["rle"]
    alpha = np.array(unpack(packed)).reshape(40, 60, 4)[..., 3]
    assert (alpha[2:4, 1:4] == 255).all()
    assert alpha.sum() == 6 * 255


async def test_choices_are_the_best_class(call: Call) -> None:
    choices = POLYGONS.replace("PolygonLabels", "Choices").replace("Label v", "Choice v")
    found = (await call("/predict", body(choices))).json()["results"]
    (region,) = found[0]["result"]
    assert (region["type"], region["value"]) == ("choices", {"choices": ["Lawn"]})
    assert region["score"] == 0.75


async def test_a_smart_box_or_point_is_an_example(call: Call, dogs: Dogs) -> None:
    smart = config("RectangleLabels", 'smart="true"')
    size = {"original_width": 60, "original_height": 40}
    box = {"x": 50, "y": 50, "width": 60, "height": 25, "rectanglelabels": ["dog"]}
    point = {"x": 100, "y": 10, "width": 1, "keypointlabels": ["dog"]}
    shapes = [
        {"type": "rectanglelabels", "value": box, **size},
        {"type": "keypointlabels", "value": point, **size},
    ]
    answer = await call("/predict", body(smart, context={"result": shapes}))
    assert answer.json()["results"][0]["result"][0]["type"] == "rectanglelabels"
    (asked,) = dogs.requests
    (one,) = asked.fields["classes"]
    assert one["examples"] == [
        {"image": 0, "box": [30, 20, 30, 10]},
        {"image": 0, "point": [59, 4]},
    ]
    broken = await call("/predict", body(smart, context={"result": [{"type": "ellipse"}]}))
    assert broken.status_code == 400


async def test_smart_tags_are_not_filled_in_beside_others(call: Call) -> None:
    smart = '<RectangleLabels name="r" toName="img" smart="true"><Label value="dog"/>'
    both = POLYGONS.replace("</View>", f"{smart}</RectangleLabels></View>")
    found = (await call("/predict", body(both))).json()["results"]
    assert [one["type"] for one in found[0]["result"]] == ["polygonlabels"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (body('<View><Text name="t" value="$text"/></View>'), "has no PolygonLabels"),
        (body("<View>"), "no XML"),
        (body(config("EllipseLabels")), "has no PolygonLabels"),
        (body(POLYGONS, {"id": 1, "data": {"text": "x"}}), "no field 'image'"),
        (body(POLYGONS, {"id": 1, "data": {"image": "http://other.example/x"}}), "not allowed"),
        (body(POLYGONS, LOST), "status 404"),
        ({"tasks": 3}, "tasks"),
    ],
)
async def test_a_task_that_cannot_be_answered_is_an_error(
    call: Call, given: Any, reason: str
) -> None:
    answer = await call("/predict", given)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]
    assert (await call("/predict", body())).status_code == 200


async def test_of_several_tasks_a_deleted_image_spoils_its_own_only(
    call: Call, stored: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    stored["/data/upload/2.png"] = b"no image"
    broken = {"id": 9, "data": {"image": "/data/upload/2.png"}}
    with caplog.at_level(logging.WARNING):
        found = (await call("/predict", body(POLYGONS, LOST, broken, TASK))).json()["results"]
    assert ["result" in one for one in found] == [False, False, True]
    assert "404" in found[0]["error"]
    assert "task 8" in caplog.text


async def test_a_server_that_is_away_is_an_error_until_it_is_back(call: Call, dogs: Dogs) -> None:
    dogs.is_away = True
    for path in ("/predict", "/setup"):
        assert (await call(path, body())).status_code == 503
    assert (await call("/health")).json()["status"] == "UP"
    dogs.is_away = False
    assert (await call("/predict", body())).status_code == 200


async def test_what_label_studio_calls_beside_predictions(call: Call) -> None:
    assert (await call("/setup", {"project": "1"})).json()["model_version"] == "fake-x"
    assert (await call("/versions")).json()["versions"] == ["fake-x"]
    for path in ("/webhook", "/train"):
        assert (await call(path, {"action": "ANNOTATION_CREATED"})).status_code == 200


def test_a_personal_token_buys_another_one() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        is_known = request.content == b'{"refresh":"a.b.c"}' and request.url.path.endswith("/")
        return httpx2.Response(200 if is_known else 401, json={"access": "short"})

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        assert token_headers("abc", "http://tool")(http) == {"Authorization": "Token abc"}
        headers = token_headers("a.b.c", "http://tool/")(http)
        assert headers == {"Authorization": "Bearer short"}
        with pytest.raises(Refused, match="401"):
            token_headers("x.y.z", "http://tool")(http)
