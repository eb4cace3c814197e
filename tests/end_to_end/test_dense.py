"""Packages with and without dense heads, over REST and gRPC, against transformers."""

import base64
from collections.abc import Iterator
from io import BytesIO
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from model.package import ModelPackage
from tests.end_to_end.client import over_both, over_rest
from tests.end_to_end.conftest import RunService
from tests.processes.server import LIMIT_S, Server, photo

if TYPE_CHECKING:
    from transformers import Tipsv2DptForDensePrediction


NAME = "tiny-dense"
SIZES = [(90, 60), (60, 90), (61, 60)]


@pytest.fixture(scope="module")
def dense_service(
    run_service: RunService, tiny_package: ModelPackage, dense_package: ModelPackage
) -> Iterator[Server]:
    """Service with both packages, the one without heads first."""
    # By default one of them is in bf16 on CPUs that have it: it has a record of its parity.
    with run_service("--precision=fp32", packages=(tiny_package, dense_package)) as running:
        yield running


def test_maps_and_masks_are_those_of_the_released_notebook(
    dense_service: Server, tiny_dense: "Tipsv2DptForDensePrediction"
) -> None:
    import torch  # noqa: PLC0415 - heavy
    from torch.nn import functional  # noqa: PLC0415
    from transformers import Tipsv2DptImageProcessor  # noqa: PLC0415

    # Model-sized images, so that resizing is not compared.
    image = photo(3, (84, 56), "PNG")
    asked: dict[str, Any] = {"images": [image], "model": NAME, "resolution": 56}
    pixels_HW3 = np.asarray(Image.open(BytesIO(image)), np.float32) / 255
    with torch.inference_mode():
        raw = tiny_dense(torch.from_numpy(pixels_HW3).permute(2, 0, 1)[None])
        logits = functional.interpolate(raw.segmentation_logits, (56, 84), mode="bilinear")
        unit = functional.normalize(raw.normals, dim=1)
        unit = functional.interpolate(unit, (56, 84), mode="bicubic")
        unit_HW3 = functional.normalize(unit, dim=1)[0].permute(1, 2, 0).numpy()
    depth_HW = over_both(dense_service, "depth", {**asked, "fit": "aspect"})["0.depth"]
    raw_depth: Any = SimpleNamespace(predicted_depth=raw.predicted_depth)
    (wanted,) = Tipsv2DptImageProcessor().post_process_depth_estimation(
        raw_depth, target_sizes=[(56, 84)]
    )
    np.testing.assert_allclose(depth_HW, wanted["predicted_depth"].numpy(), atol=2e-4)
    normals_HW3 = over_both(dense_service, "normals", {**asked, "fit": "aspect"})["0.normals"]
    assert (normals_HW3 * unit_HW3).sum(axis=-1).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(normals_HW3, axis=-1), 1, atol=1e-5)
    masks = {**asked, "classes": ["model"], "include_scores": True, "fit": "aspect"}
    found = over_both(dense_service, "segment", masks)
    best_HW, wanted_HW = logits[0].max(0)
    assert (found["0.labels"] == wanted_HW.numpy() + 1).mean() > 0.99
    # A random head finds one class everywhere, so its logits say more.
    np.testing.assert_allclose(found["0.scores"], best_HW.numpy(), rtol=1e-3, atol=1e-3)


def test_the_open_inference_protocol_gives_maps_beside_embeddings(dense_service: Server) -> None:
    url = f"{dense_service.rest}/v2/models/{NAME}"
    image = photo()
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
    asked = {"images": [image], "model": NAME, "outputs": ["segmentation", "depth"]}
    native = over_rest(dense_service, "embed_images", asked)
    labels, depth_hw = np.array(found["segmentation"]["data"]), native["0.depth"]
    assert np.mean(labels == native["0.segmentation"].ravel()) > 0.99
    assert found["depth"]["shape"] == [1, *depth_hw.shape]
    np.testing.assert_allclose(found["depth"]["data"], depth_hw.ravel(), rtol=1e-3)


def test_embeddings_and_masks_are_those_of_the_package_without_heads(dense_service: Server) -> None:
    images = [photo(seed, size) for seed, size in enumerate(SIZES)]
    outputs = ["cls1", "patches", "values"]
    embed: dict[str, Any] = {"images": images[:1], "fit": "aspect", "outputs": outputs}
    segment = {"images": images, "classes": ["dog", "sky"], "templates": "none"}
    segment["include_scores"] = True
    for method, fields in [
        ("embed_images", {**embed, "resolution": 42}),
        ("segment", segment),
        ("segment", {**segment, "mode": "slide"}),
    ]:
        without, with_heads = (
            over_rest(dense_service, method, {**fields, "model": name}) for name in ("tiny", NAME)
        )
        assert without.keys() == with_heads.keys()
        for name, array in without.items():
            np.testing.assert_array_equal(array, with_heads[name])
