"""TensorRT on a GPU: `python -m pytest -m tensorrt`. Not yet run, because there was no GPU.

Engines of the tiny model are built once for all tests, which takes minutes on a new machine.
"""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from model.package import ModelPackage
from model.preprocess import as_planes
from model.runtime.base import MissingRuntimeError, Runtime, SharedGraphCache
from model.runtime.tensorrt import engines as engine_supply
from model.runtime.tensorrt import runtime as tensorrt_runtime
from model.runtime.tensorrt.cuda import GpuError, GpuLibraries, device_facts, load_libraries
from model.runtime.tensorrt.profiles import TensorRtOptions
from model.runtime.tensorrt.runtime import TensorRtRuntime
from tests.model.runtime.tensorrt.conftest import assert_near, images, tensorrt_choice, texts

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt, pytest.mark.timeout(1800)]
CHOICE = tensorrt_choice()
# Float32 without TF32: what differs is the order of sums, as between any two runtimes.
FP32_ATOL = 1e-3


@pytest.fixture(scope="module")
def libraries() -> GpuLibraries:
    try:
        found = load_libraries()
        device_facts(found)
    except (MissingRuntimeError, GpuError) as error:
        pytest.skip(str(error))
    return found


@pytest.fixture(scope="module")
def options(libraries: GpuLibraries, tmp_path_factory: pytest.TempPathFactory) -> TensorRtOptions:
    del libraries  # skips the test if they are missing
    return TensorRtOptions(max_batch_patches=64, cache_folder=tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def lane(tiny_package: ModelPackage, options: TensorRtOptions) -> Iterator[TensorRtRuntime]:
    runtime = TensorRtRuntime(tiny_package, CHOICE, options=options)
    yield runtime
    runtime.close()


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
    found, expected = (r.encode_texts(*texts(batch, length)) for r in (lane, reference))
    np.testing.assert_allclose(found, expected, rtol=0, atol=FP32_ATOL)


def test_a_second_lane_builds_nothing(
    tiny_package: ModelPackage, options: TensorRtOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_arguments: object, **_options: object) -> bytes:
        raise AssertionError("built again")

    first = TensorRtRuntime(tiny_package, CHOICE, options=options)
    before = first.encode_images(images(1, 56, 56))
    first.close()
    monkeypatch.setattr(engine_supply, "build_engine", build)
    # Not shared with a lane that another test has open: every load reads the cache.
    monkeypatch.setattr(tensorrt_runtime, "ENGINES", SharedGraphCache())
    again = TensorRtRuntime(tiny_package, CHOICE, options=options)
    assert_near(again.encode_images(images(1, 56, 56)), before, atol=0)
    again.close()


def test_recorded_graphs_compute_what_single_launches_do(
    tiny_package: ModelPackage, options: TensorRtOptions
) -> None:
    plain = TensorRtRuntime(tiny_package, CHOICE, options=replace(options, use_cuda_graphs=False))
    recorded = TensorRtRuntime(tiny_package, CHOICE, options=options)
    for batch, height, width in [(1, 56, 56), (4, 56, 56), (2, 28, 70)] * 3:
        pixels_B3HW = images(batch, height, width)
        assert_near(recorded.encode_images(pixels_B3HW), plain.encode_images(pixels_B3HW), atol=0)
    for runtime in (plain, recorded):
        runtime.close()


def test_lanes_side_by_side_do_not_disturb_each_other(
    tiny_package: ModelPackage, options: TensorRtOptions, reference: Runtime
) -> None:
    lanes = [TensorRtRuntime(tiny_package, CHOICE, options=options) for _ in range(4)]
    failures: list[AssertionError] = []

    def work(index: int) -> None:
        try:
            for batch in (1, 2, 3, 4) * 10:
                pixels_B3HW = images(batch, 56, 14 * (index + 1))
                expected = reference_of[pixels_B3HW.shape]
                assert_near(lanes[index].encode_images(pixels_B3HW), expected, FP32_ATOL)
        except AssertionError as error:
            failures.append(error)

    shapes = [(batch, 56, 14 * (index + 1)) for batch in range(1, 5) for index in range(4)]
    reference_of = {
        (batch, 3, height, width): reference.encode_images(as_planes(images(batch, height, width)))
        for batch, height, width in shapes
    }
    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for runtime in lanes:
        runtime.close()
    assert not failures


def test_a_hundred_loads_leave_no_memory_behind(
    libraries: GpuLibraries, tiny_package: ModelPackage, options: TensorRtOptions
) -> None:
    def load_and_use() -> None:
        runtime = TensorRtRuntime(tiny_package, CHOICE, options=options)
        for _ in range(3):
            runtime.encode_images(images(2, 56, 56))
        runtime.close()

    def free_bytes() -> int:
        free, _total = libraries.cuda("cudaMemGetInfo", "be asked for its free memory")
        return int(free)

    for _ in range(5):  # CUDA loads kernels and grows its own pools at first
        load_and_use()
    before = free_bytes()
    for _ in range(100):
        load_and_use()
    assert before - free_bytes() < 16 << 20
