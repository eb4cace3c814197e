"""Packages with and without dense heads, over REST and gRPC, against transformers."""

import base64
from collections.abc import Callable, Iterator
from io import BytesIO
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from model.package import ModelPackage

if TYPE_CHECKING:
    from transformers import Tipsv2DptForDensePrediction

    from tests.end_to_end.conftest import Service

LIMIT_S = 60.0
NAME = "tiny-dense"
SIZES = [(90, 60), (60, 90), (61, 60)]
BOTH = pytest.mark.parametrize(
    ("method", "output"), [("estimate_depth", "depth"), ("estimate_normals", "normals")]
)


@pytest.fixture(scope="module")
def dense_service(
    run_service: Callable[..., Any], tiny_package: ModelPackage, dense_package: ModelPackage
) -> Iterator["Service"]:
    """Service with both packages, the one without heads first."""
    # By default one of them is in bf16 on CPUs that have it: it has a record of its parity.
    with run_service("--precision=fp32", packages=(tiny_package, dense_package)) as running:
        yield running


@BOTH
@pytest.mark.parametrize("fields", [{}, {"size": "model"}, {"fit": "aspect", "resolution": 112}])
def test_both_protocols_give_the_same_map_bit_for_bit(
    dense_service: "Service",
    photo: Callable[..., bytes],
    method: str,
    output: str,
    fields: dict[str, Any],
) -> None:
    images = [photo(seed, size) for seed, size in enumerate(SIZES)]
    asked = {"images": images, "model": NAME, **fields}
    rest, rpc = dense_service.over_rest(method, asked), dense_service.over_grpc(method, asked)
    assert (rest.status, rpc.status) == ("200", "OK"), (rest.message, rpc.message)
    assert rest.arrays.keys() == rpc.arrays.keys() == {f"{i}.{output}" for i in range(3)}
    for index, (width, height) in enumerate(SIZES):
        array = rest.arrays[f"{index}.{output}"]
        np.testing.assert_array_equal(array, rpc.arrays[f"{index}.{output}"])
        assert np.isfinite(array).all()
        if "size" not in fields:
            assert array.shape[:2] == (height, width)


@BOTH
def test_images_are_squashed_by_default_as_the_authors_of_the_heads_do(
    dense_service: "Service", photo: Callable[..., bytes], method: str, output: str
) -> None:
    asked = {"images": [photo(0, (90, 60))], "model": NAME, "size": "model"}
    for send in (dense_service.over_rest, dense_service.over_grpc):
        default, squash, aspect = (
            send(method, {**asked, **fields}).arrays[f"0.{output}"]
            for fields in ({}, {"fit": "squash"}, {"fit": "aspect"})
        )
        np.testing.assert_array_equal(default, squash)
        height, width = default.shape[:2]
        assert height == width
        assert aspect.shape[1] > aspect.shape[0]


@BOTH
def test_maps_are_those_of_the_released_notebook(
    dense_service: "Service",
    tiny_dense: "Tipsv2DptForDensePrediction",
    photo: Callable[..., bytes],
    method: str,
    output: str,
) -> None:
    import torch  # noqa: PLC0415 - heavy
    from torch.nn import functional  # noqa: PLC0415
    from transformers import Tipsv2DptImageProcessor  # noqa: PLC0415

    # Model-sized images, so that resizing is not compared.
    image = photo(3, (84, 56), "PNG")
    asked = {"images": [image], "model": NAME, "resolution": 56, "fit": "aspect"}
    made = dense_service.over_grpc(method, asked).arrays[f"0.{output}"]
    pixels_HW3 = np.asarray(Image.open(BytesIO(image)), np.float32) / 255
    with torch.inference_mode():
        raw = tiny_dense(torch.from_numpy(pixels_HW3).permute(2, 0, 1)[None])
    if output == "depth":
        process = Tipsv2DptImageProcessor()
        outputs = SimpleNamespace(predicted_depth=raw.predicted_depth)
        (wanted,) = process.post_process_depth_estimation(outputs, target_sizes=[(56, 84)])
        np.testing.assert_allclose(made, wanted["predicted_depth"].numpy(), atol=2e-4)
    else:
        scaled = functional.interpolate(
            functional.normalize(raw.normals, dim=1), (56, 84), mode="bicubic"
        )
        unit = functional.normalize(scaled, dim=1)[0].permute(1, 2, 0).numpy()
        assert (made * unit).sum(axis=-1).min() > 0.999
        np.testing.assert_allclose(np.linalg.norm(made, axis=-1), 1, atol=1e-5)


