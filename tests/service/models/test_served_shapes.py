"""Further sizes are served beside the model's own, or refused for a reason."""

from typing import TYPE_CHECKING

import pytest

from model.package import Manifest, PackageError
from service.lanes.work import Bucket
from service.models.loading import item_cost, served_buckets, served_tasks, with_maps, with_sizes

if TYPE_CHECKING:
    from tests.service.conftest import FakeRuntime


def test_further_sizes_come_behind_the_models_own_and_once(manifest: Manifest) -> None:
    sizes = [(112, 112), (28, 42), (112, 56), (112, 112)]
    served = with_sizes(manifest, sizes)
    assert served.shape_buckets == [(28, 28), (28, 42), (112, 112), (112, 56)]
    assert manifest.shape_buckets == [(28, 28), (28, 42)]


@pytest.mark.parametrize("size", [(30, 28), (28, 126), (0, 28)])
def test_a_size_that_the_model_does_not_take_is_refused(
    manifest: Manifest, size: tuple[int, int]
) -> None:
    with pytest.raises(PackageError, match=r"multiples of 14 from 14 to 112; change sizes"):
        with_sizes(manifest, [size])


def test_every_shape_is_warmed_up_and_the_native_one_first(manifest: Manifest) -> None:
    buckets = served_buckets(with_sizes(manifest, [(112, 56)]), 4096)
    assert [b.label for b in buckets] == [
        "image 28x28",
        "image 28x42",
        "image 112x56",
        "text 8",
    ]
    assert [item_cost(manifest, bucket) for bucket in buckets] == [4, 6, 32, 8]


def test_a_shape_beyond_a_batch_is_refused(manifest: Manifest) -> None:
    with pytest.raises(PackageError, match="raise max_batch_patches above 20"):
        served_buckets(with_sizes(manifest, [(112, 56)]), 20)


def test_a_text_costs_its_tokens(manifest: Manifest) -> None:
    assert item_cost(manifest, Bucket("text", (5,))) == 5


def test_each_head_is_warmed_up_for_every_shape_of_images(manifest: Manifest) -> None:
    buckets = with_maps(served_buckets(manifest, 4096), ("depth", "normals"))
    assert [b.label for b in buckets[3:]] == [
        "depth 28x28",
        "depth 28x42",
        "normals 28x28",
        "normals 28x42",
    ]
    assert item_cost(manifest, buckets[-1]) == 6


def test_heads_are_served_that_package_and_runtime_have(
    manifest: Manifest, runtime: "FakeRuntime"
) -> None:
    even = manifest.model_copy(update={"size_multiple": 28})
    assert served_tasks(even, runtime) == ("depth", "normals")
    runtime.tasks = ("segmentation", "normals")
    assert served_tasks(even, runtime) == ("normals",)
    assert served_tasks(even.model_copy(update={"outputs": ["cls1"]}), runtime) == ()


def test_sizes_that_no_head_takes_are_refused(manifest: Manifest, runtime: "FakeRuntime") -> None:
    with pytest.raises(PackageError, match=r"multiples of 28 pixels, and allows multiples of 14"):
        served_tasks(manifest, runtime)
