"""Response bodies: the same values in every media type, errors next to data, and refusals."""

import base64
import dataclasses
import io
import json
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.numpy import load, save

from model.image_codec import ImageLimits
from service.errors import InvalidRequest, NotAcceptable
from service.messages import (
    Classification,
    ClassifyImagesResponse,
    EmbedImagesResponse,
    EmbedTextsResponse,
    EstimateMapsResponse,
    Segmentation,
    SegmentImagesResponse,
    VectorType,
    VisualizeFeaturesResponse,
)
from service.outputs.regions import find_instances
from service.outputs.run_lengths import Runs
from service.outputs.vectors import pack, pack_all
from service.rest import response_schemas as schemas
from service.rest.requests import (
    ClassifyImagesBody,
    DepthBody,
    EmbedImagesBody,
    EmbedTextsBody,
    Encoding,
    NormalsBody,
    Options,
    SegmentImagesBody,
    VisualizeFeaturesBody,
)
from service.rest.responses import (
    CLASSES,
    FEATURES,
    IMAGE_EMBEDDINGS,
    JSON,
    MAPS,
    MASKS,
    MAX_INLINE_VALUES,
    NPY,
    PNG,
    SAFETENSORS,
    TEXT_EMBEDDINGS,
    Piece,
    RestRequest,
    choose_media,
    dump,
    encode_array,
    write_json,
    write_safetensors,
)

LIMITS = ImageLimits(max_bytes=10_000, max_pixels=100)


