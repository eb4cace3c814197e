"""Response bodies: the same values in every media type, errors next to data, and refusals."""

import base64
import dataclasses
import io
import json
import platform
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
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
from service.rest.response_schemas import (
    ClassifyImagesAnswer,
    DepthAnswer,
    EmbedImagesAnswer,
    EmbedTextsAnswer,
    NormalsAnswer,
    SegmentImagesAnswer,
    VisualizeFeaturesAnswer,
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
PARTIAL = EmbedImagesBody(partial=True)
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


def view(kind: Any) -> VisualizeFeaturesResponse:
    return VisualizeFeaturesResponse(model="m", maps=(VIEWS[kind],))


def vectors(vector_type: VectorType = "float32", **more: Any) -> EmbedImagesResponse:
    """Two images' `cls1` and `patches`."""
    raw = [{"cls1": noise(6), "patches": noise((2, 3, 6))} for _ in range(2)]
    packed = [pack_all(outputs, vector_type) for outputs in raw]
    scales = tuple(s for _, s in packed) if vector_type == "int8" else ()
    return EmbedImagesResponse(
        model="m", embeddings=tuple(rows for rows, _ in packed), scales=scales, **more
    )


def only(answer: EmbedImagesResponse, name: str) -> EmbedImagesResponse:
    return EmbedImagesResponse(
        model="m",
        embeddings=tuple({name: rows[name]} for rows in answer.embeddings),
        scales=tuple({name: scales[name]} for scales in answer.scales),
    )


def write(writer: Any, answer: Any, media: str, options: Options, *images: bytes) -> bytes:
    """What the client gets."""
    pieces = writer.write(answer, RestRequest(options, images, media, writer), LIMITS)
    return joined(pieces)


def joined(pieces: Sequence[Piece]) -> bytes:
    """The whole body."""
    return b"".join(p if isinstance(p, bytes) else p.tobytes() for p in pieces)


def write_list(writer: Any, answer: Any, options: Options, schema: type[BaseModel]) -> Any:
    """The JSON that the client gets, which the OpenAPI schema must describe."""
    sent = json.loads(write(writer, answer, JSON, options))
    assert schema.model_validate(sent).model_dump(exclude_none=True) == sent
    return sent


def from_base64(body: dict[str, Any]) -> NDArray[Any]:
    data = base64.b64decode(body["data"])
    return np.frombuffer(data, np.dtype(body["dtype"]).newbyteorder("<")).reshape(body["shape"])


HALVES = noise((4, 6)).astype(np.float16)
TURNED = VIEWS["component"].T  # not in row-major order


def one_vector(array: NDArray[Any]) -> EmbedImagesResponse:
    return EmbedImagesResponse(model="m", embeddings=({"cls1": array},))


EMBED, MASK_OPTIONS = EmbedImagesBody(), SegmentImagesBody()
CASES: list[tuple[Any, Any, Options, Any, str, NDArray[Any]]] = [
    (IMAGE_EMBEDDINGS, one_vector(TURNED), EMBED, EmbedImagesAnswer, "cls1", TURNED),
    (IMAGE_EMBEDDINGS, one_vector(HALVES), EMBED, EmbedImagesAnswer, "cls1", HALVES),
    (MASKS, MASK_ANSWER, MASK_OPTIONS, SegmentImagesAnswer, "labels", MASK.labels_HW),
    (MAPS, DEPTH, DepthBody(), DepthAnswer, "depth", DEPTH.maps[0]),
    (MAPS, NORMALS, NormalsBody(), NormalsAnswer, "normals", NORMALS.maps[0]),
]
CASES += [
    (
        FEATURES,
        view(kind),
        VisualizeFeaturesBody(kind=kind),
        VisualizeFeaturesAnswer,
        "features",
        a,
    )
    for kind, a in VIEWS.items()
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
        np.load(io.BytesIO(write(writer, answer, NPY, options))),
        load(write(writer, answer, SAFETENSORS, options))[name][0],
    ):
        np.testing.assert_array_equal(array.reshape(expected.shape), expected)
        assert array.dtype == expected.dtype
    assert listed["index"] == 0
    if PNG in writer.media_types:
        image = Image.open(io.BytesIO(write(writer, answer, PNG, options)))
        assert (image.height, image.width) == expected.shape[:2]
        assert (listed["height"], listed["width"]) == expected.shape[:2]


def test_arrays_of_one_shape_are_stacked_and_others_kept_apart() -> None:
    grids = ((2, 3, 5), (2, 3, 5)), ((2, 3, 5), (3, 2, 5))
    for shapes in grids:
        rows = tuple({"patches": noise(shape, seed)} for seed, shape in enumerate(shapes))
        answer = EmbedImagesResponse(model="m", embeddings=rows)
        tensors = load(write(IMAGE_EMBEDDINGS, answer, SAFETENSORS, EmbedImagesBody()))
        if len(set(shapes)) == 1:
            assert tensors["patches"].shape == (2, 2, 3, 5)
        else:
            assert {n: t.shape for n, t in tensors.items()} == {
                f"patches.{i}": shape for i, shape in enumerate(shapes)
            }
            with pytest.raises(InvalidRequest, match="squash"):
                write(IMAGE_EMBEDDINGS, answer, NPY, EmbedImagesBody())
    two = EstimateMapsResponse(model="m", maps=(DEPTH.maps[0], DEPTH.maps[0].T))
    assert set(load(write(MAPS, two, SAFETENSORS, DepthBody()))) == {"depth.0", "depth.1"}
    sent = write_list(MAPS, two, DepthBody(), DepthAnswer)
    assert [d["index"] for d in sent["data"]] == [0, 1]


def test_a_mask_lists_its_classes_with_colour_and_area() -> None:
    (entry,) = write_list(MASKS, MASK_ANSWER, SegmentImagesBody(), SegmentImagesAnswer)["data"]
    assert [(c["label"], c["name"]) for c in entry["classes"]] == [(1, "dog"), (2, "sky")]
    assert entry["classes"][1]["area_share"] == pytest.approx(4 / 6)
    assert entry["background_share"] == pytest.approx(1 / 6)
    png = Image.open(io.BytesIO(write(MASKS, MASK_ANSWER, PNG, SegmentImagesBody())))
    np.testing.assert_array_equal(np.asarray(png), MASK.labels_HW)
    pixel = png.convert("RGB").getpixel((2, 0))
    assert entry["classes"][1]["color"] == "#" + bytes(pixel).hex()  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.array(entry["scores"], np.float32), MASK.scores_HW)
    tensors = load(write(MASKS, MASK_ANSWER, SAFETENSORS, SegmentImagesBody()))
    np.testing.assert_array_equal(tensors["scores"][0], MASK.scores_HW)


