"""Which files a choice loads, in which arithmetic, and what proves it."""

from typing import Any

import pytest

from model.graphs import TEXT_FILE, VISION_FILE, Precision, graph_file
from model.manifest import FileEntry, Manifest, ParityEntry, ParityLimits
from model.runtime.loaded_graphs import loaded_bytes, loaded_graphs, parity_in_use, proof

DEPTH_FILE, NORMALS_FILE = graph_file("depth"), graph_file("normals")
VISION_INT8, TEXT_INT8 = graph_file("vision", "int8"), graph_file("text", "int8")
SIZES = {
    VISION_FILE: 1,
    VISION_FILE + ".data": 2,
    VISION_INT8: 4,
    TEXT_FILE: 8,
    DEPTH_FILE: 16,
    NORMALS_FILE: 32,
    "model.safetensors": 64,
}


def entry(file: str, precision: Precision, runtime: str = "openvino", **given: Any) -> ParityEntry:
    limits = ParityLimits(max_abs_diff=1.0)
    known = {"file": file, "precision": precision, "runtime": runtime, "limits": limits}
    return ParityEntry(**{"reference": "torch", "sizes": [], "max_abs_diff": 0.5, **known, **given})


def manifest(*parity: ParityEntry, files: dict[str, int] = SIZES) -> Manifest:
    return Manifest(
        name="made-up",
        variant="b14",
        embed_dim=8,
        native_size=28,
        min_size=14,
        max_size=56,
        shape_buckets=[(28, 28)],
        temperature=0.01,
        outputs=["cls1"],
        licence="none",
        files={name: FileEntry(sha256="0" * 64, size_bytes=size) for name, size in files.items()},
        parity=list(parity),
    )


def pairs(runtime: Any, precision: Precision) -> set[tuple[str, str]]:
    return {(g.file, g.precision) for g in loaded_graphs(manifest(), runtime, precision)}


def test_openvino_rounds_graphs_of_float32_but_neither_texts_nor_depth() -> None:
    assert pairs("openvino", "bf16") == {
        (VISION_FILE, "bf16"),
        (TEXT_FILE, "fp32"),
        (DEPTH_FILE, "fp32"),
        (NORMALS_FILE, "bf16"),
    }


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_graph_absent_in_a_precision_stays_in_float32(runtime: str) -> None:
    assert pairs(runtime, "int8") == {
        (VISION_INT8, "int8"),
        (TEXT_FILE, "fp32"),
        (DEPTH_FILE, "fp32"),
        (NORMALS_FILE, "fp32"),
    }


def test_bytes_are_those_of_the_files_that_are_loaded() -> None:
    assert loaded_bytes(manifest(), "onnx", "fp32") == 1 + 2 + 8 + 16 + 32
    assert loaded_bytes(manifest(), "onnx", "int8") == 4 + 8 + 16 + 32
    assert loaded_bytes(manifest(), "torch", "bf16") == 64


def test_the_parity_in_use_is_that_of_the_runtime_and_its_graphs() -> None:
    used = [entry(VISION_FILE, "bf16"), entry(DEPTH_FILE, "fp32")]
    unused = [
        entry(VISION_FILE, "bf16", "onnx"),
        entry(VISION_FILE, "fp32"),
        entry(DEPTH_FILE, "bf16"),
    ]
    assert parity_in_use(manifest(*unused, *used), "openvino", "bf16") == tuple(used)


def test_a_proof_needs_the_vision_graph_and_no_failed_graph() -> None:
    vision = entry(VISION_FILE, "bf16")
    assert proof(manifest(vision), "openvino", "bf16") == vision
    assert proof(manifest(entry(TEXT_FILE, "bf16")), "openvino", "bf16") is None
    assert proof(manifest(vision), "openvino", "fp32") is None
    failed = entry(TEXT_FILE, "fp32", max_abs_diff=2.0)
    assert proof(manifest(vision, failed), "openvino", "bf16") is None
    assert (
        proof(manifest(vision.model_copy(update={"max_abs_diff": 1.5})), "openvino", "bf16") is None
    )
    nothing = vision.model_copy(update={"limits": ParityLimits()})
    assert proof(manifest(nothing), "openvino", "bf16") is None
