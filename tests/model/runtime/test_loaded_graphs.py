"""Which files a choice loads, in which precision, and which measurement proves it."""

from typing import Any

import pytest

from model.graphs import TEXT_FILE, VISION_FILE, Precision, graph_file
from model.manifest import ParityEntry, ParityLimits
from model.runtime.loaded_graphs import loaded_graphs, proof
from tests.model.runtime.conftest import make_manifest

DEPTH_FILE, NORMALS_FILE = graph_file("depth"), graph_file("normals")
VISION_INT8 = graph_file("vision", "int8")
SIZES = {
    VISION_FILE: 1,
    VISION_FILE + ".data": 2,
    VISION_INT8: 4,
    TEXT_FILE: 8,
    DEPTH_FILE: 16,
    NORMALS_FILE: 32,
    "model.safetensors": 64,
}
EXACT = {(TEXT_FILE, "fp32"), (DEPTH_FILE, "fp32")}


def entry(file: str, precision: Precision, runtime: str = "openvino", **given: Any) -> ParityEntry:
    known = {"file": file, "precision": precision, "runtime": runtime, "reference": "torch"}
    usual = {"sizes": [], "max_abs_diff": 0.5, "limits": ParityLimits(max_abs_diff=1.0)}
    return ParityEntry.model_validate(usual | known | given)


@pytest.mark.parametrize(
    ("runtime", "precision", "expected"),
    [
        ("openvino", "bf16", EXACT | {(VISION_FILE, "bf16"), (NORMALS_FILE, "bf16")}),
        # There is no graph of heads or texts in int8.
        ("openvino", "int8", EXACT | {(VISION_INT8, "int8"), (NORMALS_FILE, "fp32")}),
        ("onnx", "int8", EXACT | {(VISION_INT8, "int8"), (NORMALS_FILE, "fp32")}),
    ],
)
def test_texts_depth_and_absent_graphs_stay_in_float32(
    runtime: Any, precision: Precision, expected: set[tuple[str, str]]
) -> None:
    graphs = loaded_graphs(make_manifest(files=SIZES), runtime, precision)
    assert {(graph.file, graph.precision) for graph in graphs} == expected


VISION = entry(VISION_FILE, "bf16")


@pytest.mark.parametrize(
    ("parity", "is_proof"),
    [
        pytest.param([VISION], True, id="vision graph passed"),
        pytest.param([entry(TEXT_FILE, "fp32")], False, id="no vision graph"),
        pytest.param([entry(VISION_FILE, "fp32")], False, id="another precision"),
        pytest.param([VISION, entry(TEXT_FILE, "fp32", max_abs_diff=2.0)], False, id="text failed"),
        pytest.param([entry(VISION_FILE, "bf16", max_abs_diff=1.5)], False, id="vision failed"),
        pytest.param([entry(VISION_FILE, "bf16", limits=ParityLimits())], False, id="no limits"),
        pytest.param([VISION, entry(NORMALS_FILE, "bf16", max_abs_diff=2.0)], True, id="a head"),
    ],
)
def test_a_proof_needs_a_passed_vision_graph_and_no_failed_tower(
    parity: list[ParityEntry], is_proof: bool
) -> None:
    found = proof(make_manifest(*parity, files=SIZES), "openvino", "bf16")
    assert found == (VISION if is_proof else None)


def test_a_failed_head_or_text_graph_is_computed_in_float32() -> None:
    failed = entry(NORMALS_FILE, "bf16", max_abs_diff=2.0)
    graphs = loaded_graphs(make_manifest(VISION, failed, files=SIZES), "openvino", "bf16")
    found = {(graph.file, graph.precision) for graph in graphs}
    assert found == EXACT | {(VISION_FILE, "bf16"), (NORMALS_FILE, "fp32")}
    files = {graph_file("vision", "fp16"): 1, graph_file("text", "fp16"): 1, TEXT_FILE: 1}
    text = entry(graph_file("text", "fp16"), "fp16", "onnx", max_abs_diff=2.0)
    graphs = loaded_graphs(make_manifest(text, files=files), "onnx", "fp16")
    assert [graph.file for graph in graphs] == [graph_file("vision", "fp16"), TEXT_FILE]