LABELS = np.zeros((9, 9), np.uint8)
LABELS[1:8, 1:8], LABELS[3:6, 3:6], LABELS[4, 4] = 1, 2, 1


@pytest.mark.parametrize("mask_format", ["mask", "rle", "rle_counts", "polygons"])
@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
def test_instances_have_the_outlines_of_their_format(mask_format: Any) -> None:
    runs = Runs.of(LABELS)
    found = find_instances(runs, runs.num_pixels.astype(np.float64) / 2, (9, 9), 0.001)
    mask = dataclasses.replace(MASK, labels_HW=LABELS, scores_HW=None, instances=found)
    answer = dataclasses.replace(MASK_ANSWER, segmentations=(mask,))
    options = SegmentImagesBody(format=mask_format, include_instances=True)
    (entry,) = write_list(MASKS, answer, options, SegmentImagesAnswer)["data"]
    instances = entry["instances"]
    keys = [(one["label"], one["area"], one["score"]) for one in instances]
    assert keys == [(1, 40, 0.5), (1, 1, 0.5), (2, 8, 0.5)]
    assert instances[0]["bbox"] == [1, 1, 7, 7]
    union_HW = np.zeros((9, 9), np.uint8)
    for one in instances:
        form = one["segmentation"]
        if mask_format in {"rle_counts", "polygons"}:
            form = coco.frPyObjects(form, 9, 9)
        mask_HW = coco.decode(form).reshape(9, 9)
        assert mask_HW.sum() == one["area"]
        union_HW += mask_HW * one["label"]
    np.testing.assert_array_equal(union_HW, LABELS)


