"""Classes and features through the core."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from service.call import Call
from service.data_plane import DataPlane
from service.errors import InternalError, InvalidRequest, RequestTooLarge
from service.messages import (
    ClassifyImagesRequest,
    EmbedImagesRequest,
    EmbedTextsRequest,
    SegmentClass,
    VisualizeFeaturesRequest,
)

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime

MakePlane = Callable[..., DataPlane]
Encode = Callable[..., bytes]
CLASSES = tuple(SegmentClass(name=name) for name in ("dog", "sky", "a long red thing"))


def call(seconds: float = 20.0) -> Call:
    return Call(request_id="test", deadline=time.monotonic() + seconds)


@pytest.mark.parametrize("features", ["cls1", "cls2"])
@pytest.mark.parametrize("temperature", [None, 0.3])
async def test_classes_are_what_embeddings_of_images_and_texts_say(
    make_plane: MakePlane, encode_image: Encode, features: Any, temperature: float | None
) -> None:
    plane = make_plane()
    images = tuple(encode_image(seed=s, size=(40 + s, 30)) for s in range(4))
    asked = ClassifyImagesRequest(
        images=images, classes=CLASSES, features=features, temperature=temperature, templates="tcl"
    )
    ask = call()
    answer = await plane.classify_images(asked, ask)
    assert set(ask.stages) == {"admit", "decode", "queue", "run", "post"}
    seen = await plane.embed_images(EmbedImagesRequest(images=images, outputs=(features,)), call())
    names = tuple(c.name for c in CLASSES)
    said = await plane.embed_texts(EmbedTextsRequest(texts=names, templates="tcl"), call())
    for outputs, found in zip(seen.embeddings, answer.classifications, strict=True):
        cosines_K = said.embeddings_TD @ outputs[features]
        order = np.argsort(-cosines_K)
        assert found.labels_K.tolist() == (order + 1).tolist()
        np.testing.assert_allclose(found.cosines_K, cosines_K[order], atol=1e-6)
        exponents = np.exp((cosines_K - cosines_K.max()) / (temperature or 0.01))
        expected = (exponents / exponents.sum())[order]
        np.testing.assert_allclose(found.probabilities_K, expected, rtol=1e-3, atol=1e-6)
    assert answer.classes == names


async def test_known_class_names_are_computed_once_for_masks_and_classes_alike(
    make_plane: MakePlane, encode_image: Encode, runtime: "FakeRuntime"
) -> None:
    plane = make_plane()
    asked = ClassifyImagesRequest(images=(encode_image(),), classes=CLASSES)
    await plane.classify_images(asked, call())
    before = runtime.num_texts
    await plane.classify_images(asked, call())
    assert runtime.num_texts == before > 0


@pytest.mark.parametrize("features", ["patches", "values"])
async def test_features_are_of_the_patches_or_values_that_embeddings_have(
    make_plane: MakePlane, encode_image: Encode, features: Any
) -> None:
    plane, images = make_plane(), tuple(encode_image(seed=s, size=(60, 42)) for s in range(3))
    asked = VisualizeFeaturesRequest(
        images=images, kind="component", features=features, size="model"
    )
    maps = (await plane.visualize_features(asked, call())).maps
    embedded = await plane.embed_images(
        EmbedImagesRequest(images=images, outputs=(features,), normalize=False, fit="aspect"),
        call(),
    )
    for found_hw, outputs in zip(maps, embedded.embeddings, strict=True):
        rows_ND = outputs[features].reshape(-1, 8)
        centred_ND = rows_ND - rows_ND.mean(axis=0)
        first_N = centred_ND @ np.linalg.svd(centred_ND, full_matrices=False)[2][0]
        correlation = np.corrcoef(first_N, found_hw.ravel())[0, 1]
        assert abs(correlation) > 0.9999
        assert found_hw.shape == outputs[features].shape[:2]


@pytest.mark.parametrize("kind", ["colors", "component", "groups"])
async def test_views_have_the_images_sizes_and_repeat_exactly(
    make_plane: MakePlane, encode_image: Encode, kind: Any
) -> None:
    plane = make_plane()
    images = tuple(encode_image(seed=s, size=(40 + 9 * s, 33)) for s in range(3))
    asked = VisualizeFeaturesRequest(images=images, kind=kind, scope="request")
    once, again = [await plane.visualize_features(asked, call()) for _ in range(2)]
    for index, (one, other) in enumerate(zip(once.maps, again.maps, strict=True)):
        assert one.shape == (33, 40 + 9 * index, 3)[: 3 if kind == "colors" else 2]
        np.testing.assert_array_equal(one, other)
        if kind == "groups":
            assert set(np.unique(one)) <= set(range(1, 7))
        else:
            assert ((one >= 0) & (one <= 1)).all()


async def test_views_that_would_fill_the_memory_are_refused(
    make_plane: MakePlane, encode_image: Encode, runtime: "FakeRuntime"
) -> None:
    plane = make_plane(max_image_pixels=2000)
    images = (encode_image(size=(40, 30)),) * 2
    with pytest.raises(RequestTooLarge) as caught:
        await plane.visualize_features(VisualizeFeaturesRequest(images=images), call())
    assert caught.value.param == "size"
    assert runtime.num_images == 0
    small = VisualizeFeaturesRequest(images=images, size="model")
    assert len((await plane.visualize_features(small, call())).maps) == 2


async def test_a_broken_runtime_is_an_internal_error(
    make_plane: MakePlane, encode_image: Encode, runtime: "FakeRuntime"
) -> None:
    plane, runtime.fault = make_plane(), "raise"
    with pytest.raises(InternalError):
        await plane.visualize_features(VisualizeFeaturesRequest(images=(encode_image(),)), call())
    asked = ClassifyImagesRequest(images=(encode_image(),), classes=CLASSES)
    with pytest.raises(InternalError):
        await plane.classify_images(asked, call())
    with pytest.raises(InvalidRequest):
        await plane.visualize_features(VisualizeFeaturesRequest(images=(b"x",)), call())
