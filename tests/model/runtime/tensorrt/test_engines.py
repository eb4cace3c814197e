"""Engines are built once and found again; TensorRT-RTX's builder checks our calls without a GPU.

TensorRT-RTX has TensorRT's Python interface, so it checks names and arguments up to the finished
engine. Its parser may accept other graphs, and loading an engine needs a GPU.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from model.graphs import TEXT_FILE, VISION_FILE
from model.package import ModelPackage
from model.preprocess import as_planes
from model.runtime.base import LaneShare
from model.runtime.loaded_graphs import loaded_graphs
from model.runtime.tensorrt import engines
from model.runtime.tensorrt.byte_pixels import BYTE_PIXELS, FLOAT_PIXELS, take_bytes
from model.runtime.tensorrt.cuda import Cuda, GpuLibraries, library_log
from model.runtime.tensorrt.engines import (
    EngineKey,
    LoadedEngine,
    build_engine,
    key_of,
    supply_engine,
)
from model.runtime.tensorrt.profiles import profiles_for

DEVICE = "h100-cc-9.0-trt-10.16-cuda-13"
ONE_LANE = LaneShare()


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


def key(package: ModelPackage, part: int = 0, share: LaneShare = ONE_LANE) -> EngineKey:
    graph = loaded_graphs(package.manifest, "tensorrt", "fp32")[part]
    return key_of(package, graph, share, device=DEVICE)


def test_engines_are_built_once_and_again_if_they_are_damaged(
    tiny_package: ModelPackage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
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

    def supply(**changed: Any) -> Any:
        libraries, wanted = cast("GpuLibraries", None), replace(key(tiny_package), **changed)
        return supply_engine(libraries, tiny_package, wanted, tmp_path, progress=said.append)

    held = supply()
    assert supply() is held, "lanes share an engine"
    del held
    supply()
    assert built == ["vision_model.onnx"]
    assert said[-1] == "building the vision engine in fp32: stand-in: 50 %"
    supply(graph_sha256="of another graph")
    assert len(built) == 2
    for path in tmp_path.glob("tensorrt/*/*.plan"):
        path.write_bytes(path.read_bytes()[:-1])
    supply()
    assert len(built) == 3
    assert "is damaged or refused, and built again" in caplog.text
