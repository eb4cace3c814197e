"""Only matrix products are rounded: what is marked, that it means the same, that it is nearer."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino
import pytest

from model.graphs import VISION_FILE
from model.package import ModelPackage
from model.runtime.openvino_rounding import hold_to_float32, read_for_bf16
from model.runtime.openvino_runtime import openvino_core

CPUINFO = Path("/proc/cpuinfo")
GRAPH = """<net><layers>
<layer id="0" name="pixels" type="Parameter" version="opset1"><data shape="1" /></layer>
<layer id="1" name="product" type="MatMul" version="opset1"><data transpose_a="false" /></layer>
<layer id="2" name="sum" type="Add" version="opset1"><data auto_broadcast="numpy" /></layer>
<layer id="3" name="known" type="MVN" version="opset6"><data eps="1e-6" /><rt_info>
<attribute name="fused_names_0" version="0" value="known" /></rt_info></layer>
<layer id="4" name="bare" type="Softplus" version="opset4"><input /></layer>
</layers></net>"""


def outputs(model: Any, hint: str, pixels_B3HW: np.ndarray) -> list[np.ndarray]:
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1}
    results = openvino_core().compile_model(model, "CPU", settings)(pixels_B3HW)
    return [array.copy() for array in results.values()]


def test_all_but_matrix_products_are_marked() -> None:
    layers = ElementTree.fromstring(hold_to_float32(GRAPH)).iter("layer")
    marks = {
        layer.get("name"): [a.get("name") for a in layer.iterfind("rt_info/attribute")]
        for layer in layers
    }
    assert marks == {
        "pixels": [],
        "product": [],
        "sum": ["precise"],
        "known": ["precise", "fused_names_0"],
        "bare": ["precise"],
    }


def test_a_marked_graph_computes_the_same_in_float32(tiny_package: ModelPackage) -> None:
    path = tiny_package.file(VISION_FILE)
    pixels_B3HW = np.random.default_rng(0).random((2, 3, 28, 56), dtype=np.float32)
    marked = read_for_bf16(openvino_core(), path, openvino.serialize)
    for ours, theirs in zip(
        outputs(marked, "f32", pixels_B3HW), outputs(path, "f32", pixels_B3HW), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.skipif(
    "avx512_bf16" not in CPUINFO.read_text(encoding="utf-8"), reason="this CPU has no bf16"
)
def test_a_marked_graph_is_nearer_to_float32_than_the_hint_alone(
    tiny_package: ModelPackage,
) -> None:
    path = tiny_package.file(VISION_FILE)
    pixels_B3HW = np.random.default_rng(0).random((4, 3, 56, 56), dtype=np.float32)
    exact = outputs(path, "f32", pixels_B3HW)
    marked = read_for_bf16(openvino_core(), path, openvino.serialize)
    errors = [
        sum(
            float(np.square(ours - theirs).mean())
            for ours, theirs in zip(outputs(model, "bf16", pixels_B3HW), exact, strict=True)
        )
        for model in (marked, path)
    ]
    assert 0 < errors[0] < 0.7 * errors[1]
