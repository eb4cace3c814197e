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

from model.graphs import TEXT_FILE, VISION_FILE, Part
from model.package import ModelPackage
from model.preprocess import as_planes
from model.runtime.tensorrt import command, engines
from model.runtime.tensorrt.byte_pixels import BYTE_PIXELS, take_bytes
from model.runtime.tensorrt.command import BuildOptions
from model.runtime.tensorrt.cuda import Cuda, DeviceFacts, GpuError, GpuLibraries, library_log
from model.runtime.tensorrt.engines import build_engine, deserialize, keys_for
from model.runtime.tensorrt.profiles import (
    TEXT_INPUTS,
    ShapeRange,
    TensorRtOptions,
    profiles_for,
)
from tests.model.runtime.tensorrt.conftest import images, texts

FILES: dict[Part, str] = {"vision": VISION_FILE, "text": TEXT_FILE}
DEVICE = DeviceFacts(gpu="H100", compute_capability="9.0", tensorrt="10.16", cuda_major=13)


@pytest.fixture(scope="module")
def rtx() -> GpuLibraries:
    trt = pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed", exc_type=ImportError
    )
    # CUDA is not asked for anything.
    return GpuLibraries(trt, Cuda(None), library_log(trt))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["vision", "text"])
def test_an_engine_is_built_with_several_profiles(
    rtx: GpuLibraries, tiny_package: ModelPackage, part: Part
) -> None:
    profiles = profiles_for(part, tiny_package.manifest)
    # Each takes a second: a bucket's and the widest.
    profiles = (profiles[0], profiles[-1])
    progress: list[str] = []
    graph = tiny_package.file(FILES[part])
    plan = build_engine(rtx, graph, profiles, progress=progress.append)
    assert len(plan) > 10_000
    assert progress


@pytest.mark.parametrize("part", ["vision", "text"])
def test_a_graph_that_takes_bytes_computes_the_same(
    tiny_package: ModelPackage, tmp_path: Path, part: Part
) -> None:
    graph = tiny_package.file(FILES[part])
    for path in graph.parent.iterdir():
        (tmp_path / path.name).symlink_to(path)
    edited = tmp_path / "edited.onnx"
    edited.write_bytes(take_bytes(graph.read_bytes()))
    pixels_B3HW = images(2, 28, 70)
    given: dict[str, Any] = {"pixel_values": as_planes(pixels_B3HW)}
    in_bytes: dict[str, Any] = {BYTE_PIXELS: pixels_B3HW}
    if part == "text":
        given = in_bytes = dict(zip(TEXT_INPUTS, texts(3, 9), strict=True))
    found, expected = (
        InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)
        for path, inputs in ((edited, in_bytes), (graph, given))
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    onnx.checker.check_model(edited)


def test_shapes_that_contradict_the_graph_and_bytes_that_are_no_engine_are_refused(
    rtx: GpuLibraries, tiny_package: ModelPackage
) -> None:
    five = ShapeRange((1, 5, 14, 14), (1, 5, 14, 14), (1, 5, 14, 14))
    with pytest.raises(GpuError, match=r"TensorRT .*(profile|shapes)"):
        build_engine(rtx, tiny_package.file(VISION_FILE), [{BYTE_PIXELS: five}])
    assert deserialize(rtx, b"no engine" * 100) is None
    assert "Serialization" in rtx.log.take_errors()


def test_a_key_changes_with_all_that_an_engine_depends_on(tiny_package: ModelPackage) -> None:
    options = TensorRtOptions()
    vision, text = keys_for(tiny_package, "fp32", device=DEVICE, options=options)
    fewer, _ = keys_for(
        tiny_package, "fp32", device=DEVICE, options=TensorRtOptions(max_batch_patches=16)
    )
    changed = [
        text,
        fewer,
        replace(vision, tf32=True),
        replace(vision, graph_sha256="0" * 64),
        replace(vision, device=replace(DEVICE, tensorrt="10.17")),
    ]
    assert len({key.digest for key in (vision, *changed)}) == 6
    folder = vision.cached_in(Path("/cache")).parent
    assert folder == Path("/cache/h100-cc-9.0-trt-10.16-cuda-13")
    with pytest.raises(ValueError, match="not in int8_weights"):
        keys_for(tiny_package, "int8_weights", device=DEVICE, options=options)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs whose engines were built; no library is asked for anything."""
    names: list[str] = []

    def build(_: Any, graph: Path, *__: Any, progress: Any, **___: Any) -> bytes:
        names.append(graph.name)
        progress("stand-in: 50 %")
        return graph.name.encode()

    monkeypatch.setattr(engines, "build_engine", build)
    monkeypatch.setattr(engines, "deserialize", lambda _, plan: plan if plan else None)
    monkeypatch.setattr(command, "device_facts", lambda _: DEVICE)
    return names


def test_engines_are_built_once_and_again_if_they_are_damaged(
    tiny_package: ModelPackage, tmp_path: Path, built: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    said: list[str] = []
    libraries = cast("GpuLibraries", SimpleNamespace())

    def build(**options: Any) -> None:
        given = BuildOptions(**options)
        command.run(given, tiny_package, tmp_path, said.append, load=lambda: libraries)

    both = ["vision_model.onnx", "text_model.onnx"]
    build()
    assert built == both
    assert "[1/2] vision fp32: stand-in: 50 %" in said
    build()
    assert built == both
    build(tf32=True)
    assert built == 2 * both
    for path in tmp_path.glob("tensorrt/*/vision*.plan"):
        path.write_bytes(path.read_bytes()[:-1])
    build()
    assert built == [*both, *both, "vision_model.onnx"]
    assert "is damaged or refused, and built again" in caplog.text
