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
from tipserve_client import NotSupported

if TYPE_CHECKING:
    from transformers import Tipsv2DptForDensePrediction

    from tests.end_to_end.conftest import Service

LIMIT_S = 60.0
NAME = "tiny-dense"
SIZES = [(90, 60), (60, 90), (61, 60)]
BOTH = pytest.mark.parametrize(("method", "output"), [("depth", "depth"), ("normals", "normals")])


@pytest.fixture(scope="module")
def dense_service(
    run_service: Callable[..., Any], tiny_package: ModelPackage, dense_package: ModelPackage
) -> Iterator["Service"]:
    """Service with both packages, the one without heads first."""
    # By default one of them is in bf16 on CPUs that have it: it has a record of its parity.
    with run_service("--precision=fp32", packages=(tiny_package, dense_package)) as running:
        yield running


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
    made = dense_service.over_grpc(method, asked)[f"0.{output}"]
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
    wanted = dict(dense_service.over_grpc("embed_images", {**asked, "outputs": ["cls1", "values"]}))
    alone = {**asked, "outputs": ["segmentation"]}
    wanted |= dense_service.over_grpc("embed_images", alone)
    for method in ("depth", "normals"):
        wanted |= dense_service.over_grpc(method, {**asked, "size": "model"})
    assert rest.keys() == rpc.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(rest[name], rpc[name])
        np.testing.assert_allclose(rest[name], array, rtol=1e-3, atol=1e-4)
    narrow = {**asked, "outputs": outputs, "dtype": "int8"}
    maps = dense_service.over_rest("embed_images", narrow)["0.depth"]
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
    masks = {**asked, "classes": ["model"], "include_scores": True}
    rest, rpc = (
        send("segment", masks) for send in (dense_service.over_rest, dense_service.over_grpc)
    )
    assert rest.keys() == rpc.keys()
    for index, image in enumerate(images):
        labels_HW = rest[f"{index}.labels"]
        np.testing.assert_array_equal(labels_HW, rpc[f"{index}.labels"])
        pixels_HW3 = np.asarray(Image.open(BytesIO(image)), np.float32) / 255
        with torch.inference_mode():
            raw = tiny_dense(torch.from_numpy(pixels_HW3).permute(2, 0, 1)[None])
            logits = functional.interpolate(raw.segmentation_logits, (56, 84), mode="bilinear")
        best_HW, wanted_HW = logits[0].max(0)
        assert (labels_HW == wanted_HW.numpy() + 1).mean() > 0.99
        # A random head finds one class everywhere, so its logits say more.
        score_HW = rest[f"{index}.scores"]
        np.testing.assert_allclose(score_HW, best_HW.numpy(), rtol=1e-3, atol=1e-3)
    embedded = {**asked, "outputs": ["cls1", "segmentation"], "fit": "aspect"}
    small = dense_service.over_rest("embed_images", embedded)
    assert small["0.segmentation"].dtype == np.uint16
    again = dense_service.over_grpc("segment", {**masks, "size": "patch"})
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
    labels_hw = dense_service.over_rest("embed_images", asked)["0.segmentation"]
    assert np.mean(np.array(found["segmentation"]["data"]) == labels_hw.ravel()) > 0.99
    asked = {"images": [image], "model": NAME, "size": "model"}
    depth_hw = dense_service.over_rest("depth", asked)["0.depth"]
    assert found["depth"]["shape"] == [1, *depth_hw.shape]
    np.testing.assert_allclose(found["depth"]["data"], depth_hw.ravel(), rtol=1e-3)


def test_embeddings_and_masks_are_those_of_the_package_without_heads(
    dense_service: "Service", photo: Callable[..., bytes]
) -> None:
    images = [photo(seed, size) for seed, size in enumerate(SIZES)]
    outputs = ["cls1", "patches", "values"]
    embed: dict[str, Any] = {"images": images[:1], "fit": "aspect", "outputs": outputs}
    segment: dict[str, Any] = {
        "images": images,
        "classes": ["dog", "sky", "sea"],
        "templates": "none",
        "include_scores": True,
    }
    for method, fields in [
        ("embed_images", embed),
        ("embed_images", {**embed, "resolution": 42}),
        ("segment", segment),
        ("segment", {**segment, "mode": "slide"}),
    ]:
        without, with_heads = (
            dense_service.over_rest(method, {**fields, "model": name}) for name in ("tiny", NAME)
        )
        assert without.keys() == with_heads.keys()
        for name, array in without.items():
            np.testing.assert_array_equal(array, with_heads[name])


def test_outputs_show_which_model_has_heads(
    dense_service: "Service", photo: Callable[..., bytes]
) -> None:
    url = f"http://127.0.0.1:{dense_service.ports['http']}/v1/models"
    cards = httpx.get(url, timeout=LIMIT_S).json()["data"]
    outputs = {card["id"]: set(card["outputs"]) for card in cards}
    assert outputs[NAME] - outputs["tiny"] == {"depth", "normals", "segmentation"}
    with pytest.raises(NotSupported):
        dense_service.over_rest("depth", {"images": [photo()]})
