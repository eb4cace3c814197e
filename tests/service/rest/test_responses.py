"""Response bodies: the same values in every media type, errors next to data, and refusals."""

import base64
import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from safetensors import safe_open
from safetensors.numpy import load

from model.image_codec import ImageLimits
from service import messages
from service.errors import InvalidRequest, NotAcceptable
from service.grpc.converters import from_segment_images
from service.outputs.regions import find_instances
from service.outputs.run_lengths import Runs
from service.outputs.vectors import pack_all
from service.rest import requests, response_schemas, responses
from service.rest.responses import JSON, NPY, PNG, SAFETENSORS


def noise(shape: int | tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(shape, np.float32)


LABELS = np.zeros((9, 9), np.uint16)
LABELS[1:8, 1:8], LABELS[3:6, 3:6], LABELS[4, 4] = 1, 2, 1
RUNS = Runs.of(LABELS)
MASK = messages.Segmentation(
    labels_HW=LABELS,
    scores_HW=noise((9, 9)),
    area_shares=(0.5, 0.25, 0.25),
    class_scores=(0.5, 0.75),
    confidences=(0.125, 0.5),
    instances=find_instances(RUNS, RUNS.num_pixels.astype(np.float64) / 2, (9, 9), 0.001),
)
MASK_ANSWER = messages.SegmentImagesResponse(
    model="m", classes=("dog", "sky"), segmentations=(MASK,)
)
RANKED = messages.Classification(
    labels_K=np.array([3, 1, 2], np.uint16),
    probabilities_K=np.array([0.6, 0.3, 0.1], np.float32),
    cosines_K=np.array([0.25, 0.125, -0.5], np.float32),
)
ROW = {"cls1": noise(6), "patches": noise((2, 3, 6))}
WRONG = InvalidRequest("images[1] is wrong.", code="invalid_image", param="images[1]")


def embedded(*rows: dict[str, NDArray[Any]], kind: Any = "float32", **more: Any) -> Any:
    packed = [pack_all(outputs, kind) for outputs in rows]
    scales = tuple(s for _, s in packed) if kind == "int8" else ()
    return messages.EmbedImagesResponse(
        model="m", embeddings=tuple(outputs for outputs, _ in packed), scales=scales, **more
    )


class Form:
    """A kind of answer with its options; writes what the client gets."""

    def __init__(self, writer: Any, schema: Any, options: requests.Options) -> None:
        self.writer, self.schema, self.options = writer, schema, options
        self.images: tuple[bytes, ...] = ()

    def with_options(self, **changed: Any) -> "Form":
        return Form(self.writer, self.schema, self.options.model_copy(update=changed))

    def write(self, answer: Any, media: str) -> bytes:
        asked = responses.RestRequest(self.options, self.images, media)
        limits = ImageLimits(max_bytes=10_000, max_pixels=100)
        return b"".join(self.writer.write(answer, asked, limits))

    def json(self, answer: Any) -> Any:
        """JSON, which the OpenAPI schema must describe."""
        sent = json.loads(self.write(answer, JSON))
        assert self.schema.model_validate(sent).model_dump(exclude_none=True) == sent
        return sent

    def npy(self, answer: Any) -> Any:
        return np.load(io.BytesIO(self.write(answer, NPY)))

    def tensors(self, answer: Any) -> dict[str, NDArray[Any]]:
        return load(self.write(answer, SAFETENSORS))

    def png(self, answer: Any) -> Image.Image:
        return Image.open(io.BytesIO(self.write(answer, PNG)))


def form_of(writer: Any, entry: Any, options: requests.Options) -> Form:
    return Form(writer, response_schemas.ListAnswer[entry], options)


EMBED = form_of(
    responses.IMAGE_EMBEDDINGS, response_schemas.ImageEmbedding, requests.EmbedImagesBody()
)
MASKS = form_of(responses.MASKS, response_schemas.SegmentationBody, requests.SegmentImagesBody())
DEPTH = form_of(responses.MAPS, response_schemas.DepthMap, requests.DepthBody())
NORMALS = form_of(responses.MAPS, response_schemas.NormalMap, requests.NormalsBody())
CLASSES = form_of(
    responses.CLASSES, response_schemas.ClassificationBody, requests.ClassifyImagesBody()
)
GROUPED = requests.VisualizeFeaturesBody(kind="groups")
VIEWS = form_of(responses.FEATURES, response_schemas.FeatureMap, GROUPED)


def from_base64(body: dict[str, Any]) -> NDArray[Any]:
    data = base64.b64decode(body["data"])
    return np.frombuffer(data, np.dtype(body["dtype"]).newbyteorder("<")).reshape(body["shape"])


def mapped(array: NDArray[Any]) -> Any:
    return messages.MapsResponse(model="m", maps=(array,))


TURNED = noise((4, 6)).T  # not in row-major order
HALVES = noise((4, 6)).astype(np.float16)
COSINES = noise((2, 9, 9))
SCORED = dataclasses.replace(MASK, scores_HW=None, cosines_KHW=COSINES)
GROUPS = np.random.default_rng(0).integers(1, 4, (4, 6)).astype(np.uint16)


@pytest.mark.parametrize(
    ("form", "answer", "name", "expected"),
    [
        (EMBED, embedded({"cls1": TURNED}), "cls1", TURNED),
        (EMBED, embedded({"cls1": HALVES}, kind="float16"), "cls1", HALVES),
        (MASKS, MASK_ANSWER, "labels", LABELS),
        (DEPTH, mapped(HALVES.astype("f4")), "depth", HALVES.astype("f4")),
        (NORMALS, mapped(noise((4, 6, 3))), "normals", noise((4, 6, 3))),
        (VIEWS, messages.MapsResponse(model="m", maps=(GROUPS,)), "features", GROUPS),
        (MASKS, dataclasses.replace(MASK_ANSWER, segmentations=(SCORED,)), "cosines", COSINES),
    ],
)
def test_every_media_type_has_the_same_bits(
    form: Form, answer: Any, name: str, expected: NDArray[Any]
) -> None:
    (listed,) = form.json(answer)["data"]
    coded = form.with_options(encoding="base64").json(answer)
    for array in (
        np.array(listed[name], expected.dtype),
        from_base64(coded["data"][0][name]),
        form.tensors(answer)[name][0],
        *(() if name == "cosines" else (form.npy(answer),)),
    ):
        np.testing.assert_array_equal(array.reshape(expected.shape), expected)
        assert array.dtype == expected.dtype
    if form.writer.png and name != "cosines":
        image = form.png(answer)
        assert (image.height, image.width) == expected.shape[:2]
        assert (listed["height"], listed["width"]) == expected.shape[:2]


def test_arrays_of_one_shape_are_stacked_and_others_kept_apart() -> None:
    same, other = noise((2, 3, 5)), noise((3, 2, 5))
    assert EMBED.tensors(embedded({"patches": same}, {"patches": same}))["patches"].ndim == 4
    apart = embedded({"patches": same}, {"patches": other})
    np.testing.assert_equal(EMBED.tensors(apart), {"patches.0": same, "patches.1": other})
    with pytest.raises(InvalidRequest, match="squash"):
        EMBED.npy(apart)


@pytest.mark.parametrize("mask_format", ["mask", "rle", "rle_counts", "polygons"])
@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
def test_cocos_formats_give_classes_and_instances_back(mask_format: Any) -> None:
    def mask_of(form: Any) -> NDArray[np.uint8]:
        if mask_format in {"rle_counts", "polygons"}:
            form = coco.frPyObjects(form, 9, 9)
        if mask_format == "polygons":
            form = coco.merge(form)
        decoded: NDArray[np.uint8] = coco.decode(form)
        return decoded

    holes = "keep" if mask_format == "polygons" else None
    form = MASKS.with_options(format=mask_format, include_instances=True, holes=holes)
    (entry,) = form.json(MASK_ANSWER)["data"]
    instances = entry["instances"]
    keys = [(one["label"], one["area"], one["score"]) for one in instances]
    assert keys == [(1, 40, 0.5), (1, 1, 0.5), (2, 8, 0.5)]
    assert instances[0]["bbox"] == [1, 1, 7, 7]
    union_HW = sum(mask_of(one["segmentation"]) * one["label"] for one in instances)
    np.testing.assert_array_equal(union_HW, LABELS)
    assert ("labels" in entry) == (mask_format == "mask")
    if mask_format != "mask":
        for one, box in zip(entry["classes"], ([1, 1, 7, 7], [3, 3, 3, 3]), strict=True):
            is_class_HW = one["label"] == LABELS
            np.testing.assert_array_equal(mask_of(one["segmentation"]), is_class_HW)
            assert (one["area"], one["bbox"]) == (is_class_HW.sum(), box)


def test_a_class_has_its_confidence_if_it_is_known() -> None:
    (entry,) = MASKS.json(MASK_ANSWER)["data"]
    assert [one["confidence"] for one in entry["classes"]] == [0.125, 0.5]
    (sent,) = from_segment_images(MASK_ANSWER).segmentations
    assert [one.confidence for one in sent.classes] == [0.125, 0.5]
    unknown = dataclasses.replace(MASK, confidences=())
    answer = dataclasses.replace(MASK_ANSWER, segmentations=(unknown,))
    (entry,) = MASKS.json(answer)["data"]
    assert "confidence" not in entry["classes"][0]
    (sent,) = from_segment_images(answer).segmentations
    assert not sent.classes[0].HasField("confidence")


def test_polygons_have_no_holes_and_no_specks_by_default() -> None:
    form = MASKS.with_options(format="polygons", min_area_share=0.02)
    (entry,) = form.json(MASK_ANSWER)["data"]
    assert entry["classes"][0]["segmentation"] == [[1, 1, 1, 8, 8, 8, 8, 1]]


def test_an_option_for_holes_that_has_no_effect_is_refused() -> None:
    for media, options in ((PNG, {}), (JSON, {"format": "rle"})):
        body = requests.SegmentImagesBody(classes=["dog"], holes="fill", **options)
        with pytest.raises(InvalidRequest, match="holes needs"):
            responses.MASKS.check(body, media, 1)
    body = requests.SegmentImagesBody(classes=["dog"], holes="fill", include_instances=True)
    responses.MASKS.check(body, JSON, 1)
    assert body.to_message(is_json=True).holes == "fill"


def test_classes_are_sorted_in_json_and_safetensors_and_in_request_order_in_npy() -> None:
    answer = messages.ClassifyImagesResponse(
        model="m", classes=("dog", "sky", "sea"), classifications=(RANKED, RANKED)
    )
    best = CLASSES.json(answer)["data"][1]["classes"][0]
    assert (best["label"], best["name"], best["cosine"]) == (3, "sea", 0.25)
    np.testing.assert_array_equal(CLASSES.tensors(answer)["labels"], [RANKED.labels_K] * 2)
    np.testing.assert_array_equal(CLASSES.npy(answer), np.array([[0.3, 0.1, 0.6]] * 2, "f4"))


def test_errors_are_listed_by_index_next_to_the_data(tmp_path: Any) -> None:
    form, answer = EMBED.with_options(partial=True), embedded(ROW, ROW, errors={1: WRONG})
    sent = form.json(answer)
    assert [item["index"] for item in sent["data"]] == [0, 2]
    error = {"message": "images[1] is wrong.", "type": "invalid_request_error"}
    error |= {"code": "invalid_image", "param": "images[1]"}
    assert sent["errors"] == [{"index": 1, "error": error}]
    path = tmp_path / "answer.safetensors"
    path.write_bytes(form.write(answer, SAFETENSORS))
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"cls1.0", "cls1.2", "patches.0", "patches.2"}
        assert json.loads(file.metadata()["errors"]) == sent["errors"]
    assert form.json(embedded(ROW))["errors"] == []
    assert "errors" not in EMBED.json(embedded(ROW))
    assert form.tensors(embedded(errors={0: WRONG})) == {}


