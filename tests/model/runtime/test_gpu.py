"""On an NVIDIA GPU: ONNX Runtime through CUDA with bound buffers, and torch; against the CPU."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.package import ModelPackage
from model.runtime.base import Interrupted, Runtime
from model.runtime.load import load_runtime
from model.runtime.machine import this_hardware

pytestmark = pytest.mark.gpu

BACKENDS: dict[str, Any] = {
    "onnx": {"runtime": "onnx", "provider": "cuda"},
    "torch": {"runtime": "torch", "device": "gpu"},
}


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def runtime(request: pytest.FixtureRequest, tiny_package: ModelPackage) -> Iterator[Runtime]:
    if not this_hardware().gpus:
        pytest.skip("there is no NVIDIA GPU")
    loaded = load_runtime(tiny_package, precision="fp32", **BACKENDS[request.param])
    yield loaded
    loaded.close()


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_it_computes_what_the_cpu_computes(runtime: Runtime, tiny_package: ModelPackage) -> None:
    on_cpu = load_runtime(tiny_package, runtime="onnx", device="cpu")
    assert runtime.device == "gpu"
    # Back to a shape that was there, and more shapes than buffers are kept for.
    shapes = [(1, 56, 56), (3, 28, 84), (1, 56, 56), *((2, 14, 14 * n) for n in range(1, 12))]
    for batch, height, width in shapes:
        pixels_B3HW = noise(batch, 3, height, width)
        ours, theirs = runtime.encode_images(pixels_B3HW), on_cpu.encode_images(pixels_B3HW)
        for name in ("cls1_BD", "cls2_BD", "patches_BND", "values_BND"):
            np.testing.assert_allclose(
                getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-4
            )
    ids, mask = np.array([[5, 6, 7], [5, 0, 0]]), np.array([[1, 1, 1], [1, 0, 0]])
    np.testing.assert_allclose(
        runtime.encode_texts(ids, mask), on_cpu.encode_texts(ids, mask), rtol=0, atol=1e-4
    )


def test_buffers_are_not_shared_between_answers(runtime: Runtime) -> None:
    first = runtime.encode_images(np.zeros((1, 3, 28, 28), np.float32)).patches_BND
    kept = first.copy()
    runtime.encode_images(np.ones((1, 3, 28, 28), np.float32))
    np.testing.assert_array_equal(first, kept)


def test_a_call_can_be_interrupted(runtime: Runtime) -> None:
    runtime.interrupt()  # without effect where nothing runs
    try:
        runtime.encode_images(noise(8, 3, 56, 56))
    except Interrupted:
        pytest.fail("an interruption that came early met a later call")