def noise(shape: int | tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(shape, np.float32)


WRONG = InvalidRequest("images[1] is wrong.", code="invalid_image", param="images[1]")
EMBED, PARTIAL, MASK_OPTIONS = EmbedImagesBody(), EmbedImagesBody(partial=True), SegmentImagesBody()
MASK = Segmentation(
    labels_HW=np.array([[0, 1, 2], [2, 2, 2]], np.uint16),
    scores_HW=noise((2, 3)),
    area_shares=(1 / 6, 1 / 6, 4 / 6),
    class_scores=(0.5, 0.75),
)
MASK_ANSWER = SegmentImagesResponse(model="m", classes=("dog", "sky"), segmentations=(MASK,))
DEPTH = EstimateMapsResponse(model="m", maps=(noise((4, 6)),))
NORMALS = EstimateMapsResponse(model="m", maps=(noise((4, 6, 3)),))
VIEWS: dict[Any, NDArray[Any]] = {
    "colors": noise((4, 6, 3)),
    "component": noise((4, 6)),
    "groups": np.random.default_rng(0).integers(1, 4, (4, 6)).astype(np.uint16),
}
RANKED = Classification(
    labels_K=np.array([3, 1, 2], np.uint16),
    probabilities_K=np.array([0.6, 0.3, 0.1], np.float32),
    cosines_K=np.array([0.25, 0.125, -0.5], np.float32),
)
RANKED_ANSWER = ClassifyImagesResponse(
    model="m", classes=("dog", "sky", "sea"), classifications=(RANKED, RANKED)
)


def embedded(*rows: dict[str, NDArray[Any]], kind: VectorType = "float32", **more: Any) -> Any:
    packed = [pack_all(outputs, kind) for outputs in rows]
    scales = tuple(s for _, s in packed) if kind == "int8" else ()
    return EmbedImagesResponse(
        model="m", embeddings=tuple(outputs for outputs, _ in packed), scales=scales, **more
    )


ROW = {"cls1": noise(6), "patches": noise((2, 3, 6))}


def joined(pieces: Sequence[Piece]) -> bytes:
    """The whole body."""
    return b"".join(p if isinstance(p, bytes) else p.tobytes() for p in pieces)


def write(writer: Any, answer: Any, media: str, options: Options) -> bytes:
    """What the client gets."""
    return joined(writer.write(answer, RestRequest(options, (), media), LIMITS))


def write_list(writer: Any, answer: Any, options: Options, schema: type[BaseModel]) -> Any:
    """The JSON that the client gets, which the OpenAPI schema must describe."""
    sent = json.loads(write(writer, answer, JSON, options))
    assert schema.model_validate(sent).model_dump(exclude_none=True) == sent
    return sent


def from_base64(body: dict[str, Any]) -> NDArray[Any]:
    data = base64.b64decode(body["data"])
    return np.frombuffer(data, np.dtype(body["dtype"]).newbyteorder("<")).reshape(body["shape"])


def opened(writer: Any, answer: Any, media: str, options: Options) -> Any:
    stream = io.BytesIO(write(writer, answer, media, options))
    return Image.open(stream) if media == PNG else np.load(stream)


TURNED = VIEWS["component"].T  # not in row-major order
HALVES = noise((4, 6)).astype(np.float16)
CASES: list[tuple[Any, Any, Options, Any, str, NDArray[Any]]] = [
    *[
        (IMAGE_EMBEDDINGS, answer, EMBED, schemas.EmbedImagesAnswer, "cls1", array)
        for array in (TURNED, HALVES)
        for answer in [EmbedImagesResponse(model="m", embeddings=({"cls1": array},))]
    ],
    (MASKS, MASK_ANSWER, MASK_OPTIONS, schemas.SegmentImagesAnswer, "labels", MASK.labels_HW),
    (MAPS, DEPTH, DepthBody(), schemas.DepthAnswer, "depth", DEPTH.maps[0]),
    (MAPS, NORMALS, NormalsBody(), schemas.NormalsAnswer, "normals", NORMALS.maps[0]),
    *[
        (FEATURES, answer, options, schemas.VisualizeFeaturesAnswer, "features", array)
        for kind, array in VIEWS.items()
        for answer in [VisualizeFeaturesResponse(model="m", maps=(array,))]
        for options in [VisualizeFeaturesBody(kind=kind)]
    ],
]


@pytest.mark.parametrize(("writer", "answer", "options", "schema", "name", "expected"), CASES)
def test_every_media_type_has_the_same_bits(
    writer: Any, answer: Any, options: Options, schema: Any, name: str, expected: NDArray[Any]
) -> None:
    (listed,) = write_list(writer, answer, options, schema)["data"]
    coded = write_list(writer, answer, options.model_copy(update={"encoding": "base64"}), schema)
    for array in (
        np.array(listed[name], expected.dtype),
        from_base64(coded["data"][0][name]),
        opened(writer, answer, NPY, options),
        load(write(writer, answer, SAFETENSORS, options))[name][0],
    ):
        np.testing.assert_array_equal(array.reshape(expected.shape), expected)
        assert array.dtype == expected.dtype
    assert listed["index"] == 0
    if PNG in writer.media_types:
        image = opened(writer, answer, PNG, options)
        assert (image.height, image.width) == expected.shape[:2]
        assert (listed["height"], listed["width"]) == expected.shape[:2]


def test_arrays_of_one_shape_are_stacked_and_others_kept_apart() -> None:
    same, other = noise((2, 3, 5)), noise((3, 2, 5))
    stacked = embedded({"patches": same}, {"patches": same})
    assert load(write(IMAGE_EMBEDDINGS, stacked, SAFETENSORS, EMBED))["patches"].ndim == 4
    apart = embedded({"patches": same}, {"patches": other})
    tensors = load(write(IMAGE_EMBEDDINGS, apart, SAFETENSORS, EMBED))
    np.testing.assert_equal(tensors, {"patches.0": same, "patches.1": other})
    with pytest.raises(InvalidRequest, match="squash"):
        write(IMAGE_EMBEDDINGS, apart, NPY, EMBED)


LABELS = np.zeros((9, 9), np.uint8)
LABELS[1:8, 1:8], LABELS[3:6, 3:6], LABELS[4, 4] = 1, 2, 1


def test_a_mask_lists_its_classes_with_colour_and_area() -> None:
    (entry,) = write_list(MASKS, MASK_ANSWER, MASK_OPTIONS, schemas.SegmentImagesAnswer)["data"]
    assert [(c["label"], c["name"]) for c in entry["classes"]] == [(1, "dog"), (2, "sky")]
    assert entry["classes"][1]["area_share"] == pytest.approx(4 / 6)
    assert entry["background_share"] == pytest.approx(1 / 6)
    png = opened(MASKS, MASK_ANSWER, PNG, MASK_OPTIONS)
    np.testing.assert_array_equal(np.asarray(png), MASK.labels_HW)
    assert entry["classes"][1]["color"] == "#" + bytes(png.convert("RGB").getpixel((2, 0))).hex()
    np.testing.assert_array_equal(np.array(entry["scores"], np.float32), MASK.scores_HW)
    tensors = load(write(MASKS, MASK_ANSWER, SAFETENSORS, MASK_OPTIONS))
    np.testing.assert_array_equal(tensors["scores"][0], MASK.scores_HW)


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

    runs = Runs.of(LABELS)
    found = find_instances(runs, runs.num_pixels.astype(np.float64) / 2, (9, 9), 0.001)
    mask = dataclasses.replace(MASK, labels_HW=LABELS, scores_HW=None, instances=found)
    answer = dataclasses.replace(MASK_ANSWER, segmentations=(mask,))
    options = SegmentImagesBody(format=mask_format, include_instances=True)
    (entry,) = write_list(MASKS, answer, options, schemas.SegmentImagesAnswer)["data"]
    instances = entry["instances"]
    keys = [(one["label"], one["area"], one["score"]) for one in instances]
    assert keys == [(1, 40, 0.5), (1, 1, 0.5), (2, 8, 0.5)]
    assert instances[0]["bbox"] == [1, 1, 7, 7]
    union_HW = sum(mask_of(one["segmentation"]) * one["label"] for one in instances)
    np.testing.assert_array_equal(union_HW, LABELS)
    assert ("labels" in entry) == (mask_format == "mask")
    if mask_format != "mask":
        for one, box in zip(entry["classes"], ([1, 1, 7, 7], [3, 3, 3, 3]), strict=True):
            np.testing.assert_array_equal(mask_of(one["segmentation"]), one["label"] == LABELS)
            assert (one["area"], one["bbox"]) == ((one["label"] == LABELS).sum(), box)


def test_classes_are_sorted_in_json_and_safetensors_and_in_request_order_in_npy() -> None:
    options = ClassifyImagesBody()
    sent = write_list(CLASSES, RANKED_ANSWER, options, schemas.ClassifyImagesAnswer)
    first = sent["data"][1]["classes"][0]
    assert (sent["data"][1]["index"], first["label"], first["name"]) == (1, 3, "sea")
    assert np.float32(first["probability"]) == RANKED.probabilities_K[0]
    tensors = load(write(CLASSES, RANKED_ANSWER, SAFETENSORS, options))
    np.testing.assert_array_equal(tensors["labels"], [RANKED.labels_K] * 2)
    np.testing.assert_array_equal(tensors["cosines"], [RANKED.cosines_K] * 2)
    np.testing.assert_array_equal(tensors["probabilities"], [RANKED.probabilities_K] * 2)
    ordered_BK = opened(CLASSES, RANKED_ANSWER, NPY, options)
    np.testing.assert_array_equal(ordered_BK, np.array([[0.3, 0.1, 0.6]] * 2, np.float32))


def test_errors_are_listed_by_index_next_to_the_data(tmp_path: Any) -> None:
    answer = embedded(ROW, ROW, errors={1: WRONG})
    sent = write_list(IMAGE_EMBEDDINGS, answer, PARTIAL, schemas.EmbedImagesAnswer)
    assert [item["index"] for item in sent["data"]] == [0, 2]
    error = {"message": "images[1] is wrong.", "type": "invalid_request_error"}
    error |= {"code": "invalid_image", "param": "images[1]"}
    assert sent["errors"] == [{"index": 1, "error": error}]
    path = tmp_path / "answer.safetensors"
    path.write_bytes(write(IMAGE_EMBEDDINGS, answer, SAFETENSORS, PARTIAL))
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"cls1.0", "cls1.2", "patches.0", "patches.2"}
        assert json.loads(file.metadata()["errors"]) == sent["errors"]
    assert json.loads(write(IMAGE_EMBEDDINGS, embedded(ROW), JSON, PARTIAL))["errors"] == []
    assert "errors" not in json.loads(write(IMAGE_EMBEDDINGS, embedded(ROW), JSON, EMBED))
    nothing = embedded(errors={0: WRONG})
    assert load(write(IMAGE_EMBEDDINGS, nothing, SAFETENSORS, PARTIAL)) == {}


