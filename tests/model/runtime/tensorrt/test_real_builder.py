"""TensorRT-RTX's builder and parser accept our calls, without a GPU.

TensorRT-RTX has TensorRT's Python interface, so it checks names and arguments up to the finished
engine. Its parser may accept other graphs, and loading an engine needs a GPU.
"""

import pytest

from model.graphs import TEXT_FILE, VISION_FILE, Part
from model.package import ModelPackage
from model.runtime.tensorrt.cuda import Cuda, GpuError, GpuLibraries, library_log
from model.runtime.tensorrt.engines import EngineSource, build_engine, deserialize
from model.runtime.tensorrt.profiles import EngineOptions, ShapeRange, profiles_for

pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache.*:DeprecationWarning")
FILES: dict[Part, str] = {"vision": VISION_FILE, "text": TEXT_FILE}


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
    options = EngineOptions(workspace_bytes=1 << 28, optimization_level=2)
    profiles = profiles_for(part, tiny_package.manifest, options)
    # Each takes a second: a bucket's and the widest.
    profiles = (profiles[0], profiles[-1])
    source = EngineSource(graph=tiny_package.file(FILES[part]), profiles=profiles, options=options)
    progress: list[str] = []
    built = build_engine(rtx, source, b"", progress=progress.append)
    assert len(built.plan) > 10_000
    assert progress


def test_shapes_that_contradict_the_graph_are_refused(
    rtx: GpuLibraries, tiny_package: ModelPackage
) -> None:
    five = ShapeRange((1, 5, 14, 14), (1, 5, 14, 14), (1, 5, 14, 14))
    source = EngineSource(
        graph=tiny_package.file(VISION_FILE),
        profiles=[{"pixel_values": five}],
        options=EngineOptions(),
    )
    with pytest.raises(GpuError, match=r"TensorRT .*(profile|shapes)"):
        build_engine(rtx, source, b"")


def test_bytes_that_are_no_engine_are_refused(rtx: GpuLibraries) -> None:
    assert deserialize(rtx, b"no engine" * 100) is None
    assert "Serialization" in rtx.log.take_errors()