@pytest.mark.parametrize("name", ROW)
def test_int8_vectors_have_the_same_scales_in_every_media_type(name: str) -> None:
    answer = embedded({name: ROW[name]}, {name: -ROW[name] / 3}, kind="int8")
    listed = EMBED.json(answer)["data"]
    encoded = EMBED.with_options(encoding="base64").json(answer)["data"]
    tensors, records = EMBED.tensors(answer), EMBED.npy(answer)
    for index, (rows, scales) in enumerate(zip(answer.embeddings, answer.scales, strict=True)):
        for found in (
            np.array(listed[index][name], np.int8),
            from_base64(encoded[index][name]),
            tensors[name][index],
            records["values"][index],
        ):
            np.testing.assert_array_equal(found, rows[name])
        for scale in (
            np.float32(listed[index]["scales"][name]),
            tensors[f"{name}_scale"][index],
            records["scale"][index],
        ):
            np.testing.assert_array_equal(scale, scales[name])


MANY = [str(index) for index in range(256)]


@pytest.mark.parametrize(
    ("form", "options", "media", "num_images", "param"),
    [
        (EMBED, {"outputs": ["cls1", "cls2"]}, NPY, 1, "outputs"),
        (EMBED, {"partial": True}, NPY, 1, "partial"),
        (MASKS, {"partial": True}, PNG, 1, "partial"),
        (MASKS, {}, PNG, 2, "images"),
        (VIEWS, {}, NPY, 2, "images"),
        (MASKS, {"classes": MANY}, PNG, 1, "classes"),
        (MASKS, {"format": "overlay"}, JSON, 1, "format"),
        (MASKS, {"format": "labels"}, JSON, 1, "format"),
        (MASKS, {"format": "overlay", "size": "patch"}, PNG, 1, "size"),
        (MASKS, {"format": "rle", "tolerance": 1}, JSON, 1, "tolerance"),
        (MASKS, {"include_instances": True}, PNG, 1, "include_instances"),
        (MASKS, {"include_scores": True}, NPY, 1, "include_scores"),
        (MASKS, {"include_scores": "all"}, NPY, 1, "include_scores"),
        (MASKS, {"format": "heatmap"}, JSON, 1, "format"),
        (MASKS, {"format": "heatmap", "classes": ["dog"], "size": "patch"}, PNG, 1, "size"),
        (MASKS, {"format": "heatmap", "classes": ["dog", "cat"]}, PNG, 1, "classes"),
        (MASKS, {"format": "heatmap", "classes": ["dog"]}, PNG, 2, "images"),
        (MASKS, {"format": "heatmap", "classes": ["dog"]}, PNG, 1, None),
        (MASKS, {"format": "rle"}, PNG, 1, "format"),
        (CLASSES, {"top_k": 1}, NPY, 1, "top_k"),
        (DEPTH, {"format": "colors"}, NPY, 1, "format"),
        (MASKS, {"classes": MANY, "format": "labels"}, PNG, 1, None),
        (EMBED, {"outputs": ["cls1", "cls1"]}, NPY, 2, None),
        (EMBED, {"partial": True}, SAFETENSORS, 2, None),
        (DEPTH, {"format": "colors"}, PNG, 1, None),
    ],
)
def test_a_media_type_that_cannot_hold_the_answer_is_refused_before_any_work(
    form: Form, options: dict[str, Any], media: str, num_images: int, param: str | None
) -> None:
    wanted = form.with_options(**options).options
    if param is None:
        form.writer.check(wanted, media, num_images)
        return
    with pytest.raises(InvalidRequest) as caught:
        form.writer.check(wanted, media, num_images)
    assert caught.value.param == param