def test_one_request_for_several_outputs_gives_what_separate_ones_give(
    dense_service: "Service", photo: Callable[..., bytes]
) -> None:
    images = [photo(seed, size) for seed, size in enumerate(SIZES)]
    asked = {"images": images, "model": NAME}
    outputs = ["cls1", "values", "depth", "normals", "segmentation"]
    rest, rpc = (
        send("embed_images", {**asked, "outputs": outputs})
        for send in (dense_service.over_rest, dense_service.over_grpc)
    )
    assert (rest.status, rpc.status) == ("200", "OK"), (rest.message, rpc.message)
    wanted = dict(
        dense_service.over_grpc("embed_images", {**asked, "outputs": ["cls1", "values"]}).arrays
    )
    alone = {**asked, "outputs": ["segmentation"]}
    wanted |= dense_service.over_grpc("embed_images", alone).arrays
    for method in ("estimate_depth", "estimate_normals"):
        wanted |= dense_service.over_grpc(method, {**asked, "size": "model"}).arrays
    assert rest.arrays.keys() == rpc.arrays.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(rest.arrays[name], rpc.arrays[name])
        np.testing.assert_allclose(rest.arrays[name], array, rtol=1e-3, atol=1e-4)
    narrow = {**asked, "outputs": outputs, "dtype": "int8"}
    maps = dense_service.over_rest("embed_images", narrow).arrays["0.depth"]
    assert maps.dtype == np.float32


def test_masks_of_the_own_classes_are_those_of_the_released_notebook(
    dense_service: "Service",
    tiny_dense: "Tipsv2DptForDensePrediction",
    photo: Callable[..., bytes],
) -> None:
    import torch  # noqa: PLC0415 - heavy
    from torch.nn import functional  # noqa: PLC0415

    images = [photo(seed, (84, 56), "PNG") for seed in range(3)]
    asked: dict[str, Any] = {"images": images, "model": NAME, "resolution": 56}
    masks = {**asked, "classes": [{"name": "model"}], "include_scores": True}
    rest, rpc = (
        send("segment_images", masks) for send in (dense_service.over_rest, dense_service.over_grpc)
    )
    assert (rest.status, rpc.status) == ("200", "OK"), (rest.message, rpc.message)
    assert rest.arrays.keys() == rpc.arrays.keys()
    for index, image in enumerate(images):
        labels_HW = rest.arrays[f"{index}.labels"]
        np.testing.assert_array_equal(labels_HW, rpc.arrays[f"{index}.labels"])
        pixels_HW3 = np.asarray(Image.open(BytesIO(image)), np.float32) / 255
        with torch.inference_mode():
            raw = tiny_dense(torch.from_numpy(pixels_HW3).permute(2, 0, 1)[None])
            logits = functional.interpolate(raw.segmentation_logits, (56, 84), mode="bilinear")
        best_HW, wanted_HW = logits[0].max(0)
        assert (labels_HW == wanted_HW.numpy() + 1).mean() > 0.99
        # A random head finds one class everywhere, so its logits say more.
        score_HW = rest.arrays[f"{index}.scores"]
        np.testing.assert_allclose(score_HW, best_HW.numpy(), rtol=1e-3, atol=1e-3)
    embedded = {**asked, "outputs": ["cls1", "segmentation"], "fit": "aspect"}
    small = dense_service.over_rest("embed_images", embedded).arrays
    assert small["0.segmentation"].dtype == np.uint16
    again = dense_service.over_grpc("segment_images", {**masks, "size": "patch"}).arrays
    assert small["0.segmentation"].shape == tuple(8 * n for n in again["0.labels"].shape)