def test_texts_with_errors_are_missing_in_json_and_zeros_in_the_matrix() -> None:
    rows_TD, scales_T = pack(noise((2, 6)), "int8")
    answer = EmbedTextsResponse(
        model="m", embeddings_TD=rows_TD, scales_T=scales_T, errors={0: WRONG}
    )
    body = EmbedTextsBody(texts=["a"], partial=True, dtype="int8")
    sent = write_list(TEXT_EMBEDDINGS, answer, body, schemas.EmbedTextsAnswer)
    assert [item["index"] for item in sent["data"]] == [1, 2]
    tensors = load(write(TEXT_EMBEDDINGS, answer, SAFETENSORS, body))
    assert not tensors["embeddings"][0].any()
    np.testing.assert_array_equal(tensors["embeddings"][1:], rows_TD)
    np.testing.assert_array_equal(tensors["embeddings_scale"][1:], scales_T)
    records = opened(TEXT_EMBEDDINGS, answer, NPY, body)
    np.testing.assert_array_equal(records["values"], rows_TD)


@pytest.mark.parametrize("name", ROW)
def test_int8_vectors_have_the_same_scales_in_every_media_type(name: str) -> None:
    options = EmbedImagesBody(dtype="int8")
    answer = embedded({name: ROW[name]}, {name: -ROW[name] / 3}, kind="int8")
    listed = write_list(IMAGE_EMBEDDINGS, answer, options, schemas.EmbedImagesAnswer)["data"]
    coded = EmbedImagesBody(dtype="int8", encoding="base64")
    encoded = json.loads(write(IMAGE_EMBEDDINGS, answer, JSON, coded))["data"]
    tensors = load(write(IMAGE_EMBEDDINGS, answer, SAFETENSORS, options))
    records = opened(IMAGE_EMBEDDINGS, answer, NPY, options)
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


