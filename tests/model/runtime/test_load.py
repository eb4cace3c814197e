"""Every runtime loads a package, computes, shares weights, is interrupted and closes alike."""

import gc
import shutil
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from operator import is_
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.package import ModelPackage
from model.runtime.base import (
    Interrupted,
    LaneShare,
    MissingRuntimeError,
    Runtime,
    SharedGraphCache,
)
from model.runtime.choice import RuntimeChoice
from model.runtime.load import NEEDS_GPU, RUNTIMES, load_chosen, load_runtime
from model.runtime.machine import this_hardware

CPU_RUNTIMES = sorted(RUNTIMES.keys() - NEEDS_GPU)
SMALL = np.full((1, 3, 28, 28), 0.5, dtype=np.float32)
# TensorRT on a GPU: tensorrt/test_on_gpu.py.
ON_GPU = ({"runtime": "onnx", "device": "gpu"}, {"runtime": "torch", "device": "gpu"})


def fp32(name: Any) -> RuntimeChoice:
    device: Any = "gpu" if name in NEEDS_GPU else "cpu"
    return RuntimeChoice(runtime=name, precision="fp32", device=device, reason="")


@pytest.fixture(
    scope="module",
    params=[
        *({"runtime": name, "device": "cpu"} for name in CPU_RUNTIMES),
        *(pytest.param(request, marks=pytest.mark.gpu) for request in ON_GPU),
    ],
    ids=lambda request: " ".join(request.values()),
)
def runtime(request: pytest.FixtureRequest, tiny_package: ModelPackage) -> Iterator[Runtime]:
    if request.param in ON_GPU and not this_hardware().has_gpu:
        pytest.skip("there is no NVIDIA GPU")
    loaded = load_runtime(tiny_package, precision="fp32", **request.param)
    yield loaded
    loaded.close()


def test_images_and_texts_give_rows_of_float32_and_wrong_shapes_are_refused(
    runtime: Runtime, tiny_package: ModelPackage
) -> None:
    width = tiny_package.manifest.embed_dim
    output = runtime.encode_images(np.full((2, 3, 28, 70), 0.5, dtype=np.float32))
    assert output.grid_hw == (2, 5)
    assert output.cls1_BD.shape == output.cls2_BD.shape == (2, width)
    assert output.patches_BND.shape == output.values_BND.shape == (2, 10, width)
    assert output.patches_BND.dtype == output.cls1_BD.dtype == np.float32
    assert np.isfinite(output.values_BND).all()
    kept = output.patches_BND.copy()
    runtime.encode_images(SMALL)
    np.testing.assert_array_equal(output.patches_BND, kept, "an output outlives the next call")
    token_ids_BL = np.array([[5, 6, 7], [5, 0, 0]])
    embeddings_BD = runtime.encode_texts(token_ids_BL, np.array([[1, 1, 1], [1, 0, 0]]))
    assert embeddings_BD.shape == (2, width)
    assert embeddings_BD.dtype == np.float32
    with pytest.raises(ValueError, match="multiples of 14"):
        runtime.encode_images(np.zeros((1, 3, 28, 30), dtype=np.float32))
    with pytest.raises(ValueError, match="1 to 64 tokens"):
        runtime.encode_texts(np.ones((1, 65), dtype=np.int64), np.ones((1, 65), dtype=np.int64))


def test_an_interrupted_call_ends_and_does_not_change_the_next(runtime: Runtime) -> None:
    # OpenVINO's own cancellation leaves shapes of the cancelled call in the graph: see `interrupt`.
    before = runtime.encode_images(SMALL)
    runtime.interrupt()  # nothing runs
    large = np.zeros((24, 3, 224, 224), dtype=np.float32)
    ends: list[BaseException] = []

    def run() -> None:
        try:
            while True:
                runtime.encode_images(large)
        except Interrupted as error:
            ends.append(error)

    for pause_s in (0.001, 0.003, 0.01, 0.02, 0.05):
        thread = threading.Thread(target=run)
        thread.start()
        while thread.is_alive():  # an interruption between two calls has no effect
            thread.join(pause_s)
            runtime.interrupt()
        after = runtime.encode_images(SMALL)
        np.testing.assert_array_equal(before.patches_BND, after.patches_BND)
    assert len(ends) == 5