def test_grpc_has_the_same_cosines_of_all_classes() -> None:
    answer = dataclasses.replace(MASK_ANSWER, segmentations=(SCORED,))
    wire = from_segment_images(answer).segmentations[0].cosines
    sent = np.frombuffer(wire.data, "<f4").reshape(tuple(wire.shape))
    np.testing.assert_array_equal(sent, COSINES)


def test_a_heatmap_is_drawn_over_the_image_for_one_class() -> None:
    cosines_KHW = np.array([[[0.25, 0.25, 0.25], [0.1, 0.2, 0.3]]], np.float32)
    mask = dataclasses.replace(MASK, cosines_KHW=cosines_KHW)
    answer = dataclasses.replace(MASK_ANSWER, segmentations=(mask,), classes=("dog",))
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), (128, 128, 128)).save(stream, "PNG")
    form = MASKS.with_options(format="heatmap")
    form.images = (stream.getvalue(),)
    brightness = np.asarray(form.png(answer)).sum(axis=-1).astype(int)
    assert brightness[1, 0] < brightness[1, 1] < brightness[0, 0] < brightness[1, 2]
    with pytest.raises(InvalidRequest, match="heatmap shows one class, not 2"):
        form.png(dataclasses.replace(answer, classes=("dog", "cat")))


def test_a_palette_refuses_a_head_of_more_classes_than_colours() -> None:
    answer = dataclasses.replace(MASK_ANSWER, classes=tuple(MANY))
    with pytest.raises(InvalidRequest, match="classes: 256 given, at most 255 fit the palette"):
        MASKS.png(answer)
    assert MASKS.with_options(format="labels").write(answer, PNG)


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, JSON),
        ("IMAGE/PNG", PNG),
        ("image/*", PNG),
        ("application/x-npy;q=0.5, application/json;q=0.4", NPY),
        ("text/html, image/png", PNG),
        ("*/*;q=0.1, application/octet-stream", SAFETENSORS),
        ("application/json;q=0, */*", NPY),
        ("application/json;q=x, image/png", PNG),
        ("text/html", None),
        ("application/json;q=0", None),
    ],
)
def test_accept_chooses_the_best_media_type_offered(accept: str | None, media: str | None) -> None:
    offered = (JSON, NPY, SAFETENSORS, PNG)
    if media is None:
        with pytest.raises(NotAcceptable, match="image/png"):
            responses.choose_media(accept, offered)
    else:
        assert responses.choose_media(accept, offered) == media