@pytest.mark.parametrize("mask_format", ["rle", "rle_counts", "polygons"])
@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
def test_cocos_formats_give_the_mask_back(mask_format: Any) -> None:
    options = SegmentImagesBody(format=mask_format)
    (entry,) = write_list(MASKS, MASK_ANSWER, options, SegmentImagesAnswer)["data"]
    assert "labels" not in entry
    for one in entry["classes"]:
        is_class_HW = one["label"] == MASK.labels_HW
        form = one["segmentation"]
        if mask_format != "rle":
            form = coco.frPyObjects(form, 2, 3)
        if mask_format == "polygons":
            form = coco.merge(form)
        np.testing.assert_array_equal(coco.decode(form), is_class_HW)
        assert one["area"] == is_class_HW.sum()
        rows, columns = np.nonzero(is_class_HW)
        left, top = columns.min(), rows.min()
        assert one["bbox"] == [left, top, np.ptp(columns) + 1, np.ptp(rows) + 1]


def test_classes_are_sorted_in_json_and_safetensors_and_in_request_order_in_npy() -> None:
    options = ClassifyImagesBody()
    sent = write_list(CLASSES, RANKED_ANSWER, options, ClassifyImagesAnswer)
    first = sent["data"][1]["classes"][0]
    assert (sent["data"][1]["index"], first["label"], first["name"]) == (1, 3, "sea")
    assert np.float32(first["probability"]) == RANKED.probabilities_K[0]
    tensors = load(write(CLASSES, RANKED_ANSWER, SAFETENSORS, options))
    np.testing.assert_array_equal(tensors["labels"], [RANKED.labels_K] * 2)
    np.testing.assert_array_equal(tensors["cosines"], [RANKED.cosines_K] * 2)
    np.testing.assert_array_equal(tensors["probabilities"], [RANKED.probabilities_K] * 2)
    ordered_BK = np.load(io.BytesIO(write(CLASSES, RANKED_ANSWER, NPY, options)))
    np.testing.assert_array_equal(ordered_BK, np.array([[0.3, 0.1, 0.6]] * 2, np.float32))


def test_errors_are_listed_by_index_next_to_the_data(tmp_path: Any) -> None:
    answer = vectors(errors={1: WRONG})
    sent = write_list(IMAGE_EMBEDDINGS, answer, PARTIAL, EmbedImagesAnswer)
    assert [item["index"] for item in sent["data"]] == [0, 2]
    error = {"message": "images[1] is wrong.", "type": "invalid_request_error"}
    error |= {"code": "invalid_image", "param": "images[1]"}
    assert sent["errors"] == [{"index": 1, "error": error}]
    path = tmp_path / "answer.safetensors"
    path.write_bytes(write(IMAGE_EMBEDDINGS, answer, SAFETENSORS, PARTIAL))
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"cls1.0", "cls1.2", "patches.0", "patches.2"}
        assert json.loads(file.metadata()["errors"]) == sent["errors"]
    assert json.loads(write(IMAGE_EMBEDDINGS, vectors(), JSON, PARTIAL))["errors"] == []
    assert "errors" not in json.loads(joined(write_json("m", [], None)))
    nothing = EmbedImagesResponse(model="m", embeddings=(), errors={0: WRONG})
    assert load(write(IMAGE_EMBEDDINGS, nothing, SAFETENSORS, PARTIAL)) == {}


def test_texts_with_errors_are_missing_in_json_and_zeros_in_the_matrix() -> None:
    rows_TD, scales_T = pack(noise((2, 6)), "int8")
    answer = EmbedTextsResponse(
        model="m", embeddings_TD=rows_TD, scales_T=scales_T, errors={0: WRONG}
    )
    body = EmbedTextsBody(texts=["a"], partial=True, dtype="int8")
    sent = write_list(TEXT_EMBEDDINGS, answer, body, EmbedTextsAnswer)
    assert [item["index"] for item in sent["data"]] == [1, 2]
    tensors = load(write(TEXT_EMBEDDINGS, answer, SAFETENSORS, body))
    assert not tensors["embeddings"][0].any()
    np.testing.assert_array_equal(tensors["embeddings"][1:], rows_TD)
    np.testing.assert_array_equal(tensors["embeddings_scale"][1:], scales_T)
    records = np.load(io.BytesIO(write(TEXT_EMBEDDINGS, answer, NPY, body)))
    np.testing.assert_array_equal(records["values"], rows_TD)


