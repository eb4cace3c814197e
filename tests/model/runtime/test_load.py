"""Every runtime of the dictionary loads a package, computes, refuses and closes alike."""

import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model.package import ModelPackage, PackageError, open_package, write_manifest
from model.runtime.base import Interrupted, MissingRuntimeError, Runtime
from model.runtime.load import NEEDS_GPU, RUNTIMES, load_runtime

LIBRARIES = {"onnx": ("onnxruntime", "cpu"), "openvino": ("openvino", "cpu")}
LIBRARIES["torch"] = ("torch", "torch")


@pytest.fixture(scope="module", params=sorted(RUNTIMES.keys() - NEEDS_GPU))
def runtime(request: pytest.FixtureRequest, tiny_package: ModelPackage) -> Iterator[Runtime]:
    loaded = load_runtime(tiny_package, runtime=request.param, precision="fp32")
    yield loaded
    loaded.close()


def test_images_give_four_outputs(runtime: Runtime, tiny_package: ModelPackage) -> None:
    width = tiny_package.manifest.embed_dim
    output = runtime.encode_images(np.full((2, 3, 28, 70), 0.5, dtype=np.float32))
    assert output.grid_hw == (2, 5)
    assert output.cls1_BD.shape == output.cls2_BD.shape == (2, width)
    assert output.patches_BND.shape == output.values_BND.shape == (2, 10, width)
    assert output.patches_BND.dtype == output.cls1_BD.dtype == np.float32
    assert np.isfinite(output.values_BND).all()


def test_answers_outlive_the_next_call(runtime: Runtime) -> None:
    black = runtime.encode_images(np.zeros((1, 3, 28, 28), dtype=np.float32))
    kept = black.patches_BND.copy()
    runtime.encode_images(np.ones((1, 3, 28, 28), dtype=np.float32))
    np.testing.assert_array_equal(black.patches_BND, kept)


def test_texts_give_one_row_each(runtime: Runtime, tiny_package: ModelPackage) -> None:
    token_ids_BL = np.array([[5, 6, 7], [5, 0, 0]])
    embeddings_BD = runtime.encode_texts(token_ids_BL, np.array([[1, 1, 1], [1, 0, 0]]))
    assert embeddings_BD.shape == (2, tiny_package.manifest.embed_dim)
    assert embeddings_BD.dtype == np.float32


def test_wrong_shapes_never_reach_the_graph(runtime: Runtime) -> None:
    with pytest.raises(ValueError, match="multiples of 14"):
        runtime.encode_images(np.zeros((1, 3, 28, 30), dtype=np.float32))
    with pytest.raises(ValueError, match="1 to 64 tokens"):
        runtime.encode_texts(np.ones((1, 65), dtype=np.int64), np.ones((1, 65), dtype=np.int64))


def test_a_call_is_interrupted_by_another_thread_and_the_next_is_as_before(
    runtime: Runtime,
) -> None:
    small = np.full((1, 3, 28, 28), 0.5, dtype=np.float32)
    before = runtime.encode_images(small)
    runtime.interrupt()  # where nothing runs it is without effect
    large = np.zeros((64, 3, 280, 280), dtype=np.float32)
    ends: list[BaseException | None] = []

    def run() -> None:
        try:
            for _ in range(1000):
                runtime.encode_images(large)
        except Interrupted as error:
            ends.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():  # the first ones may meet the moment between two calls
        runtime.interrupt()
        thread.join(0.01)
    assert [type(end) for end in ends] == [Interrupted]
    after = runtime.encode_images(small)
    np.testing.assert_array_equal(before.patches_BND, after.patches_BND)


@pytest.mark.parametrize("name", sorted(RUNTIMES.keys() - NEEDS_GPU))
def test_a_closed_runtime_refuses_calls_and_may_be_closed_again(
    tiny_package: ModelPackage, name: str
) -> None:
    runtime = load_runtime(tiny_package, runtime=name)
    runtime.close()
    runtime.close()
    with pytest.raises(RuntimeError, match="closed"):
        runtime.encode_images(np.zeros((1, 3, 14, 14), dtype=np.float32))
    with pytest.raises(RuntimeError, match="closed"):
        runtime.encode_texts(np.ones((1, 1), dtype=np.int64), np.ones((1, 1), dtype=np.int64))


@pytest.mark.parametrize("name", sorted(RUNTIMES.keys() - NEEDS_GPU))
def test_a_missing_library_names_the_extra(
    tiny_package: ModelPackage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, extra = LIBRARIES[name]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingRuntimeError, match=rf"pip install 'tipserve\[{extra}\]'"):
        load_runtime(tiny_package, runtime=name, device="cpu")


def test_unknown_names_and_no_threads_are_refused(tiny_package: ModelPackage) -> None:
    with pytest.raises(ValueError, match="choose auto, onnx, openvino"):
        load_runtime(tiny_package, runtime="tensorflow")
    with pytest.raises(ValueError, match="at least one thread"):
        load_runtime(tiny_package, num_threads=0)


def test_a_package_without_graphs_is_refused(tiny_package: ModelPackage, tmp_path: Path) -> None:
    folder = tmp_path / "no_graphs"
    shutil.copytree(tiny_package.path, folder, ignore=shutil.ignore_patterns("onnx"))
    write_manifest(folder, tiny_package.manifest)
    with pytest.raises(PackageError, match=r"no file 'onnx/vision_model\.onnx'"):
        load_runtime(open_package(folder), runtime="onnx")
