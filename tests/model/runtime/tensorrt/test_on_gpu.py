"""TensorRT on a GPU: `python -m pytest -m tensorrt`. Not yet run, because there was no GPU.

Engines of the tiny model are built once for all tests, which takes minutes on a new machine.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from model.package import ModelPackage
from model.preprocess import as_planes
from model.runtime.base import LaneShare, MissingRuntimeError, Runtime, SharedGraphCache
from model.runtime.base import VisionOutput as Vision
from model.runtime.choice import RuntimeChoice
from model.runtime.load import load_runtime
from model.runtime.tensorrt import engines
from model.runtime.tensorrt.cuda import GpuError, GpuLibraries, device_name, load_libraries
from model.runtime.tensorrt.runtime import TensorRtRuntime

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt, pytest.mark.timeout(1800)]
CHOICE = RuntimeChoice(runtime="tensorrt", precision="fp32", device="gpu", reason="")
# Float32 without TF32: what differs is the order of sums, as between any two runtimes.
FP32_ATOL = 1e-3


def images(batch: int, height: int = 56, width: int = 56) -> NDArray[np.uint8]:
    generator = np.random.default_rng(batch * height + width)
    return generator.integers(0, 256, (batch, 3, height, width), dtype=np.uint8)


def assert_near(output: Vision, expected: Vision, atol: float) -> None:
    assert output.grid_hw == expected.grid_hw
    for name in ("cls1_BD", "cls2_BD", "patches_BND", "values_BND"):
        found, wanted = getattr(output, name), getattr(expected, name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def libraries() -> GpuLibraries:
    try:
        found = load_libraries()
        device_name(found)
    except (MissingRuntimeError, GpuError) as error:
        pytest.skip(str(error))
    return found


@pytest.fixture(scope="module")
def share(libraries: GpuLibraries, tmp_path_factory: pytest.TempPathFactory) -> LaneShare:
    del libraries  # skips the test if they are missing
    return LaneShare(max_batch_patches=64, cache=tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def lane(tiny_package: ModelPackage, share: LaneShare) -> Iterator[TensorRtRuntime]:
    runtime = TensorRtRuntime(tiny_package, CHOICE, share)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def reference(tiny_package: ModelPackage) -> Runtime:
    """The same package on the CPU."""
    return load_runtime(tiny_package, runtime="onnx", device="cpu")


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_images_agree_with_the_cpu(
    lane: TensorRtRuntime, reference: Runtime, tiny_package: ModelPackage, batch: int
) -> None:
    others = ((14, 14), (28, 70), (112, 224), (224, 224))
    for height, width in (*tiny_package.manifest.shape_buckets, *others):
        pixels_B3HW = images(batch, height, width)
        expected = reference.encode_images(as_planes(pixels_B3HW))
        assert_near(lane.encode_images(pixels_B3HW), expected, FP32_ATOL)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (8, 16), (20, 64)])
def test_texts_agree_with_the_cpu(
    lane: TensorRtRuntime, reference: Runtime, batch: int, length: int
) -> None:
    generator = np.random.default_rng(batch * length)
    mask_BL = (np.arange(length) < generator.integers(1, length + 1, (batch, 1))).astype(np.int64)
    ids_BL = generator.integers(1, 200, (batch, length)) * mask_BL
    found, expected = (r.encode_texts(ids_BL, mask_BL) for r in (lane, reference))
    np.testing.assert_allclose(found, expected, rtol=0, atol=FP32_ATOL)


def test_a_second_lane_builds_nothing(
    tiny_package: ModelPackage, share: LaneShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_arguments: object, **_options: object) -> bytes:
        raise AssertionError("built again")

    first = TensorRtRuntime(tiny_package, CHOICE, share)
    before = first.encode_images(images(1))
    first.close()
    monkeypatch.setattr(engines, "build_engine", build)
    # Not shared with a lane that another test has open: every load reads the cache.
    monkeypatch.setattr(engines, "_engines", SharedGraphCache())
    again = TensorRtRuntime(tiny_package, CHOICE, share)
    assert_near(again.encode_images(images(1)), before, atol=0)
    again.close()


def test_lanes_side_by_side_do_not_disturb_each_other(
    tiny_package: ModelPackage, share: LaneShare, reference: Runtime
) -> None:
    lanes = [TensorRtRuntime(tiny_package, CHOICE, share) for _ in range(4)]
    batches = [[images(batch, 56, 14 * n) for batch in range(1, 5)] for n in range(1, 5)]
    expected = [[reference.encode_images(as_planes(one)) for one in some] for some in batches]

    def work(index: int) -> None:
        for _ in range(10):
            for pixels_B3HW, wanted in zip(batches[index], expected[index], strict=True):
                assert_near(lanes[index].encode_images(pixels_B3HW), wanted, FP32_ATOL)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    for runtime in lanes:
        runtime.close()