def test_int8_vectors_have_the_same_scales_in_every_media_type() -> None:
    answer, options = vectors("int8"), EmbedImagesBody(dtype="int8")
    listed = write_list(IMAGE_EMBEDDINGS, answer, options, EmbedImagesAnswer)
    coded = EmbedImagesBody(dtype="int8", encoding="base64")
    encoded = json.loads(write(IMAGE_EMBEDDINGS, answer, JSON, coded))
    tensors = load(write(IMAGE_EMBEDDINGS, answer, SAFETENSORS, options))
    for name in ("cls1", "patches"):
        records = np.load(io.BytesIO(write(IMAGE_EMBEDDINGS, only(answer, name), NPY, options)))
        for index, rows in enumerate(answer.embeddings):
            item = listed["data"][index]
            for found in (
                np.array(item[name], np.int8),
                from_base64(encoded["data"][index][name]),
                tensors[name][index],
                records["values"][index],
            ):
                np.testing.assert_array_equal(found, rows[name])
            for scale in (
                np.float32(item["scales"][name]),
                tensors[f"{name}_scale"][index],
                records["scale"][index],
            ):
                np.testing.assert_array_equal(scale, answer.scales[index][name])


@pytest.mark.parametrize(
    ("writer", "options", "media", "num_images", "param"),
    [
        (IMAGE_EMBEDDINGS, EmbedImagesBody(outputs=["cls1", "cls2"]), NPY, 1, "outputs"),
        (IMAGE_EMBEDDINGS, PARTIAL, NPY, 1, "partial"),
        (MASKS, SegmentImagesBody(partial=True), PNG, 1, "partial"),
        *[
            (writer, options, media, 2, "images")
            for writer, options in (
                (MASKS, SegmentImagesBody()),
                (FEATURES, VisualizeFeaturesBody()),
                (MAPS, DepthBody()),
            )
            for media in (PNG, NPY)
        ],
        (MASKS, SegmentImagesBody(classes=[str(i) for i in range(256)]), PNG, 1, "classes"),
        (MASKS, SegmentImagesBody(format="overlay"), JSON, 1, "format"),
        (MASKS, SegmentImagesBody(format="labels"), JSON, 1, "format"),
        (MASKS, SegmentImagesBody(format="overlay", size="patch"), PNG, 1, "size"),
        (MASKS, SegmentImagesBody(format="rle", tolerance=1), JSON, 1, "tolerance"),
        (MASKS, SegmentImagesBody(include_instances=True), PNG, 1, "include_instances"),
        (MASKS, SegmentImagesBody(include_scores=True), PNG, 1, "include_scores"),
        (MASKS, SegmentImagesBody(include_scores=True), NPY, 1, "include_scores"),
        (MASKS, SegmentImagesBody(classes=["a"] * 256, format="labels"), PNG, 1, None),
        (MASKS, SegmentImagesBody(format="rle"), PNG, 1, "format"),
        (MASKS, SegmentImagesBody(format="polygons"), NPY, 1, "format"),
        (CLASSES, ClassifyImagesBody(top_k=1), NPY, 1, "top_k"),
        (MAPS, DepthBody(format="colors"), NPY, 1, "format"),
        (IMAGE_EMBEDDINGS, EmbedImagesBody(outputs=["cls1", "cls1"]), NPY, 2, None),
        (IMAGE_EMBEDDINGS, PARTIAL, SAFETENSORS, 2, None),
        (CLASSES, ClassifyImagesBody(), NPY, 2, None),
        (FEATURES, VisualizeFeaturesBody(), JSON, 2, None),
        (MAPS, DepthBody(format="colors"), PNG, 1, None),
    ],
)
def test_a_media_type_that_cannot_hold_the_answer_is_refused_before_any_work(
    writer: Any, options: Any, media: str, num_images: int, param: str | None
) -> None:
    if param is None:
        writer.check(options, media, num_images)
        return
    with pytest.raises(InvalidRequest) as caught:
        writer.check(options, media, num_images)
    assert caught.value.param == param


