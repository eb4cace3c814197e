"""A key tells engines apart by everything that they depend on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.manifest import FileEntry, Manifest
from model.package import ModelPackage
from model.runtime.tensorrt.engine_key import EngineKey, differences, graph_digest
from model.runtime.tensorrt.libraries import DeviceFacts
from model.runtime.tensorrt.options import EngineOptions
from model.runtime.tensorrt.profiles import ShapeRange

DEVICE = DeviceFacts(
    gpu="NVIDIA H100 80GB HBM3", compute_capability="9.0", tensorrt="11.4.0.106", cuda_major=13
)
KEY = EngineKey(
    device=DEVICE,
    part="vision",
    precision="bf16",
    graph_sha256="a" * 64,
    profiles=[{"pixel_values": ShapeRange((1, 3, 14, 14), (4, 3, 14, 14), (8, 3, 14, 14))}],
    options=EngineOptions(),
)
OTHER_RANGE = ShapeRange((1, 3, 14, 14), (4, 3, 14, 14), (9, 3, 14, 14))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(KEY, device=replace(DEVICE, gpu="NVIDIA L4")), "NVIDIA L4"),
        (replace(KEY, device=replace(DEVICE, compute_capability="8.9")), "8.9"),
        (replace(KEY, device=replace(DEVICE, tensorrt="10.9.0")), "10.9.0"),
        (replace(KEY, device=replace(DEVICE, cuda_major=12)), "cuda_major is 13 and was 12"),
        (replace(KEY, part="text"), "part is 'vision' and was 'text'"),
        (replace(KEY, precision="fp16"), "precision is 'bf16' and was 'fp16'"),
        (replace(KEY, graph_sha256="b" * 64), "graph_sha256"),
        (replace(KEY, profiles=[{"pixel_values": OTHER_RANGE}]), "profiles changed"),
        (replace(KEY, options=EngineOptions(allow_tf32=True)), "options changed"),
    ],
)
def test_whatever_it_depends_on_tells_it_apart(other: EngineKey, told: str) -> None:
    assert told in differences(other.facts(), KEY.facts())


def test_a_key_that_went_through_json_is_the_same() -> None:
    assert not differences(json.loads(json.dumps(KEY.facts())), KEY.facts())


@pytest.mark.parametrize("found", [None, [], "key", {}])
def test_what_is_no_key_differs(found: object) -> None:
    assert differences(found, KEY.facts())


def test_a_later_programs_key_differs() -> None:
    assert "extra" in differences({**KEY.facts(), "extra": 1}, KEY.facts())


def test_a_device_has_a_folder_of_its_own() -> None:
    assert DEVICE.folder == "nvidia-h100-80gb-hbm3-cc-9.0-trt-11.4.0.106-cuda-13"
    assert "/" not in replace(DEVICE, gpu="../a/b").folder


def package_of(tiny: Manifest, *names: str) -> ModelPackage:
    files = {name: FileEntry(sha256="0" * 64, size_bytes=1) for name in names}
    return ModelPackage(path=Path(), manifest=tiny.model_copy(update={"files": files}))


def test_weights_beside_a_graph_count_and_other_graphs_do_not(tiny_package: ModelPackage) -> None:
    names = ("onnx/vision_model.onnx", "onnx/vision_model.onnx.data", "onnx/text_model.onnx")
    package = package_of(tiny_package.manifest, *names, "model.safetensors")
    before = graph_digest(package.manifest, names[0])

    def digest_with_changed(name: str) -> str:
        files = {**package.manifest.files, name: FileEntry(sha256="1" * 64, size_bytes=1)}
        return graph_digest(package.manifest.model_copy(update={"files": files}), names[0])

    assert digest_with_changed(names[0]) != before
    assert digest_with_changed(names[1]) != before
    assert digest_with_changed(names[2]) == before
    assert digest_with_changed("model.safetensors") == before
