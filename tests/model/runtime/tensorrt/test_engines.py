"""Engines are built once and found again; TensorRT-RTX's builder checks our calls without a GPU.

TensorRT-RTX has TensorRT's Python interface, so it checks names and arguments up to the finished
engine. Its parser may accept other graphs, and loading an engine needs a GPU.
"""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from model.graphs import TEXT_FILE, VISION_FILE
from model.package import ModelPackage
from model.preprocess import as_planes
from model.runtime.base import LaneShare
from model.runtime.choice import RuntimeChoice
from model.runtime.tensorrt import command, engines
from model.runtime.tensorrt.byte_pixels import BYTE_PIXELS, FLOAT_PIXELS, take_bytes
from model.runtime.tensorrt.command import BuildOptions
from model.runtime.tensorrt.cuda import Cuda, GpuError, GpuLibraries, device_name, library_log
from model.runtime.tensorrt.engines import LoadedEngine, build_engine, deserialize, keys_for
from model.runtime.tensorrt.profiles import ShapeRange, profiles_for

DEVICE = "h100-cc-9.0-trt-10.16-cuda-13"
CHOICE = RuntimeChoice(runtime="tensorrt", precision="fp32", device="gpu", reason="")


@pytest.fixture(scope="module")
def rtx() -> GpuLibraries:
    trt = pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed", exc_type=ImportError
    )
    # CUDA is not asked for anything.
    return GpuLibraries(trt, Cuda(None), library_log(trt))


@pytest.mark.slow
@pytest.mark.parametrize(("part", "file"), [("vision", VISION_FILE), ("text", TEXT_FILE)])
def test_an_engine_is_built_with_several_profiles(
    rtx: GpuLibraries, tiny_package: ModelPackage, part: Any, file: str
) -> None:
    profiles = profiles_for(part, tiny_package.manifest)
    # Each takes a second: a bucket's and the widest.
    profiles = (profiles[0], profiles[-1])
    progress: list[str] = []
    plan = build_engine(rtx, tiny_package.file(file), profiles, progress=progress.append)
    assert len(plan) > 10_000
    assert progress


def test_shapes_that_contradict_the_graph_and_bytes_that_are_no_engine_are_refused(
    rtx: GpuLibraries, tiny_package: ModelPackage
) -> None:
    five = ShapeRange((1, 5, 14, 14), (1, 5, 14, 14), (1, 5, 14, 14))
    with pytest.raises(GpuError, match=r"TensorRT .*(profile|shapes)"):
        build_engine(rtx, tiny_package.file(VISION_FILE), [{BYTE_PIXELS: five}])
    assert deserialize(rtx, b"no engine" * 100) is None
    assert "Serialization" in rtx.log.take_errors()


def test_a_graph_that_takes_bytes_computes_the_same(
    tiny_package: ModelPackage, tmp_path: Path
) -> None:
    graph = tiny_package.file(VISION_FILE)
    for path in graph.parent.iterdir():
        (tmp_path / path.name).symlink_to(path)
    edited = tmp_path / "edited.onnx"
    edited.write_bytes(take_bytes(graph.read_bytes()))
    onnx.checker.check_model(edited)
    pixels_B3HW = np.random.default_rng(0).integers(0, 256, (2, 3, 28, 70), np.uint8)
    given = {edited: {BYTE_PIXELS: pixels_B3HW}, graph: {FLOAT_PIXELS: as_planes(pixels_B3HW)}}
    found, expected = (
        InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)
        for path, inputs in given.items()
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    texts = tiny_package.file(TEXT_FILE).read_bytes()
    assert take_bytes(texts) == texts


def test_an_engine_s_file_changes_with_all_that_it_depends_on(tiny_package: ModelPackage) -> None:
    vision, text = keys_for(tiny_package, CHOICE, LaneShare(), DEVICE)
    fewer, _ = keys_for(tiny_package, CHOICE, LaneShare(max_batch_patches=16), DEVICE)
    changed = [
        text,
        fewer,
        replace(vision, tf32=True),
        replace(vision, graph_sha256="0" * 64),
        replace(vision, device=DEVICE.replace("10.16", "10.17")),
    ]
    assert len({key.cached_in(Path("/cache")) for key in (vision, *changed)}) == 6
    assert vision.cached_in(Path("/cache")).parent == Path("/cache/tensorrt") / DEVICE
    with pytest.raises(ValueError, match="not in int8_weights"):
        keys_for(tiny_package, replace(CHOICE, precision="int8_weights"), LaneShare(), DEVICE)


def test_a_device_s_name_has_all_that_decides_whether_an_engine_runs() -> None:
    gpu = SimpleNamespace(name=b"NVIDIA H100 80GB\0", major=9, minor=0)
    cuda = SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=0),
        cudaGetDeviceProperties=lambda _: (0, gpu),
        cudaDriverGetVersion=lambda: (0, 13020),
    )
    libraries = GpuLibraries(SimpleNamespace(__version__="10.16.1"), Cuda(cuda), cast("Any", None))
    assert device_name(libraries) == "nvidia-h100-80gb-cc-9.0-trt-10.16.1-cuda-13"


def test_engines_are_built_once_and_again_if_they_are_damaged(
    tiny_package: ModelPackage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    built: list[str] = []
    said: list[str] = []

    def build_stand_in(_: Any, graph: Path, *__: Any, progress: Any, **___: Any) -> bytes:
        built.append(graph.name)
        progress("stand-in: 50 %")
        return graph.name.encode()

    monkeypatch.setattr(engines, "build_engine", build_stand_in)
    monkeypatch.setattr(
        engines, "deserialize", lambda _, plan: LoadedEngine(plan, None, {}, {}, [])
    )
    monkeypatch.setattr(command, "device_name", lambda _: DEVICE)

    def build(**options: Any) -> None:
        libraries = cast("GpuLibraries", None)
        given = BuildOptions(**options)
        command.run(given, tiny_package, tmp_path, said.append, load=lambda: libraries)

    both = ["vision_model.onnx", "text_model.onnx"]
    for options, expected in (({}, both), ({}, both), ({"tf32": True}, 2 * both)):
        build(**options)
        assert built == expected
    assert "[1/2] vision fp32: stand-in: 50 %" in said
    for path in tmp_path.glob("tensorrt/*/vision*.plan"):
        path.write_bytes(path.read_bytes()[:-1])
    build()
    assert built == [*both, *both, "vision_model.onnx"]
    assert "is damaged or refused, and built again" in caplog.text