def test_a_palette_refuses_a_head_of_more_classes_than_colours() -> None:
    names = tuple(map(str, range(256)))
    answer = dataclasses.replace(MASK_ANSWER, classes=names)
    with pytest.raises(InvalidRequest, match="classes: 256 given, at most 255 fit the palette"):
        write(MASKS, answer, PNG, SegmentImagesBody(classes=["head:many"]))
    labels = SegmentImagesBody(classes=["head:many"], format="labels")
    assert write(MASKS, answer, PNG, labels)


OFFERED = (JSON, NPY, SAFETENSORS, PNG)


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
    ],
)
def test_accept_chooses_the_best_media_type_offered(accept: str | None, media: str) -> None:
    assert choose_media(accept, OFFERED) == media


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/jpeg"])
def test_accept_without_an_offered_media_type_is_refused(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="image/png"):
        choose_media(accept, OFFERED)


def test_safetensors_files_equal_those_of_the_library() -> None:
    mixed: dict[str, NDArray[Any]] = {
        "labels": np.arange(6, dtype=np.uint16).reshape(2, 3),
        "scores": noise((2, 3)),
        "values": np.arange(5, dtype=np.int8),
        "half": noise(3).astype(np.float16),
    }
    transposed: dict[str, NDArray[Any]] = {"transposed": noise((3, 4)).T}
    for columns in (mixed, transposed):
        pieces = write_safetensors("m", columns, {})
        content = joined(pieces)
        found = load(content)
        assert found.keys() == columns.keys()
        for name, array in columns.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
        contiguous = {name: np.ascontiguousarray(array) for name, array in columns.items()}
        assert len(content) == len(save(contiguous, metadata={"model": "m", "errors": "[]"}))


# Writes a map of a million pixels as lists, next to blocks that stay, and prints what else stays.
KEPT = """
import numpy as np
from service.machine import resident_bytes, return_large_blocks
from service.rest import responses

def dump_beside_others(document):
    text = dump(document)
    others.append(bytes(1000))
    return text

return_large_blocks()
dump, responses.dump, others = responses.dump, dump_beside_others, []
maps = np.full((1000, 1000, 3), 0.1234567, np.float32)
before = resident_bytes()
responses.encode_array(maps, "list")
assert len(others) == len(maps)
print((resident_bytes() - before) // 2**20)
"""


def test_lists_of_a_large_map_leave_nothing_in_the_heap(project_root: Path) -> None:
    if "glibc" not in platform.libc_ver():
        pytest.skip("the heap of this C library is another")
    command = [sys.executable, "-c", KEPT]
    kept = subprocess.run(command, cwd=project_root, check=True, capture_output=True, text=True)
    assert int(kept.stdout) < 16


@pytest.mark.parametrize("encoding", ["list", "base64"])
def test_json_of_large_maps_is_that_of_small_ones(encoding: Encoding) -> None:
    maps = noise((40, 30, 3))
    assert maps.size > MAX_INLINE_VALUES
    entries = [{"name": '\0"', "a": encode_array(part, encoding)} for part in (maps, maps[::-1])]
    first, second = json.loads(joined(write_json('\0"', entries, {})))["data"]
    assert (first["index"], second["index"], second["name"]) == (0, 1, '\0"')
    if encoding == "list":
        assert first["a"] == [json.loads(dump(encode_array(row, "list"))) for row in maps]
        np.testing.assert_array_equal(np.array(first["a"][::-1]), np.array(second["a"]))
    else:
        assert base64.b64decode(first["a"]["data"]) == maps.tobytes()
        assert base64.b64decode(second["a"]["data"]) == maps[::-1].tobytes()


@pytest.mark.parametrize("encoding", ["list", "base64"])
def test_the_text_of_a_large_map_is_held_once(encoding: Encoding) -> None:
    maps = noise((400, 300, 3))
    tracemalloc.start()
    try:
        pieces = write_json("m", [{"a": encode_array(maps, encoding)}], None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * len(joined(pieces))