def test_the_open_inference_protocol_gives_maps_beside_embeddings(
    dense_service: "Service", photo: Callable[..., bytes]
) -> None:
    url = f"http://127.0.0.1:{dense_service.ports['http']}/v2/models/{NAME}"
    image = photo(0)
    shapes = {o["name"]: o["shape"] for o in httpx.get(url, timeout=LIMIT_S).json()["outputs"]}
    assert (shapes["depth"], shapes["normals"]) == ([-1, -1, -1], [-1, -1, -1, 3])
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}
    body = {
        "inputs": [{**tensor, "data": [base64.b64encode(image).decode()]}],
        "outputs": [{"name": "cls1"}, {"name": "depth"}, {"name": "segmentation"}],
    }
    answer = httpx.post(f"{url}/infer", json=body, timeout=LIMIT_S).json()
    found = {output["name"]: output for output in answer["outputs"]}
    assert list(found) == ["cls1", "depth", "segmentation"]
    asked = {"images": [image], "model": NAME, "outputs": ["segmentation"]}
    labels_hw = dense_service.over_rest("embed_images", asked).arrays["0.segmentation"]
    assert np.mean(np.array(found["segmentation"]["data"]) == labels_hw.ravel()) > 0.99
    asked = {"images": [image], "model": NAME, "size": "model"}
    depth_hw = dense_service.over_rest("estimate_depth", asked).arrays["0.depth"]
    assert found["depth"]["shape"] == [1, *depth_hw.shape]
    np.testing.assert_allclose(found["depth"]["data"], depth_hw.ravel(), rtol=1e-3)


@BOTH
def test_a_batch_equals_its_items_one_by_one(
    dense_service: "Service", photo: Callable[..., bytes], method: str, output: str
) -> None:
    images = [photo(seed, (60 + 7 * seed, 70)) for seed in range(6)]
    asked = {"model": NAME, "fit": "squash"}
    together = dense_service.over_grpc(method, {"images": images, **asked}).arrays
    for index, image in enumerate(images):
        alone = dense_service.over_grpc(method, {"images": [image], **asked}).arrays
        np.testing.assert_allclose(
            together[f"{index}.{output}"], alone[f"0.{output}"], rtol=1e-3, atol=1e-4
        )


def test_embeddings_and_masks_are_those_of_the_package_without_heads(
    dense_service: "Service", photo: Callable[..., bytes]
) -> None:
    images = [photo(seed, size) for seed, size in enumerate(SIZES)]
    outputs = ["cls1", "patches", "values"]
    embed: dict[str, Any] = {"images": images[:1], "fit": "aspect", "outputs": outputs}
    segment: dict[str, Any] = {
        "images": images,
        "classes": [{"name": name} for name in ("dog", "sky", "sea")],
        "templates": "none",
        "include_scores": True,
    }
    for method, fields in [
        ("embed_images", embed),
        ("embed_images", {**embed, "resolution": 42}),
        ("segment_images", segment),
        ("segment_images", {**segment, "mode": "slide"}),
    ]:
        without, with_heads = (
            dense_service.over_rest(method, {**fields, "model": name}) for name in ("tiny", NAME)
        )
        assert with_heads.status == "200", with_heads.message
        assert without.arrays.keys() == with_heads.arrays.keys()
        for name, array in without.arrays.items():
            np.testing.assert_array_equal(array, with_heads.arrays[name])


def test_outputs_show_which_model_has_heads(
    dense_service: "Service", photo: Callable[..., bytes]
) -> None:
    url = f"http://127.0.0.1:{dense_service.ports['http']}/v1/models"
    cards = httpx.get(url, timeout=LIMIT_S).json()["data"]
    outputs = {card["id"]: set(card["outputs"]) for card in cards}
    assert outputs[NAME] - outputs["tiny"] == {"depth", "normals", "segmentation"}
    without = dense_service.over_rest("estimate_depth", {"images": [photo()]})
    assert (without.status, without.code) == ("501", "not_supported")