@pytest.mark.gpu
@pytest.mark.parametrize("request_", ON_GPU, ids=lambda request: request["runtime"])
def test_a_gpu_computes_what_the_cpu_computes(
    tiny_package: ModelPackage, request_: dict[str, Any]
) -> None:
    if not this_hardware().has_gpu:
        pytest.skip("there is no NVIDIA GPU")
    on_gpu = load_runtime(tiny_package, precision="fp32", **request_)
    on_cpu = load_runtime(tiny_package, runtime="onnx", device="cpu")
    for batch, height, width in ((1, 56, 56), (3, 28, 84), (1, 56, 56), (2, 14, 14)):
        pixels_B3HW = np.random.default_rng(0).random((batch, 3, height, width), np.float32)
        ours, theirs = on_gpu.encode_images(pixels_B3HW), on_cpu.encode_images(pixels_B3HW)
        for name in ("cls1_BD", "cls2_BD", "patches_BND", "values_BND"):
            found, expected = getattr(ours, name), getattr(theirs, name)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    ids, mask = np.array([[5, 6, 7], [5, 0, 0]]), np.array([[1, 1, 1], [1, 0, 0]])
    found, expected = on_gpu.encode_texts(ids, mask), on_cpu.encode_texts(ids, mask)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def held(runtime: Any) -> list[Any]:
    """The loaded graphs or model."""
    attribute = {"onnx": "_session", "openvino": "_compiled", "torch": "_towers"}[runtime.name]
    return [getattr(graph, attribute) for graph in runtime._graphs.values()]


@pytest.mark.parametrize("name", CPU_RUNTIMES)
def test_lanes_share_weights_which_are_freed_with_the_last(
    tiny_package: ModelPackage, tmp_path: Path, name: str
) -> None:
    # Its own files: a server of another test may serve the same package meanwhile.
    own = replace(tiny_package, path=shutil.copytree(tiny_package.path, tmp_path / "own"))
    first, second = (load_chosen(own, fp32(name), LaneShare(num_lanes=2)) for _ in range(2))
    assert all(map(is_, held(first), held(second)))
    before = first.encode_images(SMALL).cls1_BD
    first.close()
    np.testing.assert_array_equal(second.encode_images(SMALL).cls1_BD, before)
    freed = [weakref.ref(graph) for graph in held(second)]
    second.close()
    gc.collect()
    assert [reference() for reference in freed] == [None] * len(freed)


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("onnx", "onnxruntime", "cpu"),
        ("openvino", "openvino", "cpu"),
        ("torch", "torch", "torch"),
        ("tensorrt", "tensorrt", "gpu"),
        ("tensorrt", "cuda.bindings", "gpu"),
    ],
)
def test_a_missing_library_names_the_extra(
    tiny_package: ModelPackage, name: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    # Without the graphs that other tests hold.
    monkeypatch.setattr(SharedGraphCache, "take", lambda _, __, load: load())
    with pytest.raises(MissingRuntimeError, match=rf"pip install -e '\.\[{extra}\]'"):
        load_chosen(tiny_package, fp32(name))


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_one_pass_gives_what_separate_ones_give(dense_package: ModelPackage, name: str) -> None:
    with closing(load_chosen(dense_package, fp32(name))) as runtime:
        pixels = np.random.default_rng(0).random((2, 3, 56, 84), np.float32)
        together = runtime.encode_images(pixels, ("depth", "normals"))
        alone = runtime.encode_images(pixels)
        for field in ("cls1_BD", "cls2_BD", "patches_BND", "values_BND"):
            np.testing.assert_array_equal(getattr(together, field), getattr(alone, field))
        for task, array in together.maps.items():
            np.testing.assert_array_equal(array, runtime.estimate(task, pixels))