def masks(**options: Any) -> tuple[Any, Options]:
    return MASKS, SegmentImagesBody(**options)


MANY = [str(index) for index in range(256)]


@pytest.mark.parametrize(
    ("writer_and_options", "media", "num_images", "param"),
    [
        ((IMAGE_EMBEDDINGS, EmbedImagesBody(outputs=["cls1", "cls2"])), NPY, 1, "outputs"),
        ((IMAGE_EMBEDDINGS, PARTIAL), NPY, 1, "partial"),
        (masks(partial=True), PNG, 1, "partial"),
        (masks(), PNG, 2, "images"),
        ((FEATURES, VisualizeFeaturesBody()), NPY, 2, "images"),
        ((MAPS, DepthBody()), NPY, 2, "images"),
        (masks(classes=MANY), PNG, 1, "classes"),
        (masks(format="overlay"), JSON, 1, "format"),
        (masks(format="labels"), JSON, 1, "format"),
        (masks(format="overlay", size="patch"), PNG, 1, "size"),
        (masks(format="rle", tolerance=1), JSON, 1, "tolerance"),
        (masks(include_instances=True), PNG, 1, "include_instances"),
        (masks(include_scores=True), PNG, 1, "include_scores"),
        (masks(include_scores=True), NPY, 1, "include_scores"),
        (masks(format="rle"), PNG, 1, "format"),
        (masks(format="polygons"), NPY, 1, "format"),
        ((CLASSES, ClassifyImagesBody(top_k=1)), NPY, 1, "top_k"),
        ((MAPS, DepthBody(format="colors")), NPY, 1, "format"),
        (masks(classes=MANY, format="labels"), PNG, 1, None),
        ((IMAGE_EMBEDDINGS, EmbedImagesBody(outputs=["cls1", "cls1"])), NPY, 2, None),
        ((IMAGE_EMBEDDINGS, PARTIAL), SAFETENSORS, 2, None),
        ((MAPS, DepthBody(format="colors")), PNG, 1, None),
    ],
)
def test_a_media_type_that_cannot_hold_the_answer_is_refused_before_any_work(
    writer_and_options: tuple[Any, Options], media: str, num_images: int, param: str | None
) -> None:
    writer, options = writer_and_options
    if param is None:
        writer.check(options, media, num_images)
        return
    with pytest.raises(InvalidRequest) as caught:
        writer.check(options, media, num_images)
    assert caught.value.param == param


def test_a_palette_refuses_a_head_of_more_classes_than_colours() -> None:
    answer = dataclasses.replace(MASK_ANSWER, classes=tuple(MANY))
    with pytest.raises(InvalidRequest, match="classes: 256 given, at most 255 fit the palette"):
        write(MASKS, answer, PNG, SegmentImagesBody(classes=["head:many"]))
    assert write(MASKS, answer, PNG, SegmentImagesBody(classes=["head:many"], format="labels"))


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
            choose_media(accept, offered)
    else:
        assert choose_media(accept, offered) == media


def test_safetensors_files_equal_those_of_the_library() -> None:
    columns: dict[str, NDArray[Any]] = {
        "labels": np.arange(6, dtype=np.uint16).reshape(2, 3),
        "scores": noise((2, 3)).T,
        "values": np.arange(5, dtype=np.int8),
        "half": noise(3).astype(np.float16),
    }
    content = joined(write_safetensors("m", columns, {}))
    np.testing.assert_equal(load(content), columns)
    contiguous = {name: np.ascontiguousarray(array) for name, array in columns.items()}
    assert len(content) == len(save(contiguous, metadata={"model": "m", "errors": "[]"}))


@pytest.mark.parametrize("encoding", ["list", "base64"])
def test_json_of_large_maps_is_that_of_small_ones_and_held_once(encoding: Encoding) -> None:
    maps = noise((400, 30, 3))
    assert maps.size > MAX_INLINE_VALUES
    tracemalloc.start()
    try:
        entries = [{"name": '\0"', "a": encode_array(one, encoding)} for one in (maps, maps[::-1])]
        pieces = write_json('\0"', entries, {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * len(joined(pieces))
    first, second = json.loads(joined(pieces))["data"]
    assert (first["index"], second["index"], second["name"]) == (0, 1, '\0"')
    if encoding == "list":
        assert first["a"] == [json.loads(dump(encode_array(row, "list"))) for row in maps]
        assert second["a"] == first["a"][::-1]
    else:
        np.testing.assert_array_equal(from_base64(first["a"]), maps)
        np.testing.assert_array_equal(from_base64(second["a"]), maps[::-1])
